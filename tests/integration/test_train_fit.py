"""Training for real: the same bytes each time, also after kill -9; and what it says when it cannot go on."""

import resource
import shutil
import signal
import time

import numpy as np
import pytest

from pipeline.errors import GateRefused, ProgramFailed
from tests import support
from train.data import data
from train.fit import train

EPOCHS = 6
STEPS = 8
CHANGES = {"train.epochs": EPOCHS, "train.global_batch": 48, "train.accelerator": "cpu"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A part of the digits; 359 rows are no multiple of the batch, nor of the replicas."""
    made = support.context(tmp_path_factory.mktemp("data"), changes={"data.test_fraction": 0.8})
    data(made)
    assert len(np.load(made.out / "rows" / "train_labels.npy")) == 359
    return made.out / "rows"


@pytest.fixture(scope="module")
def undisturbed(rows, tmp_path_factory):
    """A training that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, result, said = support.run_stage(
        "train.fit.train", folder, inputs={"data/rows": rows}, changes=CHANGES, env={"PYTHONHASHSEED": "1"}
    )
    assert code == 0, said
    return folder, result, said


def test_progress_tells_loss_accuracy_speed_and_time_to_go(undisturbed):
    _, result, said = undisturbed
    lines = [line for line in said.splitlines() if line.strip().startswith("epoch")]
    assert len(lines) == EPOCHS
    for word in ("loss", "accuracy", "rows/s", "ETA"):
        assert word in lines[0]
    assert result["outcome"] == "passed"
    assert result["numbers"]["replicas"] == 2


def test_log_holds_curves_and_events_that_tensorboard_reads(undisturbed):
    log = undisturbed[0] / "out" / "log"
    curves = np.genfromtxt(log / "curves.csv", delimiter=",", names=True)
    assert curves["epoch"].tolist() == list(range(1, EPOCHS + 1))
    assert curves["loss"][-1] < curves["loss"][0]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log)).Reload()
    assert [point.value for point in events.Scalars("epoch/loss")] == pytest.approx(curves["loss"].tolist())


def test_a_killed_training_goes_on_to_the_same_bytes(rows, undisturbed, tmp_path):
    child = support.start_stage("train.fit.train", tmp_path, inputs={"data/rows": rows}, changes=CHANGES)
    _wait_for(tmp_path / "work" / "checkpoints" / f"ckpt-{3 * STEPS}.index", child)
    child.send_signal(signal.SIGKILL)
    support.finish_stage(child)
    assert child.returncode == -signal.SIGKILL
    (tmp_path / "out").rename(tmp_path / "out-of-the-killed")
    code, result, said = support.run_stage(
        "train.fit.train", tmp_path, inputs={"data/rows": rows}, changes=CHANGES
    )
    assert code == 0, said
    assert "going on after epoch" in said
    assert "damaged" not in said
    assert "going on after epoch" in result["sentence"]
    assert support.tree(tmp_path / "out" / "model") == support.tree(undisturbed[0] / "out" / "model")
    assert (tmp_path / "out" / "log" / "curves.csv").read_text().count("\n") == EPOCHS + 1


def test_damaged_checkpoints_are_told_and_training_starts_over_to_the_same_bytes(rows, undisturbed, tmp_path):
    (tmp_path / "work").mkdir()
    for name, content in support.tree(undisturbed[0] / "work").items():
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        middle = len(content) // 2
        path.write_bytes(
            content if path.name == "checkpoint" else content[:middle] + b"\x55" * (len(content) - middle)
        )
    code, _, said = support.run_stage(
        "train.fit.train", tmp_path, inputs={"data/rows": rows}, changes=CHANGES
    )
    assert code == 0, said
    assert "is damaged" in said
    assert "training starts over" in said
    assert support.tree(tmp_path / "out" / "model") == support.tree(undisturbed[0] / "out" / "model")


def test_a_loss_that_is_not_a_number_stops_with_epoch_step_and_causes_and_no_model(rows, tmp_path):
    poisoned = tmp_path / "poisoned"
    shutil.copytree(rows, poisoned)
    features = np.load(poisoned / "train_features.npy")
    features[0, 0, 0] = np.inf
    np.save(poisoned / "train_features.npy", features)
    made = support.context(tmp_path, inputs={"data/rows": poisoned}, changes={**CHANGES, "train.replicas": 1})
    with pytest.raises(GateRefused, match=r"in epoch 1, step \d of 8.*Lower train\.learning_rate"):
        train(made)
    assert not (made.out / "model").exists()


def test_gpu_is_refused_with_what_is_missing_where_there_is_none(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    made = support.context(
        tmp_path, inputs={"data/rows": rows}, changes={**CHANGES, "train.accelerator": "gpu"}
    )
    with pytest.raises(ProgramFailed) as caught:
        train(made)
    assert "train.accelerator is gpu, and no CPU stands in for it" in str(caught.value)
    assert "nvidia-smi is not on PATH" in str(caught.value)
    assert list(made.out.iterdir()) == []


def test_a_disk_that_will_not_have_a_checkpoint_is_told(rows, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (64 << 10, before[1])
    )  # the child inherits it; a checkpoint is larger
    try:
        child = support.start_stage("train.fit.train", tmp_path, inputs={"data/rows": rows}, changes=CHANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    code, _, said = support.finish_stage(child)
    assert code == 5, said
    assert "the checkpoint after epoch 1 could not be written" in said
    assert not (tmp_path / "out" / "model").exists()


def _wait_for(path, child) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.005)
