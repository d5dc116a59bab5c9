"""`make update` against a real git repository as origin: a branch, and nothing merged."""

import http.server
import json
import subprocess
import threading

import pytest

from pipeline import update

OLD, NEW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
IMAGES = "images:\n  python: {image: docker.io/library/python, tag: 3.11-bookworm, digest: '%s'}\n"
MAKEFILE = """lock:
	@test -z "$$TIDEGATE_SIGNING_KEY$$TIDEGATE_UPDATE_TOKEN$$GITHUB_TOKEN"
	@test "$(UPGRADE)" = "--upgrade --no-build"
	@sed -i 's/numpy==2.3.4/numpy==NEXT/' requirements.txt
	@sed -i 's/%s/%s/' docker/images.lock
"""
FILES = {
    "requirements.txt": "numpy==2.3.4 \\\n    --hash=sha256:ab\n",
    "docker/images.lock": IMAGES % OLD,
    ".gitlab-ci.yml": f"variables:\n  CPU_IMAGE: python:3.11-bookworm@{OLD}\n",
}
HOOK = "#!/bin/sh\nenv | sed -n 's/^GIT_PUSH_OPTION_[0-9]*=//p' >> options\n"
GITLAB = {
    "GITLAB_CI": "true",
    "CI_DEFAULT_BRANCH": "main",
    "CI_SERVER_URL": "https://git.example.com",
    "TIDEGATE_UPDATE_TOKEN": "t0ken",
}


def git(place, *arguments):
    done = subprocess.run(["git", *arguments], cwd=place, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def origin(tmp_path):
    """A bare repository that takes push options and writes them down."""
    place = tmp_path / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(place)], check=True)
    git(place, "config", "receive.advertisePushOptions", "true")
    (place / "hooks" / "pre-receive").write_text(HOOK)
    (place / "hooks" / "pre-receive").chmod(0o755)
    return place


@pytest.fixture
def clone(tmp_path, origin, monkeypatch):
    """A clone whose `make lock` finds a newer package and a newer image."""
    place = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(origin), str(place)], check=True, capture_output=True)
    for path, text in {**FILES, "Makefile": MAKEFILE.replace("NEXT", "2.3.5") % (OLD, NEW)}.items():
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_text(text)
    git(place, "checkout", "-q", "-b", "main")
    git(place, "add", "--all")
    git(place, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    git(place, "push", "-q", "origin", "main")
    monkeypatch.setenv("TIDEGATE_SIGNING_KEY", "a key")
    return place


def test_a_newer_lock_becomes_a_branch_that_asks_to_be_merged(clone, origin, capsys):
    main, before = git(origin, "rev-parse", "main"), (clone / "requirements.txt").read_text()
    assert update.main(clone, GITLAB) == 0
    (branch,) = [
        name for name in git(origin, "branch", "--format=%(refname:short)").split() if name != "main"
    ]
    assert branch.startswith("update/")
    assert "numpy==2.3.5" in git(origin, "show", f"{branch}:requirements.txt")
    assert NEW in git(origin, "show", f"{branch}:docker/images.lock")
    assert git(origin, "show", f"{branch}:.gitlab-ci.yml").endswith(f"python:3.11-bookworm@{NEW}")
    assert "merge_request.target=main" in (origin / "options").read_text().splitlines()
    assert git(origin, "rev-parse", "main") == git(origin, "rev-parse", f"{branch}~1") == main
    # The checkout is as it was, and there is no second worktree.
    assert (clone / "requirements.txt").read_text() == before
    assert git(clone, "worktree", "list").count("\n") == 0
    said = capsys.readouterr()
    assert "- numpy: 2.3.4 -> 2.3.5" in said.out
    assert "t0ken" not in said.out + said.err


def test_the_same_proposal_is_made_once(clone, origin, capsys):
    assert update.main(clone, GITLAB) == 0
    assert update.main(clone, GITLAB) == 0
    assert "was proposed already" in capsys.readouterr().err
    assert len(git(origin, "branch").splitlines()) == 2


def test_without_a_token_the_proposal_is_printed_and_the_job_does_not_pass(clone, origin, capsys):
    assert update.main(clone, {}) == 3
    said = capsys.readouterr()
    assert "- numpy: 2.3.4 -> 2.3.5" in said.out
    assert "nothing was pushed" in said.err
    assert git(origin, "branch", "--format=%(refname:short)") == "main"


def test_nothing_newer_is_no_proposal(clone, origin):
    (clone / "Makefile").write_text("lock:\n\t@true\n")
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "second")
    assert update.main(clone, GITLAB) == 0
    assert git(origin, "branch", "--format=%(refname:short)") == "main"


def test_a_lock_that_cannot_be_made_is_an_error_and_leaves_no_worktree(clone):
    (clone / "Makefile").write_text("lock:\n\t@echo no index >&2; exit 7\n")
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-a", "-m", "second")
    assert update.main(clone, GITLAB) == 5
    assert git(clone, "worktree", "list").count("\n") == 0


class _Forge(http.server.BaseHTTPRequestHandler):
    """GitHub's API, as far as it opens pull requests."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"], json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("status", "code"), [(201, 0), (403, 5)])
def test_github_is_asked_for_a_pull_request_and_its_refusal_is_told(clone, origin, capsys, status, code):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Forge)
    server.asked, server.status = [], status
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environ = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_TOKEN": "t0ken",
        "GITHUB_REF_NAME": "main",
        "GITHUB_REPOSITORY": "o/r",
        "GITHUB_SERVER_URL": "https://github.example.com",
        "GITHUB_API_URL": f"http://127.0.0.1:{server.server_port}",
    }
    try:
        assert update.main(clone, environ) == code
    finally:
        server.shutdown()
        server.server_close()
    ((path, authorization, body),) = server.asked
    assert (path, authorization, body["base"]) == ("/repos/o/r/pulls", "Bearer t0ken", "main")
    assert git(origin, "rev-parse", body["head"])
    assert ("Allow GitHub Actions to create" in capsys.readouterr().err) == bool(code)
