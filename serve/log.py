"""Short structured log lines on stderr: time, level, event, then facts; as text (`name=value`) or as JSON objects.

Lines that are about a request carry its trace, and never what it holds.
"""

import contextlib
import contextvars
import json
import sys
import time
import traceback
from collections.abc import Iterator

from serve.trace import Trace

TEXT, JSON = FORMATS = ("text", "json")

_format = TEXT
_about: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("about", default=None)
_LEVELS = {"I": "info", "W": "warning", "E": "error"}


def write_as(kind: str) -> None:
    """Chooses between TEXT and JSON, for the whole process."""
    global _format
    _format = kind


def info(event: str, **facts: object) -> None:
    """Logs that something happened as it should."""
    _write("I", event, facts)


def warning(event: str, **facts: object) -> None:
    """Logs that something is not as it should be, and the server goes on."""
    _write("W", event, facts)


def error(event: str, **facts: object) -> None:
    """Logs that something failed."""
    _write("E", event, facts)


def bug(where: str, failed: BaseException) -> None:
    """Logs what no code foresaw: where it was raised, and its kind. Its message may hold what a client sent."""
    trace = "".join(["Traceback (most recent call last):\n", *traceback.format_tb(failed.__traceback__)])
    error("bug", where=where, kind=type(failed).__name__, trace=trace)


@contextlib.contextmanager
def about(trace: Trace | None) -> Iterator[None]:
    """Lines that this thread (or task) logs meanwhile carry this trace."""
    token = _about.set(trace)
    try:
        yield
    finally:
        _about.reset(token)


def _write(level: str, event: str, facts: dict) -> None:
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    trace = _about.get()
    if trace is not None:
        facts = facts | {"trace_id": trace.trace_id, "span_id": trace.span_id}
    write = _json if _format == JSON else _text
    # A full disk, or a reader that has gone, costs the line and nothing else.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(write(stamp, level, event, facts) + "\n")
        sys.stderr.flush()


def _text(stamp: str, level: str, event: str, facts: dict) -> str:
    return f"{stamp} {level} {event}" + "".join(f" {name}={_quoted(value)}" for name, value in facts.items())


def _json(stamp: str, level: str, event: str, facts: dict) -> str:
    line = {"time": stamp, "level": _LEVELS[level], "event": event}
    return json.dumps(line | {name: _plain(value) for name, value in facts.items()})


def _plain(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if isinstance(value, int) else str(value)


def _quoted(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    is_plain = text.isprintable() and not set(text) & set(' "=')
    return text if text and is_plain else json.dumps(text, ensure_ascii=False)
