"""REST requests under way: read here or in a thread aside, run by their version's queue, written, given back.

All of it happens in the event loop's thread, except what takes long. Answers come out of queues in other
threads; those that come together wake the loop once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from serve import rest
from serve.model import Outcome, Ticket
from serve.models import Models
from serve.rest import Answer, Call, Request, failure
from serve.status import Code, ServingError

Respond = Callable[[Answer], None]


@dataclass(frozen=True)
class Options:
    """How requests are treated. `timeout_s` None: no limit to the time that a run may take.

    Bodies of more than `aside_bytes`, compressed ones, and answers of more than `aside_values` numbers are read
    and written in another thread, so that they delay nobody for more than a fraction of a millisecond.
    """

    timeout_s: float | None = 30.0
    requests_at_most: int = 4096
    inflated_bytes: int = 256 * 1024 * 1024
    aside_bytes: int = 32 * 1024
    aside_values: int = 8192


class _Running:
    """A call in its queue. `handed` once it needs no clock any more."""

    __slots__ = ("call", "deadline", "handed", "request", "respond", "ticket")

    def __init__(self, request: Request, respond: Respond, call: Call, deadline: float | None):
        self.request = request
        self.respond = respond
        self.call = call
        self.deadline = deadline
        self.ticket: Ticket | None = None
        self.handed = False


class Calls:
    """Takes requests and answers them. To be used in the thread of `loop`."""

    def __init__(self, models: Models, loop: asyncio.AbstractEventLoop, aside: Executor, options: Options):
        self._models = models
        self._loop = loop
        self._aside = aside
        self._options = options
        self._count = 0
        self._running: dict[_Running, None] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._ready: deque[Callable[[], None]] = deque()
        self._outcomes: deque[tuple[_Running, Outcome]] = deque()
        self._awake = False

    @property
    def count(self) -> int:
        """How many requests are under way."""
        return self._count

    def start(self, request: Request, respond: Respond) -> None:
        """Answers a request: `respond` is called once, in this thread, maybe at once."""
        if self._count >= self._options.requests_at_most:
            message = f"{self._count} requests are under way, as many as may be (--rest_requests_at_most)"
            respond(failure(ServingError(Code.RESOURCE_EXHAUSTED, message)))
            return
        self._count += 1
        if len(request.body) > self._options.aside_bytes or b"content-encoding" in request.headers:
            request = replace(request, inflated_bytes_at_most=self._options.inflated_bytes)
            self._aside.submit(self._read_aside, request, respond)
        else:
            self._go_on(request, respond, rest.read(request, self._models))

    def stop(self) -> None:
        """Answers all that still runs by UNAVAILABLE."""
        for running in list(self._running):
            self._give_up(running, ServingError(Code.UNAVAILABLE, "The server is stopping"))

    # --- reading ---

    def _read_aside(self, request: Request, respond: Respond) -> None:
        found = rest.read(request, self._models)
        self._later(lambda: self._go_on(request, respond, found))

    def _go_on(self, request: Request, respond: Respond, found: Answer | Call) -> None:
        if isinstance(found, Call):
            self._submit(request, respond, found)
        else:
            self._answer(respond, found)

    def _answer(self, respond: Respond, answer: Answer) -> None:
        self._count -= 1
        respond(answer)

    # --- running ---

    def _submit(self, request: Request, respond: Respond, call: Call) -> None:
        timeout_s = self._options.timeout_s
        if len(request.body) > self._options.aside_bytes:
            request = replace(request, body=b"")  # it was read, and a queue may be long
        running = _Running(
            request, respond, call, None if timeout_s is None else time.monotonic() + timeout_s
        )
        self._running[running] = None
        found = rest.answered(request, lambda: self._queue(running))
        if isinstance(found, Answer):
            self._hand_over(running, found)
        elif timeout_s is not None and self._clock is None:
            self._clock = self._loop.call_later(timeout_s, self._expire)

    def _queue(self, running: _Running) -> None:
        call = running.call
        running.ticket = call.lease.queue.submit(
            call.work.feeds, call.work.fetches, running.deadline, lambda outcome: self._done(running, outcome)
        )

    def _done(self, running: _Running, outcome: Outcome) -> None:
        """Called in any thread."""
        self._outcomes.append((running, outcome))
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

    def _give_up(self, running: _Running, reason: ServingError | None) -> None:
        """Answers before the run has ended. Where it ends right now, its outcome is on its way here."""
        del self._running[running]
        error = running.ticket.give_up() if running.ticket else None
        if error is not None:
            self._hand_over(running, failure(reason or error))

    # --- answering ---

    def _finish(self, running: _Running, outcome: Outcome) -> None:
        if isinstance(outcome, ServingError):
            self._hand_over(running, failure(outcome))
        elif sum([tensor.size for tensor in outcome]) > self._options.aside_values:
            self._aside.submit(self._finish_aside, running, outcome)
        else:
            self._hand_over(running, self._written(running, outcome))

    def _finish_aside(self, running: _Running, outcome: Outcome) -> None:
        answer = self._written(running, outcome)
        self._later(lambda: self._hand_over(running, answer))

    def _written(self, running: _Running, outcome: Outcome) -> Answer:
        return rest.answered(running.request, lambda: running.call.work.finish(outcome))

    def _hand_over(self, running: _Running, answer: Answer) -> None:
        self._running.pop(running, None)
        running.call.lease.release()
        self._answer(running.respond, answer)

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
            running, outcome = self._outcomes.popleft()
            self._running.pop(running, None)
            self._finish(running, outcome)
