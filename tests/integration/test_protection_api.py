"""`doctor --ci` against a GitLab and a GitHub that answer over real HTTP, well and badly."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from pipeline import protection, rest
from tests.support_forge import KEY, PEM, PROJECT, REPOSITORY, Forge, github_routes, gitlab_routes

TOKEN = "glpat-a-token-that-must-not-be-seen"
ENVIRONMENTS = f"{PROJECT}/protected_environments"
BRANCHES = f"{PROJECT}/protected_branches"
MINE = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
TROUBLE = (500, {}, b"oops")


@pytest.fixture
def gitlab():
    with Forge(gitlab_routes(), ("PRIVATE-TOKEN", TOKEN)) as forge:
        forge.environ = {
            "GITLAB_CI": "true",
            "CI_API_V4_URL": f"{forge.base}/api/v4",
            "CI_PROJECT_ID": "42",
            "TIDEGATE_API_TOKEN": TOKEN,
        }
        yield forge
        forge.shutdown()


@pytest.fixture
def github():
    with Forge(github_routes(), ("Authorization", f"Bearer {TOKEN}")) as forge:
        forge.environ = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_API_URL": forge.base,
            "GITHUB_REPOSITORY": "owner/name",
            "GITHUB_TOKEN": TOKEN,
        }
        yield forge
        forge.shutdown()


@pytest.fixture
def thief():
    """Another host (the name differs, so it is another one) that would be glad of a token."""
    with Forge({}, ("PRIVATE-TOKEN", TOKEN)) as forge:
        forge.base = f"http://localhost:{forge.server_port}"
        yield forge
        forge.shutdown()


@pytest.fixture
def folder(tmp_path):
    """A repository of which only what the command reads is there: nobody is trusted."""
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


@pytest.fixture
def ask(root, folder):
    """Runs `python -m pipeline doctor --ci` in a process of its own; returns its exit code and output."""

    def run(environ, *arguments):
        mine = {name: os.environ[name] for name in MINE if name in os.environ}
        # A proxy that is not there: this machine itself must not be asked through one.
        proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", "doctor", "--ci", *arguments],
            cwd=folder,
            env={**mine, **proxies, "PYTHONPATH": str(root), **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )
        said = done.stdout + done.stderr
        assert TOKEN not in said
        assert PEM not in said
        assert "Traceback" not in said
        return done.returncode, said

    return run


def approver(folder):
    """Makes the repository trust an approver's key."""
    (folder / "trust").mkdir()
    (folder / "trust" / "alice.pem").write_text("a public key, which nobody reads here")
    (folder / "trust" / "roles.yaml").write_text(
        "keys:\n  - {name: alice, file: alice.pem, roles: [approver]}\n"
    )


def test_a_gitlab_with_all_that_is_relied_on_passes_although_it_stands_on_later_pages(gitlab, ask):
    code, said = ask(gitlab.environ)
    assert (code, said.count("✗")) == (0, 0), said
    for line in (
        "✓ branch main is protected\n",
        "✓ environment production is protected, and asks for approval (1)\n",
        f"✓ {KEY} is protected, and a file\n",
        "✓ runners with the tag deploy are protected (3)\n",
    ):
        assert line in said
    assert any("page=3" in path for path in gitlab.asked)


def test_a_github_with_all_that_is_relied_on_passes_although_it_stands_on_later_pages(github, ask):
    code, said = ask(github.environ)
    assert (code, said.count("✗")) == (0, 0), said
    for line in (
        "✓ branch main is protected\n",
        "✓ environment production-approval waits for a reviewer (1 may)\n",
        f"✓ {KEY} is a secret of each environment\n",
        f"✓ {KEY} is a secret of environments alone\n",
    ):
        assert line in said
    assert any("page=2" in path for path in github.asked)


def test_what_is_missing_exits_3_with_the_remedy(gitlab, github, ask):
    gitlab.routes[BRANCHES] = []
    code, said = ask(gitlab.environ)
    assert code == 3
    assert "✗ branch main: it is not protected. Settings > Repository > Protected branches" in said

    github.routes[f"{REPOSITORY}/actions/secrets"]["secrets"].append({"name": KEY})
    code, said = ask(github.environ)
    assert code == 3
    assert f"✗ {KEY} is a secret of environments alone: it is the repository's too" in said


def test_a_plan_without_protected_environments_is_a_lack_until_an_approver_signs(gitlab, ask, folder):
    del gitlab.routes[ENVIRONMENTS]
    code, said = ask(gitlab.environ)
    assert code == 3
    assert (
        "✗ protected environments: this GitLab plan has none, and trust/roles.yaml names no approver" in said
    )

    approver(folder)
    code, said = ask(gitlab.environ)
    assert (code, said.count("✗")) == (0, 0), said
    assert "– protected environments: this GitLab plan has none; the signed approval is the gate" in said


def test_a_token_that_may_not_look_exits_4_and_says_which_it_must_be(gitlab, github, ask):
    del gitlab.routes[ENVIRONMENTS], gitlab.routes[f"{PROJECT}/variables"]
    code, said = ask(gitlab.environ)
    assert code == 4
    assert "✗ protected environments: could not be judged" in said
    assert "It needs the scope read_api and the role Maintainer" in said

    github.first[f"{REPOSITORY}/actions/secrets"] = [(403, {}, b'{"message": "Resource not accessible"}')]
    code, said = ask(github.environ)
    assert code == 4
    assert "(403, Resource not accessible). A fine-grained token needs read access to Actions, Admin" in said


def test_what_is_missing_weighs_more_than_what_was_not_asked(gitlab, ask):
    gitlab.routes[BRANCHES] = []
    del gitlab.routes[f"{PROJECT}/variables"]
    code, said = ask(gitlab.environ)
    assert code == 3
    assert "✗ the signing key: could not be judged" in said


def test_a_project_that_the_token_does_not_see_exits_4(gitlab, github, ask):
    code, said = ask({**gitlab.environ, "CI_PROJECT_ID": "43"})
    assert code == 4
    assert "does not show the project 43 to this token (404, 404 Not Found)" in said
    code, said = ask({**github.environ, "GITHUB_REPOSITORY": "owner/other"})
    assert code == 4
    assert "does not show owner/other to this token" in said


def test_without_a_token_nobody_is_asked(gitlab, ask):
    for token in ("", "   "):
        code, said = ask({**gitlab.environ, "TIDEGATE_API_TOKEN": token})
        assert code == 4
        assert "no token is set. Put a token of the project with the scope read_api" in said
    assert gitlab.asked == []


def test_gitlabs_own_token_variable_serves_too_but_githubs_does_not(gitlab, ask):
    gitlab.environ.pop("TIDEGATE_API_TOKEN")
    assert ask({**gitlab.environ, "GITLAB_TOKEN": TOKEN})[0] == 0
    asked = len(gitlab.asked)
    assert ask({**gitlab.environ, "GITHUB_TOKEN": TOKEN})[0] == 4
    assert len(gitlab.asked) == asked


REFUSALS = {
    "a token that is not accepted": (
        [(401, {}, b'{"message": "401 Unauthorized"}')],
        "does not accept the token in TIDEGATE_API_TOKEN (401, 401 Unauthorized)",
    ),
    "a token that is echoed": (
        [(401, {}, json.dumps({"message": f"bad token {TOKEN}\x1b[2J\n✓ all is well"}).encode())],
        "(401, bad token *** [2J ✓ all is well)",
    ),
    "a rate limit that counts down": (
        [(403, {"X-RateLimit-Remaining": "0"}, b'{"message": "API rate limit exceeded"}')],
        "answers no more for now (rate limit, 403)",
    ),
    "a rate limit that says when": ([(403, {"Retry-After": "60"}, b"{}")], "(rate limit, 403)"),
    "too many requests": ([(429, {}, b"Retry later")], "(rate limit, 429)"),
    "trouble three times": ([TROUBLE] * 3, "with 500, 3 times"),
    "a page for people": (
        [(200, {}, b"<!DOCTYPE html><title>Sign in</title>")],
        "something that is not JSON",
    ),
    "nothing": ([(200, {}, b"")], "something that is not JSON"),
    "brackets without end": ([(200, {}, b"[" * 200_000)], "something that is not JSON"),
    "a list where an object belongs": ([(200, {}, b"[]")], "something that is not an object"),
    "a word where an object belongs": ([(200, {}, b'"main"')], "something that is not an object"),
    "no body": ([(204, {}, b"")], "with 204"),
    "a body that stops early": ([(200, {"Content-Length": "9999"}, b'{"id": 42')], "could not be asked"),
    "a redirect in circles": (
        [(302, {"Location": PROJECT}, b"")] * 20,
        "with 302",
    ),
}


@pytest.mark.parametrize(("answers", "said"), REFUSALS.values(), ids=REFUSALS)
def test_an_answer_that_tells_nothing_exits_4(gitlab, ask, answers, said):
    gitlab.first[PROJECT] = list(answers)
    code, text = ask(gitlab.environ)
    assert code == 4
    assert said in text
    assert text.startswith("✗ the platform could not be asked: ")


PAGES = {
    "an object where a list belongs": {"message": "hello", "documentation_url": ""},
    "a list of words": ["main"],
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_a_list_that_is_none_exits_4(gitlab, github, ask, page):
    gitlab.routes[BRANCHES] = page
    github.routes[f"{REPOSITORY}/environments"] = page
    for forge in (gitlab, github):
        code, said = ask(forge.environ)
        assert code == 4
        assert "something that is not a list of objects" in said


def test_a_list_that_ends_before_it_is_whole_exits_4(github, ask):
    page = {"total_count": 2, "secrets": [{"name": "A"}]}
    github.first[f"{REPOSITORY}/actions/secrets"] = [(200, {}, json.dumps(page).encode())]
    code, said = ask(github.environ)
    assert code == 4
    assert "and says that there are more" in said


def test_trouble_that_passes_is_asked_again_and_changes_nothing(gitlab, ask):
    gitlab.first[PROJECT] = [TROUBLE, (503, {}, b"")]
    gitlab.first[BRANCHES] = [TROUBLE]
    code, said = ask(gitlab.environ)
    assert code == 0, said
    assert gitlab.asked.count(PROJECT) == 3


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_refused_and_the_token_stays(gitlab, thief, ask, status):
    gitlab.first[PROJECT] = [(status, {"Location": f"{thief.base}{PROJECT}"}, b"")]
    code, said = ask(gitlab.environ)
    assert code == 4
    assert (
        "127.0.0.1 sends us on to http://localhost, another host or scheme. The token was not sent there"
        in said
    )
    assert thief.asked == []


def test_a_redirect_to_another_port_is_another_host(gitlab, github, ask):
    gitlab.first[PROJECT] = [(302, {"Location": f"{github.base}{PROJECT}"}, b"")]
    assert ask(gitlab.environ)[0] == 4
    assert github.asked == []


def test_a_next_page_at_another_host_is_refused_and_the_token_stays(gitlab, thief, ask):
    link = {"Link": f'<{thief.base}{BRANCHES}?page=2>; rel="next"'}
    gitlab.first[BRANCHES] = [(200, link, b"[]")]
    code, said = ask(gitlab.environ)
    assert code == 4
    assert "The token was not sent there" in said
    assert thief.asked == []


def test_a_renamed_repository_is_followed_on_the_same_host(github, ask):
    github.routes["/repositories/7"] = github.routes[REPOSITORY]
    github.first[REPOSITORY] = [(301, {"Location": f"{github.base}/repositories/7"}, b"")]
    code, said = ask(github.environ)
    assert code == 0, said
    assert "/repositories/7" in github.asked


def test_a_host_that_does_not_answer_exits_4(ask):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, said = ask(
            {"CI_API_V4_URL": base, "CI_PROJECT_ID": "42", "TIDEGATE_API_TOKEN": TOKEN}, "gitlab"
        )
    assert code == 4
    assert "could not be asked: [Errno 111] Connection refused" in said


def test_the_clear_text_protocol_is_refused_before_the_token_is_sent(ask):
    environ = {"CI_API_V4_URL": "http://192.0.2.1/api/v4", "CI_PROJECT_ID": "42", "TIDEGATE_API_TOKEN": TOKEN}
    code, said = ask(environ, "gitlab")
    assert code == 4
    assert "is not https: the token would travel in the clear" in said


def test_a_clone_says_by_its_remote_whom_to_ask(gitlab, ask, folder):
    address = gitlab.base.replace("http://", "http://oauth2:a-password@")
    for command in (["init", "--quiet"], ["remote", "add", "origin", f"{address}/group/project.git"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    gitlab.routes = {
        path.replace(PROJECT, "/api/v4/projects/group%2Fproject"): document
        for path, document in gitlab.routes.items()
    }
    code, said = ask({"TIDEGATE_API_TOKEN": TOKEN}, "gitlab")
    assert code == 0, said
    code, said = ask({"TIDEGATE_API_TOKEN": TOKEN})
    assert code == 4
    assert "127.0.0.1 may be a GitLab or a GitHub. Say which: doctor --ci gitlab" in said
    assert "a-password" not in said


def test_a_vendor_that_does_not_exist_is_a_fault_of_usage(ask):
    code, said = ask({}, "bitbucket")
    assert code == 2
    assert "gitlab" in said


def silent(wire):
    """Sends no byte of the body while the test runs."""
    wire.flush()
    threading.Event().wait(5)


def trickling(wire):
    """Sends a byte now and then, each in time, forever."""
    with contextlib.suppress(OSError):
        for _ in range(500):
            wire.write(b" ")
            wire.flush()
            time.sleep(0.01)


@pytest.mark.parametrize("body", [silent, trickling])
def test_an_answer_that_does_not_come_in_time_exits_4(gitlab, folder, monkeypatch, capsys, body):
    monkeypatch.setattr(rest, "TIMEOUT_S", 0.3)
    gitlab.first[PROJECT] = [(200, {}, body)]
    assert protection.report(folder, gitlab.environ) == 4
    said = capsys.readouterr().out
    assert "did not answer within 0.3 s" in said
    assert gitlab.asked == [PROJECT]


def test_an_answer_without_end_is_cut(gitlab, folder, monkeypatch, capsys):
    monkeypatch.setattr(rest, "_BYTES_AT_MOST", 1 << 20)
    gitlab.first[PROJECT] = [(200, {}, b" " * (2 << 20))]
    assert protection.report(folder, gitlab.environ) == 4
    assert "sent more than 1 MiB for one answer" in capsys.readouterr().out


def test_pages_without_end_are_cut(gitlab, folder, monkeypatch, capsys):
    monkeypatch.setattr(rest, "_PAGES_AT_MOST", 3)
    link = {"Link": f'<{gitlab.base}{BRANCHES}?page=1>; rel="next"'}
    gitlab.first[BRANCHES] = [(200, link, b"[]")] * 10
    assert protection.report(folder, gitlab.environ) == 4
    assert "more than 3 pages" in capsys.readouterr().out
