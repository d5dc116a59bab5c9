"""When a training pauses between two steps: to write a checkpoint, or to stop at one."""

import contextlib
import enum
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.settings import Train


class Pause(enum.StrEnum):
    """What a training does next. TOLD and COST end it at a checkpoint."""

    NONE = "goes on"
    SAVE = "writes a checkpoint"
    TOLD = "was told to stop"
    COST = "has cost what it may"


def decide(told: bool, left_s: float, unsaved_s: float, saving_s: float, every_s: float) -> Pause:
    """What a training does next. No clock, no signal.

    `left_s` is the time that it may still take, `unsaved_s` how long ago it wrote its last checkpoint, and `saving_s`
    how long that took: it stops while there is time to write another.
    """
    if told:
        return Pause.TOLD
    if left_s <= saving_s:
        return Pause.COST
    return Pause.SAVE if unsaved_s >= every_s else Pause.NONE


@dataclass
class Pauses:
    """The clock of an attempt that `began` (time.monotonic), after `before_s` seconds of others."""

    settings: Train
    told: Callable[[], bool]
    began: float
    before_s: float = 0.0
    saved: float = field(default_factory=time.monotonic)
    saving_s: float = 0.0
    found: Pause = Pause.NONE

    @property
    def spent_s(self) -> float:
        """Seconds of this attempt and of those before it."""
        return self.before_s + time.monotonic() - self.began

    def look(self) -> bool:
        """Whether it pauses now; `found` says why."""
        left_s = self.settings.cost.seconds - self.spent_s
        unsaved_s = time.monotonic() - self.saved
        self.found = decide(self.told(), left_s, unsaved_s, self.saving_s, self.settings.checkpoint_every_s)
        return self.found != Pause.NONE

    @property
    def ends(self) -> bool:
        """Whether the training stops here."""
        return self.found in (Pause.TOLD, Pause.COST)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Measures how long it takes to write a checkpoint."""
        started = time.monotonic()
        yield
        self.saved = time.monotonic()
        self.saving_s = self.saved - started


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """While this lasts, SIGTERM is noted and does not end the process; the function says whether it came.

    Only the main thread may change what a signal does; in another one it is as it was.
    """
    came: list[int] = []  # no Event: its lock may be held where the signal comes
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
