"""Where loads and unloads run: in the caller's turn or in a pool, and below the priority of what serves."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

Job = Callable[[], None]


class Runner(Protocol):
    """Takes jobs, and may run them at once or later."""

    def submit(self, job: Job) -> None:
        """Runs it, before this returns or in another thread."""


class Inline:
    """Runs each job before `submit` returns."""

    def submit(self, job: Job) -> None:
        """Runs it."""
        job()


class Pool:
    """Runs jobs in so many threads."""

    def __init__(self, threads: int, name: str):
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def submit(self, job: Job) -> None:
        """Queues it."""
        self._pool.submit(job)

    def close(self) -> None:
        """Ends the threads, once what was taken is done; does not wait for it."""
        self._pool.shutdown(wait=False)


def runner(threads: int, name: str) -> Runner:
    """A pool of that many threads; 0: inline."""
    return Pool(threads, name) if threads else Inline()


def apart(job: Job, niceness: int) -> None:
    """Runs a job to its end in a thread of its own, its priority lowered by `niceness` where the system can.

    Threads that the job starts inherit its priority, so it must not start those that will serve.
    """

    def run() -> None:
        _lower(niceness)
        job()

    thread = threading.Thread(target=run, name="load", daemon=True)
    thread.start()
    thread.join()


def _lower(niceness: int) -> None:
    if niceness and sys.platform == "linux":  # elsewhere a thread has no priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
