"""Trace context of requests: W3C's `traceparent` header in, its `traceresponse` out.

Source: W3C Trace Context, level 1 (traceparent) and level 2, draft (traceresponse).
"""

import random
import re
from dataclasses import dataclass

REQUEST_HEADER = "traceparent"
ANSWER_HEADER = "traceresponse"

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Trace:
    """The part of a trace that one request is: the trace's id, this request's own (span), and its caller's."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    flags: str = "00"

    @property
    def header(self) -> str:
        """What the answer says in `traceresponse`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def read(header: str | None) -> Trace | None:
    """The trace that a `traceparent` names; None without one, and for one that is malformed."""
    found = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    is_nothing = trace_id == "0" * 32 or parent_id == "0" * 16
    if version == "ff" or is_nothing or (version == "00" and more):
        return None
    return Trace(trace_id, _id(64), parent_id, flags)


def begin() -> Trace:
    """A new trace."""
    return Trace(_id(128), _id(64))


def _id(bits: int) -> str:
    return f"{_random.getrandbits(bits) or 1:0{bits // 4}x}"
