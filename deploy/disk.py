"""What writing to a shared disk needs: a lock that dies with its holder, and errors that a person can act on."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import ProgramFailed

_LOCK_PATIENCE_S = 900.0


@contextlib.contextmanager
def disk_trouble(place: str) -> Iterator[None]:
    """Turns a full, read-only or forbidden disk into an error that a person can act on."""
    try:
        yield
    except OSError as error:
        raise ProgramFailed(
            f"{place} could not be written: {error.strerror or error}. Make room or give access, and run this again;"
            " nothing half-written counts as done."
        ) from error


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None], patience_s: float = _LOCK_PATIENCE_S) -> Iterator[None]:
    """Holds a lock that other processes respect and that ends with this process, however it ends.

    Raises ProgramFailed when another process still has it after `patience_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with path.open("a") as stream:
        waiting = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    say(f"waiting for another process that holds {path.name}")
                waiting = True
            if time.monotonic() > deadline:
                raise ProgramFailed(
                    f"another process has held {path} for {patience_s:g} s; end it, and run this again."
                )
            time.sleep(0.05)
        yield
