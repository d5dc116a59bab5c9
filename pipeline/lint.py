"""The linters of `make check`: which files each looks at, and what its exit status means.

A linter that is missing, that crashes or that looked at fewer files than it was given has found nothing out: that is
an error, and never a pass.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pipeline import key, run
from pipeline.errors import GateRefused, ProgramFailed, TidegateError
from pipeline.stages import BY_NAME

_TIMEOUT_S = 300
_AT_ONCE = 2
_SHEBANG = re.compile(rb"#!\s*\S*?/(?:env\s+(?:-S\s+)?)?(?:\S*/)?(ba|da|k)?sh\b")
_FORMATTED = "`make fix` mends many of them, the rest is for a person"
# Looked at by `make check` each time, and not remembered: the documents, the settings, whom to trust, what is accepted.
_REST = (
    "docs",
    "trust",
    "pipeline.yaml",
    ".trivyignore.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
)
# With these in the environment a linter could be told to find nothing.
_TUNABLES = ("HADOLINT_", "ZIZMOR_", "SHELLCHECK_", "YAMLLINT_", "RUFF_", "MYPY", "GH_", "GITHUB_TOKEN")


@dataclass(frozen=True)
class Linter:
    """A program, and how it is asked.

    `names` are patterns of the paths it looks at, of which there must be some; `scripts` adds scripts by their shebang.
    `faults` are the exit statuses that mean that it found something: any other than these and 0 means that it could
    not do its work. `looked` finds in what it printed how many files it looked at: a number, or one match for each.
    `remedy` says what to do about what it finds.
    """

    name: str
    argv: tuple[str, ...]
    names: tuple[str, ...]
    remedy: str
    faults: frozenset[int] = frozenset({1})
    scripts: bool = False
    looked: str = ""

    def of(self, files: Mapping[str, bytes]) -> list[str]:
        """The paths that it looks at; `files` maps each path to the first bytes of the file."""
        return [
            path
            for path, head in files.items()
            if any(fnmatch(path, name) for name in self.names)
            or (self.scripts and "." not in Path(path).name and _SHEBANG.match(head))
        ]

    def judge(self, given: int, status: int, text: str) -> Verdict:
        """What an exit status, and what it printed while it looked at `given` files, mean."""
        if status in self.faults:
            return Verdict(self.name, faults=f"{self.name} found faults, listed above: {self.remedy}.")
        if status != 0:
            how = f"was ended by signal {-status}" if status < 0 else f"left with exit status {status}"
            return Verdict(self.name, error=f"{self.name} could not do its work: it {how}; see above.")
        if self.looked and (seen := _counted(self.looked, text)) < given:
            return Verdict(self.name, error=f"{self.name} looked at {seen} of {given} files; see its report.")
        return Verdict(self.name)


@dataclass(frozen=True)
class Verdict:
    """What a linter came to: neither text means that it looked, and found nothing."""

    name: str
    faults: str = ""
    error: str = ""


def _schema(name: str, schema: str, *names: str) -> Linter:
    """One of the JSON schemas that check-jsonschema carries with it, so that nothing is fetched."""
    argv = ("check-jsonschema", "-vv", "--color", "never", "--builtin-schema", schema)
    return Linter(
        name, argv, names, "the path and the line say what the schema does not know", looked=_EACH_FILE
    )


_EACH_FILE = r"^  \S+$"
_WORKFLOWS = (".github/workflows/*.yml", ".github/workflows/*.yaml")
_ACTIONS = (".github/actions/*/action.yml", ".github/actions/*/action.yaml")
_YAML = ("*.yml", "*.yaml")
_MYPY = "correct the type, or the code where the type is right; `type: ignore[CODE]` needs a reason beside it"

LINTERS: tuple[Linter, ...] = (
    # The slowest first.
    Linter(
        "mypy",
        ("mypy", "--config-file", "pyproject.toml", "--no-color-output"),
        ("pipeline/*.py", "train/*.py", "deploy/*.py", "serve/*.py"),
        _MYPY,
        looked=r"in (\d+) source files?",
    ),
    Linter("ruff-check", ("ruff", "check", "--no-cache"), ("*.py",), _FORMATTED),
    Linter(
        "ruff-format",
        ("ruff", "format", "--no-cache", "--check"),
        ("*.py",),
        "`make fix` mends them",
        looked=r"(\d+) files? already formatted",
    ),
    Linter(
        "shellcheck",
        ("shellcheck", "--norc", "--severity=style", "--color=never"),
        ("*.sh",),
        "each SC number has a page that explains it (shellcheck.net/wiki)",
        scripts=True,
    ),
    Linter(
        "hadolint",
        ("hadolint", "--config", ".hadolint.yaml", "--no-color", "--failure-threshold", "style"),
        ("*Dockerfile", "*Dockerfile.*"),
        "each DL number has a page that explains it (hadolint's wiki); an ignored rule needs its reason above it",
    ),
    Linter(
        "yamllint",
        ("yamllint", "--strict", "--format", "parsable", "--config-file", ".yamllint.yaml"),
        _YAML,
        "the rules stand in .yamllint.yaml",
        faults=frozenset({1, 2}),
    ),
    Linter(
        "actionlint",
        ("actionlint", "-no-color", "-verbose", "-shellcheck", "shellcheck", "-pyflakes", ""),
        _WORKFLOWS,
        "each finding names its rule",
        looked=r"Found total \d+ errors? in .* for \S+$",
    ),
    Linter(
        "zizmor",
        # Never --format sarif: with it the exit status is 0 whatever was found.
        (
            "zizmor",
            "--offline",
            "--no-progress",
            "--color",
            "never",
            "--strict-collection",
            "--format",
            "plain",
        ),
        (*_WORKFLOWS, *_ACTIONS),
        "each finding names its audit (docs.zizmor.sh/audits)",
        faults=frozenset({10, 11, 12, 13, 14}),
        looked=r"^.*completed \S+$",
    ),
    _schema("schema-gitlab", "vendor.gitlab-ci", ".gitlab-ci.yml"),
    _schema("schema-workflows", "vendor.github-workflows", *_WORKFLOWS),
    _schema("schema-actions", "vendor.github-actions", *_ACTIONS),
)


def files(root: Path) -> dict[str, bytes]:
    """Every file that is in check's key, by path, with its first bytes. What is linted is what the key covers."""
    return _heads(root, BY_NAME["check"].files)


def rest(root: Path) -> dict[str, bytes]:
    """The files that people write and that are in no key of check's: a change of theirs must not run it again."""
    return _heads(root, _REST)


def _heads(root: Path, names: Sequence[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        place = root / name
        for path in key.code_below(place) if place.is_dir() else [place] * place.is_file():
            with path.open("rb") as file:
                found[path.relative_to(root).as_posix()] = file.read(80)
    return dict(sorted(found.items()))


def shares(linters: Sequence[Linter], heads: Mapping[str, bytes]) -> list[tuple[Linter, list[str]]]:
    """Each linter with the paths that it looks at. Raises ProgramFailed for one that would look at none."""
    found = [(linter, linter.of(heads)) for linter in linters]
    idle = [linter for linter, paths in found if not paths]
    if idle:
        lines = [f"{linter.name}: no file is named {' or '.join(linter.names)}" for linter in idle]
        raise ProgramFailed(
            "A linter would look at nothing, and a pass would mean nothing:\n"
            + "\n".join(lines)
            + "\nIf such files are gone for good, take its row out of LINTERS in pipeline/lint.py."
        )
    return found


@contextlib.contextmanager
def started(root: Path, folder: Path, cache: Path) -> Iterator[Callable[[], list[Verdict]]]:
    """Starts all linters, a few side by side; what is given waits for their verdicts.

    Each one's output goes to `folder / NAME.txt`, and to stderr if there is something to say. `cache` outlasts
    this run; mypy alone has one, and it knows by content, version and options what of it still holds. Raises
    ProgramFailed if a linter would look at no file.
    """
    from concurrent.futures import ThreadPoolExecutor

    plan = shares(LINTERS, files(root))
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        waiting = [pool.submit(_lint, linter, paths, root, folder, cache) for linter, paths in plan]
        yield lambda: [future.result() for future in waiting]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _lint(linter: Linter, paths: list[str], root: Path, folder: Path, cache: Path) -> Verdict:
    argv = [*linter.argv, *(["--cache-dir", str(cache)] if linter.name == "mypy" else []), *paths]
    try:
        done = run.run(argv, timeout_s=_TIMEOUT_S, cwd=root, env=_environment(), check=False, echo=False)
    except ProgramFailed as error:
        (folder / f"{linter.name}.txt").write_text(f"{error}\n")
        return Verdict(linter.name, error=str(error))
    text = done.stdout + done.stderr
    (folder / f"{linter.name}.txt").write_text(text or "nothing was found\n")
    verdict = linter.judge(len(paths), done.returncode, text)
    if verdict.faults or verdict.error:
        print(f"  {linter.name} ({len(paths)} files):\n{text}", file=sys.stderr, flush=True)
    return verdict


def _environment() -> dict[str, str | None]:
    """No switches from outside, and the programs beside this Python where a linter calls another."""
    tuned: dict[str, str | None] = {name: None for name in os.environ if name.startswith(_TUNABLES)}
    return {**tuned, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _counted(pattern: str, text: str) -> int:
    """How many files a linter says that it looked at: the largest number that `pattern` holds, or its matches."""
    numbers = list(_matches(pattern, text))
    return max((int(number) for number in numbers if number.isdigit()), default=len(numbers))


def _matches(pattern: str, text: str) -> Iterator[str]:
    for match in re.finditer(pattern, text, re.MULTILINE):
        yield match[1] if match.re.groups else match[0]


def look_at_the_rest(root: Path) -> str:
    """Pins and YAML of the files that are not in check's key; takes well under a second.

    Returns one sentence. Raises GateRefused with each fault, ProgramFailed if nothing could be looked at.
    """
    from pipeline import pins

    heads = rest(root)
    (linter,) = (each for each in LINTERS if each.name == "yamllint")
    ((_, paths),) = shares([linter], heads)
    argv = [*linter.argv, *paths]
    done = run.run(argv, timeout_s=_TIMEOUT_S, cwd=root, env=_environment(), check=False, echo=False)
    verdict = linter.judge(len(paths), done.returncode, done.stdout + done.stderr)
    if verdict.error:
        raise ProgramFailed(f"{done.stdout}{done.stderr}{verdict.error}")
    faults = [*done.stdout.splitlines(), *pins.look(root, list(heads))]
    if faults:
        raise GateRefused("\n".join([*faults, f"{len(faults)} faults in documents and settings, see above."]))
    return f"Documents and settings: {len(heads)} files, nothing that could move, {len(paths)} of them sound YAML."


if __name__ == "__main__":
    try:
        print(look_at_the_rest(Path.cwd()), file=sys.stderr)
    except TidegateError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
