"""A merge request's one comment, written to a GitLab and a GitHub that keep comments, over real HTTP."""

import ast
import dataclasses
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import comment, report
from pipeline.errors import NoData
from pipeline.row import Row
from pipeline.settings import Bound
from pipeline.stages import Decided
from tests.support import ROOT

COMMIT = "a1" * 20
TOKEN = "a-token-of-the-tests"
GITLAB_NOTES = "/api/v4/projects/42/merge_requests/7/notes"
GITHUB_COMMENTS = "/repos/team/digits/issues/7/comments"


class Forge:
    """Comments by id, as both platforms keep them; `refuses` is the status of every write, `foreign` are others'."""

    def __init__(self):
        self.comments: dict[int, dict] = {}
        self.foreign: set[int] = set()
        self.refuses = 0
        self.writes: list[tuple[str, str]] = []
        forge = self

        class Answers(BaseHTTPRequestHandler):
            def _answer(self, status: int, document) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if 300 <= status < 400:
                    self.send_header("Location", self.path)
                self.end_headers()
                self.wfile.write(body)

            def _known(self) -> bool:
                sent = self.headers.get("PRIVATE-TOKEN") or self.headers.get("Authorization", "")
                return sent.removeprefix("Bearer ") == TOKEN

            def do_GET(self):
                if not self._known():
                    self._answer(401, {"message": "401 Unauthorized"})
                elif self.path.startswith("/repos/team/digits/pulls?"):
                    self._answer(
                        200,
                        [{"number": 7, "head": {"sha": COMMIT}}]
                        if "stranger%3A" in self.path or "stranger:" in self.path
                        else [],
                    )
                else:
                    self._answer(200, list(forge.comments.values()))

            def _write(self):
                text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]
                forge.writes.append((self.command, self.path))
                number = (
                    int(re.search(r"\d+$", self.path)[0])
                    if self.command != "POST"
                    else len(forge.comments) + 1
                )
                if forge.refuses or number in forge.foreign:
                    return self._answer(forge.refuses or 403, {"message": "403 Forbidden"})
                forge.comments[number] = {
                    "id": number,
                    "body": text,
                    "user": {"type": "Bot"},
                    "created_at": str(number),
                }
                return self._answer(201 if self.command == "POST" else 200, forge.comments[number])

            do_POST = do_PUT = do_PATCH = _write

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def forge():
    made = Forge()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(params=["gitlab", "github"])
def environ(request, forge):
    """The variables of the job that comments."""
    if request.param == "gitlab":
        return {
            "GITLAB_CI": "true",
            "CI_API_V4_URL": f"{forge.address}/api/v4",
            "CI_MERGE_REQUEST_PROJECT_ID": "42",
            "CI_MERGE_REQUEST_IID": "7",
            "CI_COMMIT_SHA": COMMIT,
            comment.TOKEN: TOKEN,
        }
    return {
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": forge.address,
        "GITHUB_REPOSITORY": "team/digits",
        "TIDEGATE_COMMENT_SHA": COMMIT,
        "TIDEGATE_COMMENT_OWNER": "stranger",
        "TIDEGATE_COMMENT_BRANCH": "a branch/of #theirs",
        comment.TOKEN: TOKEN,
    }


def reports(folder: Path, *rows: Row) -> Path:
    """What the jobs of a pipeline leave: a report of each."""
    for row in rows:
        report.write(folder / row.stage / "report", [row], "digits")
    return folder


def row(stage: str, outcome: str = "passed", **more) -> Row:
    return Row(stage, outcome, False, 1.5, digest="sha256:" + "b" * 64, **more)


EVALUATED = row("evaluate", "failed", decided=Decided("accuracy", 0.412, Bound(at_least=0.5)))


def test_one_comment_is_written_and_then_edited(forge, environ, tmp_path):
    assert "has a comment now" in comment.post(reports(tmp_path, row("check"), row("data")), environ)
    assert "brought up to date" in comment.post(reports(tmp_path, row("train"), EVALUATED), environ)
    assert len(forge.comments) == 1
    text = forge.comments[1]["body"]
    assert f"### Tidegate: failed at evaluate for {COMMIT[:12]}" in text
    assert "| ❌ evaluate | failed | accuracy 0.412 | ≥ 0.5 | 1.5 | `sha256:bbbbbbbbbbbb` |" in text
    assert "| ✅ data | passed |" in text
    assert "| ▫️ export | not reached |" in text


def test_a_comment_that_somebody_else_wrote_in_our_name_is_not_taken_for_ours(forge, environ, tmp_path):
    forge.comments[1] = {"id": 1, "body": f"{comment.MARK} all is well", "user": {"type": "User"}}
    forge.foreign = {1}
    assert "has a comment now" in comment.post(reports(tmp_path, row("check")), environ)
    assert forge.comments[1]["body"] == f"{comment.MARK} all is well"
    assert "check" in forge.comments[2]["body"]


def test_a_fork_without_a_token_gets_the_text_in_the_log(forge, environ, tmp_path):
    said = comment.post(reports(tmp_path, row("check")), {**environ, comment.TOKEN: ""})
    assert "| ✅ check | passed |" in said
    assert f"{comment.TOKEN} is not set" in said
    assert forge.writes == []


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "takes no comment"),
        (429, "rate limit"),
        (500, "with 500"),
        (422, "with 422"),
        (404, "takes no comment"),
        (302, "sends us on"),
    ],
)
def test_a_platform_that_takes_no_comment_is_named_and_not_asked_again(
    forge, environ, tmp_path, status, says
):
    forge.refuses = status
    with pytest.raises(NoData, match=says):
        comment.post(reports(tmp_path, row("check")), environ)
    assert len(forge.writes) == 1


def test_a_wrong_token_is_named_by_its_variable_and_not_shown(forge, environ, tmp_path):
    with pytest.raises(NoData, match=comment.TOKEN) as refused:
        comment.post(reports(tmp_path, row("check")), {**environ, comment.TOKEN: "another-token"})
    assert "another-token" not in str(refused.value)


def test_a_pull_request_that_moved_on_gets_no_comment_about_an_older_commit(forge, tmp_path):
    environ = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_API_URL": forge.address,
        "GITHUB_REPOSITORY": "team/digits",
        "TIDEGATE_COMMENT_SHA": "c3" * 20,
        "TIDEGATE_COMMENT_OWNER": "stranger",
        "TIDEGATE_COMMENT_BRANCH": "theirs",
        comment.TOKEN: TOKEN,
    }
    with pytest.raises(NoData, match="is at 'c3c3c3c3c3c3' any more"):
        comment.post(reports(tmp_path, row("check")), environ)
    assert forge.writes == []


HOSTILE = "](https://evil.example) @everyone <img src=x onerror=alert(1)> | x |\n# Approved"


@pytest.mark.parametrize(
    "change",
    [
        {"stage": HOSTILE},
        {"stage": ["check"]},
        {"outcome": HOSTILE},
        {"digest": HOSTILE},
        {"seconds": HOSTILE},
        {"seconds": float("nan")},
        {"sentence": HOSTILE, "warnings": [HOSTILE]},
        {"decided": HOSTILE},
        {"decided": {"name": HOSTILE, "number": 1}},
        {"decided": {"name": "Approved by security team merge now", "number": 100}},
        {"decided": {"name": ["accuracy"], "number": 100}},
        {"decided": {"name": "accuracy", "number": HOSTILE, "bound": HOSTILE}},
        {"decided": {"name": "accuracy", "number": 10**400, "bound": {"at_least": HOSTILE}}},
    ],
    ids=str,
)
def test_what_a_stranger_wrote_into_a_report_does_not_reach_the_comment(tmp_path, change):
    made = json.loads(json.dumps({"stages": [dataclasses.asdict(row("check"))]}))
    made["stages"][0] |= change
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "check.json").write_text(json.dumps(made))
    text = comment.body(comment.lines(tmp_path), HOSTILE)
    for word in ("evil.example", "@everyone", "<img", "# Approved", "Approved by", "nan"):
        assert word not in text
    assert text.startswith(comment.MARK)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"stages": 1}', b"[" * 100_000, b"0" * (1 << 17)])
def test_a_file_that_is_no_report_counts_as_none(tmp_path, content):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "check.json").write_bytes(content)
    (tmp_path / "report" / "data.json").symlink_to("/etc/passwd")
    assert {line.outcome for line in comment.lines(tmp_path)} == {"not reached"}


def test_every_name_that_a_stage_of_a_merge_request_gives_its_number_is_known():
    given = set()
    for path in (*(ROOT / "train").glob("*.py"), ROOT / "pipeline/check.py", ROOT / "pipeline/reproduce.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Decided":
                given |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else {path.name}
    # Gates are called by their metrics.
    assert given - comment.DECIDED == {"gates.py"}
    assert {"accuracy", "accuracy minus champion", "coverage %"} < comment.DECIDED


def test_a_token_outside_of_ci_is_told_and_nobody_is_asked(tmp_path):
    with pytest.raises(NoData, match="TIDEGATE_COMMENT_TOKEN is set, and this is no CI job"):
        comment.post(tmp_path, {comment.TOKEN: TOKEN})
