"""One run of a model on its way through a queue."""

import operator
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serve import log
from serve.model import Outcome
from serve.status import Code, ServingError

_BYTES = operator.attrgetter("nbytes")
_RUNNING_TOO_LONG = "Timed out waiting for notification"
_WAITED_TOO_LONG = "Timed out waiting for the model to be free"


class Task:
    """Waits, runs, is done. It is settled once, by whoever comes first: its run, or a caller that gives up."""

    __slots__ = ("_done", "deadline", "feeds", "fetches", "late_error", "rows", "since", "size", "started")

    def __init__(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        deadline: float | None,
        done: Callable[[Outcome], None],
        rows: int = 0,
    ):
        self.feeds = feeds
        self.fetches = fetches
        self.deadline = deadline
        self.rows = rows
        self.size = sum(map(_BYTES, feeds.values()))
        self.since = time.monotonic()
        self.started = False
        self.late_error = (Code.DEADLINE_EXCEEDED, _WAITED_TOO_LONG)
        self._done = [done]

    def settle(self, outcome: Outcome) -> None:
        """Tells the caller, unless it was told or has given up. Never raises."""
        try:
            done = self._done.pop()  # one step for the interpreter: only one thread gets it
        except IndexError:
            return
        try:
            done(outcome)
        except Exception as error:  # noqa: BLE001 (what a caller does with its answer must not end the thread that runs models)
            log.bug("done", error)

    def fail(self, error: ServingError) -> None:
        """Settles it with an error of its own: callers raise it, which leaves marks in it."""
        self.settle(ServingError(error.code, error.message))

    def give_up(self) -> ServingError | None:
        """The caller's deadline has passed, or it has left: see `serve.model.Ticket`."""
        try:
            self._done.pop()
        except IndexError:
            return None
        return self._late()

    def over(self, now: float) -> bool:
        """Whether it needs no run: its caller has left, or its deadline has passed."""
        return not self._done or (self.deadline is not None and now >= self.deadline)

    def passed(self, now: float) -> bool:
        """The same; a caller whose deadline has passed is told."""
        if self.deadline is not None and now >= self.deadline:
            self.settle(self._late())
        return not self._done

    def _late(self) -> ServingError:
        if self.started:
            return ServingError(Code.DEADLINE_EXCEEDED, _RUNNING_TOO_LONG)
        return ServingError(*self.late_error)
