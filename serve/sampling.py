"""Which of a model's requests are logged."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.status import invalid, not_found

COLLECTOR = "tfrecord"


@dataclass(frozen=True)
class Sampling:
    """Which part of a model's requests is written (0 to 1), to files that begin with a prefix."""

    rate: float
    prefix: str


def read(config: Any) -> Sampling | None:
    """What a model's LoggingConfig asks for; None for nothing. Raises NOT_FOUND for a collector that is not here."""
    collector, rate = config.log_collector_config, config.sampling_config.sampling_rate
    if rate == 0:
        return None
    if collector.type != COLLECTOR:
        raise not_found(f"Cannot find LogCollector::Factory for type: {collector.type}")
    if not collector.filename_prefix:
        raise invalid("LoggingConfig has no filename_prefix, so there is nowhere to write its log to")
    return checked(rate, collector.filename_prefix)


def checked(rate: float, prefix: str) -> Sampling | None:
    """The sampling with that rate. Raises INVALID_ARGUMENT for one that is no part of all requests."""
    if not 0 <= rate <= 1:
        raise invalid(f"The sampling rate of a request log lies between 0 and 1, and is {rate}")
    return Sampling(rate, prefix) if rate > 0 else None


def trouble(prefix: str) -> str | None:
    """Why no file that begins with the prefix can be made, as far as its folder tells; None if it can."""
    folder = Path(f"{prefix}_").parent
    if not os.path.lexists(folder):
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"this process (user {os.getuid()}) may not write into the folder {folder}, or nobody may"
    return None
