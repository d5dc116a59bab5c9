"""The whole walk, as a story: a first model, nothing to do, a second one, back, and down."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.stages import BY_NAME

FIRST_PORT = 20500
ALL = list(BY_NAME)


@pytest.fixture(scope="module")
def held_out(walk):
    """Some held-out rows, and the probabilities that evaluation predicted for them."""
    rows = np.load(walk.folder / "build/data/rows/test_features.npy")[:5]
    return rows, np.load(walk.folder / "build/evaluate/predictions/probabilities.npy")[:5]


def test_one_command_puts_a_first_model_into_production(walk):
    said = walk("run", "--all")
    assert [row["outcome"] for row in walk.rows().values()] == ["passed"] * len(ALL), said
    assert list(walk.rows()) == ALL
    assert walk.live()["version"] == 1
    assert walk.live()["image"] == walk.live("staging")["image"] == walk.rows()["image"]["digest"]
    assert "approves v1" in said
    assert "automatically" in said


def test_production_answers_over_rest_as_evaluation_predicted(walk, held_out):
    rows, wanted = held_out
    answer = walk.predict(rows.tolist())["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in answer], wanted, atol=1e-5)
    assert [row["class"] for row in answer] == wanted.argmax(axis=1).tolist()


def test_production_answers_over_grpc_as_evaluation_predicted(walk, held_out, tmp_path):
    rows, wanted = held_out
    np.save(tmp_path / "rows.npy", rows)
    address = f"127.0.0.1:{walk.ports['production_grpc']}"
    argv = [sys.executable, "-m", "serve.client", "--address", address, "--model", "digits"]
    subprocess.run(
        [*argv, str(tmp_path / "rows.npy"), str(tmp_path / "out.npz")], cwd=walk.folder, check=True
    )
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["probabilities"], wanted, atol=1e-5)


def test_a_second_run_finds_nothing_to_do(walk):
    assert "Nothing to do" in walk("run", "--all")
    assert walk.ran() == []


def test_a_change_in_the_docs_reruns_nothing(walk):
    walk.edit("docs/guide.md", "A guide", "A better guide")
    walk.commit("Docs")
    assert "Nothing to do" in walk("run", "--all")


def test_a_deleted_build_folder_is_restored_from_the_store(walk):
    digest = walk.rows()["image"]["digest"]
    subprocess.run(["rm", "-rf", "build"], cwd=walk.folder, check=True)
    walk("run", "--all")
    assert walk.ran() == []
    assert (walk.folder / "build/export/savedmodel/saved_model.pb").exists()
    assert walk.rows()["image"]["digest"] == digest


def test_a_changed_gate_of_the_scan_reruns_the_scan_alone_as_the_image_stays_the_same(walk):
    walk.edit("pipeline.yaml", "fail_on: [HIGH, CRITICAL, UNKNOWN]", "fail_on: [CRITICAL, UNKNOWN]")
    assert "settings scan fail_on changed" in walk("explain", "scan")
    walk("run", "--all")
    assert walk.ran() == ["scan"]


def test_a_stopped_production_is_started_again_without_another_training(walk, held_out):
    assert "stopped" in walk("down")
    with pytest.raises(OSError, match=r"refused|reset"):
        walk.predict(held_out[0].tolist())
    walk("run", "--all")
    assert set(walk.ran()) <= {"staging", "promote"}
    assert walk.predict(held_out[0].tolist())


def test_a_changed_model_is_trained_compared_with_the_champion_and_promoted(walk):
    first = walk.live()
    walk.edit("train/model.py", '"""The model', '"""Another model')
    walk.edit("pipeline.yaml", "  seed: 7", "  seed: 8")
    walk.commit("Another model")
    assert "train/model.py changed" in walk("explain", "train")
    walk("run", "--all")
    assert "reads champion/report: None" not in walk("explain", "scan")
    ran = walk.ran()
    assert "data" not in ran
    assert ran == ["check", *ALL[ALL.index("train") :]]
    second = walk.live()
    assert (second["version"], second["left"]) == (2, first["image"])
    metrics = json.loads((walk.folder / "build/evaluate/metrics/metrics.json").read_text())
    assert "champion" in metrics


def test_rollback_puts_the_version_before_back_at_once(walk, held_out):
    second = walk.predict(held_out[0].tolist())
    walk("rollback")
    assert walk.live()["version"] == 1
    assert walk.live()["why"] == "rollback"
    assert walk.predict(held_out[0].tolist()) != second
    np.testing.assert_allclose(
        [row["probabilities"] for row in walk.predict(held_out[0].tolist())["predictions"]],
        held_out[1],
        atol=1e-5,
    )


def test_there_is_nothing_before_the_first_version(walk):
    assert "no version before v1" in walk("rollback", expect=3)


def test_what_was_rolled_back_waits_for_a_person(walk):
    said = walk("run", "--all", expect=3)
    assert "v2 was rolled back by" in said
    assert "canary" in said
    assert walk.rows()["promote"]["outcome"] == "not reached"
    assert walk.live()["version"] == 1


def test_an_approval_names_the_digest_and_lets_it_in_again(walk):
    assert "staging serves" in walk("approve", "sha256:" + "0" * 64, expect=3)
    staged = walk.live("staging")["image"]
    assert staged in walk("approve", staged)
    walk("run", "--all")
    assert walk.ran() == ["canary", "promote"]
    assert walk.live()["version"] == 2


def test_history_tells_what_was_live_when_and_who_let_it_in(walk):
    entries = json.loads(walk("history", "--json"))
    assert [(entry["version"], entry["why"]) for entry in entries][:4] == [
        (2, "promote"), (1, "rollback"), (2, "promote"), (1, "promote"),
    ]  # fmt: skip
    assert {entry["by"] for entry in entries} != {""}
    between = entries[2]["at"]
    assert [entry["version"] for entry in json.loads(walk("history", "--at", between, "--json"))] == [2]


def test_the_page_shows_every_stage(walk):
    page = (walk.folder / "build/report/index.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ALL)


def test_down_leaves_nothing_running_and_says_what_it_stopped(walk):
    assert "production" in walk("down")
    assert json.loads(walk("status", "--json"))["running"] == []
    assert "nothing was running" in walk("down")
