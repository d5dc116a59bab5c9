"""The bundled load generator: replays rows against a REST port, at an even pace."""

import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy import web

_WORKERS = 16
_TIMEOUT_S = 30.0
_LATE_S = 1.0


@dataclass(frozen=True)
class Told:
    """What the clients of a load saw: requests sent, those without a 2xx, and their durations in ms, sorted."""

    sent: int
    failed: int
    latencies_ms: tuple[float, ...]

    def summary(self) -> dict[str, float | int | None]:
        """What goes into evidence; durations are None where nothing was answered."""
        p50, p99 = percentile(self.latencies_ms, 0.5), percentile(self.latencies_ms, 0.99)
        return {"sent": self.sent, "failed": self.failed, "p50_ms": p50, "p99_ms": p99}


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the ordered values does not exceed; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def bodies(features: Path, count: int | None = None) -> list[bytes]:
    """One REST request per row of a .npy file, at most `count` of them."""
    import numpy

    rows = numpy.load(features, mmap_mode="r")[:count]
    return [json.dumps({"instances": [row.tolist()]}).encode() for row in rows]


class Load:
    """A load that runs in threads from `with` to its end.

    Sends `rps` requests a second to `path` at `address` (HOST:PORT), each of `requests` in turn,
    whether or not earlier ones were answered, as far as 16 connections allow. 0 sends none.
    """

    def __init__(self, address: str, path: str, requests: Sequence[bytes], rps: float):
        self._address, self._path, self._requests, self._rps = address, path, requests, rps
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._next = 0
        self._due = 0.0
        self._failed = 0
        self._latencies: list[float] = []
        count = _WORKERS if rps > 0 and requests else 0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> "Load":
        self._due = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        deadline = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def told(self) -> Told:
        """What was seen until now."""
        with self._lock:
            return Told(len(self._latencies) + self._failed, self._failed, tuple(sorted(self._latencies)))

    def _work(self) -> None:
        with web.Session(self._address, _TIMEOUT_S) as session:
            while not self._over.wait(self._wait_s()):
                self._send(session)

    def _wait_s(self) -> float:
        """Takes the next place in the row, and says how long until its turn."""
        with self._lock:
            now = time.monotonic()
            if now - self._due > _LATE_S:
                self._due = now  # this machine cannot keep up; no burst afterwards
            wait_s = self._due - now
            self._due += 1 / self._rps
            return max(0.0, wait_s)

    def _send(self, session: web.Session) -> None:
        with self._lock:
            body = self._requests[self._next % len(self._requests)]
            self._next += 1
        began = time.monotonic()
        try:
            status = session.ask("POST", self._path, body)[0]
        except OSError:
            status = 0
        took_ms = 1000 * (time.monotonic() - began)
        with self._lock:
            if 200 <= status < 300:
                self._latencies.append(took_ms)
            else:
                self._failed += 1
