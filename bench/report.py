"""What the benchmarks share: commands timed in turn, and what came of it as a Markdown table."""

from __future__ import annotations

import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import run
from pipeline.errors import ProgramFailed

_TIMEOUT_S = 300


@dataclass(frozen=True)
class Timing:
    """The seconds of each counted run; none, and the reason, for what could not be measured here."""

    name: str
    seconds: tuple[float, ...] = ()
    reason: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Command:
    """A program to time. `says` is a pattern that all it prints must match, or it did not do what is measured."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    says: str = ".*"
    env: Mapping[str, str] = field(default_factory=dict)

    def seconds(self) -> float:
        """How long one run takes. Raises ProgramFailed if it fails, or does something else than is measured."""
        begun = time.perf_counter()
        done = run.run(self.argv, timeout_s=_TIMEOUT_S, cwd=self.cwd, env=self.env, echo=False)
        taken = time.perf_counter() - begun
        if not re.fullmatch(self.says, done.stdout + done.stderr, re.DOTALL):
            raise ProgramFailed(
                f"{self.name} did something else than is measured: {done.stdout}{done.stderr}"
            )
        return taken


def in_turn(commands: Sequence[Command], repeat: int) -> list[Timing]:
    """Runs the commands A B C, A B C …, so that a noisy minute meets all of them; the first round is not counted."""
    rounds = []
    for number in range(repeat + 1):
        story(f"round {number} of {repeat}" if number else "warm-up round")
        rounds.append([command.seconds() for command in commands])
    columns = zip(*rounds[1:], strict=True)
    return [Timing(command.name, tuple(column)) for command, column in zip(commands, columns, strict=True)]


def timings(timings: Iterable[Timing], bases: Sequence[str]) -> str:
    """A table of timings; each of `bases` is the name of a timing that the others are divided by."""
    timings = list(timings)
    base = {t.name: t.median for t in timings if t.seconds and t.name in bases}
    rows = [["", "median s", "min", "max", *(f"× {name}" for name in base)]]
    for timing in timings:
        if timing.seconds:
            numbers = (timing.median, min(timing.seconds), max(timing.seconds))
            ratios = (timing.median / value for value in base.values())
            rows.append([timing.name, *(f"{n:.3f}" for n in numbers), *(f"{r:.2f}" for r in ratios)])
    missing = [f"{timing.name}: not measured, {timing.reason}\n" for timing in timings if not timing.seconds]
    return "\n".join([table(rows), *missing])


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the heading, readable as plain text too; numbers stand to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        " | ".join(
            cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = " | ".join("-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths))
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]]) + "\n"


def machine() -> str:
    """The machine in words, with the load that other work puts on it now."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return (
        f"{cores} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}; "
        f"load {load:.1f} before it began"
    )


def show(title: str, *parts: str) -> None:
    """Prints a result (stdout)."""
    print(f"\n## {title}\n", *parts, sep="\n", flush=True)


def story(text: str) -> None:
    """Tells the person who watches (stderr)."""
    print(f"  {text}", file=sys.stderr, flush=True)
