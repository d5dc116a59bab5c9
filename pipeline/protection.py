"""Whether what the gates rely on at GitLab or GitHub really exists there; whatever is not known is not there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import ci, run
from pipeline.doctor import Finding, tell
from pipeline.errors import GateRefused, NoData, ProgramFailed
from pipeline.rest import Api, Refused

AUTO = "auto"
VENDORS = (ci.GITLAB, ci.GITHUB)
TOKEN = "TIDEGATE_API_TOKEN"  # noqa: S105 (the name of the variable)
_TOKENS = {ci.GITLAB: (TOKEN, "GITLAB_TOKEN"), ci.GITHUB: (TOKEN, "GITHUB_TOKEN", "GH_TOKEN")}
_WHERE = {
    ci.GITLAB: ("CI_API_V4_URL", "CI_PROJECT_ID"),
    ci.GITHUB: ("GITHUB_API_URL", "GITHUB_REPOSITORY"),
}
_RIGHTS = {
    ci.GITLAB: "a token of the project with the scope read_api and the role Maintainer",
    ci.GITHUB: "a fine-grained token that reads Actions, Administration, Environments and Secrets",
}
# https://HOST/PATH, ssh://git@HOST:PORT/PATH and git@HOST:PATH; a user and a password are left out.
_REMOTE = re.compile(
    r"(?:(?P<scheme>[a-z+]+)://)?(?:[^@/]*@)?(?P<host>[^:/@]+)(?::(?P<port>\d+)(?=/))?[:/]+(?P<path>.+?)(?:\.git)?/*"
)
_GITHUB_PROJECT = re.compile(r"[\w.-]+/[\w.-]+")


class Unasked(Finding):
    """Something that could not be looked at: not known to be missing, and not known to be there."""


@dataclass(frozen=True)
class Place:
    """Whom to ask, about what: `base` is the API's address, `project` as the API names it in a path."""

    vendor: str
    base: str
    project: str


def report(
    root: Path, environ: Mapping[str, str] = os.environ, *, vendor: str = AUTO, has_approver: bool = False
) -> int:
    """Prints the findings (stdout) and returns 0 if all exists, 3 if something is missing, 4 if it could not be asked.

    `vendor` is gitlab, github or auto (the CI that this runs in, else the host of git's remote). `has_approver` says
    whether trust/roles.yaml names an approver: then a plan without required approvals is no lack.
    """
    try:
        findings = _found(place(vendor, environ, lambda: _remote(root)), environ, has_approver)
    except NoData as error:
        findings = [Unasked("the platform could not be asked", str(error))]
    lacking = tell(findings)
    unasked = sum(isinstance(finding, Unasked) for finding in lacking)
    if unasked:
        print("What could not be asked counts as missing: nothing measured is never a pass.", file=sys.stderr)
    if len(lacking) > unasked:
        return GateRefused.exit_code
    return NoData.exit_code if unasked else 0


def place(vendor: str, environ: Mapping[str, str], remote: Callable[[], str]) -> Place:
    """Where to ask: from CI's variables, else from git's remote (`remote()` gives its address).

    Raises NoData if neither tells.
    """
    if vendor == AUTO and ci.vendor(environ) in VENDORS:
        vendor = ci.vendor(environ)
    api, project = (environ.get(name, "") for name in _WHERE.get(vendor, ("", "")))
    if api and project:
        if vendor == ci.GITLAB:
            return Place(vendor, api.rstrip("/"), quote(project, safe=""))
        return _at_github(api.rstrip("/"), project)
    return _from_remote(vendor, remote())


def _from_remote(vendor: str, remote: str) -> Place:
    """The API that belongs to a remote's address."""
    parts = _REMOTE.fullmatch(remote)
    if not parts:
        raise NoData(
            "git has no remote `origin` that names a GitLab or GitHub project, and no CI variables are set here. "
            "Run it in a clone; or say --ci gitlab and set CI_API_V4_URL and CI_PROJECT_ID, or --ci github and set "
            "GITHUB_API_URL and GITHUB_REPOSITORY."
        )
    host, path = parts["host"], parts["path"]
    if vendor == AUTO:
        vendor = next((name for name in VENDORS if name in host), AUTO)
    if vendor == AUTO:
        raise NoData(
            f"{host} may be a GitLab or a GitHub. Say which: doctor --ci gitlab, or doctor --ci github."
        )
    web = parts["scheme"] in ("http", "https")
    port = f":{parts['port']}" if web and parts["port"] else ""
    address = f"{parts['scheme'] if web else 'https'}://{host}{port}"
    if vendor == ci.GITLAB:
        return Place(vendor, f"{address}/api/v4", quote(path, safe=""))
    return _at_github("https://api.github.com" if host == "github.com" else f"{address}/api/v3", path)


def _at_github(base: str, project: str) -> Place:
    if not _GITHUB_PROJECT.fullmatch(project):
        raise NoData(
            "the GitHub repository is not named as OWNER/NAME, in GITHUB_REPOSITORY or git's remote."
        )
    return Place(ci.GITHUB, base, project)


def _remote(root: Path) -> str:
    """The address of git's remote, or nothing where there is none."""
    try:
        done = run.run(
            ["git", "remote", "get-url", "origin"], cwd=root, timeout_s=20, check=False, echo=False
        )
    except ProgramFailed:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _found(where: Place, environ: Mapping[str, str], has_approver: bool) -> list[Finding]:
    """Looks, then judges. Raises NoData if there was no answer to judge."""
    from pipeline import protection_github, protection_gitlab

    api = _api(where, environ)
    forge = {ci.GITLAB: protection_gitlab, ci.GITHUB: protection_github}[where.vendor]
    seen = forge.look(api, where.project, has_approver)
    return list(judge(forge.CHECKS, seen))


def _api(where: Place, environ: Mapping[str, str]) -> Api:
    names = _TOKENS[where.vendor]
    name = next((name for name in names if environ.get(name, "").strip()), None)
    if name is None:
        raise NoData(f"no token is set. Put {_RIGHTS[where.vendor]} into {' or '.join(names)}.")
    token = environ[name].strip()
    if where.vendor == ci.GITLAB:
        return Api(where.base, token, name, header="PRIVATE-TOKEN")
    return Api(where.base, token, name, "Authorization", "Bearer", "application/vnd.github+json")


def judge(checks: Mapping[str, Any], seen: Any) -> Iterator[Finding]:
    """All findings of all checks; what a check could not judge is a finding too, and no pass. No clock, no network."""
    for name, check in checks.items():
        try:
            yield from list(check(seen))
        except NoData as error:
            yield Unasked(name, f"could not be judged: {error}")


def items(answer: Any, what: str, remedy: str) -> list[dict]:
    """The objects that were listed. Raises NoData where the answer was a refusal."""
    if isinstance(answer, Refused):
        raise NoData(f"{what} may not be looked at with this token ({answer}). {remedy}")
    return answer


def value(document: dict, name: str, kind: type, what: str) -> Any:
    """A field that must be there and of this kind. Raises NoData otherwise: what is not said is not known."""
    found = document.get(name)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise NoData(f"the answer about {what} has no {name} that could be judged.")
    return found


def none_offered(what: str, why: str, has_approver: bool) -> Finding:
    """What to say where the platform itself cannot ask for an approval."""
    if has_approver:
        return Finding(
            what,
            f"{why}; the signed approval is the gate (trust/roles.yaml names an approver)",
            optional=True,
        )
    return Finding(
        what,
        f"{why}, and trust/roles.yaml names no approver, so nobody is asked. The signed approval of an approver in "
        "trust/roles.yaml is the gate then: python -m pipeline keygen NAME --role approver",
    )
