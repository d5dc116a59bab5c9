"""Calls that are begun and answered later, over a real connection to gRPC's server."""

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from queue import SimpleQueue

import grpc
import pytest

from serve import grpc_front, health
from serve.call_threads import CallThreads
from serve.grpc_front import Front
from serve.status import Code, ServingError, invalid

SOON_S = 30
ECHO = "/test.Service/Echo"


class Method:
    """Keeps the calls that were begun; the test answers them."""

    def __init__(self):
        self.begun = SimpleQueue()
        self.left = SimpleQueue()

    def begin(self, request, context, reply):
        if request == b"raise":
            raise KeyError("a bug")
        if request == b"now":
            reply(b"at once")
            return
        context.add_callback(lambda: self.left.put(request))
        self.begun.put((request, reply, threading.current_thread().name))

    def __call__(self, request, context):
        return b"in a thread"

    def next(self):
        return self.begun.get(timeout=SOON_S)


class NoThreads(Executor):
    """For calls that need none."""

    def submit(self, fn, /, *args, **kwargs):
        raise AssertionError("no thread is needed")


def read(message):
    if message == b"broken":
        raise ValueError(message)
    return message


def write(answer):
    if answer is None:
        raise ValueError("nothing to write")
    return answer


class Server:
    def __init__(self, method, threads, **options):
        handler = grpc.unary_unary_rpc_method_handler(method, read, write)
        self.grpc = grpc.server(Front(threads), **options)
        self.grpc.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Service", {"Echo": handler})]
        )
        port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)])
        self.echo = self.channel.unary_unary(ECHO)

    def close(self):
        self.channel.close()
        self.grpc.stop(None).wait(SOON_S)


@pytest.fixture
def opened():
    servers = []

    def opens(method, threads=None, **options):
        servers.append(Server(method, threads or NoThreads(), **options))
        return servers[-1]

    yield opens
    for server in servers:
        server.close()


def status_of(call):
    with pytest.raises(grpc.RpcError) as told:
        call.result(SOON_S)
    return told.value.code().name, told.value.details()


def test_many_calls_wait_without_a_thread_and_are_answered_in_any_order(opened):
    method = Method()
    server = opened(method)
    calls = {b"%d" % number: server.echo.future(b"%d" % number) for number in range(50)}
    begun = [method.next() for _ in calls]
    for request, reply, _ in reversed(begun):
        reply(b"to " + request)
    assert {request: call.result(SOON_S) for request, call in calls.items()} == {
        request: b"to " + request for request in calls
    }
    assert {thread for *_, thread in begun} == {begun[0][2]}
    assert server.echo(b"now", timeout=SOON_S) == b"at once"


def test_long_messages_are_begun_in_a_thread_aside(opened):
    method = Method()
    with ThreadPoolExecutor(1, "aside") as threads:
        server = opened(method, threads)
        call = server.echo.future(bytes(grpc_front._ASIDE_BYTES + 1))
        request, reply, thread = method.next()
        assert len(request) > grpc_front._ASIDE_BYTES
        assert thread.startswith("aside")
        reply(b"read")
        assert call.result(SOON_S) == b"read"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (invalid("no"), ("INVALID_ARGUMENT", "no")),
        (ServingError(Code.NOT_FOUND, "é\ud800"), ("NOT_FOUND", "é?")),
        (invalid("x" * 2000), ("INVALID_ARGUMENT", "x" * 1024 + "...TRUNCATED")),
        (None, ("INTERNAL", "Failed to serialize response!")),
    ],
)
def test_errors_are_answered_by_their_status(opened, answer, told):
    method = Method()
    call = opened(method).echo.future(b"x")
    method.next()[1](answer)
    assert status_of(call) == told


def test_bug_is_answered_and_the_server_goes_on(opened, capsys):
    server = opened(Method())
    assert status_of(server.echo.future(b"raise")) == ("INTERNAL", "KeyError: 'a bug'")
    assert server.echo(b"now", timeout=SOON_S) == b"at once"
    assert "KeyError" in capsys.readouterr().err


def test_message_that_is_none_and_none_at_all_are_refused_and_the_server_goes_on(opened):
    server = opened(Method())
    assert status_of(server.echo.future(b"broken")) == ("INTERNAL", "Exception deserializing request!")
    empty = server.channel.stream_unary(ECHO).future(iter(()))
    assert status_of(empty) == ("UNIMPLEMENTED", f'"{ECHO}" requires exactly one request message.')
    assert server.echo(b"now", timeout=SOON_S) == b"at once"


@pytest.mark.parametrize(("timeout_s", "code"), [(None, "CANCELLED"), (0.05, "DEADLINE_EXCEEDED")])
def test_client_that_leaves_is_noticed_and_an_answer_after_it_does_no_harm(opened, timeout_s, code):
    method = Method()
    server = opened(method)
    call = server.echo.future(b"x", timeout=timeout_s)
    _, reply, _ = method.next()
    if timeout_s is None:
        call.cancel()
    assert method.left.get(timeout=SOON_S) == b"x"
    reply(b"too late")
    assert call.code().name == code
    assert server.echo(b"now", timeout=SOON_S) == b"at once"


def test_calls_are_counted_until_they_are_answered(opened):
    method = Method()
    server = opened(method, maximum_concurrent_rpcs=2)
    calls = {request: server.echo.future(request) for request in (b"a", b"b")}
    replies = dict(method.next()[:2] for _ in calls)
    assert status_of(server.echo.future(b"x")) == ("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!")
    replies[b"a"](b"done")
    assert calls[b"a"].result(SOON_S) == b"done"
    replies[b"b"](invalid("done"))
    assert status_of(calls[b"b"]) == ("INVALID_ARGUMENT", "done")
    for _ in range(3):
        assert server.echo(b"now", timeout=SOON_S) == b"at once"


def test_server_that_stops_waits_for_the_answers(opened):
    method = Method()
    server = opened(method)
    call = server.echo.future(b"x")
    _, reply, _ = method.next()
    stopped = server.grpc.stop(SOON_S)
    assert not stopped.wait(0.05)
    reply(b"the last")
    assert call.result(SOON_S) == b"the last"
    assert stopped.wait(SOON_S)


def test_where_grpc_is_another_every_call_has_a_thread(opened, monkeypatch):
    assert grpc_front.supported()
    with monkeypatch.context() as other:
        other.delattr(grpc_front._server, "_serialize_response")
        assert not grpc_front.supported()
    monkeypatch.setattr(grpc_front, "supported", lambda: False)
    with ThreadPoolExecutor(1) as threads:
        assert opened(Method(), threads).echo(b"x", timeout=SOON_S) == b"in a thread"


def test_first_of_two_answers_counts(opened):
    method = Method()
    server = opened(method, maximum_concurrent_rpcs=1)
    call = server.echo.future(b"x")
    _, reply, _ = method.next()
    reply(b"first")
    reply(invalid("second"))
    assert call.result(SOON_S) == b"first"
    assert server.echo(b"now", timeout=SOON_S) == b"at once"


def test_watches_of_the_health_that_end_while_others_begin_hold_up_nobody():
    threads = CallThreads(2)
    server = grpc.server(Front(threads))
    healths = health.Healths()
    server.add_generic_rpc_handlers([health.handler(healths, threads)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(100):
            watches = [watch(b"") for _ in range(3)]
            for each in watches:
                each.cancel()
            assert check(b"", timeout=SOON_S) == b"\x08\x01"
        stays = watch(b"", timeout=SOON_S)
        assert next(stays) == b"\x08\x01"
        healths.set_all(health.Health.NOT_SERVING)
        healths.end()
        assert list(stays) == [b"\x08\x02"]
    server.stop(None).wait(SOON_S)
