"""What becomes of every request, told in one place: metrics, log lines, the trace, and samples for the request log.

A front calls `began` when a request is whole, and `ended` when its answer is: two calls, no locks, nothing that waits.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve import log, trace
from serve.metrics import (
    EXAMPLE_COUNT_TOTAL,
    EXAMPLE_COUNTS,
    INPUT_BATCH_SIZE,
    PADDING_SIZE,
    PROCESSED_BATCH_SIZE,
    QUEUING_LATENCY,
    WARMUP_LATENCY,
    WRAPPED_RUN_COUNT,
    Metrics,
)
from serve.request_log import RequestLog
from serve.rest import Answer, Call, Request, counted_as
from serve.status import Code, ServingError
from serve.trace import Trace
from serve.work import Result, Work

GRPC, REST = "GRPC", "REST"
# The gRPC methods whose requests are counted; TF Serving counts no others.
_ON_EXAMPLES = ("classify", "regress")
COUNTED = frozenset({"Predict", "Classify", "Regress", "MultiInference"})

_NAME_AT_MOST = 200
_clock = time.perf_counter


@dataclass(slots=True)
class Seen:
    """A request under way: when it began, its trace; how long its model ran, and on how many examples.

    `deadline` is in time.monotonic(), where the client has one.
    """

    began: float
    trace: Trace | None
    runtime_us: float | None = None
    examples: int = 0
    deadline: float | None = None


class Observer:
    """Sees requests begin and end. `log_requests`: a line for each."""

    def __init__(
        self,
        metrics: Metrics | None = None,
        request_log: RequestLog | None = None,
        log_requests: bool = False,
    ):
        self.metrics = metrics or Metrics()
        self.request_log = request_log
        self._log_requests = log_requests

    def began(self, traceparent: str | None = None) -> Seen:
        """Call it when a request was read. `traceparent` is that header, or that key of gRPC's metadata."""
        found = trace.read(traceparent) if traceparent else None
        if found is None and self._log_requests:
            found = trace.begin()
        return Seen(_clock(), found)

    def timed(self, seen: Seen, work: Work[Result], on_examples: bool = False) -> Work[Result]:
        """The work, whose run is timed from now on. Call it just before the model runs, or is queued for."""
        began, finish = _clock(), work.finish
        if on_examples:
            seen.examples = len(next(iter(work.feeds.values())))

        def finished(outputs: Sequence[np.ndarray]) -> Result:
            seen.runtime_us = (_clock() - began) * 1e6
            return finish(outputs)

        return Work(work.feeds, work.fetches, finished)

    def called(self, seen: Seen, call: Call) -> Call:
        """A REST call that is about to run: timed, and offered to the request log."""
        if self.request_log is not None:
            from serve import samples

            call = samples.watch(self.request_log, call)
        work = self.timed(seen, call.work, call.verb in _ON_EXAMPLES)
        return Call(call.lease, work, call.verb, call.signature)

    def sampled(self, api: str, request: Any, response: Any) -> None:
        """Offers a gRPC request that went well to the request log."""
        if self.request_log is not None:
            from serve import samples

            samples.offer(self.request_log, api, request, response)

    def ended(self, seen: Seen, entrypoint: str, api: str, model: str, code: Code) -> str | None:
        """Call it when the answer is made; returns the answer's `traceresponse`, if it shall have one.

        `api` is the gRPC method, or REST's verb (empty for status and metadata); `model` is empty where none was named.
        """
        latency_us = (_clock() - seen.began) * 1e6
        if entrypoint == REST or api in COUNTED:
            self.metrics.request(entrypoint, api, model, code, latency_us, seen.runtime_us)
            if seen.examples and code is Code.OK:
                self.metrics.observe(EXAMPLE_COUNTS, seen.examples, model)
                self.metrics.add(EXAMPLE_COUNT_TOTAL, model, amount=seen.examples)
        if self._log_requests:
            self._log(seen, entrypoint, api, model, code, latency_us)
        return seen.trace.header if seen.trace else None

    def ended_rest(self, seen: Seen, request: Request, answer: Answer) -> str | None:
        """The same for a request over REST."""
        counted = counted_as(request.method, request.target)
        if counted is None:
            return seen.trace.header if seen.trace else None
        return self.ended(seen, REST, *counted, answer.code)

    @contextlib.contextmanager
    def warming(self, path: Path) -> Iterator[None]:
        """Times the warm-up of a version."""
        began, code = _clock(), Code.OK
        try:
            yield
        except ServingError as error:
            code = error.code
            raise
        finally:
            self.metrics.observe(WARMUP_LATENCY, (_clock() - began) * 1e6, str(path), code.name)

    def _log(self, seen: Seen, entrypoint: str, api: str, model: str, code: Code, latency_us: float) -> None:
        parent = {"parent_id": seen.trace.parent_id} if seen.trace and seen.trace.parent_id else {}
        facts = {"entrypoint": entrypoint, "api": api, "model": model[:_NAME_AT_MOST], "code": code.name}
        with log.about(seen.trace):
            log.info("request", **facts, ms=round(latency_us / 1000, 3), **parent)


class BatchObserver:
    """Counts what a batching queue does, under TF Serving's `batching_session` names."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def batch(self, pool: str, waited_us: Sequence[float], rows: Sequence[int], padding: int) -> None:
        """See `serve.queues.Observer`."""
        for each_us, each_rows in zip(waited_us, rows, strict=True):
            self._metrics.observe(QUEUING_LATENCY, each_us, pool)
            self._metrics.observe(INPUT_BATCH_SIZE, each_rows)
        ran = sum(rows) + padding
        self._metrics.add(WRAPPED_RUN_COUNT)
        self._metrics.observe(PROCESSED_BATCH_SIZE, ran)
        self._metrics.observe(PADDING_SIZE, padding, str(ran))
