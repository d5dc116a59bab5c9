"""REST requests under way: read here or in a thread aside, run by their version's queue, written, given back.

All of it happens in the event loop's thread, except what takes long. Answers come out of queues in other
threads; those that come together wake the loop once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from serve import log, rest, trace
from serve.model import Outcome, Ticket
from serve.models import Models
from serve.observe import Observer, Seen
from serve.pages import Pages
from serve.rest import Answer, Call, Request, failure
from serve.status import Code, ServingError

Respond = Callable[[Answer], None]

_TRACEPARENT = trace.REQUEST_HEADER.encode()
_TRACERESPONSE = trace.ANSWER_HEADER.encode()
_STOPPING = "The server is stopping"


@dataclass(frozen=True)
class Options:
    """How requests are treated. `timeout_s` None: no limit to the time that a run may take.

    Bodies of more than `aside_bytes`, compressed ones, and answers of more than `aside_values` numbers are read
    and written in another thread. It lets others have their turn every few milliseconds while it writes, or reads a
    nested list of numbers. Any other JSON (rows by name, strings) is read by single calls that hold the interpreter,
    40 ms for each MB where its objects are many: docs/operate.md has figures.
    """

    timeout_s: float | None = 30.0
    requests_at_most: int = 4096
    inflated_bytes: int = 64 * 1024 * 1024
    aside_bytes: int = 32 * 1024
    aside_values: int = 8192


class _UnderWay:
    """A request, and from when it was read the call that it makes."""

    __slots__ = ("call", "deadline", "request", "respond", "seen", "ticket")

    def __init__(self, request: Request, respond: Respond, seen: Seen):
        self.request = request
        self.respond = respond
        self.seen = seen
        self.call: Call | None = None
        self.deadline: float | None = None
        self.ticket: Ticket | None = None


class Calls:
    """Takes requests and answers them. To be used in the thread of `loop`."""

    def __init__(
        self,
        models: Models,
        loop: asyncio.AbstractEventLoop,
        aside: Executor,
        options: Options,
        observer: Observer | None = None,
        pages: Pages | None = None,
    ):
        self._models = models
        self._loop = loop
        self._aside = aside
        self._options = options
        self._observer = observer or Observer()
        self._pages = pages
        self._count = 0
        self._running: dict[_UnderWay, None] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._ready: deque[Callable[[], None]] = deque()
        self._outcomes: deque[tuple[_UnderWay, Outcome]] = deque()
        self._awake = False

    @property
    def count(self) -> int:
        """How many requests are under way."""
        return self._count

    def start(self, request: Request, respond: Respond) -> None:
        """Answers a request: `respond` is called once, in this thread, maybe at once."""
        page = self._pages.answer(request) if self._pages else None
        if page is not None:
            respond(page)
            return
        traceparent = request.headers.get(_TRACEPARENT)
        under_way = _UnderWay(
            request, respond, self._observer.began(traceparent.decode("latin-1") if traceparent else None)
        )
        self._count += 1
        if self._count > self._options.requests_at_most:
            message = f"{self._count - 1} requests are under way, as many as may be (--rest_requests_at_most)"
            self._answer(under_way, failure(ServingError(Code.RESOURCE_EXHAUSTED, message)))
        elif len(request.body) > self._options.aside_bytes or b"content-encoding" in request.headers:
            self._aside.submit(self._read_aside, under_way)
        else:
            self._go_on(under_way, self._read(under_way))

    def stop(self) -> None:
        """Answers all that still runs by UNAVAILABLE."""
        for under_way in list(self._running):
            self._give_up(under_way, ServingError(Code.UNAVAILABLE, _STOPPING))

    # --- reading ---

    def _read(self, under_way: _UnderWay) -> Answer | Call:
        seen = under_way.seen
        if seen.trace:
            with log.about(seen.trace):
                found = rest.read(under_way.request, self._models)
        else:
            found = rest.read(under_way.request, self._models)
        if not isinstance(found, Call):
            return found
        return rest.answered(under_way.request, lambda: self._observer.called(seen, found))

    def _read_aside(self, under_way: _UnderWay) -> None:
        under_way.request = replace(under_way.request, inflated_bytes_at_most=self._options.inflated_bytes)
        found = self._read(under_way)
        under_way.request = replace(under_way.request, body=b"")  # it was read, and a queue may be long
        self._later(lambda: self._go_on(under_way, found))

    def _go_on(self, under_way: _UnderWay, found: Answer | Call) -> None:
        if isinstance(found, Call):
            self._submit(under_way, found)
        else:
            self._answer(under_way, found)

    # --- running ---

    def _submit(self, under_way: _UnderWay, call: Call) -> None:
        under_way.call = call
        timeout_s = self._options.timeout_s
        if timeout_s is not None:
            under_way.deadline = time.monotonic() + timeout_s
        self._running[under_way] = None
        failed = rest.answered(under_way.request, lambda: self._queue(under_way, call))
        if isinstance(failed, Answer):
            self._end(under_way, failed)
        elif timeout_s is not None and self._clock is None:
            self._clock = self._loop.call_later(timeout_s, self._expire)

    def _queue(self, under_way: _UnderWay, call: Call) -> None:
        work = call.work
        under_way.ticket = call.lease.queue.submit(
            work.feeds, work.fetches, under_way.deadline, lambda outcome: self._done(under_way, outcome)
        )

    def _done(self, under_way: _UnderWay, outcome: Outcome) -> None:
        """Called in any thread."""
        self._outcomes.append((under_way, outcome))
        self._wake()

    def _expire(self) -> None:
        """Gives up what ran too long. All runs have the same time, so the oldest is the first."""
        self._clock = None
        now = time.monotonic()
        while self._running:
            oldest = next(iter(self._running))
            if oldest.deadline is None:
                return
            if oldest.deadline > now:
                self._clock = self._loop.call_later(oldest.deadline - now, self._expire)
                return
            self._give_up(oldest, None)

    def _give_up(self, under_way: _UnderWay, reason: ServingError | None) -> None:
        """Answers before the run has ended. Where it ends right now, its outcome is on its way here."""
        self._running.pop(under_way, None)
        error = under_way.ticket.give_up() if under_way.ticket else None
        if error is not None:
            self._end(under_way, failure(reason or error))

    # --- answering ---

    def _finish(self, under_way: _UnderWay, outcome: Outcome) -> None:
        if isinstance(outcome, ServingError):
            self._end(under_way, failure(outcome))
        elif sum([tensor.size for tensor in outcome]) > self._options.aside_values:
            self._aside.submit(self._finish_aside, under_way, outcome)
        else:
            self._end(under_way, self._written(under_way, outcome))

    def _finish_aside(self, under_way: _UnderWay, outcome: Sequence[np.ndarray]) -> None:
        answer = self._written(under_way, outcome)
        self._later(lambda: self._end(under_way, answer))

    def _written(self, under_way: _UnderWay, outcome: Sequence[np.ndarray]) -> Answer:
        call = under_way.call
        return rest.answered(under_way.request, lambda: call.work.finish(outcome))  # type: ignore[union-attr]

    def _end(self, under_way: _UnderWay, answer: Answer) -> None:
        self._running.pop(under_way, None)
        if under_way.call is not None:
            under_way.call.lease.release()
        self._answer(under_way, answer)

    def _answer(self, under_way: _UnderWay, answer: Answer) -> None:
        self._count -= 1
        header = self._observer.ended_rest(under_way.seen, under_way.request, answer)
        if header:
            answer = replace(answer, headers=[*answer.headers, (_TRACERESPONSE, header.encode())])
        under_way.respond(answer)

    # --- back into the loop's thread ---

    def _later(self, step: Callable[[], None]) -> None:
        self._ready.append(step)
        self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._awake = False  # first: what comes from here on wakes the loop again
        while self._ready:
            self._ready.popleft()()
        while self._outcomes:
            under_way, outcome = self._outcomes.popleft()
            self._running.pop(under_way, None)
            self._finish(under_way, outcome)
