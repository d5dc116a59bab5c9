"""TF Serving's scheduling of batches: queues of batches that fill up or come of age, and threads that all share."""

import threading
import time
from collections import deque
from collections.abc import Callable

from serve.batching_parameters import Parameters, too_large
from serve.status import Code, ServingError
from serve.task import Task


class Batch:
    """Tasks that will run together."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.rows = 0
        self.since = 0.0

    def add(self, task: Task, now: float) -> None:
        """One more; the first sets the time from which the batch ages."""
        if not self.tasks:
            self.since = now
        self.tasks.append(task)
        self.rows += task.rows


class BatchQueue:
    """The batches of one signature of one version: closed ones, and last an open one. Not safe without a lock."""

    def __init__(self, parameters: Parameters, run: Callable[[list[Task]], None]):
        self.run = run
        self.closed = False
        self._parameters = parameters
        self._limit = max(1, parameters.max_enqueued_batches)
        self._batches = deque([Batch()])

    def check(self, rows: int) -> None:
        """Raises INVALID_ARGUMENT for a task that is too large, UNAVAILABLE where the queue is full."""
        if rows > self._parameters.max_batch_size:
            raise too_large(rows, self._parameters)
        full = "The batch scheduling queue to which this task was submitted is full; "
        if self._parameters.enable_large_batch_splitting:
            if rows > self._capacity():
                raise ServingError(Code.UNAVAILABLE, full + self._lacking(rows))
        elif self._open.rows + rows > self._parameters.max_batch_size and len(self._batches) >= self._limit:
            raise ServingError(
                Code.UNAVAILABLE,
                f"{full}currently {len(self._batches)} batches enqueued and max_enqueued_batches is {self._limit}",
            )

    @property
    def room(self) -> int:
        """The rows that the open batch still takes."""
        return self._parameters.rows_at_most - self._open.rows

    def add(self, task: Task, now: float) -> None:
        """Puts a task into the open batch, or into a new one if it does not fit."""
        if task.rows > self.room:
            self._batches.append(Batch())
        self._open.add(task, now)

    def take(self, now: float) -> list[Task] | None:
        """The batch that is to run now, if one is full, old enough, or the queue was closed."""
        if len(self._batches) == 1 and self._ripe(now):
            self._batches.append(Batch())
        return self._batches.popleft().tasks if len(self._batches) > 1 else None

    def due(self) -> float | None:
        """When the open batch has to run at the latest; None without one. A time that has passed: at once."""
        if len(self._batches) > 1:
            return 0.0
        if not self._open.tasks:
            return None
        return self._open.since + self._parameters.batch_timeout_micros / 1e6

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return len(self._batches) == 1 and not self._open.tasks

    @property
    def _open(self) -> Batch:
        return self._batches[-1]

    def _ripe(self, now: float) -> bool:
        due = self.due()
        return due is not None and (self.closed or self.room <= 0 or now >= due)

    def _capacity(self) -> int:
        return (self._limit - len(self._batches)) * self._parameters.rows_at_most + self.room

    def _lacking(self, rows: int) -> str:
        return (
            f"task size is {rows} but scheduling capacity is only {self._capacity()} "
            f"(num_enqueued_batches={len(self._batches)}, max_enqueued_batches={self._limit}, "
            f"open_batch_size={self._open.rows}, max_execution_batch_size={self._parameters.rows_at_most})"
        )


class Scheduler:
    """The threads that run batches, and whose turn it is. One for all models, as in TF Serving."""

    def __init__(self, threads: int, name: str, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._changed = threading.Condition()
        self._queues: deque[BatchQueue] = deque()
        for number in range(threads):
            try:
                threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True).start()
            except RuntimeError as error:
                message = (
                    f"num_batch_threads is {threads}, and the system allows {number}: {error}. Give fewer"
                )
                raise ServingError(Code.RESOURCE_EXHAUSTED, message) from error

    def add_queue(self, queue: BatchQueue) -> None:
        """Its batches will be run."""
        with self._changed:
            self._queues.append(queue)

    def submit(self, queue: BatchQueue, rows: int, tasks: Callable[[int], list[Task]]) -> None:
        """Puts tasks into a queue: those that `tasks` makes of a request, told the room in the open batch.

        Raises INVALID_ARGUMENT for more rows than a request may have, UNAVAILABLE where the queue is full or closed.
        """
        with self._changed:
            if queue.closed:
                raise ServingError(Code.UNAVAILABLE, "The version is being unloaded")
            queue.check(rows)
            before = queue.due()
            for task in tasks(queue.room):
                queue.add(task, self._clock())
            if before is None or queue.room <= 0 or queue.due() != before:
                self._changed.notify()

    def close_queue(self, queue: BatchQueue) -> None:
        """Lets what waits run at once; the queue is dropped when it is empty."""
        with self._changed:
            queue.closed = True
            self._changed.notify()

    def next(self) -> tuple[BatchQueue, list[Task]] | None:
        """The batch whose turn it is, queues taking turns; None if none is to run now. Drops ended queues."""
        now = self._clock()
        for _ in range(len(self._queues)):
            queue = self._queues.popleft()
            tasks = queue.take(now)
            if tasks is not None or not (queue.closed and queue.empty):
                self._queues.append(queue)
            if tasks is not None:
                return queue, tasks
        return None

    def _work(self) -> None:
        while True:
            with self._changed:
                found = self.next()
                if found is None:
                    self._changed.wait(self._wait())
                    continue
                self._changed.notify()  # another thread watches the time from here
            queue, tasks = found
            queue.run(tasks)
            del found, queue, tasks  # a thread that is idle must hold no tensors

    def _wait(self) -> float | None:
        due = [at for queue in self._queues if (at := queue.due()) is not None]
        return max(0.0, min(due) - self._clock()) if due else None
