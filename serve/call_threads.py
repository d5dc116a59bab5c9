"""Threads for gRPC calls: so many work at once, and one that waits lets another work in its place.

gRPC's server holds a thread for each call from its beginning to its end. With a fixed number of them, calls of a model
that is slow, or that hangs, would in the end hold all, and no other model, nor the health service, could be asked.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any

Job = Callable[[], None]

# Twice what may wait for one version, and well below the threads that a container is given.
_AT_MOST = 2048

_own = threading.local()


class CallThreads(Executor):
    """Runs calls in threads, of which `at_work` work at once, and up to 2,048 in all, those in `waiting` with them.

    Threads start when they are needed, but for the first, and stay until the process ends.
    """

    def __init__(self, at_work: int):
        self._lock = threading.Lock()
        self._places = at_work  # below 0 while calls that waited work beside those that took their places
        self._idle = 0
        self._backlog: deque[Job] = deque()
        self._handed: SimpleQueue[Job] = SimpleQueue()
        self._count = 0
        self._start()  # so that there is one, whatever the system gives later
        self._idle += 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """See `concurrent.futures.Executor`."""
        future: Future = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 (it is the future's, as in the library's executors)
                    future.set_exception(error)

        with self._lock:
            self._backlog.append(job)
            self._fill()
        return future

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it, the calling thread waits and does not work."""
        with self._lock:
            self._places += 1
            self._fill()
        try:
            yield
        finally:
            with self._lock:
                self._places -= 1

    def _fill(self) -> None:
        """Gives free places to calls that wait for one."""
        while self._backlog and self._places > 0:
            if self._idle:
                self._idle -= 1
            elif self._count >= _AT_MOST or not self._started():
                return
            self._places -= 1
            self._handed.put(self._backlog.popleft())

    def _start(self) -> None:
        threading.Thread(target=self._work, name=f"grpc_{self._count}", daemon=True).start()
        self._count += 1

    def _started(self) -> bool:
        try:
            self._start()
        except RuntimeError:  # the system has no more: the next thread that is done goes on with the backlog
            return False
        return True

    def _work(self) -> None:
        _own.threads = self
        while True:
            job: Job | None = self._handed.get()
            while job is not None:
                job()
                job = self._next()

    def _next(self) -> Job | None:
        """The call that takes over this thread's place, if it keeps one."""
        with self._lock:
            if self._backlog and self._places >= 0:
                return self._backlog.popleft()
            self._places += 1
            self._idle += 1
            self._fill()
            return None


def waiting() -> contextlib.AbstractContextManager[None]:
    """Within it, a call of `CallThreads` waits and lets another work; elsewhere it means nothing."""
    threads: CallThreads | None = getattr(_own, "threads", None)
    return threads.waiting() if threads is not None else contextlib.nullcontext()
