"""Counters and histograms under TF Serving's names, and their page in Prometheus' text format.

Every thread counts in cells of its own, so counting takes no lock; the page adds them up. Names, labels and buckets are
those of TF Serving's servables/tensorflow/util.cc, saved_model_warmup_util.cc and batching/batching_session.cc.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve.status import Code

PATH = "/monitoring/prometheus/metrics"

# Model names come from clients. Those that never answered are told apart up to this many, and then counted as one.
UNKNOWN_NAMES_AT_MOST = 1000
OTHER = "(other)"
_NAME_AT_MOST = 200


def _exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    return tuple(scale * growth**power for power in range(count))


_LATENCY_US = _exponential(10, 1.8, 33)
_SIZES = _exponential(1, 2, 15)


@dataclass(frozen=True, eq=False)
class Metric:
    """A counter, or with `buckets` (their upper limits, in order) a histogram. Its name is a path, as in TF Serving."""

    name: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _metric(name: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"/tensorflow/serving/{name}", labels, buckets)


REQUEST_COUNT = _metric("request_count", "model_name", "status")
REQUEST_LATENCY = _metric("request_latency", "model_name", "API", "entrypoint", buckets=_LATENCY_US)
RUNTIME_LATENCY = _metric("runtime_latency", "model_name", "API", "runtime", buckets=_LATENCY_US)
EXAMPLE_COUNTS = _metric("request_example_counts", "model", buckets=_SIZES)
EXAMPLE_COUNT_TOTAL = _metric("request_example_count_total", "model")
REQUEST_LOG_COUNT = _metric("request_log_count", "model_name", "status")
WARMUP_LATENCY = _metric("model_warmup_latency", "model_path", "status", buckets=_LATENCY_US)
QUEUING_LATENCY = _metric(
    "batching_session/queuing_latency", "thread_pool_name", buckets=_exponential(100, 1.2, 52)
)
# TF Serving keeps percentiles of the next three, which Prometheus has no name for.
INPUT_BATCH_SIZE = _metric("batching_session/input_batch_size", buckets=_SIZES)
PADDING_SIZE = _metric("batching_session/padding_size", "execution_batch_size", buckets=_SIZES)
PROCESSED_BATCH_SIZE = _metric("batching_session/processed_batch_size", buckets=_SIZES)
WRAPPED_RUN_COUNT = _metric("batching_session/wrapped_run_count")

ALL = (
    REQUEST_COUNT,
    REQUEST_LATENCY,
    RUNTIME_LATENCY,
    EXAMPLE_COUNTS,
    EXAMPLE_COUNT_TOTAL,
    REQUEST_LOG_COUNT,
    WARMUP_LATENCY,
    QUEUING_LATENCY,
    INPUT_BATCH_SIZE,
    PADDING_SIZE,
    PROCESSED_BATCH_SIZE,
    WRAPPED_RUN_COUNT,
)

# A counter's cell is [count]; a histogram's is a count for each bucket, one for what is above, and the sum.
Cell = list[float]
Key = tuple[Metric, tuple[str, ...]]
_RequestCells = tuple[Cell, Cell, Cell]


class _Shard(threading.local):
    """The cells of one thread."""

    def __init__(self, cells_of_new_thread: "_Shards"):
        self.cells: dict[Key, Cell] = cells_of_new_thread.begin()
        self.requests: dict[tuple[str, str, str], _RequestCells] = {}


class _Shards:
    """The cells of all threads. Those of threads that ended are kept as one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: list[tuple[threading.Thread, dict[Key, Cell]]] = []
        self._ended: dict[Key, Cell] = {}

    def begin(self) -> dict[Key, Cell]:
        """The empty cells of the thread that calls."""
        cells: dict[Key, Cell] = {}
        with self._lock:
            self._alive.append((threading.current_thread(), cells))
        return cells

    def sums(self) -> dict[Key, Cell]:
        """The cells of all threads, added up."""
        with self._lock:
            for ended in [pair for pair in self._alive if not pair[0].is_alive()]:
                self._alive.remove(ended)
                _add_up(self._ended, ended[1])
            found: dict[Key, Cell] = {}
            for cells in (self._ended, *(cells for _, cells in self._alive)):
                _add_up(found, cells)
        return found


def _add_up(into: dict[Key, Cell], cells: dict[Key, Cell]) -> None:
    # A copy is one step. While a list of items is made, garbage may be collected, and another thread add a cell.
    for key, cell in cells.copy().items():
        into[key] = (
            [one + other for one, other in zip(into[key], cell, strict=True)] if key in into else [*cell]
        )


class Metrics:
    """All metrics of a server. Safe to use from several threads."""

    def __init__(self) -> None:
        self._shards = _Shards()
        self._own = _Shard(self._shards)
        self._answered: set[str] = set()
        self._unknown: set[str] = set()

    def request(
        self,
        entrypoint: str,
        api: str,
        model: str,
        code: Code,
        latency_us: float,
        runtime_us: float | None = None,
    ) -> None:
        """Counts a request that ended; its times only if it went well. `runtime_us` is that of the model's run."""
        if code is not Code.OK:
            self.add(REQUEST_COUNT, self._told_apart(model), code.name)
            return
        cells = self._own.requests.get((entrypoint, api, model))
        if cells is None:
            cells = self._request_cells(entrypoint, api, model)
        count, latency, runtime = cells
        count[0] += 1
        latency[bisect_right(_LATENCY_US, latency_us)] += 1
        latency[-1] += latency_us
        if runtime_us is not None:
            runtime[bisect_right(_LATENCY_US, runtime_us)] += 1
            runtime[-1] += runtime_us

    def add(self, metric: Metric, *labels: str, amount: int = 1) -> None:
        """Adds to a counter."""
        self._cell(self._own, metric, labels)[0] += amount

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Adds a value to a histogram."""
        cell = self._cell(self._own, metric, labels)
        # A value that equals a limit counts above it, as in TensorFlow's histograms.
        cell[bisect_right(metric.buckets, value)] += 1
        cell[-1] += value

    def totals(self, names: Iterable[str]) -> dict[str, int]:
        """What the counters of these names (`/tensorflow/serving/request_count`) stand at; 0 for an unknown one."""
        wanted = dict.fromkeys(names, 0)
        for (metric, _), cell in self._shards.sums().items():
            if metric.name in wanted and not metric.buckets:
                wanted[metric.name] += int(cell[0])
        return wanted

    def page(self) -> bytes:
        """Everything in Prometheus' text format, version 0.0.4."""
        cells: dict[Metric, list[tuple[tuple[str, ...], Cell]]] = {metric: [] for metric in ALL}
        for (metric, labels), cell in sorted(self._shards.sums().items(), key=lambda item: item[0][1]):
            cells[metric].append((labels, cell))
        lines = [line for metric, found in cells.items() for line in _lines(metric, found)]
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")

    def _request_cells(self, entrypoint: str, api: str, model: str) -> _RequestCells:
        self._answered.add(model)
        own = self._own
        cells = (
            self._cell(own, REQUEST_COUNT, (model, Code.OK.name)),
            self._cell(own, REQUEST_LATENCY, (model, api, entrypoint)),
            # The runtime's metric has one name for each API, whichever way the request came.
            self._cell(own, RUNTIME_LATENCY, (model, api[:1].upper() + api[1:], "TF1")) if api else [],
        )
        own.requests[entrypoint, api, model] = cells
        return cells

    def _told_apart(self, model: str) -> str:
        """The name under which a model is counted that did not answer."""
        if model not in self._answered and model not in self._unknown:
            if len(self._unknown) >= UNKNOWN_NAMES_AT_MOST or len(model) > _NAME_AT_MOST:
                return OTHER
            self._unknown.add(model)
        return model

    def _cell(self, own: _Shard, metric: Metric, labels: tuple[str, ...]) -> Cell:
        cell = own.cells.get((metric, labels))
        if cell is None:
            cell = own.cells[metric, labels] = [0] * (len(metric.buckets) + 2 if metric.buckets else 1)
        return cell


def _lines(metric: Metric, cells: Sequence[tuple[tuple[str, ...], Cell]]) -> list[str]:
    name = metric.name.replace("/", ":")
    lines = [f"# TYPE {name} {'histogram' if metric.buckets else 'counter'}"]
    for values, cell in cells:
        pairs = [f'{label}="{_escaped(value)}"' for label, value in zip(metric.labels, values, strict=True)]
        labels = ",".join(pairs)
        if not metric.buckets:
            lines.append(f"{name}{{{labels}}} {int(cell[0])}")
            continue
        below = 0
        for limit, count in zip(
            (*(f"{limit:g}" for limit in metric.buckets), "+Inf"), cell[:-1], strict=True
        ):
            below += int(count)
            bucket = ",".join([*pairs, f'le="{limit}"'])
            lines.append(f"{name}_bucket{{{bucket}}} {below}")
        lines.append(f"{name}_sum{{{labels}}} {cell[-1]}")
        lines.append(f"{name}_count{{{labels}}} {below}")
    return lines


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
