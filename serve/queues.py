"""How runs of a version are done: each alone, or those that wait together as one.

A version's runs are its own business: it has threads and limits of its own, so that a model that is slow,
hangs or is asked too much costs others nothing but the processor. A run cannot be interrupted; a caller whose
deadline passes is told so while the run goes on.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np

from serve import batch, log
from serve.lines import Limits, Line
from serve.model import Model, Outcome, Queue, Signature, Ticket
from serve.status import Code, ServingError
from serve.task import Task
from serve.work import Result, Work

_KINDS_AT_MOST = 1024

Done = Callable[[Outcome], None]
Feeds = Mapping[str, np.ndarray]


class Observer(Protocol):
    """Is told what ran as a batch."""

    def batch(self, pool: str, waited_us: Sequence[float], rows: Sequence[int], padding: int) -> None:
        """A batch begins to run: how long each of its requests waited, their rows, and rows that were added."""


class Unobserved:
    """Nobody is told."""

    def batch(self, pool: str, waited_us: Sequence[float], rows: Sequence[int], padding: int) -> None:
        """Nothing happens."""


@dataclass(frozen=True)
class Options:
    """How runs are done where TF Serving's own batching was not asked for."""

    rows_at_most: int = 512
    bytes_at_most: int = 16 << 20
    runners: int = 1
    threads_alone: int = field(default_factory=lambda: 4 * len(os.sched_getaffinity(0)))
    limits: Limits = Limits()
    observer: Observer = Unobserved()


def run_alone(model: Model, task: Task) -> None:
    """Runs one task and settles it. Never raises."""
    task.started = True
    task.settle(outcome_of(model, task.feeds, task.fetches))


def outcome_of(model: Model, feeds: Feeds, fetches: Sequence[str]) -> Outcome:
    """What a run gives. Never raises."""
    try:
        return model.run(feeds, fetches)
    except ServingError as error:
        return error
    except MemoryError:
        return ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory for this request")
    except Exception as error:  # noqa: BLE001 (a bug is logged, and the client told; the thread goes on)
        log.bug("run", error)
        return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


class Inline:
    """Runs in the caller's thread, before `submit` returns."""

    def __init__(self, model: Model):
        self._model = model

    def submit(self, feeds: Feeds, fetches: Sequence[str], deadline: float | None, done: Done) -> Ticket:
        """See `serve.model.Queue`."""
        task = Task(feeds, fetches, deadline, done)
        if not task.passed(task.since):
            run_alone(self._model, task)
        return task

    def close(self) -> None:
        """Nothing is held."""


class Direct:
    """Runs each request alone, several at once in threads of this version."""

    def __init__(self, model: Model, name: str, options: Options):
        self._model = model
        self._line = Line(name, self._run, options.threads_alone, 0, options.limits)

    def submit(self, feeds: Feeds, fetches: Sequence[str], deadline: float | None, done: Done) -> Ticket:
        """See `serve.model.Queue`."""
        task = Task(feeds, fetches, deadline, done, rows=1)
        self._line.put(None, task)
        return task

    def close(self) -> None:
        """Ends the threads when what waits has run."""
        self._line.close()

    def _run(self, tasks: list[Task]) -> None:
        now = time.monotonic()
        for task in tasks:
            if not task.passed(now):
                run_alone(self._model, task)


class Adaptive:
    """Joins what waits while the model is busy, where its signatures allow; the rest runs alone.

    Answers of a joined run may differ from those of a run alone in their last bits, as TensorFlow's kernels
    choose their way by the size.
    """

    def __init__(self, model: Model, name: str, options: Options):
        self._model = model
        self._name = name
        self._observer = options.observer
        self._joinable = batch.Joinable.of(model.signatures)
        self._kinds: dict[tuple, bool] = {}
        self._alone = Direct(model, name, options)
        self._line = Line(
            name, self._run, options.runners, options.rows_at_most, options.limits, options.bytes_at_most
        )

    def submit(self, feeds: Feeds, fetches: Sequence[str], deadline: float | None, done: Done) -> Ticket:
        """See `serve.model.Queue`."""
        kind = (*feeds, None, *fetches)
        rows = batch.rows_of(feeds) if self._joins(kind, feeds, fetches) else None
        if not rows:
            return self._alone.submit(feeds, fetches, deadline, done)
        task = Task(feeds, fetches, deadline, done, rows)
        self._line.put(kind, task)
        return task

    def close(self) -> None:
        """Ends the threads when what waits has run."""
        self._line.close()
        self._alone.close()

    def _joins(self, kind: tuple, feeds: Feeds, fetches: Sequence[str]) -> bool:
        known = self._kinds.get(kind)
        if known is None:
            known = self._joinable.allows(tuple(feeds), fetches)
            # Requests choose their outputs, so there could be very many.
            if len(self._kinds) < _KINDS_AT_MOST:
                self._kinds[kind] = known
        return known

    def _run(self, tasks: list[Task]) -> None:
        now = time.monotonic()
        tasks = [task for task in tasks if not task.passed(now)]
        if not tasks:
            return
        waited = [(now - task.since) * 1e6 for task in tasks]
        self._observer.batch(self._name, waited, [task.rows for task in tasks], 0)
        for task in tasks:
            task.started = True
        self._run_joined(tasks)

    def _run_joined(self, tasks: list[Task]) -> None:
        if len(tasks) == 1:
            run_alone(self._model, tasks[0])
            return
        try:
            feeds = batch.join([task.feeds for task in tasks])
        except Exception:  # noqa: BLE001 (shapes differ, or memory is short: each is tried with those like it)
            self._run_apart(tasks)
            return
        outcome = outcome_of(self._model, feeds, tasks[0].fetches)
        if isinstance(outcome, ServingError):
            self._run_apart(tasks)
            return
        try:
            parts = batch.split(outcome, [task.rows for task in tasks])
        except batch.NotABatch as error:
            self._never_again(tasks[0], error)
            for task in tasks:
                run_alone(self._model, task)
            return
        for task, part in zip(tasks, parts, strict=True):
            task.settle(part)

    def _run_apart(self, tasks: list[Task]) -> None:
        """Runs tasks that failed together: those of one form together if forms differ, or else by halves.

        So one bad request costs its neighbours some runs more, and not their answer.
        """
        forms: dict[tuple, list[Task]] = {}
        for task in tasks:
            forms.setdefault(batch.form(task.feeds), []).append(task)
        if len(forms) == 1:
            forms = {(0,): tasks[: len(tasks) // 2], (1,): tasks[len(tasks) // 2 :]}
        for alike in forms.values():
            self._run_joined(alike)

    def _never_again(self, task: Task, error: Exception) -> None:
        """What gave other rows than it got is not joined any more, whatever outputs are asked."""
        self._joinable = self._joinable.without(tuple(task.feeds))
        self._kinds = {}
        log.warning(
            "requests are not joined any more", model=self._name, inputs=",".join(task.feeds), reason=error
        )


class Queued:
    """A model with the queue that runs it. Closing it closes both."""

    def __init__(self, model: Model, queue: Any):
        self._model = model
        self.queue: Queue = queue
        self.signature_defs = model.signature_defs
        self._close_queue: Callable[[], None] = queue.close

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The named functions."""
        return self._model.signatures

    def run(self, feeds: Feeds, fetches: Sequence[str]) -> Sequence[np.ndarray]:
        """Runs in this thread, past the queue."""
        return self._model.run(feeds, fetches)

    def close(self) -> None:
        """Ends the queue's threads, then the model."""
        self._close_queue()
        self._model.close()


def queue_of(model: Model) -> Queue:
    """A model's own queue; for one that came without, its runs are done in the caller's thread."""
    own: Queue | None = getattr(model, "queue", None)
    return own if own is not None else Inline(model)


def run_in(queue: Queue, work: Work[Result], deadline: float | None = None) -> Result:
    """Runs work in a queue and waits for it, to its deadline (in time.monotonic()). Raises ServingError."""
    handed: SimpleQueue[Outcome] = SimpleQueue()
    ticket = queue.submit(work.feeds, work.fetches, deadline, handed.put)
    try:
        outcome = handed.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except Empty:
        outcome = ticket.give_up() or handed.get()
    if isinstance(outcome, ServingError):
        raise outcome
    return work.finish(outcome)
