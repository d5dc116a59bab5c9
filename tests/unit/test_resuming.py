"""What the runner does around a stage that resumes: what is kept while it is not finished, and when that goes."""

import dataclasses
import shutil

import pytest

from pipeline.errors import GateRefused, NoData, ProgramFailed
from pipeline.recheck import recheck
from pipeline.stages import BY_NAME, Context, Outcome, Result
from tests import support_recheck
from tests.support_recheck import DATA, TRAIN, attend_here, house_of, turn

RESUMES = dataclasses.replace(TRAIN, function="tests.unit.test_resuming.train", resumes=True)


def train(context: Context) -> Result:
    """As a training: offers a checkpoint; then the knob `stop` or `cap`, once so many were executed, ends it."""
    begun = (context.work / "checkpoints" / "step").exists()
    (context.work / "checkpoints").mkdir(exist_ok=True)
    step = context.work / "checkpoints" / "step"
    step.write_text("7")
    context.checkpoint([step], 7, 1, 2.5)
    result = support_recheck.train(dataclasses.replace(context, work=context.out))
    executions = int((context.state / "executions").read_text())
    if support_recheck._knob(context.state, "stop") == str(executions):
        raise ProgramFailed("told to stop")
    if support_recheck._knob(context.state, "cap") == str(executions):
        shutil.rmtree(context.out / "model")
        return dataclasses.replace(result, outcome=Outcome.NO_DATA, sentence="it has cost what it may.")
    return dataclasses.replace(result, numbers={"resumed": int(begun)})


@pytest.fixture
def house(tmp_path, monkeypatch):
    with house_of(tmp_path, DATA, RESUMES) as house:
        monkeypatch.setattr("pipeline.run.attend", attend_here)
        yield house


def checkpoints(house) -> list:
    return [path for path in (house.store / "checkpoints").rglob("*") if path.is_file()]


def both(house) -> None:
    house.edit("executions: ${TIDEGATE_TRAIN_EXECUTIONS:-1}", "executions: 2")


@pytest.mark.parametrize(("knob", "error"), [("stop", "told to stop"), ("cap", "it has cost what it may")])
def test_what_was_not_finished_goes_on_on_a_machine_that_has_nothing(house, knob, error):
    turn(house.paths.state, knob, "1")
    with pytest.raises((ProgramFailed, GateRefused), match=error):
        house.walk("data", "train")
    assert len(checkpoints(house)) == 2, "a document and a file"
    shutil.rmtree(house.paths.state / "work")
    made = house.walk("data", "train").done["train"]
    assert made.numbers["resumed"] == 1
    assert checkpoints(house) == []
    assert list((house.paths.state / "work").iterdir()) == []


def test_a_stage_that_passed_at_once_leaves_no_checkpoint(house):
    assert house.walk("data", "train").done["train"].numbers["resumed"] == 0
    assert checkpoints(house) == []


def test_what_cannot_be_kept_in_the_store_may_be_made_again_from_its_checkpoint(house, monkeypatch):
    def full(*_):
        raise ProgramFailed("the store is full")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.execution.Executor._keep", full)
        turn(house.paths.state, "stop", "9")
        with pytest.raises(ProgramFailed, match="the store is full"):
            house.walk("data")
        patch.undo()
        house.walk("data")
        patch.setattr("pipeline.execution.Executor._keep", full)
        with pytest.raises(ProgramFailed, match="the store is full"):
            house.walk("data", "train")
    assert house.walk("data", "train").done["train"].numbers["resumed"] == 1


def test_a_second_execution_that_was_not_finished_tells_nothing_of_the_first(house):
    both(house)
    turn(house.paths.state, "cap", "2")
    with pytest.raises(GateRefused, match="it has cost what it may") as caught:
        house.walk("data", "train")
    assert caught.value.exit_code == 4
    assert checkpoints(house), "the first execution's last one; it need not be done again"
    made = house.walk("data", "train").done["train"]
    assert made.reproducible == "bit-identical in 2 executions"
    assert checkpoints(house) == []


def test_a_recheck_that_was_not_finished_accuses_no_record(house):
    house.walk("data", "train")
    turn(house.paths.state, "cap", "2")
    with pytest.raises(NoData, match="was not executed to its end"):
        recheck(house.runner(), ["train"], 1)
    assert BY_NAME["train"].resumes
    assert checkpoints(house) == [], "a recheck leaves none"
