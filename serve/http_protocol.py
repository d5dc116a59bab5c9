"""One HTTP/1 connection: requests are answered one at a time and in their order; those that follow wait.

Every client is taken for one that may be slow, endless or broken.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from serve import http_message
from serve.http_limits import RECEIVED_A_SECOND, Limits, Room
from serve.http_reader import Reader, Received, Refusal
from serve.rest import Answer, Request, failure, with_status
from serve.status import Code, ServingError

_PIPELINED_AT_MOST = 16
_ANSWERED_AT_ONCE = 64
# A larger body is not copied behind its head.
_JOINED_AT_MOST = 1 << 17


class Hub(Protocol):
    """What all connections of a server share."""

    limits: Limits
    room: Room
    writer: http_message.Writer
    draining: bool
    handle: Callable[[Request, Callable[[Answer], None]], None]
    """Takes a request, and calls back with its answer once, in the loop's thread, now or later."""

    def opened(self, connection: "Connection") -> bool:
        """Whether a new connection may stay."""

    def closed(self, connection: "Connection") -> None:
        """A connection is gone."""

    def rests(self, connection: "Connection") -> None:
        """Nothing is on its way on a connection."""

    def works(self, connection: "Connection") -> None:
        """Something is."""

    def watch(self, connection: "Connection") -> None:
        """A connection waits for its client: `check` is to be called now and then, until it says no."""


class Connection(asyncio.Protocol):
    """A client's connection."""

    __slots__ = (
        "_clogged", "_deaf", "_ended", "_hub", "_linger_until", "_loop", "_paused", "_pumping", "_reader", "_refusal",
        "_since", "_transport", "_turn", "_unsent", "_watched", "rests_since",
    )  # fmt: skip

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop):
        self._hub = hub
        self._loop = loop
        self._transport: Any = None
        self._reader = Reader(hub.limits, hub.room)
        self._turn: Received | None = None
        self._refusal: Answer | None = None
        self._deaf = self._ended = self._paused = self._pumping = self._clogged = self._watched = False
        self._linger_until: float | None = None
        self._since = self.rests_since = 0.0
        self._unsent = 0

    # --- what the transport calls ---

    def connection_made(self, transport: Any) -> None:
        """Begins, unless there are too many."""
        self._transport = transport
        if self._hub.opened(self):
            self._hub.rests(self)
            return
        self._deaf = True
        error = ServingError(Code.RESOURCE_EXHAUSTED, "too many connections (--rest_connections_at_most)")
        transport.write(self._hub.writer.write(failure(error), connection=b"close"))
        transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """Forgets what was not answered."""
        self._deaf = True
        self._reader.drop()
        self._hub.closed(self)

    def data_received(self, data: bytes) -> None:
        """Reads what came, and answers what is whole."""
        if self._deaf:
            return
        reader = self._reader
        try:
            reader.feed(data)
        except Refusal as refusal:
            self._refuse(refusal.answer)
        if reader.receiving:
            self._wait_for_the_rest()
        self._pump()

    def eof_received(self) -> bool:
        """The client sends no more. What came whole is answered yet."""
        self._ended = True
        pending = self._turn or self._reader.received or self._clogged
        return bool(pending) and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """The client does not take its answers: no more are made."""
        self._clogged = True
        self._since = self._loop.time()
        self._unsent = self._transport.get_write_buffer_size()
        self._watch()

    def resume_writing(self) -> None:
        """It took them."""
        self._clogged = False
        self._pump()

    # --- what the server calls ---

    def check(self, now: float) -> bool:
        """Ends the connection if its client took too long; whether it is to be checked again."""
        if self._linger_until is not None:
            if now >= self._linger_until:
                self._transport.abort()
        elif self._clogged:
            self._check_sending(now)
        elif self._reader.receiving and not self._deaf:
            self._check_receiving(now)
        else:
            self._watched = False
        return self._watched

    def close(self) -> None:
        """Ends it, when what was written is sent."""
        self._deaf = True
        self._transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        self._deaf = True
        self._transport.abort()

    # --- receiving ---

    def _wait_for_the_rest(self) -> None:
        """A request is not whole yet."""
        reader = self._reader
        if reader.began is None:
            reader.began = self._loop.time()
            if self._turn is None:
                self._hub.works(self)
        self._watch()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._hub.watch(self)

    def _check_receiving(self, now: float) -> None:
        reader, limits = self._reader, self._hub.limits
        if self._paused or reader.began is None:
            return
        if now - reader.began > limits.receive_s + reader.size / RECEIVED_A_SECOND:
            message = f"Request did not arrive whole in {limits.receive_s:g} s (--rest_receive_seconds)"
            self._refuse(with_status(408, message, Code.DEADLINE_EXCEEDED))
            self._pump()

    def _check_sending(self, now: float) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent, self._since = unsent, now
        elif now - self._since > self._hub.limits.send_s:
            self.abort()

    def _refuse(self, answer: Answer) -> None:
        """The last answer, after those of the requests that came whole."""
        self._deaf = True
        self._refusal = answer

    # --- answering ---

    def _pump(self) -> None:
        """Answers what is whole, as far as answers are there at once."""
        if self._pumping:
            return
        self._pumping = True
        received, budget = self._reader.received, _ANSWERED_AT_ONCE
        while received and self._turn is None and not self._clogged:
            if not budget:
                self._loop.call_soon(self._pump)
                break
            budget -= 1
            self._begin(received.popleft())
        self._pumping = False
        if self._refusal is not None and self._turn is None and not received and not self._clogged:
            self._send_refusal()
        elif self._reader.expects_continue and self._turn is None and not received and not self._deaf:
            self._reader.expects_continue = False
            self._transport.write(http_message.CONTINUE)
        self._throttle()

    def _throttle(self) -> None:
        """Reads no further while many requests wait."""
        waiting = len(self._reader.received)
        if not self._paused and waiting >= _PIPELINED_AT_MOST and not self._deaf:
            self._paused = True
            self._transport.pause_reading()
        elif self._paused and waiting < _PIPELINED_AT_MOST // 2 and not self._transport.is_closing():
            self._paused = False
            self._reader.began = self._loop.time()
            self._transport.resume_reading()

    def _begin(self, turn: Received) -> None:
        self._turn = turn
        self._hub.works(self)
        if not turn.keep_alive:
            self._deaf = True
        request, turn.request = turn.request, None  # its body is not held longer than it is needed
        if request is not None:
            self._hub.handle(request, self._respond)

    def _respond(self, answer: Answer) -> None:
        """The answer to the request whose turn it is."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        hub = self._hub
        hub.room.used -= turn.size
        if self._transport.is_closing():
            return
        is_last = not turn.keep_alive or hub.draining or (self._ended and not self._reader.received)
        how = b"close" if is_last else b"keep-alive" if turn.old else b""
        is_apart = len(answer.body) > _JOINED_AT_MOST
        self._transport.write(
            hub.writer.write(answer, connection=how, without_body=turn.without_body or is_apart)
        )
        if is_apart and not turn.without_body:
            self._transport.write(answer.body)
        if is_last:
            self.close()
            return
        if not self._reader.received and not self._reader.receiving:
            hub.rests(self)
        if not self._pumping:
            self._pump()

    def _send_refusal(self) -> None:
        answer, self._refusal = self._refusal, None
        if answer is None or self._transport.is_closing():
            return
        self._reader.drop()
        self._transport.write(self._hub.writer.write(answer, connection=b"close"))
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._linger_until = self._loop.time() + self._hub.limits.linger_s
        self._watch()
