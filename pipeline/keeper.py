"""Puts a stage's checkpoints into the store while it works: in the background, the newest only."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

from pipeline import offers
from pipeline.checkpoints import KEPT, Shelf
from pipeline.errors import TidegateError
from pipeline.offers import Progress

_LOOK_S = 0.25
_NICENESS = 10


class Keeper:
    """A thread that takes what a stage offers in `work`. Trouble is told once, and never stops the stage."""

    def __init__(self, shelf: Shelf, stage: str, key: str, work: Path):
        self.warnings: list[str] = []
        self._shelf, self._stage, self._key, self._work = shelf, stage, key, work
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="checkpoints", daemon=True)
        self._documents: list[str] = []
        self._kept = self._lost = Progress()

    def start(self) -> None:
        self._thread.start()

    def close(self, last: bool) -> None:
        """Waits for what is on its way and, with `last`, puts what still waits into the store; says how far it is."""
        self._over.set()
        self._thread.join()
        if not last:
            return
        self._take()
        if self._lost.step > self._kept.step:
            _say(f"! the newest checkpoint, {self._lost}, is NOT in the store. It lies on this machine alone")
        elif self._kept.step:
            _say(
                f"the checkpoint is in the store: {self._kept}. The next run goes on from it, here or elsewhere"
            )

    def _attend(self) -> None:
        with contextlib.suppress(
            OSError
        ):  # of a thread alone (Linux); the stage has the first word on the processors
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        while not self._over.wait(_LOOK_S):
            self._take()

    def _take(self) -> None:
        """Keeps the newest offer, if one waits, and removes those before the last two of this attempt."""
        try:
            taken = offers.take(self._work)
            if taken is None:
                return
            folder, self._lost = taken
            self._documents.append(self._shelf.keep(self._stage, self._key, folder, self._lost))
            self._kept = self._lost
            old, self._documents = self._documents[:-KEPT], self._documents[-KEPT:]
            self._shelf.drop(old, self._documents)
        except (TidegateError, OSError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self.warnings:
            self.warnings.append(
                f"a checkpoint could not be put into the store, and another machine would begin from an earlier one: "
                f"{error}"
            )
            _say(f"! {self._stage} goes on, but {self.warnings[0]}")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
