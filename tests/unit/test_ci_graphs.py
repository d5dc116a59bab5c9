"""The table of stages, GitLab's file and GitHub's files are one graph; and these tests can tell when they are not."""

import copy
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.support_ci import (
    KEY,
    PROTECTED,
    ROOT,
    ci_texts,
    github_faults,
    github_jobs,
    gitlab_faults,
    gitlab_jobs,
    pin_faults,
)


@pytest.fixture
def gitlab() -> dict:
    return yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())


@pytest.fixture
def github() -> dict[str, dict]:
    return {
        path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
    }


def test_gitlab_runs_the_table_of_stages(gitlab):
    assert list(gitlab_faults(gitlab)) == []


def test_github_runs_the_table_of_stages(github):
    assert list(github_faults(github)) == []


def test_nothing_in_ci_is_named_by_a_version_that_could_move():
    texts = ci_texts()
    assert len(texts) >= 9
    assert list(pin_faults(texts)) == []


def test_every_verb_that_ci_calls_is_in_the_makefile(gitlab, github):
    makefile = (ROOT / "Makefile").read_text()
    stages = re.search(r"^STAGES := (.*)$", makefile, re.MULTILINE)[1].split()
    verbs = {*stages, *re.findall(r"^([a-z][a-z -]*):", makefile, re.MULTILINE)}
    verbs = {verb for names in verbs for verb in names.split()}
    jobs = [*gitlab_jobs(gitlab, PROTECTED), *(job for file in github.values() for job in github_jobs(file))]
    called = {c.removeprefix("make ") for job in jobs for c in job.commands if c.startswith("make ")}
    assert called
    assert called - verbs == set()


Change = Callable[[dict], object]


def at(file: dict, path: str) -> tuple[dict | list, str | int | bool]:
    """The map or list that a path ends in, and the place in it. YAML reads GitHub's `on` as True."""
    *way, last = (int(part) if part.isdigit() else True if part == "on" else part for part in path.split("/"))
    for part in way:
        file = file[part]
    return file, last


def put(path: str, value: object) -> Change:
    def change(file: dict) -> None:
        place, last = at(file, path)
        place[last] = value

    return change


def drop(path: str) -> Change:
    def change(file: dict) -> None:
        place, last = at(file, path)
        del place[last]

    return change


def add(path: str, value: object) -> Change:
    def change(file: dict) -> None:
        place, last = at(file, path)
        place[last].append(value)

    return change


def move_to_end(path: str) -> Change:
    def change(file: dict) -> None:
        place, last = at(file, path)
        place[last] = place.pop(last)

    return change


GITLAB_CHANGES: dict[str, Change] = {
    "a stage is missing": drop("scan"),
    "a stage runs twice": put(
        "again", {"extends": ".protected", "stage": "scan", "needs": [], "script": ["make scan"]}
    ),
    "two stages are swapped": move_to_end("scan"),
    "another order of GitLab's stages": put("stages/3", "export"),
    "a need is missing": drop("publish/needs/0"),
    "a need is too much": add("scan/needs", {"job": "check", "artifacts": False}),
    "a need that may be absent": put(
        "publish/needs/1", {"job": "scann", "artifacts": True, "optional": True}
    ),
    "a job receives no state": put("publish/needs/1/artifacts", False),
    "the wrong verb": put("scan/script", ["make image"]),
    "two verbs in one job": put("scan/script", ["make scan", "make publish"]),
    "logic in a job": put("scan/script", ["[ -e x ] || make scan"]),
    "publish from a merge request": put("publish/extends", ".any"),
    "GPU for a merge request": put("train/extends", ".any"),
    "protected by a word of our own": put(".guarded/rules/1/if", "$CI_COMMIT_BRANCH"),
    "a merge request from a protected branch": drop(".guarded/rules/0"),
    "any branch": put("workflow/rules/2/if", "$CI_COMMIT_BRANCH"),
    "training on any runner": drop("train/tags"),
    "approval without a person": put("approve/rules/1/when", "on_success"),
    "approval that need not be given": put("approve/rules/1/allow_failure", True),
    "a failure that is let through": put("scan/allow_failure", True),
    "no environment": drop("promote/environment"),
    "no queue": drop("canary/resource_group"),
    "no timeout": drop(".stage/timeout"),
    "an image by tag": put("variables/CPU_IMAGE", "python:3.11-bookworm"),
    "an image where the host's shell is meant": put("staging/image", "$CPU_IMAGE"),
    "a container without an image": drop(".protected/image"),
    "an image of a job's own": put("scan/image", "aquasec/trivy:0.76.0"),
    "keys in the artifacts": add(".stage/artifacts/paths", ".tidegate/"),
    "no coverage report": drop("check/artifacts/reports/coverage_report"),
    "the last job waits for less": drop("complete/needs/3"),
    "a rollback that is tried again": drop("rollback/retry"),
    "a comment that stops the pipeline": put("comment/rules/0/allow_failure", False),
    "a comment on a protected ref": add("comment/rules", {"if": '$CI_COMMIT_REF_PROTECTED == "true"'}),
    "a training that is tried again after a refusal": put("train/retry/when", ["always"]),
    "a deployment that is tried again though it may go on": put(
        "canary/retry", {"max": 1, "when": ["stuck_or_timeout_failure"]}
    ),
    "a rollback that waits": add("rollback/needs", {"job": "promote", "artifacts": False}),
    "Trivy with an environment": put("examine/extends", [".protected", ".signs"]),
    "Trivy with a token": put("examine/id_tokens", {"T": {"aud": "x"}}),
    "Trivy that hands on the store": add("examine/artifacts/paths", ".tidegate/store/"),
    "Trivy that changes the cache": put("examine/cache", {"policy": "pull-push"}),
    "Trivy in the job that signs": put("scan/script", ["make examine", "make scan"]),
    "a scan that waits for no examination": drop("scan/needs/1"),
    "a stage without a key": put("data/extends", ".any"),
    "a key in a deployment that is none": put(".signs/environment/action", "start"),
    "no report for GitLab": drop("scan/artifacts/reports/container_scanning"),
    "upkeep beside the walk": put("gc/rules/0/if", '$CI_COMMIT_REF_PROTECTED == "true"'),
    "the walk beside upkeep": put("scan/rules", [{"if": '$CI_COMMIT_REF_PROTECTED == "true"'}]),
    "another verb for a schedule": put("update/script", ["make lock"]),
    "a deployment that a commit stops": put(".guarded/interruptible", True),
}
GITHUB_CHANGES: dict[str, Change] = {
    "a stage is missing": drop("pipeline/jobs/scan"),
    "two stages are swapped": move_to_end("pipeline/jobs/check"),
    "a need is missing": drop("pipeline/jobs/promote/needs/2"),
    "a need is too much": add("pipeline/jobs/scan/needs", "check"),
    "a job receives too little": put("pipeline/jobs/train/steps/1/with/from", "check"),
    "two verbs in one job": add("pipeline/jobs/scan/steps", {"run": "make publish"}),
    "publish from a pull request": put(
        "pull-request/jobs/publish", {"runs-on": "x", "steps": [], "permissions": {}}
    ),
    "training on any runner": put("pipeline/jobs/train/runs-on", "ubuntu-24.04"),
    "GPU for a pull request": put("pull-request/jobs/train/runs-on", ["self-hosted", "gpu"]),
    "another trigger": put("pipeline/on/pull_request", None),
    "any branch": put("pipeline/on/push/branches", ["**"]),
    "a secret in a pull request": put("pull-request/jobs/check/env", {"KEY": KEY}),
    "rights for all": put("pipeline/permissions", "write-all"),
    "a comment by the pull request's own code": put("comment/on", {"pull_request": None}),
    "a comment by code that the pull request chose": put(
        "comment/jobs/comment/steps/0/with/ref", "${{ github.event.workflow_run.head_sha }}"
    ),
    "a comment with more rights": put("comment/jobs/comment/permissions/contents", "write"),
    "rights for one": put("pipeline/jobs/scan/permissions/packages", "write"),
    "approval without a person": put("pipeline/jobs/approve/environment/name", "production"),
    "no environment": drop("pipeline/jobs/promote/environment"),
    "a key outside of an environment": drop("pipeline/jobs/image/environment"),
    "an unsigned record": put("pipeline/jobs/check/env", {}),
    "a failure that is let through": put("pipeline/jobs/scan/continue-on-error", True),
    "a stage with a condition": put("pipeline/jobs/scan/if", "false"),
    "no timeout": drop("pipeline/jobs/data/timeout-minutes"),
    "no queue": drop("pipeline/jobs/canary/concurrency"),
    "a deployment that another stops": put("pipeline/jobs/canary/concurrency/cancel-in-progress", True),
    "a deployment that another drops": put("rollback/jobs/rollback/concurrency/queue", "single"),
    "servers that end with the job": put("pipeline/jobs/promote/env/RUNNER_TRACKING_ID", "1"),
    "Trivy with an environment": put("pipeline/jobs/examine/environment", {"name": "pipeline"}),
    "Trivy with a key": put("pipeline/jobs/examine/env", {"KEY": KEY}),
    "Trivy that may write": put(
        "pipeline/jobs/examine/permissions", {"contents": "read", "security-events": "write"}
    ),
    "Trivy with a credential": put("pipeline/jobs/examine/steps/0/with/persist-credentials", True),
    "Trivy that changes the cache": put("pipeline/jobs/examine/steps/1/with/cache", "keep"),
    "Trivy that hands on the store": put("pipeline/jobs/examine/steps/4/with/path", ".tidegate"),
    "Trivy on the host that serves": put("pipeline/jobs/examine/runs-on", ["self-hosted", "deploy"]),
    "a scan that waits for no examination": drop("pipeline/jobs/scan/needs/1"),
    "a job that may write and runs something": add("pipeline/jobs/code-scanning/steps", {"run": "make scan"}),
    "upkeep that may write more": put("upkeep/jobs/gc/permissions/contents", "write"),
    "an update with a secret": put("upkeep/jobs/update/env", {"KEY": KEY}),
    "an update with an environment's secrets": put("upkeep/jobs/update/environment", {"name": "pipeline"}),
    "an update by a pull request": put("upkeep/on/pull_request", None),
    "the last job is skipped too": put("pipeline/jobs/complete/if", ""),
    "the last job waits for less": drop("pipeline/jobs/complete/needs/5"),
    "the last job looks at nothing": drop("pull-request/jobs/complete/steps/1"),
}


@pytest.mark.parametrize("change", GITLAB_CHANGES.values(), ids=GITLAB_CHANGES)
def test_a_gitlab_file_that_differs_is_refused(gitlab, change):
    assert refuses(gitlab_faults, gitlab, change)


@pytest.mark.parametrize("job", ["gc", "update", "rollback"])
def test_a_gitlab_job_without_rules_is_a_fault_and_no_traceback(gitlab, job):
    changed = copy.deepcopy(gitlab)
    drop(f"{job}/rules")(changed)
    assert list(gitlab_faults(changed))


@pytest.mark.parametrize("job", [".any", ".guarded", "comment"])
def test_gitlab_jobs_without_rules_that_wait_for_what_may_not_be_are_told_so(gitlab, job):
    changed = copy.deepcopy(gitlab)
    drop(f"{job}/rules")(changed)
    with pytest.raises(AssertionError, match=r"needs .* which this pipeline has not"):
        list(gitlab_faults(changed))


@pytest.mark.parametrize("change", GITHUB_CHANGES.values(), ids=GITHUB_CHANGES)
def test_github_files_that_differ_are_refused(github, change):
    assert refuses(github_faults, github, change)


def refuses(faults: Callable[[dict], Iterator[str]], sound: dict, change: Change) -> bool:
    """Whether a changed copy has faults; one that cannot even be read as a graph has."""
    changed = copy.deepcopy(sound)
    change(changed)
    assert str(changed) != str(sound)
    try:
        return bool(list(faults(changed)))
    except (KeyError, AssertionError):
        return True


@pytest.mark.parametrize(
    "line",
    [
        "image: python:latest",
        "      - uses: actions/checkout@v6",
        "      - uses: actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd",
        "      - uses: actions/checkout@0123456789012345678901234567890123456789 # v6.0.2",
        "      - uses: ./.github/actions/absent",
        "  pull_request_target:",
    ],
)
def test_a_version_that_could_move_is_refused(line):
    assert list(pin_faults({**ci_texts(), "changed": line + "\n"}))


def load(path: str):
    """A script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("results", "faults"),
    [
        ({"check": {"result": "success"}, "data": {"result": "success"}}, []),
        ({"check": {"result": "success"}, "data": {"result": "skipped"}}, ["data: skipped"]),
        (
            {"check": {"result": "failure"}, "data": {"result": "cancelled"}},
            ["check: failure", "data: cancelled"],
        ),
        ({"check": {}}, ["check: None"]),
        ({}, ["no job: nothing was waited for"]),
    ],
)
def test_a_run_is_complete_only_when_every_job_succeeded(results, faults):
    assert load(".github/actions/all-passed/all_passed.py").not_passed(results) == faults


def test_an_image_is_refused_that_lacks_or_changes_a_locked_package():
    script = load("docker/verify_lock.py")
    lock = script.locked(
        "# note\nnumpy==2.3.5 \\\n    --hash=sha256:ab\nscipy==1.17.1 \\\n    --hash=sha256:cd\n"
    )
    assert lock == {"numpy": "2.3.5", "scipy": "1.17.1"}
    assert script.differences(lock, {"numpy": "2.3.5", "scipy": "1.17.1"}) == []
    assert script.differences(lock, {"numpy": "2.2.0"}) == [
        "numpy: the lock says 2.3.5, installed is 2.2.0",
        "scipy: the lock says 1.17.1, installed is none",
    ]
    assert script.differences({}, {}) == ["the lock names no package"]
