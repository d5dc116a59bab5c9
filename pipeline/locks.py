"""Locks between processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.bucket_file import disk_errors


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Holds a lock file. Waits for it; or, given `busy`, raises `busy(what the holder wrote)` at once."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            handle.seek(0)
            if busy is None:
                raise
            raise busy(handle.read().strip()) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield
