"""Calls of gRPC that run a model: begun, run by their version's queue, answered when it is done.

Nothing waits for a model: what a call needs is kept here until its outcome comes, in another thread.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc

from serve import call_threads, grpc_status, log
from serve.grpc_front import STATUS, Reply, cut
from serve.model import Model, Outcome, Servable
from serve.models import Lease
from serve.observe import Observer
from serve.status import Code, ServingError
from serve.work import Work

# Larger answers are written in a thread aside.
_ASIDE_VALUES = 65_536


class Answers:
    """A thread that writes answers, one after another, and others for those that take long."""

    def __init__(self, aside: Executor):
        self._aside = aside
        self._ready: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="grpc_answers", daemon=True).start()

    def take(self, outcome: Outcome, step: Callable[[], None]) -> None:
        """Runs a step, which writes what comes of an outcome and never raises, soon."""
        if isinstance(outcome, ServingError) or sum([tensor.size for tensor in outcome]) <= _ASIDE_VALUES:
            self._ready.put(step)
        else:
            self._aside.submit(step)

    def _work(self) -> None:
        while True:
            try:
                self._ready.get()()
            except Exception as error:  # noqa: BLE001 (a bug is logged, and others are answered)
                log.bug("answer", error)


@dataclass(frozen=True)
class Runs:
    """A unary method that runs a model once for each call: a `serve.grpc_front.Method`, and a function for gRPC.

    `acquire` gives the version that a request means, `read` what it asks to run, and `named` the response with the name
    and version of what answered. `on_examples`: their number is counted.
    """

    api: str
    acquire: Callable[[Any], Lease]
    read: Callable[[Model, Any], Work]
    named: Callable[[Servable, Any], Any]
    on_examples: bool
    observer: Observer
    answers: Answers

    def begin(self, request: Any, context: grpc.ServicerContext, reply: Reply) -> None:
        """See `serve.grpc_front.Method`."""
        _UnderWay(self, request, context, reply).begin()

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Waits for the response, in a thread of the call's own."""
        handed: SimpleQueue[Any] = SimpleQueue()
        self.begin(request, context, handed.put)
        with call_threads.waiting():
            answer = handed.get()
        if isinstance(answer, ServingError):
            context.abort(STATUS[answer.code], cut(answer.message))
        return answer


class _UnderWay:
    """A call that was begun and is not answered yet."""

    __slots__ = ("_context", "_reply", "_request", "_runs", "_seen")

    def __init__(self, runs: Runs, request: Any, context: grpc.ServicerContext, reply: Reply):
        self._runs = runs
        self._request = request
        self._context = context
        self._reply = reply
        self._seen = grpc_status.began(runs.observer, context)

    def begin(self) -> None:
        """Hands it to the queue of its version; or answers, if there is none."""
        _, failed = self._outcome(self._queue)
        if failed:
            self._end(None, failed)

    def _queue(self) -> None:
        runs = self._runs
        lease = runs.acquire(self._request)
        try:
            asked = runs.read(lease.model, self._request)
            work = runs.observer.timed(self._seen, asked, on_examples=runs.on_examples)

            def done(outcome: Outcome) -> None:
                runs.answers.take(outcome, lambda: self._finish(lease, work, outcome))

            ticket = lease.queue.submit(work.feeds, work.fetches, self._seen.deadline, done)
        except BaseException:
            lease.release()
            raise

        def leave() -> None:
            """The client has left, or its deadline has passed. Also called when the call is over."""
            error = ticket.give_up()
            if error is not None:
                done(error if self._is_late() else ServingError(Code.CANCELLED, "The client has left"))

        if not self._context.add_callback(leave):
            leave()

    def _is_late(self) -> bool:
        deadline = self._seen.deadline
        return deadline is not None and time.monotonic() >= deadline

    def _finish(self, lease: Lease, work: Work, outcome: Outcome) -> None:
        response, failed = self._outcome(lambda: self._response(lease.servable, work, outcome))
        lease.release()
        self._end(response, failed)

    def _response(self, servable: Servable, work: Work, outcome: Outcome) -> Any:
        if isinstance(outcome, ServingError):
            raise outcome
        return self._runs.named(servable, work.finish(outcome))

    def _outcome(self, step: Callable[[], Any]) -> tuple[Any, ServingError | None]:
        return grpc_status.outcome(step, self._runs.api, self._seen)

    def _end(self, response: Any, failed: ServingError | None) -> None:
        runs = self._runs
        try:
            grpc_status.ended(runs.observer, self._seen, runs.api, self._request, self._context, failed)
        finally:
            self._reply(failed or response)
        if not failed:
            runs.observer.sampled(runs.api, self._request, response)
