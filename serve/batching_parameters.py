"""TF Serving's BatchingParameters: read, their defaults, and which of them a version can be loaded with."""

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from serve import ranges, text_protos
from serve.status import ServingError, invalid

PER_VERSION_FILE = "batching_params.pbtxt"
_ROWS_AT_MOST = 2**31 - 1


@dataclass(frozen=True)
class Parameters:
    """How requests are joined with `--enable_batching`. Sizes are in rows."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None

    @property
    def rows_at_most(self) -> int:
        """The rows that run at once; another number than a request may have only where large ones are split."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, rows: int) -> int:
        """The allowed size that a batch of so many rows is filled up to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)

    def check(self) -> None:
        """Raises INVALID_ARGUMENT for parameters that no version can be loaded with."""
        self._check_numbers()
        if self.allowed_batch_sizes:
            self._check_allowed_sizes()

    def _check_numbers(self) -> None:
        if self.max_batch_size < 1:
            raise invalid(f"input_batch_size_limit must be positive; was {self.max_batch_size}")
        if self.batch_timeout_micros < 0:
            raise invalid(f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}")
        if self.max_enqueued_batches < 1 and (
            self.enable_large_batch_splitting or self.max_enqueued_batches < 0
        ):
            raise invalid(f"max_enqueued_batches must be positive; was {self.max_enqueued_batches}")
        if not 0 < self.rows_at_most <= self.max_batch_size:
            raise invalid(
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
                f"max_execution_batch_size. {self.max_batch_size} {self.rows_at_most}"
            )

    def _check_allowed_sizes(self) -> None:
        sizes, last = self.allowed_batch_sizes, self.allowed_batch_sizes[-1]
        found = f"last entry was {last}; expected {self.rows_at_most}"
        if self.enable_large_batch_splitting and last != self.rows_at_most:
            raise invalid(
                f"Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; {found}"
            )
        if last != self.rows_at_most:
            raise invalid(f"Last entry in allowed_batch_sizes must match max_batch_size; {found}")
        if sizes[0] < 1 or any(one >= next_one for one, next_one in pairwise(sizes)):
            raise invalid("allowed_batch_sizes entries must be monotonically increasing")


def common(path: str) -> Parameters:
    """Those of `--batching_parameters_file`, or of all models without one. Raises INVALID_ARGUMENT."""
    if not path:
        return Parameters(thread_pool_name="model_server_batch_threads")
    found = _read(path)
    if found.num_batch_threads < 1:
        raise invalid(f"num_batch_threads must be positive; was {found.num_batch_threads}")
    _bound(path, "num_batch_threads", found.num_batch_threads, ranges.THREADS_AT_MOST)
    return found


def of_version(folder: Path, shared: Parameters, per_model: bool) -> Parameters | None:
    """Those of one version, checked; None: it is not batched. Raises INVALID_ARGUMENT.

    With `per_model` they stand in a file of the version, and only the threads are `shared`.
    """
    found = shared
    if per_model:
        path = folder / PER_VERSION_FILE
        if not path.exists():
            return None
        found = replace(
            _read(path),
            num_batch_threads=shared.num_batch_threads,
            thread_pool_name=shared.thread_pool_name,
        )
    found.check()
    return found


def _read(path: str | Path) -> Parameters:
    message = text_protos.read(path, text_protos.BatchingParameters)
    wrapped = {each.name: value.value for each, value in message.ListFields() if each.message_type}
    found = Parameters(
        **wrapped,
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
    )
    _bound(path, "max_batch_size", found.max_batch_size, _ROWS_AT_MOST)
    _bound(path, "batch_timeout_micros", found.batch_timeout_micros, ranges.MICROS_AT_MOST)
    for size in found.allowed_batch_sizes:
        _bound(path, "allowed_batch_sizes", size, _ROWS_AT_MOST)
    return found


def _bound(path: str | Path, name: str, value: int, most: int) -> None:
    """Refuses what TF Serving takes and then fails at."""
    if value > most:
        raise invalid(f"{path}: {name} is {value}; give at most {most}")


def too_large(rows: int, parameters: Parameters) -> ServingError:
    """The error for a request that has more rows than any may have."""
    return invalid(f"Task size {rows} is larger than maximum input batch size {parameters.max_batch_size}")
