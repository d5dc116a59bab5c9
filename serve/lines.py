"""Tasks that wait, and threads of their own that take them: as many at once as fit together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from queue import SimpleQueue

from serve.status import Code, ServingError
from serve.task import Task

_SWEEP_EVERY_S = 0.1


class _Alarms(threading.local):
    """Wakes threads; in the thread of an event loop, once a turn."""

    call_soon: Callable[[Callable[[], None]], object] | None = None

    def __init__(self) -> None:
        self._waiting: list[SimpleQueue[None]] = []

    def ring(self, sleeper: SimpleQueue[None]) -> None:
        """Wakes one that sleeps there, now or at the end of the loop's turn."""
        if self.call_soon is None:
            sleeper.put(None)
            return
        self._waiting.append(sleeper)
        if len(self._waiting) == 1:
            self.call_soon(self._ring_all)

    def _ring_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sleeper in waiting:
            sleeper.put(None)


_alarms = _Alarms()


def wake_once_a_turn(call_soon: Callable[[Callable[[], None]], object]) -> None:
    """For the thread of an event loop: what it submits in a turn begins to run at the turn's end, and so together.

    Else the first request that it reads would be taken alone, and the thread that took it compete with the reading of
    the others. A lone request waits no longer for it.
    """
    _alarms.call_soon = call_soon


@dataclass(frozen=True)
class Limits:
    """How much may wait: requests, and bytes of their tensors (of strings, their places). 0 is no limit."""

    requests: int = 1024
    bytes: int = 1 << 30


class Line:
    """A line for one version. Threads start when they are needed and stay; each costs 17 KiB while idle.

    A free thread takes the kind whose turn it is, and what waits of it up to `rows_at_most` rows and `bytes_at_most`
    of tensors (the first task whatever its size). So a lone task runs at once and many are joined: nothing waits for a
    timer.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Task]], None],
        threads: int,
        rows_at_most: int,
        limits: Limits,
        bytes_at_most: int = 0,
    ):
        self._name = name
        self._run = run
        self._threads_at_most = threads
        self._rows_at_most = rows_at_most
        self._bytes_at_most = bytes_at_most
        self._limits = limits
        self._lock = threading.Lock()
        self._kinds: dict[Hashable, deque[Task]] = {}
        self._waiting = self._waiting_bytes = 0
        self._threads = self._idle = 0
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._next_sweep = 0.0

    def put(self, kind: Hashable, task: Task) -> None:
        """Puts a task at the end. Raises RESOURCE_EXHAUSTED where too much waits."""
        size = task.size
        if self._full(size):
            self._sweep()
        with self._lock:
            self._check(size)
            sleeps = self._idle > 0
            if sleeps:
                self._idle -= 1
            elif self._threads < self._threads_at_most:
                self._start()
            kind_tasks = self._kinds.get(kind)
            if kind_tasks is None:
                kind_tasks = self._kinds[kind] = deque()
            kind_tasks.append(task)
            self._waiting += 1
            self._waiting_bytes += size
        if sleeps:
            _alarms.ring(self._wake)

    def close(self) -> None:
        """Lets the threads end when nothing waits any more. They are not waited for: one may hang."""
        with self._lock:
            self._closed = True
            threads, self._idle = self._threads, 0
        for _ in range(threads):
            self._wake.put(None)

    def _check(self, size: int) -> None:
        if self._closed:
            raise ServingError(Code.UNAVAILABLE, f"{self._name} is being unloaded")
        limits = self._limits
        if limits.requests and self._waiting >= limits.requests:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._name} has {self._waiting} requests waiting, as many as may wait",
            )
        if limits.bytes and self._waiting and self._waiting_bytes + size > limits.bytes:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"{self._name} has {self._waiting_bytes} bytes of requests waiting; "
                f"{size} more are over what may wait, {limits.bytes}",
            )

    def _full(self, size: int) -> bool:
        requests, size_at_most = self._limits.requests, self._limits.bytes
        return bool(
            (requests and self._waiting >= requests)
            or (size_at_most and self._waiting and self._waiting_bytes + size > size_at_most)
        )

    def _sweep(self) -> None:
        """Takes out what nobody waits for any more: a model that hangs would keep it for ever. Not too often."""
        now = time.monotonic()
        with self._lock:
            if now < self._next_sweep:
                return
            self._next_sweep = now + _SWEEP_EVERY_S
            over: list[Task] = []
            for kind, tasks in list(self._kinds.items()):
                kept: deque[Task] = deque()
                for task in tasks:
                    (over if task.over(now) else kept).append(task)
                if kept:
                    self._kinds[kind] = kept
                else:
                    del self._kinds[kind]
            self._waiting -= len(over)
            self._waiting_bytes -= sum([task.size for task in over])
        for task in over:
            task.passed(now)

    def _start(self) -> None:
        """Starts a thread; raises RESOURCE_EXHAUSTED where the system gives none, and there is no other."""
        number = self._threads + 1
        try:
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True).start()
        except RuntimeError as error:
            if not self._threads:
                message = f"no thread can be started for {self._name}: {error}"
                raise ServingError(Code.RESOURCE_EXHAUSTED, message) from error
            return
        self._threads = number

    def _work(self) -> None:
        while True:
            with self._lock:
                tasks = self._take()
                if not tasks:
                    if self._closed:
                        return
                    self._idle += 1
            if tasks:
                self._run(tasks)
                del tasks  # a thread that is idle must hold no tensors
            else:
                self._wake.get()

    def _take(self) -> list[Task]:
        if not self._kinds:
            return []
        kind = next(iter(self._kinds))
        waiting = self._kinds.pop(kind)
        tasks = [waiting.popleft()]
        rows, size = self._rows_at_most - tasks[0].rows, self._bytes_at_most - tasks[0].size
        while waiting and waiting[0].rows <= rows and waiting[0].size <= size:
            rows -= waiting[0].rows
            size -= waiting[0].size
            tasks.append(waiting.popleft())
        if waiting:
            self._kinds[kind] = waiting  # behind the other kinds
        self._waiting -= len(tasks)
        self._waiting_bytes -= sum([task.size for task in tasks])
        return tasks
