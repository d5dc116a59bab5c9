"""Counts what runs in a session, so that the session is not taken from under it."""

import threading
from collections.abc import Callable

from serve.status import Code, ServingError


class Runs:
    """A context for each run; `end` calls `close` when the last of them is over, or at once where none is.

    A run whose client was told that its time is over goes on, as TensorFlow cannot interrupt it; a version that is
    unloaded meanwhile must wait for it, or the process crashes. One that hangs keeps its session for ever.
    """

    def __init__(self, close: Callable[[], None]):
        self._close: Callable[[], None] | None = close
        self._lock = threading.Lock()
        self._count = 0
        self._ended = False

    def __enter__(self) -> None:
        with self._lock:
            if self._ended:
                raise ServingError(Code.UNAVAILABLE, "this version is being unloaded")
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
        self._close_if_idle()

    def end(self) -> None:
        """No run begins any more. May be called again."""
        self._ended = True
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if not self._ended:
            return
        with self._lock:
            close = None if self._count else self._close
            if close:
                self._close = None
        if close:
            close()
