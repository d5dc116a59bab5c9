"""Proposes newer versions of what is locked, on a branch of its own. Nothing is merged by it.

`make update` locks anew in a worktree beside (`make lock UPGRADE=…`), moves the digests of images wherever they are
named, and tells what would change. With a token it pushes the branch and opens a merge request (GitLab: by git's push
options, TIDEGATE_UPDATE_TOKEN) or a pull request (GitHub: GITHUB_TOKEN). Without one it prints the proposal and leaves
with 3, so that a scheduled job shows it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline import ci, digest, locked, pins, run
from pipeline.errors import GateRefused, ProgramFailed, TidegateError

_LOCK_TIMEOUT_S = 900
_GIT_TIMEOUT_S = 300
_API_TIMEOUT_S = 30
_TITLE = "Newer versions of what is locked"
_AUTHOR = {"GIT_AUTHOR_NAME": "make update", "GIT_AUTHOR_EMAIL": "update@localhost.invalid"}
_COMMITTER = {name.replace("AUTHOR", "COMMITTER"): value for name, value in _AUTHOR.items()}
# Resolving never runs what it resolves (no build), and has no business with a key.
_KEYLESS = {
    "TIDEGATE_SIGNING_KEY": None,
    "TIDEGATE_APPROVAL_KEY": None,
    "TIDEGATE_UPDATE_TOKEN": None,
    "GITHUB_TOKEN": None,
}
_UPGRADE = "UPGRADE=--upgrade --no-build"


@dataclass(frozen=True)
class Proposal:
    """What would change, a line for each package and image; the branch, whose name is the change's own; its commit."""

    branch: str
    lines: tuple[str, ...]
    commit: str = ""

    def text(self) -> str:
        """The merge request's description."""
        listed = "\n".join(f"- {line}" for line in self.lines)
        return (
            f"{_TITLE}:\n\n{listed}\n\nResolved by `make update`; the pipeline of this branch has to pass, and a "
            "person to read what is new, before it is merged.\n"
        )


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two locks (version or digest by name), a line each."""
    lines = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None:
            lines.append(f"{name}: new, {after}")
        elif after is None:
            lines.append(f"{name}: gone, was {before}")
        elif before != after:
            lines.append(f"{name}: {before} -> {after}")
    return lines


def images(lock: str) -> dict[str, str]:
    """The digest of each image of docker/images.lock, by its name and tag."""
    entries = ((yaml.safe_load(lock) or {}).get("images") or {}).values()
    return {f"{entry['image']}:{entry['tag']}": str(entry["digest"]) for entry in entries}


def moved(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The new digest for each old one that an image no longer has. An image that had none is named nowhere by it."""
    return {old[name]: new[name] for name in old if old[name] and name in new and old[name] != new[name]}


def follow(text: str, moves: Mapping[str, str]) -> str:
    """A file's text with the new digests where the old ones stood."""
    for before, after in moves.items():
        text = text.replace(before, after)
    return text


def prepare(root: Path) -> Proposal | None:
    """Locks anew beside the checkout, and commits what changed; None where nothing is newer.

    The checkout itself and its branch stay as they are. Raises ProgramFailed where git or `make lock` fails.
    """
    with _beside(root) as place:
        before = {name: _text(place / name) for name in (locked.LOCK, pins.LOCK)}
        venv = f"VENV={Path(sys.executable).parent.parent}"
        run.run(["make", "lock", _UPGRADE, venv], timeout_s=_LOCK_TIMEOUT_S, cwd=place, env=_KEYLESS)
        old, new = images(before[pins.LOCK]), images(_text(place / pins.LOCK))
        _move_digests(place, moved(old, new))
        lines = differences(locked.versions(before[locked.LOCK]), locked.versions(_text(place / locked.LOCK)))
        lines += differences(old, new)
        change = _git(place, "diff", "--no-ext-diff", "HEAD")
        if not change:
            return None
        name = f"update/{digest.of_bytes(change.encode())[:12]}"
        proposal = Proposal(name, tuple(lines or ["other hashes of the same versions"]))
        _git(place, "add", "--update")
        _git(place, "commit", "--quiet", "--message", f"{_TITLE}\n\n" + "\n".join(proposal.lines))
        return Proposal(name, proposal.lines, _git(place, "rev-parse", "HEAD"))


def _move_digests(place: Path, moves: Mapping[str, str]) -> None:
    for name in _git(place, "ls-files").splitlines() if moves else ():
        path = place / name
        if path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
            if (followed := follow(text, moves)) != text:
                path.write_text(followed, encoding="utf-8")


@contextlib.contextmanager
def _beside(root: Path) -> Iterator[Path]:
    """A worktree of the commit that is checked out; gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "worktree"
        _git(root, "worktree", "add", "--quiet", "--detach", str(place), "HEAD")
        try:
            yield place
        finally:
            _git(root, "worktree", "remove", "--force", str(place))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _git(place: Path, *arguments: str, env: Mapping[str, str | None] | None = None) -> str:
    given = {**_AUTHOR, **_COMMITTER, "GIT_TERMINAL_PROMPT": "0", **(env or {})}
    done = run.run(["git", *arguments], cwd=place, timeout_s=_GIT_TIMEOUT_S, env=given, echo=False)
    return done.stdout.strip()


def publish(root: Path, proposal: Proposal, environ: Mapping[str, str]) -> str:
    """Pushes the branch, and asks for its merge; one sentence of what became of it.

    Raises GateRefused where there is no token: the proposal was told, and nobody else knows of it.
    """
    vendor = ci.vendor(environ)
    token = environ.get("GITHUB_TOKEN" if vendor == ci.GITHUB else "TIDEGATE_UPDATE_TOKEN", "")
    if vendor == ci.LAPTOP or not token:
        raise GateRefused(
            f"{len(proposal.lines)} newer, and no token to push with ({_token_of(vendor)}): nothing was pushed. "
            f"`git branch {proposal.branch} {proposal.commit[:12]}` makes a branch of it."
        )
    env = _authorized(vendor, token, environ)
    there = _git(root, "ls-remote", "origin", f"refs/heads/{proposal.branch}", env=env)
    if there:
        return f"{proposal.branch} was proposed already; nothing was pushed."
    target = environ.get("CI_DEFAULT_BRANCH" if vendor == ci.GITLAB else "GITHUB_REF_NAME", "main")
    options = [] if vendor == ci.GITHUB else [
        "merge_request.create", f"merge_request.target={target}", f"merge_request.title={_TITLE}"
    ]  # fmt: skip
    asked = [part for option in options for part in ("--push-option", option)]
    _git(root, "push", *asked, "origin", f"{proposal.commit}:refs/heads/{proposal.branch}", env=env)
    if vendor == ci.GITHUB:
        _open_pull_request(proposal, target, token, environ)
    return f"{proposal.branch} was pushed, and its merge into {target} is asked for."


def _token_of(vendor: str) -> str:
    return {ci.GITHUB: "GITHUB_TOKEN", ci.GITLAB: "TIDEGATE_UPDATE_TOKEN"}.get(vendor, "this is no CI job")


def _authorized(vendor: str, token: str, environ: Mapping[str, str]) -> dict[str, str | None]:
    """The token for git, in a header and for the forge's own host alone: never in an argument or an address."""
    server = environ.get("GITHUB_SERVER_URL" if vendor == ci.GITHUB else "CI_SERVER_URL", "")
    user = "x-access-token" if vendor == ci.GITHUB else "oauth2"
    basic = base64.b64encode(f"{user}:{token}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{server}/.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
    }


def _open_pull_request(proposal: Proposal, target: str, token: str, environ: Mapping[str, str]) -> None:
    """Raises ProgramFailed where GitHub refuses: by default it lets no workflow open one, which is a setting."""
    api, repository = environ.get("GITHUB_API_URL", ""), environ.get("GITHUB_REPOSITORY", "")
    body = {"title": _TITLE, "head": proposal.branch, "base": target, "body": proposal.text()}
    request = urllib.request.Request(  # noqa: S310 (the runner's own address)
        f"{api}/repos/{repository}/pulls",
        json.dumps(body).encode(),
        {"Accept": "application/vnd.github+json", "Content-Type": "application/json"},
    )
    request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_API_TIMEOUT_S):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        raise ProgramFailed(
            f"{proposal.branch} was pushed, and GitHub opens no pull request for it ({error.code}). Let it: Settings > "
            "Actions > General > Allow GitHub Actions to create and approve pull requests; or open it by hand."
        ) from None
    except (OSError, ValueError) as error:
        raise ProgramFailed(f"{proposal.branch} was pushed, and no pull request opened: {error!r}") from None


def main(root: Path, environ: Mapping[str, str] = os.environ) -> int:
    """Prints the proposal (stdout) and what became of it; returns an exit code."""
    try:
        proposal = prepare(root)
        if proposal is None:
            print("nothing is newer", file=sys.stderr)
            return 0
        print(proposal.text())
        folder = root / "build" / "update"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "proposal.md").write_text(proposal.text())
        print(publish(root, proposal, environ), file=sys.stderr)
    except TidegateError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
