"""A line of the table that a run ends in, and of its report: what one stage came to."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.execution import decided_of
from pipeline.record import Record
from pipeline.stages import BY_NAME, Decided, Outcome

_EXIT = {Outcome.PASSED: 0, Outcome.FAILED: 3, Outcome.NO_DATA: 4}


@dataclass(frozen=True)
class Row:
    """A line of the closing table."""

    stage: str
    outcome: str
    cached: bool
    seconds: float
    sentence: str = ""
    decided: Decided | None = None
    digest: str = ""
    warnings: tuple[str, ...] = ()
    exit_code: int = 0


def row_of(made: Record, cached: bool) -> Row:
    """A record as a line of the closing table."""
    first = f"{made.stage}/{BY_NAME[made.stage].outputs[0]}"
    named = made.digest or made.outputs.get(first, "")
    exit_code = _EXIT[Outcome(made.outcome)]
    decided = decided_of(made.decided)
    return Row(
        made.stage,
        made.outcome,
        cached,
        made.seconds,
        made.sentence,
        decided,
        named,
        tuple(made.warnings),
        exit_code,
    )
