"""Training that pauses, stops and goes on within an epoch: the same bytes as one that nothing happened to."""

import dataclasses
import signal
import time

import numpy as np
import pytest

from pipeline.stages import Context, Result
from tests import support
from train import fit
from train.data import data
from train.pauses import Pauses

EPOCHS, STEPS, GRACE_S = 3, 8, 120
CHANGES = {"train.epochs": EPOCHS, "train.global_batch": 48, "train.accelerator": "cpu"}
PRICE = {"train.cost.per_hour": 3600}
HERE = "tests.integration.test_train_resume"


class StepClock(Pauses):
    """A clock that counts a second for each step of this attempt."""

    looked = -1  # the first look comes before the first step
    saving_s = property(lambda self: 0.0, lambda self, seconds: None)  # a checkpoint takes no step

    @property
    def spent_s(self) -> float:
        return self.before_s + max(self.looked, 0)

    def look(self) -> bool:
        self.looked += 1
        return super().look()


class SlowStart(StepClock):
    """A second has passed before the first step."""

    looked = 0


class Restless(Pauses):
    """Writes a checkpoint after every third step."""

    looked = 0

    def look(self) -> bool:
        self.looked += 1
        self.saved = -1e9 if self.looked % 3 == 0 else time.monotonic()
        return super().look()


class Slow(Pauses):
    """Takes its time for a step, so that a signal comes between two."""

    def look(self) -> bool:
        time.sleep(0.1)
        return super().look()


def _with(clock: type[Pauses], context: Context) -> Result:
    fit.Pauses = clock  # in the stage's own process
    return fit.train(context)


def by_steps(context: Context) -> Result:
    """Trains with a second to a step."""
    return _with(StepClock, context)


def slow_start(context: Context) -> Result:
    """Trains after a start of a second."""
    return _with(SlowStart, context)


def restless(context: Context) -> Result:
    """Trains, and pauses all the time."""
    return _with(Restless, context)


def slowly(context: Context) -> Result:
    """Trains with a tenth of a second to a step, or more."""
    return _with(Slow, context)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A part of the digits; 359 rows are no multiple of the batch, nor of the replicas."""
    made = support.context(tmp_path_factory.mktemp("data"), changes={"data.test_fraction": 0.8})
    data(made)
    assert -(-len(np.load(made.out / "rows" / "train_labels.npy")) // 48) == STEPS
    return made.out / "rows"


@pytest.fixture(scope="module")
def attempt(rows):
    """A function: an attempt in a folder, with its exit code, result, and what it said."""

    def run(function, folder, **changes):
        if (folder / "out").exists():
            (folder / "out").rename(folder / f"out-{time.monotonic_ns()}")
        named = {"inputs": {"data/rows": rows}, "changes": {**CHANGES, **changes}}
        return support.run_stage(function, folder, **named)

    return run


@pytest.fixture(scope="module")
def undisturbed(attempt, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, said = attempt("train.fit.train", folder)
    assert code == 0, said
    return folder / "out"


def same(folder, undisturbed) -> None:
    """The same weights, bit for bit, and the same curves but for their times."""
    assert support.tree(folder / "out" / "model") == support.tree(undisturbed / "model")
    ours, theirs = (
        np.genfromtxt(out / "log" / "curves.csv", delimiter=",", names=True)[["epoch", "loss", "accuracy"]]
        for out in (folder / "out", undisturbed)
    )
    assert ours.tolist() == theirs.tolist()


def test_a_start_that_alone_costs_what_is_left_is_not_forgotten(attempt, tmp_path):
    capped = {**PRICE, "train.cost.at_most": 13}
    assert attempt(f"{HERE}.by_steps", tmp_path, **capped)[1]["numbers"]["seconds"] == pytest.approx(13)
    nearly = {**PRICE, "train.cost.at_most": 13.5}
    code, result, said = attempt(f"{HERE}.slow_start", tmp_path, **nearly)
    assert code == 0, said
    assert result["numbers"]["seconds"] == pytest.approx(14)
    code, result, said = attempt("train.fit.train", tmp_path, **nearly)
    assert (result["outcome"], result["numbers"]["seconds"]) == ("no data", pytest.approx(14))
    assert not (tmp_path / "out" / "log").exists(), "TensorFlow was started to find out what was known"


def test_a_training_that_pauses_again_and_again_comes_to_the_same_bytes(attempt, undisturbed, tmp_path):
    code, _, said = attempt(f"{HERE}.restless", tmp_path)
    assert code == 0, said
    assert (tmp_path / "work" / "checkpoints" / f"ckpt-{EPOCHS * STEPS}.index").exists()
    same(tmp_path, undisturbed)


def test_a_cost_cap_stops_within_an_epoch_and_a_higher_one_goes_on_to_the_same_bytes(
    attempt, undisturbed, tmp_path
):
    code, result, said = attempt(f"{HERE}.by_steps", tmp_path, **PRICE, **{"train.cost.at_most": 13})
    assert code == 0, said
    assert result["outcome"] == "no data"
    assert f"after epoch 1, step 5 of {STEPS} of the next, of {EPOCHS} epochs in all" in result["sentence"]
    assert "13.0 s at 3600 an hour have cost 13, and train.cost.at_most is 13" in result["sentence"]
    assert result["numbers"] == pytest.approx({"epochs": 1, "seconds": 13, "cost": 13})
    assert not (tmp_path / "out" / "model").exists()
    code, result, said = attempt(f"{HERE}.by_steps", tmp_path, **PRICE, **{"train.cost.at_most": 20})
    assert "going on after epoch 1, step 5 of 8 of the next" in said
    assert "after epoch 2, step 4 of 8" in result["sentence"], "what the first attempt spent counts"
    # Nothing is started that could only cost more, nor forgotten.
    code, again, said = attempt("train.fit.train", tmp_path, **PRICE, **{"train.cost.at_most": 20})
    assert code == 0, said
    assert again["outcome"] == "no data"
    assert again["numbers"] == pytest.approx({"epochs": 2, "seconds": 20, "cost": 20})
    assert not (tmp_path / "out" / "log").exists()
    code, result, said = attempt(f"{HERE}.by_steps", tmp_path, **PRICE, **{"train.cost.at_most": 99})
    assert code == 0, said
    assert result["outcome"] == "passed"
    assert result["numbers"]["cost"] == pytest.approx(EPOCHS * STEPS)
    same(tmp_path, undisturbed)


def test_sigterm_ends_a_training_at_a_checkpoint_and_it_goes_on_to_the_same_bytes(
    rows, attempt, undisturbed, tmp_path
):
    child = support.start_stage(
        f"{HERE}.slowly", tmp_path, inputs={"data/rows": rows}, changes={**CHANGES, "train.epochs": EPOCHS}
    )
    deadline = time.monotonic() + GRACE_S
    while not (tmp_path / "work" / "progress.json").exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    code, _, said = support.finish_stage(child)
    assert code == 5, said
    assert "training was told to stop (SIGTERM) after epoch" in said
    assert not (tmp_path / "out" / "model").exists()
    code, _, said = attempt("train.fit.train", tmp_path)
    assert code == 0, said
    assert "going on after epoch" in said
    same(tmp_path, undisturbed)


def test_an_offer_that_the_disk_will_not_have_is_told_once_and_training_ends_well(rows, tmp_path, capsys):
    made = support.context(tmp_path, inputs={"data/rows": rows}, changes={**CHANGES, "train.replicas": 1})
    made = dataclasses.replace(made, state=tmp_path / "state")
    (made.work / ".offering").write_text("a file, where a folder must be made")
    assert fit.train(made).outcome == "passed"
    assert capsys.readouterr().err.count("checkpoints stay on this machine alone") == 1
