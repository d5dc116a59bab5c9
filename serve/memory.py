"""A bound for the memory of the process: a version that would not fit below it is not loaded.

What a version needs is estimated before it is loaded: OF_VARIABLES times the bytes in its variables folder and OF_GRAPH
times those of saved_model.pb, .pbtxt or model.tflite. Measured: a ResNet-50 of 205 MB of variables takes 1.34 to 1.5
times these; with its 100 MB of weights as constants in the graph 4.2 to 4.4 times, before it first runs.

It fits if the resident set of the process, less what unloaded versions left for reuse, plus the estimates of all loads
that run now, plus its own, stay within the budget. TensorFlow's CPU allocator keeps the memory of variables that are
gone and gives it to the next ones, so the resident set does not shrink: a version that is unloaded leaves its bytes on
disk, less what the resident set shrank by, and a version that is loaded takes its bytes on disk from these.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from serve import log
from serve.status import Code, ServingError

OF_VARIABLES, OF_GRAPH = 1.5, 4.5

_GRAPHS = ("saved_model.pb", "saved_model.pbtxt", "model.tflite")


@dataclass(frozen=True)
class Size:
    """The bytes of a version on disk."""

    graph: int
    variables: int

    @classmethod
    def of(cls, path: Path) -> "Size":
        """That of the version in this folder."""
        variables: list[Path] = []
        with contextlib.suppress(OSError):
            variables = list((path / "variables").iterdir())
        return cls(sum(_size(path / name) for name in _GRAPHS), sum(_size(file) for file in variables))

    @property
    def estimate(self) -> int:
        """The bytes in memory that it is taken to need."""
        return int(OF_GRAPH * self.graph + OF_VARIABLES * self.variables)


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
        self._loading = 0  # the estimates of loads that run now
        self._loaded: dict[str, int] = {}  # the bytes on disk of what is loaded
        self._reusable = 0  # bytes that unloaded versions left in the allocator
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def room(self, what: str, path: Path) -> Iterator[None]:
        """Keeps room while a version is loaded. Raises Refused, before anything is loaded, if it does not fit."""
        size = Size.of(path)
        before = self._reserve(what, size.estimate)
        try:
            yield
        finally:
            with self._lock:
                self._loading -= size.estimate
        with self._lock:
            self._loaded[what] = size.graph + size.variables
            self._reusable = max(0, self._reusable - self._loaded[what])
        log.info("memory", version=what, estimated=size.estimate, grown=self._resident() - before)

    @contextlib.contextmanager
    def leaving(self, what: str) -> Iterator[None]:
        """Is told while a version is unloaded."""
        before = self._resident()
        try:
            yield
        finally:
            self._trim()
            with self._lock:
                shrunk = max(0, before - self._resident())
                self._reusable += max(0, self._loaded.pop(what, 0) - shrunk)

    def _reserve(self, what: str, need: int) -> int:
        with self._lock:
            if self._used() + need > self._limit:
                self._trim()
            used = self._used()
            if used + need > self._limit:
                raise Refused(
                    Code.RESOURCE_EXHAUSTED,
                    f"Insufficient resources to load servable {what}: it is taken to need {need} bytes, and "
                    f"{used} of the {self._limit} of --memory_budget_bytes are in use",
                )
            self._loading += need
            return self._resident()

    def _used(self) -> int:
        return max(0, self._resident() - self._reusable) + self._loading
