"""What a stage hands to the runner while it works: its newest checkpoint, whole or not at all.

    WORK/progress.json      how far the newest checkpoint in this folder is
    WORK/.offered/          the newest one that waits for the runner: `progress.json` and the files
    WORK/.taken/            the one that the runner is putting into the store

The stage knows nothing of a store, and the runner nothing of what a checkpoint is made of. Of any number of offers
one waits, the newest: a slow store never slows the stage, nor fills its disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROGRESS = "progress.json"
_OFFERED, _OFFERING, _STALE, _TAKEN = ".offered", ".offering", ".stale", ".taken"


@dataclass(frozen=True)
class Progress:
    """How far a checkpoint is: steps done in all, epochs done, and seconds spent on it over all attempts."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"step {self.step:,} (epochs done: {self.epoch:,}; {self.seconds:,.0f} s of work)"

    @classmethod
    def parse(cls, said: Mapping) -> Progress:
        """Progress from its JSON form. Raises ValueError for anything else."""
        try:
            made = cls(**said)
        except TypeError as error:
            raise ValueError(f"no progress: {error}") from error
        whole = all(type(number) is int and number >= 0 for number in (made.step, made.epoch))
        if not whole or type(made.seconds) not in (int, float) or not 0 <= made.seconds < math.inf:
            raise ValueError(f"no progress: {said}")
        return made


def offer(work: Path, files: Iterable[Path], progress: Progress) -> None:
    """Hands files below `work` to the runner, in the place of what still waits. Raises OSError where it cannot.

    They are linked where the file system can, so that they may be removed from their place at once, and cost nothing.
    """
    note(work, progress)
    partial, place = work / _OFFERING, work / _OFFERED
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in files:
        target = partial / path.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    note(partial, progress)
    shutil.rmtree(work / _STALE, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # nothing waited, or the runner has just taken it
        place.rename(work / _STALE)
    partial.rename(place)
    shutil.rmtree(work / _STALE, ignore_errors=True)


def take(work: Path) -> tuple[Path, Progress] | None:
    """The folder of the newest offer, which is the runner's from now on, and how far it is; None if none waits."""
    taken = work / _TAKEN
    shutil.rmtree(taken, ignore_errors=True)
    try:
        (work / _OFFERED).rename(taken)
    except FileNotFoundError:
        return None
    said = progress(taken)
    (taken / PROGRESS).unlink(missing_ok=True)
    return (taken, said) if said.step else None


def progress(folder: Path) -> Progress:
    """How far the newest checkpoint of a folder is; at the beginning where it does not say."""
    try:
        return Progress.parse(json.loads((folder / PROGRESS).read_bytes()))
    except (OSError, ValueError):
        return Progress()


def note(folder: Path, progress: Progress) -> None:
    """Says in a folder how far its newest checkpoint is."""
    partial = folder / f".{PROGRESS}"
    partial.write_text(json.dumps(dataclasses.asdict(progress)))
    partial.replace(folder / PROGRESS)
