"""Whether two executions of a stage gave the same: bit for bit, or within a tolerance that the settings state."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.child import function
from pipeline.digest import Digests, Leaf
from pipeline.settings import Bound
from pipeline.stages import Decided, Outcome, Result, Stage

_SHOWN = 10


@dataclass(frozen=True)
class Likeness:
    """How the outputs of two executions compare.

    `files` are those that differ, as `train/model/weights.npz`, with what each was before and is now (the sha256;
    "absent"); `difference` is the largest difference of a number in them (0 for the same bytes, inf where it
    cannot be said).
    """

    files: Mapping[str, tuple[str, str]]
    difference: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether they are the same: all bytes with a tolerance of 0, else all numbers within it."""
        return not self.files or 0 < tolerance >= self.difference

    def reached(self, tolerance: float) -> str:
        """The class that was reached, in words; call it where `within` holds."""
        return f"equal within {tolerance:g}" if self.files else "bit-identical"

    def lines(self, before: str, now: str) -> list[str]:
        """A line for each file that differs, the first few; `before` and `now` name the two executions."""
        named = sorted(self.files.items())
        found = [f"{path}: {before} {old}, {now} {new}" for path, (old, new) in named[:_SHOWN]]
        more = len(named) - _SHOWN
        return [*found, f"and {more} more files"] if more > 0 else found


def compare(stage: Stage, before: Path, now: Path) -> Likeness:
    """Compares those outputs of two executions that must be the same; each folder holds a folder per output."""
    files: dict[str, tuple[str, str]] = {}
    difference = 0.0
    for name in stage.same:
        found = _differing(before / name, now / name)
        files |= {f"{stage.name}/{name}/{path}": pair for path, pair in found.items()}
        if found:
            apart = function(stage.compare)(before / name, now / name) if stage.compare else math.inf
            difference = max(difference, apart)
    return Likeness(files, difference)


def judge(stage: str, first: Result, second: Result, alike: Likeness, tolerance: float) -> tuple[Result, str]:
    """What two executions of a stage come to: the first's result, or a failed one, and the class that was reached.

    `first` passed. `tolerance` is what the settings allow a number to differ by; 0 asks for the same bytes.
    """
    if second.outcome != Outcome.PASSED:
        sentence = f"it passed, and executed again with the same inputs it ended as {second.outcome}: {second.sentence}"
        return dataclasses.replace(first, outcome=Outcome.FAILED, sentence=sentence), ""
    numbers = {**first.numbers, "executions": 2}
    if math.isfinite(alike.difference):
        numbers["largest_difference"] = alike.difference
    if not alike.within(tolerance):
        return _differs(stage, dataclasses.replace(first, numbers=numbers), alike, tolerance), ""
    reached = f"{alike.reached(tolerance)} in 2 executions"
    if alike.files:
        reached += f" (largest difference {alike.difference:.2g})"
    sentence = f"{first.sentence} {reached[0].upper()}{reached[1:]}."
    return dataclasses.replace(first, sentence=sentence, numbers=numbers), reached


def _differs(stage: str, first: Result, alike: Likeness, tolerance: float) -> Result:
    """The result of two executions that are not the same."""
    asked = f"at most {tolerance:g}" if tolerance else "the same bits"
    decided = None
    if math.isfinite(alike.difference):
        decided = Decided("largest difference", alike.difference, Bound(at_most=tolerance))
        said = f"the largest difference of a number is {alike.difference:.2g}"
    else:
        said = "they cannot be compared number by number"
    listed = "\n".join(f"  {line}" for line in alike.lines("first", "then"))
    sentence = (
        f"two executions with the same inputs differ: {said}, and {stage}.tolerance asks for {asked}.\n{listed}\n"
        "Look for what has no seed, or depends on time, names of folders or the order of a set. Where the difference "
        f"is meant to be, state it as {stage}.tolerance with a reason; {stage}.executions: 1 does not ask."
    )
    return dataclasses.replace(first, outcome=Outcome.FAILED, sentence=sentence, decided=decided)


def _differing(before: Path, now: Path) -> dict[str, tuple[str, str]]:
    """The files below two folders that differ, by path, as `Likeness.files` tells them."""
    old, new = _leaves(before), _leaves(now)
    paths = sorted({*old, *new})
    return {
        path: (_told(old.get(path)), _told(new.get(path))) for path in paths if old.get(path) != new.get(path)
    }


def _leaves(folder: Path) -> dict[str, Leaf]:
    if not folder.is_dir():
        return {}
    # Every byte is read: a memory of digests by time and size is not what a comparison may rest on.
    return {leaf.path: leaf for leaf in Digests(Path(os.devnull)).tree(folder).leaves}


def _told(leaf: Leaf | None) -> str:
    if leaf is None:
        return "absent"
    return f"{leaf.sha256} (executable)" if leaf.executable else leaf.sha256
