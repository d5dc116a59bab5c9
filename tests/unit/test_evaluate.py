"""What evaluation measures, held against sums done by hand; and the files that it writes."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.settings import Bound
from pipeline.stages import Outcome
from train import evaluate, evidence, gates, measure
from train.measure import Answers, wilson


def answers(truth: list[int], told: list[int], classes: int = 3, confidence: float = 0.9) -> Answers:
    """Answers with the same confidence in every row."""
    probabilities = np.full((len(truth), classes), (1 - confidence) / (classes - 1), np.float32)
    probabilities[np.arange(len(told)), told] = confidence
    return Answers(np.array(truth), probabilities)


BY_HAND = answers([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2, 0])


def test_metrics_are_those_computed_by_hand():
    found = measure.metrics(BY_HAND)
    assert found["accuracy"] == 6 / 8
    assert found["worst_recall"] == 1 / 2
    assert found["worst_precision"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((6 / 8 + 4 / 5 + 2 / 3) / 3)
    assert found["calibration_error"] == pytest.approx(0.9 - 0.75)
    assert found["log_loss"] == pytest.approx(-(6 * math.log(0.9) + 2 * math.log(0.05)) / 8, rel=1e-6)


def test_every_metric_that_gates_may_name_is_measured():
    assert list(measure.metrics(BY_HAND)) == list(measure.METRICS)


def test_calibration_error_adds_up_the_gaps_of_the_bins():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    found = measure.metrics(Answers(np.array([0, 0, 1, 1]), probabilities))
    assert found["calibration_error"] == pytest.approx((2 * 0.05 + 2 * 0.55) / 4)


def test_a_class_never_predicted_has_precision_zero():
    found = measure.metrics(answers([0, 1, 2], [0, 1, 1]))
    assert (found["worst_precision"], found["worst_recall"]) == (0.0, 0.0)


def test_a_class_without_rows_cannot_be_measured_and_opens_no_gate():
    found = measure.metrics(answers([0, 1, 1], [0, 1, 1]))
    assert math.isnan(found["worst_recall"])
    assert gates.judge(found, {"worst_recall": Bound(at_least=0.0)})[0].outcome is Outcome.NO_DATA


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_measure_nothing(wrong):
    broken = answers([0, 1, 2], [0, 1, 2])
    broken.probabilities[1, 1] = wrong
    assert all(math.isnan(value) for value in measure.metrics(broken).values())


def test_no_rows_measure_nothing():
    assert all(math.isnan(value) for value in measure.metrics(answers([], [])).values())


WILSON = {  # Newcombe 1998, table I, score method without continuity correction, at 95 %
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
}


@pytest.mark.parametrize(("tried", "expected"), WILSON.items())
def test_wilson_intervals_are_those_of_the_literature(tried, expected):
    found = wilson(*tried, 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == expected


def test_wilson_of_nothing_says_nothing():
    found = wilson(0, 0, 0.95)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)


def test_intervals_hold_their_value_and_are_the_same_each_time():
    rng = np.random.default_rng(1)
    truth = rng.integers(3, size=200)
    told = np.where(rng.random(200) < 0.8, truth, (truth + 1) % 3)
    once, again = (measure.intervals(answers(list(truth), list(told)), 0.95) for _ in range(2))
    assert once == again
    for name in ("accuracy", "worst_recall", "macro_f1", "log_loss"):
        assert once[name].low <= once[name].value <= once[name].high
    assert 0.6 < once["worst_recall"].low < once["worst_recall"].high < 0.95


def test_a_higher_confidence_gives_wider_intervals():
    narrow, wide = (measure.intervals(BY_HAND, confidence)["log_loss"] for confidence in (0.8, 0.99))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_a_model_against_itself_differs_by_exactly_nothing():
    for interval in measure.differences(BY_HAND, BY_HAND, 0.95).values():
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_differences_are_new_minus_champion():
    better = answers([0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1, 2, 2])
    assert measure.differences(better, BY_HAND, 0.95)["accuracy"].value == pytest.approx(0.25)
    assert measure.differences(BY_HAND, better, 0.95)["log_loss"].value > 0


def judged(accuracy: float, champion: dict | None, bounds=None):
    """The result of an evaluation with this accuracy and this comparison."""
    found = dict.fromkeys(measure.METRICS, measure.Interval(accuracy, 0.0, 1.0))
    verdicts = {
        "model": gates.judge(
            {"accuracy": accuracy}, {"accuracy": Bound(at_least=0.9)} if bounds is None else bounds
        ),
        "champion": evaluate._against(champion, {"accuracy": Bound(at_least=-0.01)}),
    }
    return evaluate._result(found, champion, verdicts)


def against(difference: float) -> dict:
    return {"differences": {"accuracy": measure.Interval(difference, difference, difference)}}


STORY = {
    "good, no champion": (0.95, None, Outcome.PASSED, "accuracy 0.950, the gate asks at least 0.900."),
    "good, and better": (0.95, against(0.02), Outcome.PASSED, "accuracy minus champion 0.020"),
    "good, yet worse": (
        0.95,
        against(-0.02),
        Outcome.FAILED,
        "accuracy minus champion -0.020, the gate asks at least",
    ),
    "bad": (0.89, against(0.02), Outcome.FAILED, "accuracy 0.890, the gate asks at least 0.900."),
    "bad and worse": (0.89, against(-0.02), Outcome.FAILED, "; accuracy minus champion -0.020"),
    "no number": (math.nan, None, Outcome.NO_DATA, "accuracy could not be measured"),
    "not comparable": (
        0.95,
        {"problem": "it is of stone"},
        Outcome.NO_DATA,
        "cannot be compared: it is of stone",
    ),
    "bad, not comparable": (0.89, {"problem": "stone"}, Outcome.FAILED, "accuracy 0.890"),
}


@pytest.mark.parametrize(("accuracy", "champion", "outcome", "words"), STORY.values(), ids=STORY)
def test_verdict_of_an_evaluation(accuracy, champion, outcome, words):
    result = judged(accuracy, champion)
    assert result.outcome is outcome
    assert words in result.sentence


def test_no_gate_in_the_settings_lets_nothing_pass():
    result = judged(0.99, None, bounds={})
    assert result.outcome is Outcome.NO_DATA
    assert "evaluate.gates names no metric" in result.sentence


@pytest.fixture
def written(tmp_path):
    """The files of an evaluation in which one class had no rows."""
    some = answers([0, 0, 1], [0, 1, 1])
    found = measure.intervals(some, 0.95)
    verdicts = {"model": gates.judge({"accuracy": 0.6}, {"accuracy": Bound(at_least=0.9)}), "champion": ()}
    document = evidence.document(3, 0.95, found, measure.by_class(some, 0.95), None, verdicts)
    evidence.write(tmp_path / "metrics", document, some.confusion())
    return tmp_path / "metrics"


def test_metrics_json_is_strict_json_with_null_for_what_was_not_measured(written):
    found = json.loads((written / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["metrics"]["worst_recall"]["value"] is None
    assert found["verdicts"][0]["outcome"] == "failed"
    assert found["verdicts"][0]["at_least"] == 0.9


def test_metrics_txt_leaves_out_what_was_not_measured(written):
    lines = (written / "metrics.txt").read_text().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert samples["accuracy"] == "0.666667"
    assert samples['recall{class="0"}'] == "0.5"
    assert 'recall{class="2"}' not in samples
    assert lines[-1] == "# EOF"


def test_confusion_is_written_as_table_and_as_picture(written):
    table = (written / "confusion.csv").read_text().splitlines()
    assert table == ["true\\predicted,0,1,2", "0,1,1,0", "1,0,1,0", "2,0,0,0"]
    texts = [
        node.text for node in ElementTree.parse(written / "confusion.svg").iter() if node.tag.endswith("text")
    ]
    assert texts[-3:] == ["1", "1", "1"]
