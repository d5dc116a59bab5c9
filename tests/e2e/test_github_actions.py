"""GitHub's definition, run for real by act: which jobs an event has, and what they do.

Jobs run in containers of the training image (on a stand-in for TensorFlow's base), those that deploy on this host;
after the first run all do, which is quicker. What is not GitHub here: third-party actions are stand-ins,
found by the commits that the workflows pin; nothing has a GPU, so train runs with TIDEGATE_ACCELERATOR=cpu and its
nvidia-smi says so; act knows no environments and so no reviewers, no concurrency, no rights of a token, and no branch
filters, which the test applies itself. Its one secret is CI's key in every job, so nobody approves in a job here: an
approver does on her own machine, on the team's store, and the run is started again.
"""

import json
import shutil

import pytest

from tests.support_engine import SLOW, need_engine
from tests.support_images import hand_image, tar
from tests.support_pipelines import (
    BRANCH_REQUEST,
    DISPATCH,
    FEATURE,
    FORK_REQUEST,
    MAIN,
    SCHEDULE,
    TAG,
    GitHub,
    digests,
    outcomes,
)

need_engine()
pytestmark = SLOW
SAFE = [["check", "data"], ["train"], ["evaluate"], ["export"], ["complete"]]
ALONE = [
    "evaluate",
    "export",
    "image",
    "examine",
    "scan",
    "publish",
    "staging",
    "approve",
    "canary",
    "promote",
    "complete",
]
WHOLE = [
    ["check", "data"],
    ["train"],
    *([name, "code-scanning"] if name == "publish" else [name] for name in ALONE),
]
UPKEEP = ["update", "gc", "recheck"]
BUILT = {"check", "data", "train", "evaluate", "export", "image", "examine", "scan", "publish"}
STAGES = sorted(BUILT - {"examine"})


@pytest.fixture(scope="module")
def github(team, tmp_path_factory):
    made = GitHub(tmp_path_factory.mktemp("github") / "digits", team)
    yield made
    made.back()
    made.pipeline("down", **made.lasts)


@pytest.fixture(scope="module")
def first(github):
    """What became of a push to main that nobody has approved."""
    return github.run("pipeline", MAIN, **github.lasts)


@pytest.mark.parametrize(
    ("event", "workflows", "jobs"),
    [
        (MAIN, ["pipeline"], WHOLE),
        (SCHEDULE, ["pipeline", "upkeep"], [[*WHOLE[0], *UPKEEP], *WHOLE[1:]]),
        (BRANCH_REQUEST, ["pull-request"], SAFE),
        (FORK_REQUEST, ["pull-request"], SAFE),
        (DISPATCH, ["pipeline", "rollback", "upkeep"], [[*WHOLE[0], "rollback", *UPKEEP], *WHOLE[1:]]),
        (FEATURE, [], []),
        (TAG, [], []),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_event_has_the_jobs_that_it_may_run(github, event, workflows, jobs):
    assert github.triggered(event) == workflows
    assert [sorted(step) for step in github.jobs(event)] == [sorted(step) for step in jobs]


def test_a_push_to_main_that_nobody_approved_stops_before_production(github, first, team):
    assert first.passed == {*BUILT, "code-scanning", "staging"}, first.output
    assert first.failed == {"approve", "complete"}
    assert not {"canary", "promote"} & set(first.started)
    assert (
        "approve takes a key with the role approver, and the key that signs here, ci, has the role ci"
        in first.said("approve")
    )
    for job in ("canary", "promote"):
        assert f"{job}: skipped; this run is not complete" in first.said("complete")
    order = list(first.started)
    assert sorted(order[:2]) == ["check", "data"]
    order.remove("code-scanning")  # beside the others
    assert order[2:] == [
        "train",
        "evaluate",
        "export",
        "image",
        "examine",
        "scan",
        "publish",
        "staging",
        "approve",
        "complete",
    ]
    channels = json.loads(github.pipeline("status", "--json", **github.lasts))["channels"]
    assert channels["staging"]["image"] == team.digests["image"]
    assert channels["production"] is None
    assert not github.serves()


def test_its_model_and_image_are_those_of_a_laptop(github, first, team):
    assert digests(github.store) == team.digests


def test_each_job_keeps_its_reports_and_no_key(github, first):
    kept = github.artifacts / str(github.number)
    for stage in (*STAGES, "staging"):
        report = json.loads((kept / f"report-{stage}" / "report" / f"{stage}.json").read_text())
        assert [(row["stage"], row["outcome"]) for row in report["stages"]] == [(stage, "passed")]
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".pem" or b"PRIVATE KEY" in path.read_bytes()]


def test_once_an_approver_signed_it_the_same_run_ends_in_production(github, first, team):
    said = github.pipeline(
        "approve", team.digests["image"], TIDEGATE_SIGNING_KEY=str(team.keys["alice"]), **github.lasts
    )
    assert f"approves v1, {team.digests['image']}" in said
    again = github.run("pipeline", MAIN, on_host=True, again=True, **github.lasts)
    assert (again.status, again.failed) == (0, frozenset()), again.output
    assert again.passed == {*BUILT, "code-scanning", "staging", "approve", "canary", "promote", "complete"}
    assert "Nothing to do" in again.said("train")
    assert "Approved already" in again.said("approve")
    assert github.predict()["predictions"][0]["class"] == 7
    verified = json.loads(github.pipeline("verify", "production", "--json", **github.lasts))
    assert verified["holds"] is True
    signers = {node["stage"]: node["signed_by"] for node in verified["records"].values()}
    assert signers.pop("approve") == "alice"
    assert set(signers.values()) == {"ci"}
    assert set(outcomes(github.store).values()) == {"passed"}


def test_a_gate_that_fails_stops_the_run_and_production_stays(github, first):
    github.change(
        "A stricter gate", {"pipeline.yaml": [("accuracy: {at_least: 0.9}", "accuracy: {at_least: 0.9999}")]}
    )
    stopped = github.run("pipeline", MAIN, on_host=True, **github.lasts)
    github.back()
    assert stopped.status != 0
    assert stopped.passed == {"check", "data", "train"}
    assert stopped.failed == {"evaluate", "complete"}
    assert "the gate asks at least 0.9999" in stopped.said("evaluate")
    assert github.predict()["predictions"][0]["class"] == 7


def test_a_scan_that_fails_stops_the_run_before_anything_is_published(github, first):
    metadata = b"Metadata-Version: 2.1\nName: requests\nVersion: 2.19.1\nLicense: Apache 2.0\n"
    files = tar({"usr/lib/python3/site-packages/requests-2.19.1.dist-info/METADATA": metadata})
    base = hand_image(github.folder / "base", files)
    github.change("A base image", {"pipeline.yaml": [("  base: scratch\n", f"  base: oci:base@{base}\n")]})
    stopped = github.run("pipeline", MAIN, on_host=True, **github.lasts)
    github.back()
    assert stopped.passed == {
        "check",
        "data",
        "train",
        "evaluate",
        "export",
        "image",
        "examine",
        "code-scanning",
    }
    assert stopped.failed == {"scan", "complete"}
    assert "CVE-2018-18074" in stopped.said("scan")
    assert github.predict()["predictions"][0]["class"] == 7


LOOKS_AROUND = '''"""What code of a pull request finds."""

import os


def test_a_stranger_finds_no_key():
    assert not os.environ.get("TIDEGATE_SIGNING_KEY")
    assert "PRIVATE KEY" not in "".join(os.environ.values())
'''


def test_a_pull_request_of_a_fork_trains_a_small_model_and_sees_no_secret(github):
    github.change("Look around", {"tests/unit/test_quick.py": [("", LOOKS_AROUND)]})
    done = github.run("pull-request", FORK_REQUEST, on_host=True)
    github.back()
    assert (done.status, done.passed) == (0, {"check", "data", "train", "evaluate", "export", "complete"}), (
        done.output
    )
    assert "epoch 2/2" in " ".join(done.said("train").split())
    assert sorted(path.name for path in (github.artifacts / str(github.number)).glob("state-*")) == [
        f"state-{stage}" for stage in ("check", "data", "evaluate", "export", "train")
    ]


def test_a_failing_unit_test_stops_a_pull_request(github):
    github.change("Broken", {"tests/unit/test_quick.py": [("1 + 1 == 2", "1 + 1 == 3")]})
    stopped = github.run("pull-request", BRANCH_REQUEST, on_host=True)
    github.back()
    assert stopped.passed == {"data"}
    assert stopped.failed == {"check", "complete"}
    assert "train: skipped; this run is not complete" in stopped.said("complete")


def test_a_feature_branch_that_takes_the_filter_out_is_refused_by_the_pipeline_itself(github, first):
    """That its jobs get no environment's secrets is GitHub's to keep; this is what holds beside it."""
    github.change(
        "Evil", {".github/workflows/pipeline.yml": [("    branches: [main]\n", "    branches: [feature]\n")]}
    )
    assert github.triggered(FEATURE) == ["pipeline"]
    before = github.pipeline("history", "--json", **github.lasts)
    refused = github.run("pipeline", FEATURE, on_host=True)
    github.back()
    assert refused.failed == {"train", "complete"}
    assert "train: only a protected ref may do this" in refused.said("train")
    assert not {"image", "publish", "staging", "promote"} & set(refused.started)
    assert "PRIVATE KEY" not in refused.output
    assert github.pipeline("history", "--json", **github.lasts) == before


def test_a_job_that_was_killed_and_is_tried_again_ends_as_an_undisturbed_one(github, team):
    """The same run is started anew on a store of its own; what was finished is kept, what was cut off runs again."""
    lasting = {**github.lasts, "TIDEGATE_STORE": f"file:{github.beside}/retried"}
    killed = github.kill_job("train", "epoch  3/", "pipeline", MAIN, **lasting)
    assert killed.passed == {"check", "data"}, killed.output
    assert "evaluate" not in killed.started
    assert set(outcomes(github.beside / "retried")) == {"check", "data"}
    again = github.run("pipeline", MAIN, "--job", "train", on_host=True, **lasting)
    assert again.passed >= {"check", "data", "train"}, again.output
    assert "Nothing to do" in again.said("data")
    assert digests(github.beside / "retried") == {"model": team.digests["model"]}
    shutil.rmtree(github.beside / "retried")
