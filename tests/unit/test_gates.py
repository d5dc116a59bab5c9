"""Gates: the one judge, what counts as no data, and the words that a person reads."""

import math

import pytest

from pipeline.settings import Bound
from pipeline.stages import Outcome
from train import gates

LEAST, MOST = Bound(at_least=0.93), Bound(at_most=0.05)

CASES = {
    "at least, above": ({"m": 0.94}, LEAST, Outcome.PASSED),
    "at least, on the bound": ({"m": 0.93}, LEAST, Outcome.PASSED),
    "at least, below": ({"m": 0.9299999}, LEAST, Outcome.FAILED),
    "at most, below": ({"m": 0.04}, MOST, Outcome.PASSED),
    "at most, on the bound": ({"m": 0.05}, MOST, Outcome.PASSED),
    "at most, above": ({"m": 0.0500001}, MOST, Outcome.FAILED),
    "missing": ({}, LEAST, Outcome.NO_DATA),
    "None": ({"m": None}, LEAST, Outcome.NO_DATA),
    "NaN": ({"m": math.nan}, LEAST, Outcome.NO_DATA),
    "NaN, at most": ({"m": math.nan}, MOST, Outcome.NO_DATA),
    "infinite loss": ({"m": math.inf}, MOST, Outcome.FAILED),
    "a difference below zero": ({"m": -0.02}, Bound(at_least=-0.01), Outcome.FAILED),
}


@pytest.mark.parametrize(("metrics", "bound", "outcome"), CASES.values(), ids=CASES)
def test_one_gate(metrics, bound, outcome):
    (verdict,) = gates.judge(metrics, {"m": bound})
    assert verdict.outcome is outcome


def verdicts(**metrics):
    return gates.judge(metrics, dict.fromkeys("abc", LEAST))


OVERALL = {
    "all hold": ({"a": 1, "b": 1, "c": 1}, Outcome.PASSED),
    "one fails": ({"a": 1, "b": 0, "c": 1}, Outcome.FAILED),
    "one is missing": ({"a": 1, "b": 1}, Outcome.NO_DATA),
    "one fails and one is missing": ({"a": 0, "b": 1}, Outcome.FAILED),
    "none is there": ({}, Outcome.NO_DATA),
}


@pytest.mark.parametrize(("metrics", "outcome"), OVERALL.values(), ids=OVERALL)
def test_all_gates_together(metrics, outcome):
    assert gates.overall(verdicts(**metrics)) is outcome


def test_no_gate_at_all_is_no_pass():
    assert gates.overall(()) is Outcome.NO_DATA
    assert gates.deciding(()) is None


def test_the_gate_that_failed_by_most_decides():
    assert gates.deciding(verdicts(a=0.92, b=0.5, c=1)).name == "b"


def test_a_gate_without_data_decides_when_none_failed():
    assert gates.deciding(verdicts(a=0.94, c=1)).name == "b"


def test_the_gate_closest_to_its_bound_decides_when_all_hold():
    judged = gates.judge({"a": 0.99, "b": 0.049}, {"a": LEAST, "b": MOST})
    assert gates.deciding(judged).name == "b"
    assert gates.deciding(judged).decided.bound is MOST


WORDS = {
    "accuracy 0.912, the gate asks at least 0.930": ("accuracy", 0.912, LEAST),
    "accuracy 0.92996, the gate asks at least 0.93000": ("accuracy", 0.92996, LEAST),
    "accuracy 0.930, the gate asks at least 0.930": ("accuracy", 0.93, LEAST),
    "log_loss 0.060, the gate asks at most 0.050": ("log_loss", 0.06, MOST),
    "accuracy could not be measured, the gate asks at least 0.93": ("accuracy", math.nan, LEAST),
}


@pytest.mark.parametrize(("words", "given"), WORDS.items(), ids=WORDS)
def test_a_verdict_reads_with_the_number_and_what_the_gate_asks(words, given):
    name, number, bound = given
    assert str(gates.judge({name: number}, {name: bound})[0]) == words
