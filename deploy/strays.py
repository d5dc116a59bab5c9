"""Processes that are known only by an argument of their command line: what a killed command left behind."""

import os
import signal
import time
from pathlib import Path

_POLL_S = 0.02


def find(marker: str, proc: Path = Path("/proc")) -> list[int]:
    """Processes that have an argument beginning with `marker`."""
    return [int(folder.name) for folder in proc.glob("[0-9]*") if _has(folder, marker)]


def end(pid: int, marker: str, grace_s: float = 3.0) -> None:
    """Ends a process that has an argument beginning with `marker`, by force after a grace."""
    folder = Path(f"/proc/{pid}")
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if not _has(folder, marker):
            return
        os.kill(pid, sign)
        deadline = time.monotonic() + grace_s
        while _has(folder, marker) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _has(folder: Path, marker: str) -> bool:
    try:
        arguments = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(argument.startswith(marker.encode()) for argument in arguments)
