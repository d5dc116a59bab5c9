"""What GitLab, GitHub and a laptop each know: commit, ref, protected or not, who acts; and how each folds a log."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline import run
from pipeline.errors import ProgramFailed
from pipeline.stages import Facts

LAPTOP, GITLAB, GITHUB = "laptop", "gitlab", "github"
# What a model is made from. The last commit that touched these is the model's revision, so that a change
# in the docs does not change an image.
MODEL_SOURCES = ("train", "requirements.txt")


def vendor(environ: Mapping[str, str] = os.environ) -> str:
    """Where this runs: gitlab, github or laptop."""
    if environ.get("GITLAB_CI") == "true":
        return GITLAB
    return GITHUB if environ.get("GITHUB_ACTIONS") == "true" else LAPTOP


def is_protected(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the CI vendor says that this ref is protected. A laptop's never is."""
    if vendor(environ) == GITLAB:
        return environ.get("CI_COMMIT_REF_PROTECTED") == "true"
    return vendor(environ) == GITHUB and environ.get("GITHUB_REF_PROTECTED") == "true"


def is_merge_request(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this run is for a merge request (GitLab) or pull request (GitHub)."""
    if vendor(environ) == GITLAB:
        return environ.get("CI_PIPELINE_SOURCE") == "merge_request_event"
    return vendor(environ) == GITHUB and environ.get("GITHUB_EVENT_NAME", "").startswith("pull_request")


def facts(root: Path, environ: Mapping[str, str] = os.environ) -> Facts:
    """Asks git and the environment about this run. A folder that is no clone has no commit, and that is said."""
    where = vendor(environ)
    return Facts(
        commit=_git(root, "rev-parse", "HEAD"),
        source=_without_password(_git(root, "remote", "get-url", "origin")),
        revision=_git(root, "log", "-1", "--format=%H", "--", *MODEL_SOURCES),
        dirty=bool(_git(root, "status", "--porcelain")),
        ref=environ.get("CI_COMMIT_REF_NAME")
        or environ.get("GITHUB_REF_NAME")
        or _git(root, "branch", "--show-current"),
        protected=is_protected(environ),
        merge_request=is_merge_request(environ),
        actor=environ.get("GITLAB_USER_LOGIN") or environ.get("GITHUB_ACTOR") or _person(root),
        author=_git(root, "log", "-1", "--format=%ae", "--", *MODEL_SOURCES),
        invocation=_invocation(environ),
        vendor=where,
    )


def _invocation(environ: Mapping[str, str]) -> str:
    """The address of this CI job; nothing on a laptop."""
    if "GITHUB_RUN_ID" in environ:
        place = f"{environ.get('GITHUB_SERVER_URL', '')}/{environ.get('GITHUB_REPOSITORY', '')}"
        return f"{place}/actions/runs/{environ['GITHUB_RUN_ID']}/attempts/{environ.get('GITHUB_RUN_ATTEMPT', '1')}"
    return environ.get("CI_JOB_URL", "")


def _git(root: Path, *arguments: str) -> str:
    """What git answers, or nothing where there is no git or no clone."""
    try:
        done = run.run(["git", *arguments], cwd=root, timeout_s=20, check=False, echo=False)
    except ProgramFailed:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _person(root: Path) -> str:
    """Who sits at this laptop: git's user.email, else the login name."""
    try:
        return _git(root, "config", "user.email") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _without_password(url: str) -> str:
    """A remote's address without the user and password that may stand in it."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else url


@contextmanager
def fold(name: str, title: str) -> Iterator[None]:
    """Folds what is printed inside on GitLab and GitHub; a plain heading on a laptop."""
    where = vendor()
    start, end = f"\n▸ {title}", ""
    if where == GITLAB:
        start = f"\x1b[0Ksection_start:{int(time.time())}:{name}\r\x1b[0K{title}"
    elif where == GITHUB:
        start, end = f"::group::{title}", "::endgroup::"
    print(start, file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if where == GITLAB:
            end = f"\x1b[0Ksection_end:{int(time.time())}:{name}\r\x1b[0K"
        if end:
            print(end, file=sys.stderr, flush=True)
