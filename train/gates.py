"""Hold numbers against bounds. Nothing measured is never a pass. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.settings import Bound
from pipeline.stages import Decided, Outcome


@dataclass(frozen=True)
class Verdict:
    """What one gate says. `number` is NaN where there was nothing to measure."""

    name: str
    number: float
    bound: Bound
    outcome: Outcome

    @property
    def margin(self) -> float:
        """How far the number is within its bound; negative outside, NaN without a number."""
        bound = self.bound
        return self.number - bound.limit if bound.at_least is not None else bound.limit - self.number

    @property
    def decided(self) -> Decided:
        """For the closing table."""
        return Decided(self.name, self.number, self.bound)

    def __str__(self) -> str:
        bound = self.bound
        word, limit = "at least" if bound.at_least is not None else "at most", bound.limit
        if self.outcome is Outcome.NO_DATA:
            return f"{self.name} could not be measured, the gate asks {word} {limit:g}"
        digits = 3
        while digits < 9 and (
            round(limit, digits) != limit
            or (self.margin != 0 and round(self.number, digits) == round(limit, digits))
        ):
            digits += 1
        return f"{self.name} {self.number:.{digits}f}, the gate asks {word} {limit:.{digits}f}"


def judge(metrics: Mapping[str, float], gates: Mapping[str, Bound]) -> tuple[Verdict, ...]:
    """One verdict per gate, in the order of the settings. A metric that is missing or not a number is no data."""
    return tuple(_judge(name, metrics.get(name, math.nan), bound) for name, bound in gates.items())


def _judge(name: str, number: float, bound: Bound) -> Verdict:
    if number is None or math.isnan(number):
        return Verdict(name, math.nan, bound, Outcome.NO_DATA)
    return Verdict(name, number, bound, Outcome.PASSED if bound.holds(number) else Outcome.FAILED)


def overall(verdicts: Sequence[Verdict]) -> Outcome:
    """Failed if any gate failed, else no data if any had none (or there is no gate), else passed."""
    outcomes = {verdict.outcome for verdict in verdicts}
    if Outcome.FAILED in outcomes:
        return Outcome.FAILED
    return Outcome.PASSED if outcomes == {Outcome.PASSED} else Outcome.NO_DATA


def deciding(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The verdict that decided: the one that failed by most, else one without data, else the closest to its bound."""
    for outcome in (Outcome.FAILED, Outcome.NO_DATA, Outcome.PASSED):
        some = [verdict for verdict in verdicts if verdict.outcome is outcome]
        if some:
            return some[0] if outcome is Outcome.NO_DATA else min(some, key=lambda verdict: verdict.margin)
    return None
