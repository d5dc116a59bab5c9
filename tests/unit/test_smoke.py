"""How staging judges answers and durations."""

import json
import math

import numpy
import pytest

from deploy import smoke
from deploy.bounds import broken
from deploy.targets.base import Version
from pipeline.run import Process
from pipeline.settings import Bound, Staging
from pipeline.stages import Outcome

BOUNDS = Staging(1, 2, 64, Bound(at_most=1e-4), Bound(at_most=250))
VERSION = Version(3, "sha256:" + "a" * 64, Process(1, 1), 10, 11, "")
NUMBERS = {"golden_requests": 64}


@pytest.fixture
def predictions(tmp_path):
    numpy.save(tmp_path / "p.npy", numpy.array([[0.25, 0.75], [1, 0], [0.5, 0.5]], "float32"))
    return tmp_path / "p.npy"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[0.25, 0.75], [1, 0]], 0),
        ([[0.25, 0.75], [1, 0.5]], 0.5),
        ([[0.25, 0.75], [0, 1]], 1),
    ],
)
def test_skew_is_the_largest_difference_in_the_order_of_the_rows(predictions, answers, expected):
    assert smoke.skew(answers, predictions) == pytest.approx(expected)


@pytest.mark.parametrize("answers", [[[0.25]], [[0.2, 0.3, 0.5]], [[math.nan, 0.75]], []])
def test_answers_that_cannot_be_compared_are_within_no_bound(predictions, answers):
    assert math.isnan(smoke.skew(answers, predictions))
    assert broken(smoke.judge({"REST": smoke.skew(answers, predictions)}, [1.0], BOUNDS))


@pytest.mark.parametrize(
    ("skews", "latencies_ms", "outcome", "decided"),
    [
        ({"REST": 0.0, "gRPC": 0.0}, [10.0] * 64, Outcome.PASSED, "p99 latency in ms"),
        ({"REST": 9e-5, "gRPC": 0.0}, [10.0] * 64, Outcome.PASSED, "skew over REST"),
        ({"REST": 0.0, "gRPC": 2e-4}, [10.0] * 64, Outcome.FAILED, "skew over gRPC"),
        ({"REST": 0.0, "gRPC": 0.0}, [10.0] * 98 + [251.0] * 2, Outcome.FAILED, "p99 latency in ms"),
        ({"REST": 0.0, "gRPC": 0.0}, [10.0] * 99 + [9000.0], Outcome.PASSED, "p99 latency in ms"),
        ({"REST": 0.0, "gRPC": 0.0}, [], Outcome.FAILED, "p99 latency in ms"),
        ({"REST": 0.01, "gRPC": 0.0}, [300.0] * 9, Outcome.FAILED, "skew over REST"),
    ],
)
def test_verdict_names_the_number_that_decided(skews, latencies_ms, outcome, decided):
    result = smoke._verdict(VERSION, smoke.judge(skews, latencies_ms, BOUNDS), NUMBERS)
    assert (result.outcome, result.decided.name) == (outcome, decided)
    assert ("allowed" in result.sentence) == (outcome is Outcome.FAILED)


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"predictions": [[0.5]]}', b'{"error": "no"}'])
def test_answer_without_probabilities_is_wrong(answer):
    with pytest.raises(smoke.Wrong, match="probabilities"):
        smoke._probabilities(answer)


def test_probabilities_are_taken_row_by_row():
    answer = json.dumps(
        {"predictions": [{"probabilities": [0.5], "class": 0}, {"probabilities": [1], "class": 0}]}
    )
    assert smoke._probabilities(answer.encode()) == [[0.5], [1]]
