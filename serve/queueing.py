"""Which queue a version gets: what the flags say."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serve import batching_parameters
from serve.batching import Batching
from serve.flags import Flags
from serve.lines import Limits
from serve.model import Model
from serve.queues import Adaptive, Direct, Observer, Options, Queued, Unobserved
from serve.scheduler import Scheduler

_MIB = 1 << 20


def maker(flags: Flags, observer: Observer | None = None) -> Callable[[Model, Path], Queued]:
    """What gives a version, loaded from a folder, its queue. Raises INVALID_ARGUMENT for parameters that cannot be."""
    options = Options(
        rows_at_most=flags.adaptive_batch_rows,
        bytes_at_most=flags.adaptive_batch_mb * _MIB,
        limits=Limits(flags.max_waiting_requests, flags.max_waiting_mb * _MIB),
        observer=observer or Unobserved(),
    )
    if flags.enable_batching:
        return _batching(flags, options)
    if not flags.adaptive_batching:
        return lambda model, path: Queued(model, Direct(model, _name(path), options))
    return lambda model, path: Queued(
        model, Adaptive(model, _name(path), replace(options, runners=_runners(model)))
    )


def _runners(model: Model) -> int:
    """Joined runs at once. A run that uses all processors has none beside it: two take longer than one after another.

    Of models whose runs keep to one thread more may run, but more than a few would make batches small.
    """
    return min(4, len(os.sched_getaffinity(0))) if getattr(model, "in_one_thread", False) else 1


def _batching(flags: Flags, options: Options) -> Callable[[Model, Path], Queued]:
    common = batching_parameters.common(flags.batching_parameters_file)
    scheduler = Scheduler(common.num_batch_threads, common.thread_pool_name)

    def queued(model: Model, path: Path) -> Queued:
        parameters = batching_parameters.of_version(path, common, flags.enable_per_model_batching_parameters)
        if parameters is None:
            return Queued(model, Direct(model, _name(path), options))
        return Queued(model, Batching(model, _name(path), parameters, scheduler, options))

    return queued


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
