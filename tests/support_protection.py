"""How the tests of pipeline/protection*.py change an answer, and what they read from the findings."""

import copy
import dataclasses

from pipeline import protection
from pipeline.protection import Unasked


def changed(seen, **fields):
    """What was seen, with some answers replaced."""
    return dataclasses.replace(copy.deepcopy(seen), **fields)


def judged(checks, seen):
    """All findings, and of these the ones that are missing, unasked, and optional lacks; as texts."""
    findings = list(protection.judge(checks, seen))
    assert findings

    def texts(wanted):
        return [f"{each.what}: {each.remedy}" for each in findings if each.remedy and wanted(each)]

    return (
        texts(lambda each: not each.optional and not isinstance(each, Unasked)),
        texts(lambda each: isinstance(each, Unasked)),
        texts(lambda each: each.optional),
    )
