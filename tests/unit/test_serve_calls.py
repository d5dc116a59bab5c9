"""REST requests under way: deadlines, full queues, threads aside; and the connections that a server keeps."""

import asyncio
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from serve import dtypes
from serve.http_limits import Limits
from serve.http_server import Server
from serve.model import Servable, Signature, TensorSpec
from serve.observe import Observer
from serve.rest import Answer, Request
from serve.rest_calls import Calls, Options
from serve.status import Code, ServingError

HALF = Signature({"x": TensorSpec("x:0", dtypes.FLOAT)}, {"y": TensorSpec("y:0", dtypes.FLOAT)})
LATE = ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")


class Model:
    """A model, its queue and its leases: runs wait in `runs` until they are told to end."""

    def __init__(self):
        self.signatures = {"serving_default": HALF}
        self.queue = self
        self.runs, self.leased, self.refuses = [], 0, None

    def acquire(self, _name, _version=None, _label=None):
        self.leased += 1
        servable = Servable("m", 1, self)
        return SimpleNamespace(model=self, queue=self, servable=servable, release=self.release)

    def release(self):
        self.leased -= 1

    def submit(self, feeds, _fetches, deadline, done):
        if self.refuses:
            raise self.refuses
        run = SimpleNamespace(feeds=feeds, deadline=deadline, done=done, settled=False)
        run.give_up = lambda: None if run.settled else LATE
        self.runs.append(run)
        return run

    def end(self, at=0, outcome=None):
        run = self.runs.pop(at)
        run.settled = True
        run.done([run.feeds["x:0"] / 2] if outcome is None else outcome)


class Desk:
    """Calls, and the answers that came."""

    def __init__(self, aside, **options):
        self.model, self.answers, self.woken = Model(), {}, 0
        loop = asyncio.get_running_loop()

        def wake(step):
            self.woken += 1
            loop.call_soon_threadsafe(step)

        watched = SimpleNamespace(call_later=loop.call_later, call_soon_threadsafe=wake)
        self.calls = Calls(self.model, watched, aside, Options(**options), Observer())

    def ask(self, name, body=b'{"instances": [4]}', **headers):
        given = {key.replace("_", "-").encode(): value for key, value in headers.items()}
        self.calls.start(
            Request("POST", "/v1/models/m:predict", given, body), lambda answer: self._got(name, answer)
        )

    def _got(self, name, answer):
        assert name not in self.answers, "a request is answered once"
        self.answers[name] = answer

    async def wait(self, count):
        while len(self.answers) < count:
            await asyncio.sleep(0.001)
        return [(answer.status, json.loads(answer.body)) for answer in self.answers.values()]


def at_desk(story, **options):
    """Runs a test's story at a desk; nothing is left under way at its end."""

    async def told():
        with ThreadPoolExecutor(1) as aside:
            desk = Desk(aside, **options)
            await story(desk)
            assert desk.calls.count == 0
            assert desk.model.leased == 0

    asyncio.run(asyncio.wait_for(told(), 10))


def test_answers_that_come_together_wake_the_loop_once():
    async def story(desk):
        for name in range(5):
            desk.ask(name)
        assert (desk.calls.count, desk.model.leased) == (5, 5)
        for _ in range(5):
            desk.model.end()
        assert await desk.wait(5) == [(200, {"predictions": [2.0]})] * 5
        assert desk.woken == 1

    at_desk(story)


def test_run_that_fails_is_answered_by_its_error():
    async def story(desk):
        desk.ask("a")
        desk.model.end(outcome=ServingError(Code.ABORTED, "no"))
        assert await desk.wait(1) == [(409, {"error": "no"})]

    at_desk(story)


def test_run_past_its_deadline_is_answered_by_504_and_its_version_given_back():
    async def story(desk):
        desk.ask("a")
        desk.ask("b")
        assert desk.model.runs[0].deadline is not None
        assert await desk.wait(2) == [(504, {"error": LATE.message})] * 2

    at_desk(story, timeout_s=0.02)


def test_run_that_ends_at_its_deadline_is_answered_by_what_it_gave():
    async def story(desk):
        desk.ask("a")
        desk.model.runs[0].settled = True  # its outcome is on its way
        await asyncio.sleep(0.05)
        assert desk.answers == {}
        desk.model.end()
        assert await desk.wait(1) == [(200, {"predictions": [2.0]})]

    at_desk(story, timeout_s=0.02)


def test_without_a_timeout_a_run_has_no_deadline():
    async def story(desk):
        desk.ask("a")
        assert desk.model.runs[0].deadline is None
        desk.model.end()
        await desk.wait(1)

    at_desk(story, timeout_s=None)


def test_full_queue_is_answered_by_429():
    async def story(desk):
        desk.model.refuses = ServingError(Code.RESOURCE_EXHAUSTED, "full")
        desk.ask("a")
        assert await desk.wait(1) == [(429, {"error": "full"})]

    at_desk(story)


def test_requests_beyond_the_limit_are_answered_by_429_at_once():
    async def story(desk):
        for name in range(3):
            desk.ask(name)
        assert [answer.status for answer in desk.answers.values()] == [429]
        assert b"--rest_requests_at_most" in desk.answers[2].body
        desk.model.end()
        desk.model.end()
        await desk.wait(3)

    at_desk(story, requests_at_most=2)


def test_server_that_stops_answers_what_runs_by_503():
    async def story(desk):
        desk.ask("a")
        desk.calls.stop()
        assert await desk.wait(1) == [(503, {"error": "The server is stopping"})]

    at_desk(story)


@pytest.mark.parametrize("headers", [{}, {"content_encoding": b"gzip"}])
def test_large_and_compressed_requests_and_large_answers_go_through_a_thread_aside(headers):
    async def story(desk):
        body = json.dumps({"instances": [4] * 1000}).encode()
        desk.ask("a", gzip.compress(body) if headers else body, **headers)
        assert desk.model.runs == []
        while not desk.model.runs:
            await asyncio.sleep(0.001)
        desk.model.end()
        assert await desk.wait(1) == [(200, {"predictions": [2.0] * 1000})]

    at_desk(story, aside_bytes=100, aside_values=100)


def test_body_that_inflates_too_far_is_refused():
    async def story(desk):
        desk.ask("a", gzip.compress(b'{"instances": [1]}' + b" " * 100_000), content_encoding=b"gzip")
        ((status, told),) = await desk.wait(1)
        assert status == 413
        assert "--rest_inflated_bytes_at_most" in told["error"]

    at_desk(story, inflated_bytes=1000)


def test_body_that_inflates_to_just_what_may_be_is_read():
    async def story(desk):
        desk.ask("a", gzip.compress(b'{"instances": "x"}'.ljust(1000)), content_encoding=b"gzip")
        ((status, told),) = await desk.wait(1)
        assert status == 400
        assert "'instances' to be an list/array" in told["error"]

    at_desk(story, inflated_bytes=1000)


def test_trace_of_a_request_goes_on_in_its_answer():
    async def story(desk):
        desk.ask("a", traceparent=b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        desk.model.end()
        await desk.wait(1)
        ((name, value),) = desk.answers["a"].headers
        assert name == b"traceresponse"
        assert value.startswith(b"00-0af7651916cd43dd8448eb211c80319c-")

    at_desk(story)


def test_trace_stands_beside_the_headers_of_a_refusal():
    async def story(desk):
        trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        desk.ask("a", content_encoding=b"br", traceparent=trace)
        await desk.wait(1)
        assert desk.answers["a"].status == 415
        assert [name for name, _ in desk.answers["a"].headers] == [b"accept-encoding", b"traceresponse"]

    at_desk(story)


# --- the server's connections ---


class Rests:
    """A connection that is not in use."""

    def __init__(self):
        self.rests_since, self.closed, self.checked = 0.0, False, 0

    def close(self):
        self.closed = True

    def check(self, _now):
        self.checked += 1
        return self.checked < 2


def with_server(story, **limits):
    async def told():
        server = Server(lambda _request, respond: respond(Answer(200)), Limits(**limits))
        story(server)

    asyncio.run(told())


def test_connection_that_rests_longest_makes_room_for_a_new_one():
    def story(server):
        first, second, third = Rests(), Rests(), Rests()
        for connection in (first, second):
            assert server.opened(connection)
            server.rests(connection)
        server.works(first)
        server.rests(first)
        assert server.opened(third)
        assert (first.closed, second.closed) == (False, True)
        server.works(first)
        assert not server.opened(Rests())
        server.closed(second)
        server.closed(third)
        assert server.opened(Rests())

    with_server(story, connections=2)


def test_connections_that_rest_too_long_are_closed_and_those_that_wait_are_checked():
    def story(server):
        old, young, slow = Rests(), Rests(), Rests()
        for connection in (old, young, slow):
            assert server.opened(connection)
        server.rests(old)
        server.rests(young)
        old.rests_since -= 100
        server.watch(slow)
        for _ in range(3):
            server._sweep()
        assert (old.closed, young.closed, slow.checked) == (True, False, 2)

    with_server(story, idle_s=50)
