"""Sends an image's blobs side by side, a few at a time, and tells how it goes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from deploy.oci import Descriptor, Source
from deploy.registry import Client
from deploy.transport import CONNECTIONS
from deploy.uploads import Upload

_TERMINAL_S, _LOG_S = 2.0, 15.0  # how often a person is told, and how often a log


class _Stopped(Exception):
    """Another blob failed, so this one is not wanted any more."""


class Progress:
    """Counts what passes, for threads, and says so now and then: bytes, and MiB per second."""

    def __init__(
        self,
        total: int,
        say: Callable[[str], None],
        *,
        every_s: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.sent = 0
        self.every_s = every_s or (_TERMINAL_S if sys.stderr.isatty() else _LOG_S)
        self._total = total
        self._say = say
        self._now = now
        self._lock = threading.Lock()
        self._began = self._told = now()

    def add(self, count: int) -> None:
        """That `count` more bytes were handed to the network."""
        with self._lock:
            self.sent += count

    def tell(self, *, last: bool = False) -> None:
        """Says how far it is, if it is time; with `last`, how it was, if anything was said or it took long enough."""
        now = self._now()
        due = now - self._told >= self.every_s or (
            last and now - self._began >= min(self.every_s, _TERMINAL_S)
        )
        if not due:
            return
        self._told = now
        rate = self.sent / 2**20 / max(now - self._began, 1e-6)
        self._say(f"sent {self.sent / 2**20:.1f} of {self._total / 2**20:.1f} MiB, {rate:.0f} MiB/s")


def push(
    client: Client,
    blobs: Iterable[Descriptor],
    source: Source,
    say: Callable[[str], None],
    *,
    origin: str = "",
) -> int:
    """Makes each blob available in the client's repository; returns how many bytes were sent.

    A blob that is there is not sent, one that `origin`, another repository of the same
    registry, has is mounted. Of each other blob one chunk is in memory at a time. The first
    failure ends all.
    """
    unique = sorted({blob.digest: blob for blob in blobs}.values(), key=lambda blob: -blob.size)
    stop = threading.Event()
    progress = Progress(sum(blob.size for blob in unique), say)

    def passed(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        progress.add(count)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        pending = {pool.submit(_push_one, client, blob, source, say, passed, origin) for blob in unique}
        try:
            while pending:
                done, pending = wait(pending, progress.every_s, FIRST_COMPLETED)
                for future in done:
                    future.result()
                progress.tell()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.tell(last=True)
    return progress.sent


def _push_one(
    client: Client,
    blob: Descriptor,
    source: Source,
    say: Callable[[str], None],
    passed: Callable[[int], None],
    origin: str,
) -> None:
    if client.lacks(blob) is None:
        return
    upload = Upload(client, blob, lambda: source.open(blob), passed=passed)
    size = f"{blob.digest[7:19]}  {blob.size / 2**20:.1f} MiB"
    if origin and upload.mount(origin):
        say(f"mounted {size} from {origin}")
        return
    say(f"uploading {size}")
    upload.run()
