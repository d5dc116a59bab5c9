"""Locks between processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.bucket_file import disk_errors
from pipeline.errors import LostRace
from pipeline.stages import Stage


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

    return locked(state / "run" / ".lock", busy)
