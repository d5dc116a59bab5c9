"""Tells a merge request what its pipeline found: one comment, edited in place.

What it tells was written by the merge request's own jobs, whose author may be anybody: it is read as data, only what
has the expected shape is used, and nothing of it is run. Notes: https://docs.gitlab.com/api/notes/ and
https://docs.github.com/en/rest/issues/comments.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import ci
from pipeline.errors import NoData
from pipeline.rest import Api, Refused
from pipeline.settings import METRICS
from pipeline.stages import BY_NAME, Outcome

MARK = "<!-- tidegate -->"
TOKEN = "TIDEGATE_COMMENT_TOKEN"  # noqa: S105 (the name of the variable)
_BYTES_AT_MOST = 64 << 10
_OUTCOMES = {str(outcome): "✅" if outcome is Outcome.PASSED else "❌" for outcome in Outcome}
# What the numbers are called that decide the stages of a merge request. Any other name is a text of its author's own.
DECIDED = frozenset({
    "linters with faults", "failed tests", "coverage %", "smallest class share", "faults", "cost", "train accuracy",
    "signature changes", "difference from Keras", "largest difference",
    *METRICS, *(f"{metric} minus champion" for metric in METRICS),
})  # fmt: skip
_SHA256 = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_SHA1 = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Line:
    """What a stage said of itself, as far as it can be believed to be what it looks like."""

    stage: str
    outcome: str
    number: str = ""
    bound: str = ""
    seconds: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Place:
    """Where the comment goes: `comments` lists and takes new ones, `one` is the path of one that is there."""

    api: Api
    comments: str
    one: str
    method: str
    written_by: str = ""


def post(folder: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Writes the comment on the reports below `folder`; returns what was done, or the text where nobody may write it.

    Raises NoData where the platform does not let it, or does not answer.
    """
    text = body(lines(folder), environ.get("CI_COMMIT_SHA") or environ.get("TIDEGATE_COMMENT_SHA", ""))
    place = _place(environ)
    if place is None:
        return f"{text}\nNo comment was written: {TOKEN} is not set here, as in a merge request from a fork."
    for known in _ours(place):
        answer = place.api.send(place.method, place.one.format(known), {"body": text})
        if not isinstance(answer, Refused):
            return "the comment on the merge request was brought up to date"
    answer = place.api.send("POST", place.comments, {"body": text})
    if isinstance(answer, Refused):
        raise NoData(
            f"{place.api.host} takes no comment from the token in {place.api.token_from} ({answer})."
        )
    return "the merge request has a comment now"


def lines(folder: Path) -> list[Line]:
    """A line for each stage that a merge request runs, from the reports below a folder; "not reached" without one."""
    told: dict[str, Line] = {}
    for file in sorted(folder.rglob("report/*.json")):
        for line in _told(file):
            told[line.stage] = line
    stages = (stage.name for stage in BY_NAME.values() if not stage.protected or stage.name == "train")
    return [told.get(name, Line(name, "not reached")) for name in stages]


def body(told: Iterable[Line], commit: str) -> str:
    """The comment in Markdown. Every part is a known word, a number or a digest."""
    rows = list(told)
    bad = next((line for line in rows if line.outcome != Outcome.PASSED), None)
    heading = f"{bad.outcome} at {bad.stage}" if bad else "all stages of a merge request passed"
    at = f" for {commit[:12]}" if _SHA1.fullmatch(commit) else ""
    table = [
        f"| {_OUTCOMES.get(line.outcome, '▫️')} {line.stage} | {line.outcome} | {line.number} | {line.bound} "
        f"| {line.seconds} | {line.digest} |"
        for line in rows
    ]
    return "\n".join(
        [
            MARK,
            f"### Tidegate: {heading}{at}",
            "",
            "| stage | outcome | number that decided | bound | seconds | digest |",
            "|---|---|---|---|---|---|",
            *table,
            "",
            "From the merge request's own jobs: a smoke-sized model on a CPU. The protected branch measures again.",
            "",
        ]
    )


def _told(file: Path) -> Iterable[Line]:
    """The lines of one report; of anything that is none, nothing."""
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > _BYTES_AT_MOST:
            return
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    rows = document.get("stages") if isinstance(document, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if (
            isinstance(row, dict)
            and row.get("stage") in list(BY_NAME)
            and row.get("outcome") in list(_OUTCOMES)
        ):
            yield _line(row)


def _line(row: Mapping[str, Any]) -> Line:
    decided = _object(row, "decided")
    bound = _object(decided, "bound")
    name = decided.get("name")
    known = name if isinstance(name, str) and name in DECIDED else ""
    digest = _SHA256.fullmatch(row["digest"]) if isinstance(row.get("digest"), str) else None
    return Line(
        stage=row["stage"],
        outcome=row["outcome"],
        number=f"{known} {_number(decided.get('number'))}".strip(),
        bound=" ".join(
            f"{sign} {_number(bound.get(side))}"
            for side, sign in (("at_least", "≥"), ("at_most", "≤"))
            if _number(bound.get(side))
        ),
        seconds="" if row.get("cached") else _number(row.get("seconds"), ".1f"),
        digest=f"`sha256:{digest[1][:12]}`" if digest else "",
    )


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any, form: str = "g") -> str:
    """A number as text; nothing for anything else."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or abs(value) > 1e300
        or math.isnan(value)
    ):
        return ""
    return format(float(value), form)


def _place(environ: Mapping[str, str]) -> Place | None:
    """Where to write, from CI's variables; None where there is no token."""
    token = environ.get(TOKEN, "").strip()
    if not token:
        return None
    if ci.vendor(environ) == ci.LAPTOP:
        raise NoData(
            f"{TOKEN} is set, and this is no CI job: no merge request is known that a comment would be on."
        )
    if ci.vendor(environ) == ci.GITLAB:
        project, number = (
            environ.get(name, "") for name in ("CI_MERGE_REQUEST_PROJECT_ID", "CI_MERGE_REQUEST_IID")
        )
        if not (project and number.isdigit()):
            raise NoData(
                "this pipeline belongs to no merge request (CI_MERGE_REQUEST_IID), so none gets a comment."
            )
        api = Api(environ.get("CI_API_V4_URL", "").rstrip("/"), token, TOKEN, header="PRIVATE-TOKEN")
        at = f"/projects/{quote(project, safe='')}/merge_requests/{number}/notes"
        return Place(api, at, at + "/{}", "PUT")
    api = Api(
        environ.get("GITHUB_API_URL", "").rstrip("/"),
        token,
        TOKEN,
        "Authorization",
        "Bearer",
        "application/vnd.github+json",
    )
    at = f"/repos/{environ.get('GITHUB_REPOSITORY', '')}"
    request = _pull_request(api, at, environ)
    return Place(
        api, f"{at}/issues/{request}/comments", at + "/issues/comments/{}", "PATCH", written_by="Bot"
    )


def _pull_request(api: Api, at: str, environ: Mapping[str, str]) -> int:
    """The open pull request whose newest commit this is: GitHub itself names none for a fork's."""
    owner, branch, commit = (
        environ.get(f"TIDEGATE_COMMENT_{name}", "") for name in ("OWNER", "BRANCH", "SHA")
    )
    head = f"{owner}:{branch}"
    found = api.pages(f"{at}/pulls?state=open&head={quote(head, safe=':')}")
    if isinstance(found, Refused):
        raise NoData(f"{api.host} does not list the pull requests to the token in {TOKEN} ({found}).")
    for request in found:
        at_commit = _object(request, "head").get("sha") == commit
        if at_commit and isinstance(request.get("number"), int):
            return request["number"]
    raise NoData(
        f"no open pull request from {head!r} is at {commit[:12]!r} any more, so none gets a comment."
    )


def _ours(place: Place) -> Iterable[int]:
    """The comments that look like one of ours, oldest first. Another's cannot be edited, or is no bot's."""
    found = place.api.pages(place.comments)
    if isinstance(found, Refused):
        raise NoData(f"{place.api.host} does not list the comments to the token in {TOKEN} ({found}).")
    for each in sorted(found, key=lambda each: str(each.get("created_at", ""))):
        written = _object(each, "user")
        if (
            isinstance(each.get("id"), int)
            and str(each.get("body", "")).startswith(MARK)
            and (not place.written_by or written.get("type") == place.written_by)
        ):
            yield each["id"]
