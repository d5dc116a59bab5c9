"""The digits, trained twice through the pipeline; and what a recheck finds out in processes of its own."""

import dataclasses
import random
import re

import numpy as np
import pytest

from pipeline.errors import GateRefused, IntegrityError
from pipeline.recheck import recheck
from pipeline.stages import BY_NAME, Context, Result
from tests.support import ROOT
from tests.support_recheck import DATA, house_of, turn
from train import fit

BOTH = ["data", "train"]
UNSEEDED = dataclasses.replace(
    BY_NAME["train"], function="tests.integration.test_recheck_training.unseeded", hardware=False
)


def unseeded(context: Context) -> Result:
    """Trains for real, from another seed each time: what a forgotten seed comes to."""
    train = dataclasses.replace(context.settings.train, seed=random.SystemRandom().randrange(2**31))
    return fit.train(
        dataclasses.replace(context, settings=dataclasses.replace(context.settings, train=train))
    )


def small(house):
    """A training of two epochs on the CPU, executed twice."""
    house.edit("  epochs: 30\n", "  epochs: 2\n")
    house.edit("${TIDEGATE_ACCELERATOR:-auto}", "cpu")
    house.edit("executions: ${TIDEGATE_TRAIN_EXECUTIONS:-1}", "executions: 2")
    return house


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A house in which the digits were trained twice, and the runner that did."""
    with house_of(tmp_path_factory.mktemp("trained"), root=ROOT) as house:
        yield house, small(house).walk(*BOTH)


def test_the_digits_are_trained_twice_to_the_same_bits_and_the_record_says_so(trained):
    house, walked = trained
    made = walked.done["train"]
    assert made.reproducible == "bit-identical in 2 executions"
    assert made.numbers["largest_difference"] == 0
    assert made.sentence.endswith("Bit-identical in 2 executions.")
    assert list((house.paths.state / "work").iterdir()) == []


def test_data_and_training_hold_when_they_are_rechecked(trained, capfd):
    house, walked = trained
    before = house.records()
    recheck(house.runner(), BOTH, 9)
    lines = capfd.readouterr().out.splitlines()
    assert [re.match(r"✓ (\w+): the same bytes as its record (\w+)", line).groups() for line in lines] == [
        (name, walked.done[name].sha256[:12]) for name in BOTH
    ]
    assert house.records() == before


def test_a_training_without_a_seed_is_found_out_by_its_second_execution(tmp_path):
    with house_of(tmp_path, UNSEEDED, root=ROOT) as house:
        with pytest.raises(GateRefused, match="two executions with the same inputs differ") as caught:
            small(house).walk(*BOTH)
        assert re.search(
            r"train/model/weights\.npz: first [0-9a-f]{64}, then [0-9a-f]{64}", str(caught.value)
        )
        newest = house.runner().store.newest_record("train")
        made = house.runner().authority.trust.verify(house.blob(newest).read_bytes()).record
        assert made.outcome == "failed"
        assert 0.001 < made.numbers["largest_difference"] < 100


def test_a_stage_that_depends_on_the_clock_is_found_out_by_a_recheck(tmp_path):
    with house_of(tmp_path, DATA, root=ROOT) as house:
        turn(house.paths.state, "clock")
        house.walk("data")
        with pytest.raises(
            IntegrityError, match=r"data/rows/clock\.txt: recorded [0-9a-f]{64}, now [0-9a-f]{64}"
        ):
            recheck(house.runner(), ["data"], 1)


def test_poisoned_rows_under_a_record_that_was_signed_are_found_out_by_a_recheck(tmp_path):
    """Whoever has the key and the store can replace the rows; running the stage again cannot be bribed."""
    with house_of(tmp_path, root=ROOT) as house:
        house.walk("data")
        rows = house.paths.build / "data" / "rows"
        poisoned = {path.name: path.read_bytes() for path in rows.iterdir()}
        labels = np.load(rows / "train_labels.npy")
        np.save(tmp_path / "labels.npy", (labels + 1) % 10)
        poisoned["train_labels.npy"] = (tmp_path / "labels.npy").read_bytes()
        forged = house.forge(BY_NAME["data"], {"rows": poisoned})
        fooled = house.walk("data")
        assert fooled.done["data"].sha256 == forged
        assert (np.load(rows / "train_labels.npy") != labels).all()
        with pytest.raises(IntegrityError) as caught:
            recheck(house.runner(), ["data"], 1)
        assert "data/rows/train_labels.npy: recorded" in str(caught.value)
        assert "train_features.npy" not in str(caught.value)
        assert forged[:12] in str(caught.value)


def test_a_blob_that_was_replaced_in_the_store_is_found_out_although_build_is_untouched(tmp_path):
    with house_of(tmp_path, root=ROOT) as house:
        made = house.walk("data")
        leaf = next(
            leaf
            for leaf in made.digests.tree(house.paths.build / "data" / "rows").leaves
            if leaf.path == "train_labels.npy"
        )
        blob = house.blob(leaf.sha256)
        blob.chmod(0o644)
        blob.write_bytes(bytes(leaf.size))
        house.walk("data")
        with pytest.raises(IntegrityError, match="the store does not hold what record") as caught:
            recheck(house.runner(), ["data"], 1)
        assert leaf.sha256 in str(caught.value)
