"""What an update proposes, and that nothing is pushed without a token."""

import pytest

from pipeline import update
from pipeline.errors import GateRefused

OLD, NEW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
LOCK = "images:\n  python: {image: docker.io/library/python, tag: 3.11-bookworm, digest: '%s'}\n"
PROPOSAL = update.Proposal("update/abc", ("numpy: 2.3.4 -> 2.3.5",), "f" * 40)


def test_differences_tell_what_is_newer_new_and_gone():
    assert update.differences({"a": "1", "b": "1", "c": "1"}, {"a": "2", "b": "1", "d": "3"}) == [
        "a: 1 -> 2",
        "c: gone, was 1",
        "d: new, 3",
    ]


def test_an_image_that_moved_is_followed_wherever_its_digest_is_named():
    moves = update.moved(update.images(LOCK % OLD), update.images(LOCK % NEW))
    assert moves == {OLD: NEW}
    assert (
        update.follow(f"image: python:3.11-bookworm@{OLD}\n", moves) == f"image: python:3.11-bookworm@{NEW}\n"
    )
    assert update.images("") == {}


def test_an_image_that_had_no_digest_yet_changes_no_other_file():
    assert update.moved(update.images(LOCK % ""), update.images(LOCK % NEW)) == {}


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({}, "this is no CI job"),
        ({"TIDEGATE_UPDATE_TOKEN": "t"}, "this is no CI job"),
        ({"GITLAB_CI": "true"}, "TIDEGATE_UPDATE_TOKEN"),
        ({"GITHUB_ACTIONS": "true"}, "GITHUB_TOKEN"),
    ],
)
def test_without_a_token_nothing_is_pushed_and_the_job_does_not_pass(tmp_path, environ, word):
    with pytest.raises(GateRefused, match=f"{word}.*nothing was pushed"):
        update.publish(tmp_path, PROPOSAL, environ)


def test_a_token_goes_to_the_forges_own_host_alone_and_into_no_argument():
    env = update._authorized("gitlab", "secret", {"CI_SERVER_URL": "https://git.example.com"})
    assert env["GIT_CONFIG_KEY_0"] == "http.https://git.example.com/.extraHeader"
    assert "secret" not in str(env)
    assert env["GIT_CONFIG_VALUE_0"].startswith("Authorization: Basic ")


def test_a_proposal_says_what_changes_and_who_decides():
    assert "- numpy: 2.3.4 -> 2.3.5" in PROPOSAL.text()
    assert "a person to read what is new" in PROPOSAL.text()
