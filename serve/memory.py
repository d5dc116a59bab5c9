"""A bound for the memory of the process: a version that would not fit below it is not loaded.

What a version needs is estimated before it is loaded: the bytes of its graph (saved_model.pb, .pbtxt or
model.tflite) and of its variables, times FACTOR, as restoring holds some of what is read beside what is kept.
It fits if the resident set of the process, the estimates of all loads that run now, and its own stay within the
budget. Once it is loaded the resident set is measured anew, so that estimates never add up.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from serve import log
from serve.status import Code, ServingError

FACTOR = 1.25

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")


def estimate(path: Path) -> int:
    """The bytes that the version in this folder is taken to need."""
    files = [path / name for name in _GRAPHS]
    with contextlib.suppress(OSError):
        files += (path / "variables").iterdir()
    return int(FACTOR * sum(_size(file) for file in files))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def resident() -> int:
    """The bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def trim() -> None:
    """Gives free memory back to the system, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Refused(ServingError):
    """A version that does not fit. To try it again would change nothing."""


class Budget:
    """Lets versions be loaded as long as they fit."""

    def __init__(
        self, limit: int, resident: Callable[[], int] = resident, trim: Callable[[], None] = trim
    ) -> None:
        self._limit = limit
        self._resident = resident
        self._trim = trim
        self._reserved = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def room(self, what: str, path: Path) -> Iterator[None]:
        """Keeps room while a version is loaded. Raises Refused, before anything is loaded, if it does not fit."""
        need = estimate(path)
        before = self._reserve(what, need)
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= need
        log.info("loaded within the budget", version=what, estimated=need, grown=self._resident() - before)

    def _reserve(self, what: str, need: int) -> int:
        with self._lock:
            if self._resident() + self._reserved + need > self._limit:
                self._trim()
            used = self._resident()
            if used + self._reserved + need > self._limit:
                raise Refused(
                    Code.RESOURCE_EXHAUSTED,
                    f"Insufficient resources to load servable {what}: it is taken to need {need} bytes, and "
                    f"{used + self._reserved} of the {self._limit} of --memory_budget_bytes are in use",
                )
            self._reserved += need
            return used
