"""GitLab's definition, run for real by gitlab-ci-local: which jobs an event has, and what they do.

Jobs run in containers of the training image (on a stand-in for TensorFlow's base), those that deploy in a shell of
this host. What is not GitLab here: nothing has a GPU, so train runs with TIDEGATE_ACCELERATOR=cpu and its nvidia-smi
says so; gitlab-ci-local knows no protected branches and environments, no approvals, no queues (resource_group), and
does not apply workflow:rules, which tests/unit/test_ci_graphs.py holds. A pipeline that waits for a person is one that
was asked to run up to staging, since gitlab-ci-local would refuse the rest.
"""

import json

import pytest

from tests.support_engine import SLOW, need_engine
from tests.support_images import hand_image, tar
from tests.support_pipelines import (
    BRANCH_REQUEST,
    FEATURE,
    FORK_REQUEST,
    MAIN,
    SCHEDULE,
    TAG,
    UPKEEP,
    GitLab,
    digests,
    need,
    outcomes,
)

pytestmark = SLOW
SAFE = ["check", "data", "train-smoke", "evaluate", "export", "comment"]
BUILT = ["check", "data", "train", "evaluate", "export", "model-image", "examine", "scan", "publish"]
WHOLE = [*BUILT, "staging", "approve", "canary", "promote", "complete"]


@pytest.fixture(scope="module")
def gitlab(team, tmp_path_factory):
    made = GitLab(tmp_path_factory.mktemp("gitlab") / "digits", team)
    yield made
    made.back()
    made.pipeline("down")


@pytest.fixture(scope="module")
def staged(gitlab):
    """What became of a push to main whose approval nobody gives."""
    return gitlab.run("staging", "--needs")


@pytest.mark.parametrize(
    ("event", "jobs"),
    [
        (MAIN, [*WHOLE, "rollback"]),
        (SCHEDULE, [*WHOLE, "rollback"]),
        (UPKEEP, ["gc"]),
        (BRANCH_REQUEST, SAFE),
        (FORK_REQUEST, SAFE),
        (FEATURE, []),
        (TAG, []),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_an_event_has_the_jobs_that_it_may_run(gitlab, event, jobs):
    found = gitlab.jobs(event)
    assert sorted(found) == sorted(jobs)
    assert {name for name, job in found.items() if job["when"] == "manual"} == {"approve", "rollback"} & set(
        jobs
    )


def test_a_push_to_main_goes_to_staging_and_waits(gitlab, staged):
    assert (staged.status, staged.failed) == (0, frozenset()), staged.output
    assert staged.passed == {*BUILT, "staging"}
    order = list(staged.started)
    assert sorted(order[:2]) == ["check", "data"]
    assert order[2:] == [*BUILT[2:], "staging"]
    live = json.loads(gitlab.pipeline("status", "--json"))["channels"]
    assert live["staging"]["version"] == 1
    assert live["production"] is None
    assert not gitlab.serves()


def test_its_model_and_image_are_those_of_a_laptop(gitlab, staged, team):
    assert digests(gitlab.folder / ".tidegate/store") == team.digests


def test_each_job_keeps_its_reports(gitlab, staged):
    kept = gitlab.folder / ".gitlab-ci-local/artifacts"
    for job, file in {
        "check": "build/check/report/junit.xml",
        "train": "build/train/log",
        "evaluate": "build/evaluate/metrics/metrics.txt",
        "scan": "build/scan/report/verdict.json",
        "staging": "build/staging/evidence",
    }.items():
        assert (kept / job / file).exists(), (job, file)
        assert not list((kept / job).rglob("keys")), job
        report = json.loads((kept / job / "build/report/report.json").read_text())
        assert report["stages"][-1]["outcome"] == "passed"


def test_a_canary_that_nobody_approved_is_refused_even_when_its_button_is_pressed(gitlab, staged):
    refused = gitlab.run("canary")
    assert refused.failed == {"canary"}
    assert "has not passed for these inputs" in refused.said("canary")
    assert not gitlab.serves()


def test_cis_own_key_cannot_approve(gitlab, staged):
    refused = gitlab.run("approve", TIDEGATE_APPROVAL_KEY="")
    assert refused.failed == {"approve"}
    assert (
        "approve takes a key with the role approver, and the key that signs here, ci, has the role ci"
        in refused.output
    )


def test_once_approved_it_serves(gitlab, staged, team):
    rest = ("approve", "canary", "promote", "complete")
    done = gitlab.run(*rest, "--manual", "approve")
    assert (done.status, done.started, done.passed) == (0, rest, set(rest)), done.output
    answer = gitlab.predict()["predictions"][0]
    assert answer["class"] == 7
    live = json.loads(gitlab.pipeline("status", "--json"))["channels"]["production"]
    assert live["image"] == team.digests["image"]
    verified = json.loads(gitlab.pipeline("verify", "production", "--json"))
    assert verified["holds"] is True
    signers = {node["stage"]: node["signed_by"] for node in verified["records"].values()}
    assert signers.pop("approve") == "alice"
    assert set(signers.values()) == {"ci"}
    assert set(outcomes(gitlab.folder / ".tidegate/store").values()) == {"passed"}


def test_a_gate_that_fails_stops_the_pipeline_and_production_stays(gitlab, staged, team):
    gitlab.change(
        "A stricter gate", {"pipeline.yaml": [("accuracy: {at_least: 0.9}", "accuracy: {at_least: 0.9999}")]}
    )
    stopped = gitlab.run("evaluate", "export", "model-image")
    gitlab.back()
    assert stopped.status != 0
    assert (stopped.started, stopped.failed) == (("evaluate",), {"evaluate"})
    assert "the gate asks at least 0.9999" in stopped.output
    assert gitlab.predict()["predictions"][0]["class"] == 7


def test_a_scan_that_fails_stops_the_pipeline_before_anything_is_published(gitlab, staged, team):
    metadata = b"Metadata-Version: 2.1\nName: requests\nVersion: 2.19.1\nLicense: Apache 2.0\n"
    files = tar({"usr/lib/python3/site-packages/requests-2.19.1.dist-info/METADATA": metadata})
    base = hand_image(gitlab.folder / "base", files)
    gitlab.change("A base image", {"pipeline.yaml": [("  base: scratch\n", f"  base: oci:base@{base}\n")]})
    stopped = gitlab.run("model-image", "examine", "scan", "publish")
    gitlab.back()
    assert stopped.started == ("model-image", "examine", "scan"), stopped.output
    assert stopped.failed == {"scan"}
    assert "CVE-2018-18074" in stopped.output
    assert gitlab.predict()["predictions"][0]["class"] == 7


def test_a_merge_request_trains_a_small_model_and_sees_no_secret(gitlab):
    gitlab.change("Look around", {"tests/unit/test_quick.py": [("", LOOKS_AROUND)]})
    done = gitlab.run(event=FORK_REQUEST)
    gitlab.back()
    assert (done.status, done.passed) == (0, set(SAFE)), done.output
    assert "epoch 2/2" in " ".join(done.output.split())
    for stage in ("check", "data", "train", "evaluate", "export"):
        assert f"| ✅ {stage} | passed |" in done.said("comment")
    assert "TIDEGATE_COMMENT_TOKEN is not set here" in done.said("comment")
    assert "BEGIN PRIVATE KEY" not in done.output


LOOKS_AROUND = '''"""What code of a merge request finds."""

import os
from pathlib import Path


def test_a_stranger_finds_no_key_and_no_engine():
    assert not [name for name in os.environ if name.startswith("TIDEGATE_") and name.endswith("_KEY")]
    assert "PRIVATE KEY" not in "".join(os.environ.values())
    assert not Path("/var/run/docker.sock").exists()
'''


def test_a_failing_unit_test_stops_a_merge_request(gitlab):
    gitlab.change("Broken", {"tests/unit/test_quick.py": [("1 + 1 == 2", "1 + 1 == 3")]})
    stopped = gitlab.run(event=BRANCH_REQUEST)
    gitlab.back()
    assert stopped.status != 0
    assert (set(stopped.started), stopped.failed) == ({"check", "data"}, {"check"})


EVIL = """
.anywhere: {needs: [], rules: [{when: on_success}]}
.host: {extends: .anywhere, tags: [deploy], variables: {TIDEGATE_STATE: $DEPLOY_STATE, VENV: $DEPLOY_STATE/venv}}
train-anyway: {extends: .anywhere, image: $CPU_IMAGE, stage: train, tags: [gpu], script: [env, make train]}
publish-anyway: {extends: .anywhere, image: $CPU_IMAGE, stage: publish, script: [make publish]}
promote-anyway: {extends: .host, stage: promote, script: [make promote]}
rollback-anyway: {extends: .host, stage: rollback, script: [make rollback]}
pretend: {extends: .host, stage: promote, script: [CI_COMMIT_REF_PROTECTED=true make data]}
"""
EVIL_JOBS = ("train-anyway", "publish-anyway", "promote-anyway", "rollback-anyway", "pretend")


def test_a_feature_branch_that_edits_the_ci_file_is_refused_by_the_pipeline_itself(gitlab, staged):
    """That such jobs get no protected runner is GitLab's to keep; this is what holds where one is unprotected."""
    text = (gitlab.folder / ".gitlab-ci.yml").read_text()
    before = gitlab.pipeline("history", "--json")
    gitlab.change("Evil", {".gitlab-ci.yml": [(text, text + EVIL)]})
    refused = gitlab.run(*EVIL_JOBS, event=FEATURE)
    gitlab.back()
    assert (refused.failed, refused.passed) == (set(EVIL_JOBS), frozenset()), refused.output
    assert "PRIVATE KEY" not in refused.output
    for what in ("train", "publish", "promote", "rollback"):
        assert f"{what}: only a protected ref may" in refused.said(f"{what}-anyway")
    assert "TIDEGATE_SIGNING_KEY is not set" in refused.said("pretend")
    assert gitlab.pipeline("history", "--json") == before


def test_need_says_what_installs_a_driver(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("tests.support_pipelines._PLACES", {"act": "/nowhere"})
    with pytest.raises(AssertionError, match="scripts/ci-tools installs it"):
        need("act")


need_engine()
