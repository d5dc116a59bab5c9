"""Whom `doctor --ci` asks, with what token, and about what; the judgement itself has tests per platform."""

import pytest
import yaml

from pipeline import doctor, protection, protection_github, protection_gitlab
from pipeline.errors import NoData
from pipeline.protection import Place, Unasked
from pipeline.rest import Api

PLACES = {
    "git@gitlab.com:group/sub/project.git": ("auto", "https://gitlab.com/api/v4", "group%2Fsub%2Fproject"),
    "https://oauth2:glpat-secret@gitlab.example.com:8443/group/project.git": (
        "auto",
        "https://gitlab.example.com:8443/api/v4",
        "group%2Fproject",
    ),
    "ssh://git@gitlab.example.com:2222/group/project.git": (
        "auto",
        "https://gitlab.example.com/api/v4",
        "group%2Fproject",
    ),
    "https://code.example.com/group/project": (
        "gitlab",
        "https://code.example.com/api/v4",
        "group%2Fproject",
    ),
    "git@github.com:owner/name.git": ("auto", "https://api.github.com", "owner/name"),
    "https://github.com/owner/name/": ("auto", "https://api.github.com", "owner/name"),
    "https://code.example.com/owner/name": ("github", "https://code.example.com/api/v3", "owner/name"),
}


@pytest.mark.parametrize("remote", PLACES)
def test_a_remote_says_whom_to_ask(remote):
    vendor, base, project = PLACES[remote]
    found = protection.place(vendor, {}, lambda: remote)
    assert (found.base, found.project) == (base, project)
    assert "secret" not in repr(found)


def no_remote():
    raise AssertionError("git was asked although CI's variables say where")


def test_ci_variables_say_whom_to_ask_before_git_does():
    gitlab = {"GITLAB_CI": "true", "CI_API_V4_URL": "https://git.example.com/api/v4", "CI_PROJECT_ID": "42"}
    github = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": "https://api.github.com",
        "GITHUB_REPOSITORY": "owner/name",
    }
    assert protection.place("auto", gitlab, no_remote) == Place(
        "gitlab", "https://git.example.com/api/v4", "42"
    )
    assert protection.place("auto", github, no_remote) == Place(
        "github", "https://api.github.com", "owner/name"
    )
    assert protection.place("github", {**gitlab, **github}, no_remote).vendor == "github"


@pytest.mark.parametrize(
    ("vendor", "environ", "remote"),
    [
        ("auto", {}, ""),
        ("auto", {}, "/srv/git/project.git"),
        ("auto", {}, "https://code.example.com/group/project"),
        ("github", {}, "https://github.com/only-an-owner"),
        ("github", {"GITHUB_API_URL": "https://api.github.com", "GITHUB_REPOSITORY": "a/b/../../c"}, ""),
    ],
)
def test_nobody_is_asked_where_it_is_not_clear_whom(vendor, environ, remote):
    with pytest.raises(NoData):
        protection.place(vendor, environ, lambda: remote)


@pytest.mark.parametrize(
    ("base", "token"),
    [
        ("http://gitlab.example.com/api/v4", "glpat-1234"),
        ("ftp://127.0.0.1/api/v4", "glpat-1234"),
        ("https://gitlab.example.com:port/api/v4", "glpat-1234"),
        ("https://gitlab.example.com/api/v4", "glpat-1234\r\nX-Evil: 1"),
        ("https://gitlab.example.com/api/v4", "glpat 1234"),
    ],
)
def test_a_token_does_not_travel_in_the_clear_nor_break_out_of_its_header(base, token):
    with pytest.raises(NoData) as refused:
        Api(base, token, "TIDEGATE_API_TOKEN", header="PRIVATE-TOKEN")
    assert "1234" not in str(refused.value)


def test_an_api_does_not_show_its_token():
    assert "glpat" not in repr(
        Api("https://gitlab.com/api/v4", "glpat-1234", "GITLAB_TOKEN", header="PRIVATE-TOKEN")
    )


def test_the_environments_and_runners_that_are_looked_at_are_those_of_the_ci_files(root):
    workflows = [yaml.safe_load(path.read_text()) for path in (root / ".github" / "workflows").glob("*.yml")]
    jobs = [job for workflow in workflows for job in workflow["jobs"].values()]
    assert {job["environment"]["name"] for job in jobs if "environment" in job} == set(
        protection_github.ENVIRONMENTS
    )

    gitlab = yaml.safe_load((root / ".gitlab-ci.yml").read_text())
    jobs = [job for job in gitlab.values() if isinstance(job, dict)]
    assert {job["environment"]["name"] for job in jobs if "environment" in job} == set(
        protection_gitlab.SIGNING
    )
    assert {tag for job in jobs for tag in job.get("tags", ())} == set(protection_gitlab.RUNNER_TAGS)
    assert gitlab["approve"]["environment"]["name"] == protection_gitlab.APPROVING


def test_a_finding_that_was_not_asked_is_printed_as_lacking(capsys):
    lacking = doctor.tell(
        [doctor.Finding("a"), Unasked("b", "no answer"), doctor.Finding("c", "none", optional=True)]
    )
    assert capsys.readouterr().out == "✓ a\n✗ b: no answer\n– c: none\n"
    assert [finding.what for finding in lacking] == ["b"]
