"""Locks between processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from pipeline.bucket_file import disk_errors
from pipeline.errors import LostRace
from pipeline.stages import Stage

_LOOKS = 3
_LOOK_S = 0.02


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], Exception] | None = None) -> Iterator[None]:
    """Holds a lock file. Waits for it; or, given `busy`, raises `busy(what the holder wrote)` at once."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    with handle:
        if busy is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        elif not _taken(handle):
            handle.seek(0)
            raise busy(handle.read().strip())
        handle.truncate(0)
        handle.write(f"process {os.getpid()}")
        handle.flush()
        yield


def _taken(handle: TextIO) -> bool:
    """Takes a lock unless another keeps it. Whoever only looks (`holder`) has it for a moment, so more than one try."""
    for look in range(_LOOKS):
        time.sleep(_LOOK_S if look else 0)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def holder(path: Path) -> str:
    """Who holds a lock file, as the holder wrote; nothing where nobody does."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_text().strip() or "another process"
    except OSError:
        pass  # never deployed
    return ""


def alone(build: Path) -> contextlib.AbstractContextManager:
    """One run at a time in this folder."""

    def busy(holder: str) -> LostRace:
        return LostRace(f"another run is at work in this folder ({holder}). Wait for it, or stop it.")

    return locked(build / ".lock", busy)


def deploying(stage: Stage, state: Path) -> contextlib.AbstractContextManager:
    """One deployment at a time on this machine; a stage that deploys nothing holds no lock."""
    return deployment_lock(state) if stage.deploys else contextlib.nullcontext()


def deployment_lock(state: Path) -> contextlib.AbstractContextManager:
    """Held by whatever starts, stops or switches versions on this machine."""

    def busy(holder: str) -> LostRace:
        return LostRace(
            f"a deployment is going on here ({holder}). Wait for it, or stop it with Ctrl-C: a canary that is "
            "stopped gives its traffic back."
        )

    return locked(_deployments(state), busy)


def deploying_now(state: Path) -> str:
    """Who starts, stops or switches versions on this machine at this moment; nothing where nobody does."""
    return holder(_deployments(state))


def _deployments(state: Path) -> Path:
    return state / "run" / ".lock"
