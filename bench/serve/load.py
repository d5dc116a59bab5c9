"""Load, made by programs that cost little, as client and server share the cores: wrk for REST, h2load for gRPC.

Both are closed loops: each client sends its next request when it has the answer to the one before.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import run
from pipeline.errors import ProgramFailed

INSTALL = "apt-get install wrk nghttp2-client"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
_SCRIPT = Path(__file__).with_name("wrk.lua")
_PATIENCE_S = 60
# Fewer answers than this say nothing of the slowest one in a hundred.
ENOUGH_FOR_P99 = 100


@dataclass(frozen=True)
class Load:
    """How a server is asked: `clients` connections with one request at a time each, for `seconds`."""

    clients: int
    seconds: float
    warm_up_s: float = 1.0


@dataclass(frozen=True)
class Seen:
    """What came of it. `p99_ms` is None where there were too few answers; `failures` are requests."""

    requests: int
    failures: int
    per_second: float
    p50_ms: float
    p99_ms: float | None


def check_programs() -> None:
    """Raises ProgramFailed naming what to install."""
    missing = [name for name in ("wrk", "h2load") if shutil.which(name) is None]
    if missing:
        raise ProgramFailed(f"{' and '.join(missing)} is not on PATH: {INSTALL}")


def rest(port: int, path: str, body: bytes, load: Load) -> Seen:
    """Posts the same body again and again. What is warming up is not counted."""
    with tempfile.NamedTemporaryFile(prefix="bench-serve-body-") as file:
        file.write(body)
        file.flush()
        for seconds in filter(None, (load.warm_up_s, load.seconds)):
            argv = [
                *("wrk", "--threads", "1", "--connections", str(load.clients)),
                *(
                    "--duration",
                    f"{math.ceil(seconds)}s",
                    "--timeout",
                    f"{_PATIENCE_S}s",
                    "--script",
                    str(_SCRIPT),
                ),
                *(f"http://127.0.0.1:{port}{path}", "--", file.name),
            ]
            done = run.run(argv, timeout_s=seconds + 2 * _PATIENCE_S, echo=False)
    return read_wrk(done.stdout)


def read_wrk(printed: str) -> Seen:
    """What wrk.lua printed. wrk counts as requests those that were answered, by whatever status."""
    found = re.search(r"^TOTALS (\{.*\})$", printed, re.MULTILINE)
    if found is None:
        raise ProgramFailed(f"wrk did not print its totals: {printed[-500:]}")
    totals = json.loads(found[1])
    good = totals["requests"] - totals["statuses"]
    _some(good, totals["requests"])
    return Seen(
        requests=totals["requests"],
        failures=totals["statuses"] + totals["timeouts"] + totals["breaks"],
        per_second=good / (totals["duration_us"] / 1e6),
        p50_ms=totals["p50_us"] / 1e3,
        p99_ms=totals["p99_us"] / 1e3 if good >= ENOUGH_FOR_P99 else None,
    )


def grpc(port: int, message: bytes, answer_bytes: int, load: Load) -> Seen:
    """Calls Predict with the same message again and again, over a connection for each client.

    h2load knows nothing of gRPC: a call that fails has status 200 and no message. So the bytes that came are
    compared with those of `answer_bytes` for each answer.
    """
    with tempfile.TemporaryDirectory(prefix="bench-serve-grpc-") as room:
        body, log = Path(room) / "body", Path(room) / "log"
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        # Not by h2load's own warm-up: its bytes would count.
        for seconds in filter(None, (load.warm_up_s, load.seconds)):
            log.unlink(missing_ok=True)
            argv = [
                *(
                    "h2load",
                    "--threads",
                    "1",
                    "--clients",
                    str(load.clients),
                    "--max-concurrent-streams",
                    "1",
                ),
                *("--duration", f"{math.ceil(seconds)}", "--data", str(body), "--log-file", str(log)),
                *("--header", "content-type: application/grpc", "--header", "te: trailers"),
                f"http://127.0.0.1:{port}{PREDICT}",
            ]
            done = run.run(argv, timeout_s=seconds + 2 * _PATIENCE_S, echo=False)
        times = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    return read_h2load(done.stdout, times, answer_bytes, load.seconds)


def read_h2load(printed: str, times_us: Sequence[int], answer_bytes: int, seconds: float) -> Seen:
    """What h2load printed, and the microseconds of each request from its log."""
    found = re.search(
        r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", printed, re.MULTILINE
    )
    came = re.search(r"^traffic: .*, \S+ \((\d+)\) data", printed, re.MULTILINE)
    if found is None or came is None:
        raise ProgramFailed(f"h2load did not print its totals: {printed[-500:]}")
    succeeded, failed, _, _ = (int(number) for number in found.groups())
    # A frame of five bytes is before each message. Answers that were on their way at the end count for neither.
    whole = min(succeeded, round(int(came[1]) / (answer_bytes + 5)))
    _some(whole, succeeded + failed)
    return Seen(
        requests=succeeded + failed,
        failures=failed + succeeded - whole,
        per_second=whole / math.ceil(seconds),
        p50_ms=percentile(times_us, 50) / 1e3,
        p99_ms=percentile(times_us, 99) / 1e3 if whole >= ENOUGH_FOR_P99 else None,
    )


def _some(good: int, asked: int) -> None:
    if good <= 0:
        raise ProgramFailed(f"of {asked} requests that ended in time none was answered well")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are at or below (nearest rank); NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
