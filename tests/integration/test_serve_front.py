"""A real server and HTTP clients that are slow, endless, broken, or many; by raw sockets."""

import contextlib
import gzip
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests import support_serve
from tests.support_serve import GRPC, REST, call, one, request, running

MIB = 1 << 20
CONNECTIONS = 300
NEST = b"[" * 500_000 + b"]" * 500_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with small limits."""
    models = support_serve.models(tmp_path_factory.getbasetemp())
    limits = (
        f"--rest_body_bytes_at_most={4 * MIB}",
        f"--rest_inflated_bytes_at_most={8 * MIB}",
        "--rest_receive_seconds=1",
        "--rest_send_seconds=1",
        f"--rest_connections_at_most={CONNECTIONS}",
        "--rest_requests_at_most=8",
        "--rest_api_enable_cors_support",
        f"--grpc_message_bytes_at_most={MIB}",
        "--json_depth_at_most=600000",
    )
    with running(*one("kinds", models), *limits, grpc=GRPC, rest=REST) as process:
        yield process


@contextlib.contextmanager
def connected(timeout_s=20):
    with socket.create_connection(("127.0.0.1", REST), timeout_s) as client:
        yield client


def post(body: bytes, extra: bytes = b"", target: bytes = b"/v1/models/kinds:predict") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%b\r\n" % (target, len(body), extra)
    return head + body


def rows(*values: int) -> bytes:
    return json.dumps({"signature_name": "small", "instances": values}).encode()


def answers(client: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """The next answers on a connection, as status and body."""
    found, file = [], client.makefile("rb")
    for _ in range(count):
        status = int(file.readline().split()[1])
        size = 0
        while (line := file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b": ")
            size = int(value) if name.lower() == b"content-length" else size
        found.append((status, file.read(size)))
    return found


def end_of(client: socket.socket) -> bytes:
    """What is left on a connection until its end."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def alive():
    """The server still answers others, well."""
    assert call("POST", "/v1/models/kinds:predict", rows(1, 2), REST).json == {"predictions": [1, 2]}


def memory_mib(process) -> float:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def test_pipelined_requests_are_answered_in_order(server):
    with connected() as client:
        client.sendall(b"".join(post(rows(number)) for number in range(200)))
        got = answers(client, 200)
    assert [json.loads(body)["predictions"] for _, body in got] == [[number] for number in range(200)]


def test_client_that_sends_no_more_gets_its_answer_and_the_end(server):
    with connected() as client:
        client.sendall(post(rows(7)))
        client.shutdown(socket.SHUT_WR)
        assert answers(client, 1) == [(200, b'{"predictions": [7]}')]
        assert end_of(client) == b""


def test_old_and_odd_requests(server):
    with connected() as client:
        client.sendall(b"GET /v1/models/kinds HTTP/1.0\r\n\r\n")
        assert end_of(client).startswith(b"HTTP/1.1 200 OK\r\n")
    with connected() as client:
        client.sendall(b"HEAD /v1/models/kinds HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head, _, body = end_of(client).partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], body) == (b"HTTP/1.1 400 Bad Request", b"")
    with connected() as client:
        body = rows(1)
        client.sendall(post(body, b"Expect: 100-continue\r\n")[: -len(body)])
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert answers(client, 1)[0][0] == 200
    with connected() as client:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in rows(3)) + b"0\r\n\r\n"
        head = b"POST /v1/models/kinds:predict HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + chunks)
        assert answers(client, 1) == [(200, b'{"predictions": [3]}')]


def test_answers_carry_cors_headers_when_asked_for(server):
    with connected() as client:
        client.sendall(
            b"OPTIONS /v1/models/kinds HTTP/1.1\r\nHost: h\r\nOrigin: http://x\r\nConnection: close\r\n\r\n"
        )
        head, _, body = end_of(client).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (lines[0], body) == (b"HTTP/1.1 200 OK", b"")
    assert b"Access-Control-Allow-Origin: *" in lines
    assert b"Access-Control-Allow-Methods: POST, GET" in lines
    assert b"Access-Control-Allow-Headers: Content-Type" in lines
    assert not any(line.startswith(b"Content-Type:") for line in lines)


def test_slow_clients_are_given_up_while_others_are_served(server):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected()) for _ in range(50)]
        for number, client in enumerate(slow):
            client.sendall(b"GET / HT" if number % 2 else post(rows(1))[:-3])
        alive()
        time.sleep(0.3)
        for client in slow[::2]:
            client.sendall(b" ")
        assert {answers(client, 1)[0][0] for client in slow} == {408}
        alive()


def test_client_that_takes_no_answers_does_not_hold_them_for_ever(server):
    before = memory_mib(server)
    body = json.dumps({"signature_name": "text", "instances": ["x" * 1000] * 2000}).encode()
    with connected() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(40):
                client.sendall(post(body))
        alive()
    assert memory_mib(server) < before + 300


def test_oversize_bodies_are_refused_before_they_come(server):
    with connected() as client:
        client.sendall(
            b"POST /v1/models/kinds:predict HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n"
        )
        ((status, body),) = answers(client, 1)
        assert status == 413
        assert json.loads(body) == {
            "error": f"Request body is larger than {4 * MIB} bytes (--rest_body_bytes_at_most)"
        }
    with connected() as client, contextlib.suppress(ConnectionError):
        client.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            client.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        assert end_of(client).startswith(b"HTTP/1.1 413 ")
    with connected() as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"A: %b\r\n" % (b"b" * 1000) * 70)
        assert answers(client, 1)[0][0] == 431
    alive()


def test_gzip_bomb_is_refused_and_costs_little(server):
    bomb = gzip.compress(b"[" * (128 * MIB), 1)
    before = memory_mib(server)
    with connected() as client:
        client.sendall(post(bomb, b"Content-Encoding: gzip\r\n"))
        ((status, body),) = answers(client, 1)
    assert status == 413
    assert b"--rest_inflated_bytes_at_most" in body
    assert memory_mib(server) < before + 100
    alive()


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b'{"x": ' + NEST + b', "signature_name": "small", "instances": [1]}', 200, "predictions"),
        (b'{"signature_name": ' + NEST + b"}", 400, "must be a string value"),
        (b"[" * (3 * MIB), 400, "Nested deeper than 600000 (--json_depth_at_most)"),
        (b'{"inputs": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}", 400, "nested deeper than 31 lists"),
        (b'{"instances": [' + b"[]," * MIB + b"[]]}", 200, "predictions"),
        (b'{"instances": ["\xff\xfe"]}', 400, "String is not of expected type"),
        (b'{"instances": [' + b"1e9999," * 1000 + b"1]}", 400, "Number too big"),
        (b"\x00" * 1000, 400, "JSON Parse error"),
    ],
)  # fmt: skip
def test_bodies_made_to_hurt_are_answered_and_forgotten(server, body, status, part):
    with connected() as client:
        client.sendall(post(body.replace(b'{"in', b'{"signature_name": "small", "in')))
        ((got, told),) = answers(client, 1)
    assert got == status, told[:200]
    assert part in told.decode("utf-8", "replace")
    assert b"Traceback" not in told
    alive()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v1/models/..%2f..%2fetc%2fpasswd", 404),
        (b"/v1/models/../../etc/passwd", 400),
        (b"//v1/models/kinds", 404),
        (b"/v1/models/%00", 404),
        (b"/v1/models/%ff%fe", 404),
        (b"/v1/models/kinds/versions/99999999999999999999", 400),
        (b"/v1/models/kinds/versions/" + b"9" * 60_000, 400),
        (b"/v1/models/" + b"k" * 60_000, 404),
        (b"/v1/models/{{7*7}}'\"<script>", 404),
        (b"/v1/models/kinds%0d%0aX: y", 400),
    ],
)
def test_paths_made_to_trick_lead_nowhere(server, target, status):
    with connected() as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        got = end_of(client)
    assert int(got.split()[1]) == status
    assert b"X: y" not in got.partition(b"\r\n\r\n")[0]
    assert b"Traceback" not in got


def test_hundreds_of_resting_connections_cost_little_and_new_clients_come_in(server):
    before = memory_mib(server)
    with contextlib.ExitStack() as stack:
        resting = [stack.enter_context(connected()) for _ in range(CONNECTIONS + 50)]
        alive()
        assert memory_mib(server) < before + 20
        assert end_of(resting[0]) == b""
        resting[-1].sendall(post(rows(5)))
        assert answers(resting[-1], 1) == [(200, b'{"predictions": [5]}')]


def test_more_requests_than_may_run_are_answered_by_429(server):
    slow = json.dumps({"signature_name": "slow", "inputs": 1.0})
    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda _: call("POST", "/v1/models/kinds:predict", slow, REST).status, range(20)))
    assert set(got) == {200, 429}
    assert got.count(200) >= 8
    alive()


def test_grpc_message_beyond_its_limit_is_refused(server):
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        with pytest.raises(grpc.RpcError) as caught:
            predict(request("kinds", signature="small", n=np.zeros(2 * MIB, np.uint8)), timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = predict(request("kinds", signature="small", n=np.ones(3, np.uint8)), timeout=20)
        assert list(answer.outputs["n"].int_val) == [1, 1, 1]
