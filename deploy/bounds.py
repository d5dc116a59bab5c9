"""Which of several measured numbers decided."""

import math
from collections.abc import Sequence

from pipeline.stages import Decided


def broken(measured: Sequence[Decided]) -> tuple[Decided, ...]:
    """Those that are not within their bounds."""
    return tuple(one for one in measured if not one.bound.holds(one.number))


def nearest(measured: Sequence[Decided]) -> Decided | None:
    """The one that is furthest beyond its bound or, if none is, nearest to it. None of none."""
    return max(measured, key=_excess, default=None)


def _excess(one: Decided) -> float:
    """How far a number is beyond its bound, in units of the bound; negative within."""
    if math.isnan(one.number):
        return math.inf
    at_least, at_most = one.bound.at_least, one.bound.at_most
    bound = at_most if at_least is None else at_least
    beyond = one.number - bound if at_least is None else bound - one.number
    return beyond / (abs(bound) or 1e-9)
