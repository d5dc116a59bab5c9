"""Short structured log lines on stderr: time, level, event, then name=value pairs."""

import json
import sys
import time


def info(event: str, **facts: object) -> None:
    """Logs that something happened as it should."""
    _write("I", event, facts)


def warning(event: str, **facts: object) -> None:
    """Logs that something is not as it should be, and the server goes on."""
    _write("W", event, facts)


def error(event: str, **facts: object) -> None:
    """Logs that something failed."""
    _write("E", event, facts)


def _write(level: str, event: str, facts: dict) -> None:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    pairs = "".join(f" {name}={_quoted(value)}" for name, value in facts.items())
    sys.stderr.write(f"{stamp}.{int(now % 1 * 1000):03d}Z {level} {event}{pairs}\n")
    sys.stderr.flush()


def _quoted(value: object) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text, ensure_ascii=False)
