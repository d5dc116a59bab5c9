"""Connections of the HTTP server, on a wire of this file: good clients, and those that are slow, endless or broken."""

import json

import pytest

from serve.http_limits import Limits, Room
from serve.http_message import CONTINUE, Writer
from serve.http_protocol import _JOINED_AT_MOST, Connection
from serve.rest import Answer

POST = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self):
        self.sent, self.unsent = b"", 0
        self.closed = self.aborted = self.half_closed = self.reading_paused = False

    def write(self, data):
        assert not self.closed
        self.sent += data

    def write_eof(self):
        self.half_closed = True

    def can_write_eof(self):
        return True

    def close(self):
        self.closed = True

    def abort(self):
        self.closed = self.aborted = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        self.reading_paused = True

    def resume_reading(self):
        self.reading_paused = False

    def get_write_buffer_size(self):
        return self.unsent


class Hub:
    """What connections share. Requests wait in `asked` until `answer` is called, unless `at_once`."""

    def __init__(self, at_once=True, **limits):
        self.limits = Limits(**{"receive_s": 10, "send_s": 10, "linger_s": 2, **limits})
        self.room = Room(self.limits.all_bodies_bytes)
        self.writer = Writer()
        self.draining = False
        self.at_once = at_once
        self.now = 100.0
        self.asked, self.seen, self.soon = [], [], []
        self.resting, self.watched, self.gone, self.full = set(), set(), False, False

    def time(self):
        return self.now

    def call_soon(self, step):
        self.soon.append(step)

    def handle(self, request, respond):
        self.seen.append(request)
        if self.at_once:
            respond(Answer(200, request.body or request.target.encode()))
        else:
            self.asked.append(respond)

    def opened(self, _connection):
        return not self.full

    def closed(self, _connection):
        self.gone = True

    def rests(self, connection):
        self.resting.add(connection)

    def works(self, connection):
        self.resting.discard(connection)

    def watch(self, connection):
        self.watched.add(connection)

    def later(self, seconds):
        self.now += seconds
        self.watched = {connection for connection in self.watched if connection.check(self.now)}


def connected(hub):
    connection, wire = Connection(hub, hub), Wire()
    connection.connection_made(wire)
    return connection, wire


def answers(wire):
    """What was sent, as (status, headers, body)."""
    found, rest = [], wire.sent
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        found.append((int(status.split()[1]), headers, rest[:size]))
        rest = rest[size:]
    return found


def bodies(wire):
    return [body for _, _, body in answers(wire)]


def refused(wire):
    """The one answer, which ends the connection: its status and its error."""
    ((status, headers, body),) = answers(wire)
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)["error"]


def post(body=b"abc", extra=b""):
    return POST + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_content_codings_of_several_lines_are_one_list():
    hub = Hub()
    connection, _ = connected(hub)
    connection.data_received(
        post(b"abc", b"Content-Encoding: gzip\r\ncontent-encoding: br\r\nA: 1\r\nA: 2\r\n")
    )
    assert hub.seen[0].headers[b"content-encoding"] == b"gzip,br"
    assert hub.seen[0].headers[b"a"] == b"2"


def test_request_is_answered_once_it_is_whole_and_the_connection_stays():
    hub = Hub()
    connection, wire = connected(hub)
    for _ in range(2):
        for byte in post(b"abc", b"Content-Encoding: GZIP\r\n"):
            connection.data_received(bytes([byte]))
    assert bodies(wire) == [b"abc", b"abc"]
    assert hub.seen[0].headers[b"content-encoding"] == b"GZIP"
    assert (hub.seen[0].method, hub.seen[0].target) == ("POST", "/v1/models/m:predict")
    assert connection in hub.resting
    assert not wire.closed
    assert hub.room.used == 0


def test_pipelined_requests_are_answered_one_at_a_time_in_their_order():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post(b"1") + post(b"2") + post(b"3"))
    for number in range(3):
        assert len(hub.asked) == number + 1
        hub.asked[number](Answer(200, b"%d" % number))
    assert bodies(wire) == [b"0", b"1", b"2"]


def test_reading_stops_while_many_pipelined_requests_wait():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post() * 30)
    assert wire.reading_paused
    hub.at_once = True
    hub.asked[0](Answer(200))
    assert len(answers(wire)) == 30
    assert not wire.reading_paused


def test_many_requests_at_once_leave_the_loop_time_for_others():
    hub = Hub()
    connection, wire = connected(hub)
    connection.data_received(b"GET /a HTTP/1.1\r\n\r\n" * 100)
    assert len(answers(wire)) == 64
    hub.soon.pop()()
    assert len(answers(wire)) == 100


@pytest.mark.parametrize(
    ("version", "connection_header", "stays", "told"),
    [
        (b"1.1", b"", True, None),
        (b"1.1", b"Connection: close\r\n", False, "close"),
        (b"1.0", b"", False, "close"),
        (b"1.0", b"Connection: keep-alive\r\n", True, "keep-alive"),
    ],
)
def test_connection_stays_or_closes_as_its_client_asks(version, connection_header, stays, told):
    connection, wire = connected(Hub())
    connection.data_received(b"GET /v1/models/m HTTP/" + version + b"\r\n" + connection_header + b"\r\n")
    ((status, headers, body),) = answers(wire)
    assert (status, body, headers.get("connection")) == (200, b"/v1/models/m", told)
    assert wire.closed is not stays


def test_head_is_answered_by_the_length_without_the_body():
    connection, wire = connected(Hub())
    connection.data_received(b"HEAD /abc HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"Content-Length: 4\r\n" in wire.sent
    assert wire.sent.endswith(b"\r\n\r\n")


def test_chunked_bodies_are_joined_and_their_trailers_are_no_headers():
    hub = Hub()
    connection, wire = connected(hub)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b"abcdef")
    connection.data_received(
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nOrigin: x\r\n\r\n"
    )
    assert bodies(wire) == [b"abcdef"]
    assert b"origin" not in hub.seen[0].headers


def test_client_that_expects_it_is_told_to_continue_when_its_turn_has_come():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post(b"1"))
    connection.data_received(POST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert wire.sent == b""
    hub.asked[0](Answer(200, b"first"))
    assert wire.sent.endswith(b"first" + CONTINUE)
    connection.data_received(b"2")
    hub.asked[1](Answer(200, b"second"))
    assert wire.sent.count(CONTINUE) == 1
    assert wire.sent.endswith(b"second")


def test_client_that_expects_to_be_told_to_continue_and_does_not_wait_is_not_told():
    connection, wire = connected(Hub())
    connection.data_received(post(b"1", b"Expect: 100-continue\r\n"))
    assert bodies(wire) == [b"1"]


def test_upgrade_to_another_protocol_is_passed_over():
    hub = Hub()
    connection, wire = connected(hub)
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    connection.data_received(post(b"1", upgrade) + b"GET /2 HTTP/1.1\r\n" + upgrade + b"\r\n" + post(b"3"))
    assert bodies(wire) == [b"1", b"/2", b"3"]
    connection.data_received((b"GET /x HTTP/1.1\r\n" + upgrade + b"\r\n") * 2000)
    while hub.soon:
        hub.soon.pop()()
    assert bodies(wire)[3:] == [b"/x"] * 2000


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://h:1/v1/models/m?x=1", "/v1/models/m?x=1"),
        (b"http://h", "/"),
        (b"/v1/../%2e%2e/%00", "/v1/../%2e%2e/%00"),
        (b"/v1/models/http://x", "/v1/models/http://x"),
        (b"*", "*"),
    ],
)
def test_target_is_its_path_and_query_as_sent(target, path):
    hub = Hub()
    connection, _ = connected(hub)
    connection.data_received(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert hub.seen[0].target == path


@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GE\xff",
        b"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_connection_ends(broken):
    hub = Hub()
    connection, wire = connected(hub)
    connection.data_received(broken)
    status, error = refused(wire)
    assert status == 400
    assert error.startswith("Malformed HTTP: ")
    assert wire.half_closed
    assert hub.seen == []


@pytest.mark.parametrize(
    ("parts", "status", "flag"),
    [
        ([POST + b"Content-Length: 101\r\n\r\n"], 413, "--rest_body_bytes_at_most"),
        ([CHUNKED + b"40\r\n" + b"a" * 64 + b"\r\n", b"40\r\n" + b"a" * 64], 413, "--rest_body_bytes_at_most"),
        ([b"GET / HTTP/1.1\r\nA: " + b"a" * 2000], 431, "--rest_head_bytes_at_most"),
        ([b"GET /" + b"a" * 2000], 431, "--rest_head_bytes_at_most"),
        ([b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 400], 431, "--rest_head_bytes_at_most"),
        ([b"GET / HTTP/1.1\r\nA: ", *[b"a" * 100] * 12], 431, "--rest_head_bytes_at_most"),
        ([CHUNKED + b"0\r\n" + b"A: b\r\n" * 400], 431, "--rest_head_bytes_at_most"),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_before_it_is_whole(parts, status, flag):
    hub = Hub(body_bytes=100, head_bytes=1000)
    connection, wire = connected(hub)
    for part in parts:
        connection.data_received(part)
    got, error = refused(wire)
    assert got == status
    assert flag in error
    assert hub.seen == []
    assert hub.room.used == 0


def test_requests_before_a_refused_one_are_answered_first():
    hub = Hub(at_once=False, body_bytes=10)
    connection, wire = connected(hub)
    connection.data_received(post(b"1") + POST + b"Content-Length: 11\r\n\r\n")
    assert wire.sent == b""
    hub.asked[0](Answer(200, b"first"))
    assert [status for status, _, _ in answers(wire)] == [200, 413]


def test_refused_client_may_finish_sending_for_a_moment():
    hub = Hub(body_bytes=10)
    connection, wire = connected(hub)
    connection.data_received(POST + b"Content-Length: 1000\r\n\r\n")
    connection.data_received(b"a" * 1000)
    hub.later(1.9)
    assert not wire.closed
    hub.later(0.2)
    assert wire.aborted
    assert len(answers(wire)) == 1


def test_bodies_of_all_clients_together_have_a_limit():
    hub = Hub(all_bodies_bytes=100)
    first, wire = connected(hub)
    first.data_received(POST + b"Content-Length: 90\r\n\r\n" + b"a" * 60)
    second, second_wire = connected(hub)
    second.data_received(POST + b"Content-Length: 90\r\n\r\n" + b"a" * 60)
    assert refused(second_wire)[0] == 429
    assert hub.room.used == 60
    first.data_received(b"a" * 30)
    assert bodies(wire) == [b"a" * 90]
    assert hub.room.used == 0


@pytest.mark.parametrize("sent", [b"P", b"GET / HTTP/1.1\r\nA: b", post(b"abc")[:-1]])
def test_request_that_does_not_come_to_its_end_is_given_up(sent):
    hub = Hub()
    connection, wire = connected(hub)
    connection.data_received(sent)
    hub.later(9)
    assert wire.sent == b""
    hub.later(1.1)
    assert refused(wire)[0] == 408
    hub.later(2.1)
    assert wire.aborted


def test_large_body_has_more_time_but_only_as_it_comes():
    hub = Hub()
    connection, wire = connected(hub)
    connection.data_received(POST + b"Content-Length: 1000000\r\n\r\n")
    for _ in range(10):
        hub.later(2)
        connection.data_received(b"a" * 32768)
    assert wire.sent == b""
    hub.later(11)
    assert refused(wire)[0] == 408


def test_client_that_does_not_take_its_answer_is_left():
    hub = Hub()
    connection, wire = connected(hub)
    connection.data_received(post())
    wire.unsent = 100_000
    connection.pause_writing()
    connection.data_received(post(b"next"))
    assert len(hub.seen) == 1
    hub.later(9)
    wire.unsent = 99_999
    hub.later(9)
    assert not wire.closed
    hub.later(11)
    assert wire.aborted


def test_client_that_takes_its_answer_late_gets_the_next():
    hub = Hub()
    connection, wire = connected(hub)
    connection.pause_writing()
    connection.data_received(post(b"next"))
    assert wire.sent == b""
    connection.resume_writing()
    assert bodies(wire) == [b"next"]


def test_client_that_sends_no_more_gets_what_it_asked_for():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post(b"1") + post(b"2"))
    assert connection.eof_received()
    hub.asked[0](Answer(200, b"1"))
    assert not wire.closed
    hub.asked[1](Answer(200, b"2"))
    assert bodies(wire) == [b"1", b"2"]
    assert wire.closed


@pytest.mark.parametrize("sent", [b"", b"GET / HT", post()[:-1], post()])
def test_client_that_ends_with_nothing_to_be_answered_is_let_go(sent):
    connection, _ = connected(Hub())
    connection.data_received(sent)
    assert not connection.eof_received()


def test_client_that_left_costs_nothing_more():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post(b"1") + post(b"22") + post(b"333")[:-1])
    assert hub.room.used == 1 + 2 + 2
    wire.closed = True
    connection.connection_lost(None)
    assert hub.gone
    assert hub.room.used == 1
    hub.asked[0](Answer(200))
    assert hub.room.used == 0
    assert wire.sent == b""
    assert len(hub.seen) == 1


def test_connection_beyond_the_limit_is_told_so():
    hub = Hub()
    hub.full = True
    connection, wire = connected(hub)
    assert refused(wire)[0] == 429
    connection.data_received(post())
    assert hub.seen == []
    assert wire.closed


def test_last_answer_of_a_server_that_drains_says_so():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(post())
    hub.draining = True
    hub.asked[0](Answer(200))
    assert answers(wire)[0][1]["connection"] == "close"
    assert wire.closed


def test_large_answer_is_sent_whole_and_its_head_tells_its_length():
    for size in (_JOINED_AT_MOST, _JOINED_AT_MOST + 1, 3 * _JOINED_AT_MOST):
        connection, wire = connected(Hub())
        connection.data_received(post(b"a" * size))
        ((status, headers, body),) = answers(wire)
        assert (status, headers["content-length"], len(body)) == (200, str(size), size)


def test_head_of_a_large_answer_is_its_length_alone():
    hub = Hub(at_once=False)
    connection, wire = connected(hub)
    connection.data_received(b"HEAD /abc HTTP/1.1\r\nHost: h\r\n\r\n")
    hub.asked.pop()(Answer(200, b"a" * (_JOINED_AT_MOST + 1)))
    assert b"Content-Length: %d\r\n" % (_JOINED_AT_MOST + 1) in wire.sent
    assert wire.sent.endswith(b"\r\n\r\n")
