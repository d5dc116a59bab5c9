"""TF Serving's batching of a version's runs (`--enable_batching`): what is joined, padded, split, and refused."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serve import batch
from serve.batching_parameters import Parameters
from serve.model import Model, Outcome, Ticket
from serve.queues import Direct, Observer, Options, outcome_of
from serve.scheduler import BatchQueue, Scheduler
from serve.status import Code, ServingError, invalid
from serve.task import Task

Done = Callable[[Outcome], None]
Feeds = Mapping[str, np.ndarray]
Names = tuple[frozenset[str], frozenset[str]]

_WAITED_TOO_LONG = (Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")


class Batching:
    """The queues of one version: one for the inputs and outputs of each signature. Other runs are not joined."""

    def __init__(
        self, model: Model, name: str, parameters: Parameters, scheduler: Scheduler, options: Options
    ):
        self._scheduler = scheduler
        self._parameters = parameters
        self._alone = Direct(model, name, options)
        self._queues: dict[Names, tuple[BatchQueue, list[str]]] = {}
        for signature in model.signatures.values():
            names = (
                frozenset(spec.name for spec in signature.inputs.values()),
                frozenset(spec.name for spec in signature.outputs.values()),
            )
            if names not in self._queues and all(names):
                self._queues[names] = self._queue(model, sorted(names[1]), options.observer)

    def submit(self, feeds: Feeds, fetches: Sequence[str], deadline: float | None, done: Done) -> Ticket:
        """See `serve.model.Queue`. Raises also UNAVAILABLE and INVALID_ARGUMENT, as TF Serving does."""
        found = self._queues.get((frozenset(feeds), frozenset(fetches)))
        if found is None:
            return self._alone.submit(feeds, fetches, deadline, done)
        rows = _rows(feeds)
        if not rows:
            return self._alone.submit(feeds, fetches, deadline, done)
        queue, order = found
        feeds = {name: feeds[name] for name in sorted(feeds)}
        whole = Task(feeds, order, deadline, _ordered(done, order, fetches), rows)
        whole.late_error = _WAITED_TOO_LONG
        splitter = _Splitter(whole, self._parameters)
        self._scheduler.submit(queue, rows, splitter.tasks)
        return splitter

    def close(self) -> None:
        """Lets what waits run, and ends."""
        for queue, _ in self._queues.values():
            self._scheduler.close_queue(queue)
        self._alone.close()

    def _queue(self, model: Model, order: list[str], observer: Observer) -> tuple[BatchQueue, list[str]]:
        queue = BatchQueue(
            self._parameters, lambda tasks: run(model, tasks, order, self._parameters, observer)
        )
        self._scheduler.add_queue(queue)
        return queue, order


def _rows(feeds: Feeds) -> int:
    if any(not array.ndim for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    rows = batch.rows_of(feeds)
    if rows is None:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return rows


def _ordered(done: Done, order: list[str], fetches: Sequence[str]) -> Done:
    if order == list(fetches):
        return done
    places = [order.index(name) for name in fetches]

    def reorder(outcome: Outcome) -> None:
        done(outcome if isinstance(outcome, ServingError) else [outcome[place] for place in places])

    return reorder


class _Splitter:
    """A request, and the tasks that it is cut into where it is larger than what runs at once."""

    def __init__(self, whole: Task, parameters: Parameters):
        self._whole = whole
        self._parameters = parameters
        self._parts: list[Task] = []
        self._outcomes: list[Outcome | None] = []
        self._missing = 0
        self._lock = threading.Lock()

    def tasks(self, room: int) -> list[Task]:
        """The tasks: the first fills the room in the open batch, the others have at most a batch's rows."""
        rows = self._whole.rows
        if not self._parameters.enable_large_batch_splitting or rows <= room:
            return [self._whole]
        size = self._parameters.rows_at_most
        ends = [*([room] if room > 0 else []), *range(max(0, room) + size, rows, size), rows]
        begins = [0, *ends[:-1]]
        self._missing = len(ends)
        self._outcomes = [None] * len(ends)
        self._parts = [self._part(*span) for span in zip(range(len(ends)), begins, ends, strict=True)]
        return self._parts

    def give_up(self) -> ServingError | None:
        """See `serve.model.Ticket`."""
        self._whole.started = any(part.started for part in self._parts) or self._whole.started
        error = self._whole.give_up()
        for part in self._parts:
            part.give_up()
        return error

    def _part(self, number: int, begin: int, end: int) -> Task:
        whole = self._whole
        feeds = {name: array[begin:end] for name, array in whole.feeds.items()}
        part = Task(
            feeds, whole.fetches, whole.deadline, lambda outcome: self._done(number, outcome), end - begin
        )
        part.late_error = whole.late_error
        return part

    def _done(self, number: int, outcome: Outcome) -> None:
        with self._lock:
            self._outcomes[number] = outcome
            self._missing -= 1
            if self._missing:
                return
        self._whole.settle(_joined(self._outcomes))


def _joined(outcomes: list[Outcome | None]) -> Outcome:
    """The outputs of all parts, joined again; or the first error."""
    parts: list[Sequence[np.ndarray]] = []
    for outcome in outcomes:
        if isinstance(outcome, ServingError):
            return outcome
        parts.append(outcome or [])
    return [np.concatenate(tensors) for tensors in zip(*parts, strict=True)]


def run(
    model: Model, tasks: list[Task], fetches: list[str], parameters: Parameters, observer: Observer
) -> None:
    """Runs a batch and settles its tasks; what is wrong with one is told to all, as TF Serving does. Never raises."""
    now = time.monotonic()
    tasks = [task for task in tasks if not task.passed(now)]
    if not tasks:
        return
    rows = [task.rows for task in tasks]
    padding = parameters.padded(sum(rows)) - sum(rows)
    observer.batch(parameters.thread_pool_name, [(now - task.since) * 1e6 for task in tasks], rows, padding)
    for task in tasks:
        task.started = True
    try:
        feeds = [task.feeds for task in tasks]
        outcome = outcome_of(model, _merged(feeds, padding, parameters.pad_variable_length_inputs), fetches)
        if isinstance(outcome, ServingError):
            raise outcome
        parts = batch.split(outcome, rows, padding)
    except batch.NotABatch as error:
        _fail(tasks, ServingError(Code.FAILED_PRECONDITION, str(error)))
    except ServingError as error:
        _fail(tasks, error)
    except Exception as error:  # noqa: BLE001 (memory, or a bug; the thread is everybody's and goes on)
        _fail(
            tasks,
            ServingError(Code.INTERNAL, f"Tensor concat operation failed: {type(error).__name__}: {error}"),
        )
    else:
        for task, part in zip(tasks, parts, strict=True):
            task.settle(part)


def _fail(tasks: list[Task], error: ServingError) -> None:
    for task in tasks:
        task.fail(error)


def _merged(several: list[Feeds], padding: int, pad_shapes: bool) -> dict[str, np.ndarray]:
    if pad_shapes:
        several = batch.same_shapes(several)
    for feeds in several[1:]:
        for name, array in feeds.items():
            first = several[0][name]
            if array.shape[1:] != first.shape[1:]:
                raise _different_shapes(name)
            if array.dtype != first.dtype:
                raise ServingError(Code.INTERNAL, f"Tensor concat operation failed: types of '{name}' differ")
    return batch.join(several, padding)


def _different_shapes(name: str) -> ServingError:
    return ServingError(
        Code.FAILED_PRECONDITION,
        f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off."
        "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
        "have equal dimensions starting with the first dim.",
    )
