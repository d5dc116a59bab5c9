"""Which of several measured numbers decided."""

import math
from collections.abc import Sequence

from pipeline.stages import Decided


def broken(measured: Sequence[Decided]) -> tuple[Decided, ...]:
    """Those that are not within their bounds."""
    return tuple(one for one in measured if one.bound is None or not one.bound.holds(one.number))


def nearest(measured: Sequence[Decided]) -> Decided | None:
    """The one that is furthest beyond its bound or, if none is, nearest to it. None of none."""
    return max(measured, key=_excess, default=None)


def _excess(one: Decided) -> float:
    """How far a number is beyond its bound, in units of the bound; negative within."""
    if math.isnan(one.number) or one.bound is None:
        return math.inf
    bound = one.bound.limit
    beyond = one.number - bound if one.bound.at_least is None else bound - one.number
    return beyond / (abs(bound) or 1e-9)
