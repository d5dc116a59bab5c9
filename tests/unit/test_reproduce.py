"""What two executions of a stage come to: bit-identical, equal within a tolerance, or failed."""

import dataclasses
import json
import math

import numpy as np
import pytest

from pipeline import reproduce
from pipeline.reproduce import Likeness
from pipeline.settings import Bound
from pipeline.stages import Decided, Outcome, Result
from tests.support_recheck import DATA
from train.weights import difference

FIRST = Result(Outcome.PASSED, "3 epochs.", numbers={"loss": 0.5}, decided=Decided("accuracy", 0.9))
FILES = {"train/model/weights.npz": ("1" * 64, "2" * 64)}


# Two executions: the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alike", "tolerance", "outcome", "reached"),
    [
        (Likeness({}), 0, "passed", "bit-identical in 2 executions"),
        (Likeness({}), 1e-5, "passed", "bit-identical in 2 executions"),
        (Likeness(FILES, 3e-7), 1e-5, "passed", "equal within 1e-05 in 2 executions (largest difference 3e-07)"),
        (Likeness(FILES, 1e-5), 1e-5, "passed", "equal within 1e-05 in 2 executions (largest difference 1e-05)"),
        (Likeness(FILES, 2e-5), 1e-5, "failed", ""),
        (Likeness(FILES, 3e-7), 0, "failed", ""),
        (Likeness(FILES, 0.0), 0, "failed", ""),
        (Likeness(FILES, math.inf), 1, "failed", ""),
        (Likeness(FILES, math.nan), 1, "failed", ""),
    ],
)  # fmt: skip
def test_two_executions_reach_a_class_or_fail(alike, tolerance, outcome, reached):
    result, said = reproduce.judge("train", FIRST, FIRST, alike, tolerance)
    assert (result.outcome, said) == (outcome, reached)


def test_a_class_that_was_reached_is_told_beside_what_the_first_execution_said():
    result, _ = reproduce.judge("train", FIRST, FIRST, Likeness(FILES, 3e-7), 1e-5)
    assert result.sentence.startswith("3 epochs. Equal within 1e-05 in 2 executions")
    assert result.numbers == {"loss": 0.5, "executions": 2, "largest_difference": 3e-7}
    assert result.decided == FIRST.decided


def test_a_difference_is_told_with_number_bound_files_and_remedy():
    result, _ = reproduce.judge("train", FIRST, FIRST, Likeness(FILES, 0.012), 1e-5)
    assert result.decided == Decided("largest difference", 0.012, Bound(at_most=1e-5))
    for text in ("is 0.012", "asks for at most 1e-05", "1" * 64, "2" * 64, "train.tolerance", "no seed"):
        assert text in result.sentence


def test_what_cannot_be_compared_by_number_is_no_number_in_the_record():
    result, _ = reproduce.judge("train", FIRST, FIRST, Likeness(FILES, math.inf), 1e-5)
    assert result.decided is None
    assert "largest_difference" not in result.numbers
    assert "cannot be compared number by number" in result.sentence
    assert "Infinity" not in json.dumps(dataclasses.asdict(result))


def test_a_second_execution_that_fails_fails_the_stage():
    second = Result(Outcome.FAILED, "the loss is NaN.")
    result, reached = reproduce.judge("train", FIRST, second, Likeness({}), 1)
    assert (result.outcome, reached) == ("failed", "")
    assert "ended as failed: the loss is NaN." in result.sentence


def write(folder, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_every_file_that_differs_is_named(tmp_path):
    write(tmp_path / "old" / "rows", same="1", other="1", gone="1", tool="1")
    write(tmp_path / "new" / "rows", same="1", other="2", come="1", tool="1")
    (tmp_path / "new" / "rows" / "tool").chmod(0o755)
    found = reproduce.compare(DATA, tmp_path / "old", tmp_path / "new")
    assert list(found.files) == [f"data/rows/{name}" for name in ("come", "gone", "other", "tool")]
    assert found.files["data/rows/come"][0] == found.files["data/rows/gone"][1] == "absent"
    assert found.files["data/rows/tool"][1] == f"{found.files['data/rows/tool'][0]} (executable)"
    assert found.difference == math.inf


def test_an_output_that_one_execution_did_not_write_is_a_difference(tmp_path):
    write(tmp_path / "old" / "rows", a="1")
    assert set(reproduce.compare(DATA, tmp_path / "old", tmp_path / "new").files) == {"data/rows/a"}


def test_of_many_differences_the_first_few_are_told_and_the_rest_counted():
    many = Likeness({f"f{number:02}": ("1", "2") for number in range(25)})
    assert len(many.lines("recorded", "now")) == 11
    assert many.lines("recorded", "now")[-1] == "and 15 more files"


# How far two models are apart --------------------------------------------------------------------------------


def model(folder, architecture="{}", **arrays):
    folder.mkdir()
    (folder / "architecture.json").write_text(architecture)
    np.savez(folder / "weights.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("second", "apart"),
    [
        ({"a": np.float32([1, 2]), "b": np.uint32([7])}, 0),
        ({"a": np.float32([1, 2.25]), "b": np.uint32([7])}, 0.25),
        ({"a": np.float32([1, 2]), "b": np.uint32([5])}, 2),
        ({"a": np.float32([1, math.nan]), "b": np.uint32([7])}, math.inf),
        ({"a": np.float32([1, math.inf]), "b": np.uint32([7])}, math.inf),
        ({"a": np.float32([[1, 2]]), "b": np.uint32([7])}, math.inf),
        ({"a": np.float64([1, 2]), "b": np.uint32([7])}, math.inf),
        ({"a": np.float32([1, 2])}, math.inf),
        ({"a": np.float32([1, 2]), "c": np.uint32([7])}, math.inf),
    ],
)
def test_two_models_are_as_far_apart_as_their_most_different_weight(tmp_path, second, apart):
    first = model(tmp_path / "first", a=np.float32([1, 2]), b=np.uint32([7]))
    assert difference(first, model(tmp_path / "second", **second)) == apart


@pytest.mark.parametrize("how", ["another architecture", "no file", "torn"])
def test_models_that_cannot_be_compared_are_infinitely_far_apart(tmp_path, how):
    first, second = (model(tmp_path / name, a=np.float32([1])) for name in ("first", "second"))
    if how == "another architecture":
        (second / "architecture.json").write_text("{ }")
    elif how == "no file":
        (second / "weights.npz").unlink()
    else:
        (second / "weights.npz").write_bytes((first / "weights.npz").read_bytes()[:-30])
    assert difference(first, second) == math.inf


def test_models_with_the_same_nan_are_not_called_equal(tmp_path):
    first, second = (model(tmp_path / name, a=np.float32([math.nan])) for name in ("first", "second"))
    assert difference(first, second) == math.inf
