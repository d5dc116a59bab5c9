"""What a linter's exit status means, and which files each looks at."""

import pytest

from pipeline import check, lint
from pipeline.errors import ProgramFailed
from pipeline.lint import LINTERS, Linter, Verdict
from pipeline.settings import Bound
from pipeline.stages import Decided, Outcome, Result

BY_NAME = {linter.name: linter for linter in LINTERS}
HEADS = {
    ".ci/run": b"#!/usr/bin/env bash\nset -e\n",
    ".github/workflows/a.yml": b"on: push\n",
    ".github/actions/b/action.yml": b"name: b\n",
    ".gitlab-ci.yml": b"stages: []\n",
    "deploy/targets/local.py": b'"""A target."""\n',
    "docker/train.Dockerfile": b"FROM x\n",
    "docker/serve/Dockerfile": b"FROM x\n",
    "docker/compose.yaml": b"services: {}\n",
    "scripts/by-sh": b"#!/bin/sh\n",
    "scripts/by-dash": b"#! /usr/bin/env -S dash\n",
    "scripts/by-python": b"#!/usr/bin/env python3\n",
    "scripts/words": b"no script\n",
    "scripts/with-end.sh": b"set -e\n",
    "tests/test_a.py": b"#!/bin/sh\n",
}


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("shellcheck", [".ci/run", "scripts/by-sh", "scripts/by-dash", "scripts/with-end.sh"]),
        ("hadolint", ["docker/train.Dockerfile", "docker/serve/Dockerfile"]),
        ("actionlint", [".github/workflows/a.yml"]),
        ("zizmor", [".github/workflows/a.yml", ".github/actions/b/action.yml"]),
        ("schema-gitlab", [".gitlab-ci.yml"]),
        ("mypy", ["deploy/targets/local.py"]),
        ("ruff-check", ["deploy/targets/local.py", "tests/test_a.py"]),
    ],
)
def test_each_linter_looks_at_its_files_and_at_scripts_by_their_first_line(name, paths):
    assert BY_NAME[name].of(HEADS) == paths


def test_a_linter_that_would_look_at_nothing_is_an_error_that_names_it():
    without = {path: head for path, head in HEADS.items() if "Dockerfile" not in path}
    with pytest.raises(ProgramFailed, match=r"hadolint: no file is named .*Dockerfile"):
        lint.shares(LINTERS, without)


@pytest.mark.parametrize(
    ("name", "status", "text", "verdict"),
    [
        ("ruff-check", 0, "All checks passed!", "passed"),
        ("ruff-check", 1, "E501", "faults"),
        ("ruff-check", 2, "bad option", "error"),
        ("ruff-check", -9, "", "error"),
        ("ruff-format", 0, "3 files already formatted", "passed"),
        ("ruff-format", 0, "2 files already formatted", "error"),
        ("ruff-format", 0, "warning: No Python files found", "error"),
        ("mypy", 0, "Success: no issues found in 3 source files", "passed"),
        ("mypy", 0, "", "error"),
        ("mypy", 2, "INTERNAL ERROR", "error"),
        ("zizmor", 0, " INFO audit: zizmor: completed a.yml\n" * 3, "passed"),
        ("zizmor", 0, " INFO audit: zizmor: completed a.yml\n", "error"),
        ("zizmor", 13, "error[unpinned-uses]", "faults"),
        ("zizmor", 1, "fatal: no audit was performed", "error"),
        ("actionlint", 0, "verbose: Found total 0 errors in 5 ms for a.yml\n" * 3, "passed"),
        ("actionlint", 0, "verbose: Found 0 errors in 3 files", "error"),
        ("actionlint", 3, "cannot read", "error"),
        ("schema-gitlab", 0, "ok\nThe following files were checked:\n  a\n  b\n  c\n", "passed"),
        ("schema-gitlab", 0, "ok\nThe following files were checked:\n", "error"),
        ("yamllint", 2, "warning", "faults"),
        ("shellcheck", 2, "does not exist", "error"),
    ],
)
def test_only_a_linter_that_looked_at_all_it_was_given_and_found_nothing_passes(name, status, text, verdict):
    found = BY_NAME[name].judge(3, status, text)
    assert ("faults" if found.faults else "error" if found.error else "passed") == verdict


@pytest.mark.parametrize("linter", LINTERS, ids=BY_NAME)
def test_each_linter_says_what_to_do_about_what_it_finds(linter):
    found = linter.judge(1, min(linter.faults), "x")
    assert linter.name in found.faults
    assert linter.remedy in found.faults


def test_nothing_in_the_environment_can_tell_a_linter_to_find_nothing(monkeypatch):
    for name in (
        "HADOLINT_NOFAIL",
        "ZIZMOR_CONFIG",
        "SHELLCHECK_OPTS",
        "YAMLLINT_CONFIG_FILE",
        "MYPY_CACHE_DIR",
    ):
        monkeypatch.setenv(name, "x")
    environment = lint._environment()
    assert [environment.get(name, "kept") for name in ("HADOLINT_NOFAIL", "SHELLCHECK_OPTS")] == [None, None]
    assert environment["MYPY_CACHE_DIR"] is None


TESTED = Result(
    Outcome.PASSED, "9 unit tests passed.", {"tests": 9}, Decided("coverage %", 90, Bound(at_least=60))
)
FAILED = Result(Outcome.FAILED, "2 of 9 unit tests failed; see above.")
FINE = Verdict("ruff-check")


def test_linters_and_tests_that_pass_pass_together():
    both = check._both([FINE, Verdict("mypy")], TESTED)
    assert (both.outcome, both.decided) == (Outcome.PASSED, TESTED.decided)
    assert both.numbers == {"tests": 9, "linters": 2, "linters_with_faults": 0}


def test_a_linters_faults_fail_tests_that_passed_and_both_are_told():
    both = check._both([FINE, Verdict("mypy", faults="mypy found faults.")], FAILED)
    assert both.outcome is Outcome.FAILED
    assert both.sentence.splitlines() == ["mypy found faults.", FAILED.sentence]
    assert check._both([Verdict("mypy", faults="x")], TESTED).decided.number == 1


def test_tests_that_failed_fail_linters_that_passed():
    assert check._both([FINE], FAILED).outcome is Outcome.FAILED


def test_a_linter_that_could_not_work_is_an_error_whatever_else_was_found():
    with pytest.raises(ProgramFailed, match="hadolint is not on PATH"):
        check._both(
            [Verdict("mypy", faults="x"), Verdict("hadolint", error="hadolint is not on PATH")], TESTED
        )


def test_linted_is_what_the_key_of_check_covers_and_the_rest_is_looked_at_each_time(root):
    keyed, rest = set(lint.files(root)), set(lint.rest(root))
    assert {
        "pipeline/lint.py",
        ".gitlab-ci.yml",
        ".ci/run",
        "docker/train.Dockerfile",
        ".yamllint.yaml",
    } <= keyed
    assert {"README.md", "pipeline.yaml", "trust/roles.yaml", "docs/security.md"} <= rest
    assert not keyed & rest


def test_a_linter_is_a_row_with_a_name_of_its_own():
    assert len(BY_NAME) == len(LINTERS)
    assert isinstance(LINTERS[0], Linter)
