"""Samples of requests and their answers, written as PredictionLog records by a thread of its own.

They are warm-up requests and evaluation data as they stand. A request waits for nothing here: where the writer does not
keep up, or a file cannot be written, samples are dropped, counted and told.
"""

import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serve import log, sampling
from serve.config import ModelConfig
from serve.metrics import REQUEST_LOG_COUNT, Metrics
from serve.record_files import OPEN, RecordFile, recover
from serve.sampling import Sampling
from serve.status import Code, ServingError

_SAMPLES_AT_MOST = 1000
_BYTES_AT_MOST = 64 * 2**20
_SECONDS_BETWEEN_WARNINGS = 60.0
_REST_S, _REST_AT_MOST_S = 1.0, 60.0
_random = random.random
_now = time.monotonic


@dataclass(frozen=True)
class Rotation:
    """When a file is ended and the next one begun."""

    size_bytes: int = 64 * 2**20
    age_s: float = 3600.0


@dataclass(frozen=True)
class Sample:
    """One request to be written. `record` makes the PredictionLog, in the writer's thread."""

    model: str
    size_bytes: int
    record: Callable[[], Any]


class RequestLog:
    """The request logs of all models. `configure` says which there are."""

    def __init__(self, metrics: Metrics, rotation: Rotation):
        self._metrics = metrics
        self._models: Mapping[str, Sampling] = {}
        self._files = _Files(rotation)
        self._waiting: deque[Sample] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._dropped: dict[str, int] = {}
        self._warned = float("-inf")
        self._thread: threading.Thread | None = None

    def configure(self, models: Mapping[str, Sampling]) -> None:
        """Replaces what is sampled; begins to write if it is anything."""
        for prefix in {each.prefix for each in models.values()} - {
            each.prefix for each in self._models.values()
        }:
            if trouble := sampling.trouble(prefix):
                log.warning("request log cannot be written", prefix=prefix, reason=trouble)
            recover(prefix)
        self._models = dict(models)
        if models and self._thread is None:
            self._thread = threading.Thread(target=self._write, name="request log", daemon=True)
            self._thread.start()

    def follow(self, configs: Mapping[str, ModelConfig]) -> None:
        """The same, by the models' configs."""
        self.configure({name: config.sampling for name, config in configs.items() if config.sampling})

    def wants(self, model: str) -> bool:
        """Whether this request of a model shall be written."""
        found = self._models.get(model)
        return found is not None and _random() < found.rate

    def put(self, sample: Sample) -> None:
        """Hands a sample to the writer, or drops it. Never waits for a disk."""
        with self._changed:
            if (
                len(self._waiting) < _SAMPLES_AT_MOST
                and self._waiting_bytes + sample.size_bytes <= _BYTES_AT_MOST
            ):
                self._waiting.append(sample)
                self._waiting_bytes += sample.size_bytes
                self._changed.notify()
                return
        self._drop(sample, "the writer does not keep up")

    def stop(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, as far as there is time, and ends the files."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._warn()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping, timeout=1.0)
                sample = self._waiting.popleft() if self._waiting else None
                if sample:
                    self._waiting_bytes -= sample.size_bytes
                elif self._stopping:
                    break
            if sample:
                self._write_one(sample)
            self._files.end_old()
            if self._dropped and time.monotonic() > self._warned + _SECONDS_BETWEEN_WARNINGS:
                self._warn()
        self._files.end_all()

    def _write_one(self, sample: Sample) -> None:
        found = self._models.get(sample.model)
        if found is None:
            return  # the model's log was switched off meanwhile
        stem = f"{found.prefix}.{quote(sample.model, safe='')}"
        try:
            self._files.check(stem)
            record = sample.record()
            record.log_metadata.sampling_config.sampling_rate = found.rate
            self._files.add(stem, record.SerializeToString())
        except (ServingError, _NotWritten) as error:
            self._drop(sample, error.message)
        except Exception as error:  # noqa: BLE001 (a sample that no message holds ends no logging)
            self._drop(sample, f"{type(error).__name__}: {error}")
        else:
            self._metrics.add(REQUEST_LOG_COUNT, sample.model, Code.OK.name)

    def _drop(self, sample: Sample, reason: str) -> None:
        self._metrics.add(REQUEST_LOG_COUNT, sample.model, Code.RESOURCE_EXHAUSTED.name)
        with self._changed:
            self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def _warn(self) -> None:
        self._warned = time.monotonic()
        with self._changed:
            dropped, self._dropped = self._dropped, {}
        for reason, count in dropped.items():
            log.warning("samples for the request log dropped", count=count, reason=reason[:200])


class _NotWritten(Exception):
    """A record that no file takes. The message is the cause, without the name of that one file."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class _Rest:
    """After a failure no file is begun for a while, which doubles with each further one."""

    cause: str
    seconds: float
    until: float

    @classmethod
    def after(cls, cause: str, last: "_Rest | None") -> "_Rest":
        now, seconds = _now(), _REST_S
        if last and now < last.until + _REST_AT_MOST_S:
            seconds = min(2 * last.seconds, _REST_AT_MOST_S)
        return cls(cause, seconds, now + seconds)


class _Files:
    """The open files by what their names begin with. For one thread."""

    def __init__(self, rotation: Rotation):
        self._rotation = rotation
        self._open: dict[str, RecordFile] = {}
        self._rests: dict[str, _Rest] = {}
        self._count = 0

    def check(self, stem: str) -> None:
        """Raises _NotWritten as long as no file is begun, with the cause of the last failure."""
        rest = self._rests.get(stem)
        if rest and _now() < rest.until:
            raise _NotWritten(rest.cause)

    def add(self, stem: str, record: bytes) -> None:
        """Writes a record. Raises _NotWritten; then no file is begun for a while."""
        try:
            file = self._open.get(stem) or self._begin(stem)
            file.add(record)
        except Exception as error:
            cause = _cause(stem, error)
            self._rests[stem] = _Rest.after(cause, self._rests.get(stem))
            self._end(stem)
            raise _NotWritten(cause) from error
        if file.size >= self._rotation.size_bytes:
            self._end(stem)

    def end_old(self) -> None:
        oldest = time.monotonic() - self._rotation.age_s
        for stem in [stem for stem, file in self._open.items() if file.began <= oldest]:
            self._end(stem)

    def end_all(self) -> None:
        for stem in list(self._open):
            self._end(stem)

    def _begin(self, stem: str) -> RecordFile:
        self._count += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        file = self._open[stem] = RecordFile(f"{stem}.{stamp}-{os.getpid()}-{self._count}")
        return file

    def _end(self, stem: str) -> None:
        file = self._open.pop(stem, None)
        try:
            if file:
                file.close()
        except OSError as error:
            log.warning("request log was not ended well", file=stem, reason=error.strerror)


def _cause(stem: str, error: Exception) -> str:
    """What failed, with the folder in place of the file, whose name is never the same twice."""
    folder = str(Path(stem).parent)
    if isinstance(error, OSError):
        return f"{folder}: {error.strerror}"
    name = rf"{re.escape(stem)}\.\w+-\d+-\d+{re.escape(OPEN)}"
    return f"{type(error).__name__}: {re.sub(name, lambda _: folder, str(error))}"
