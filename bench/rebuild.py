"""How long the training image takes to build when only code changed, as a share of a build without any cache.

`python -m bench.rebuild --base NAME@sha256:…` builds docker/train.Dockerfile with BuildKit; without --base on the
tests' stand-in for TensorFlow's image (made first, not counted). The clean build downloads and installs the whole lock.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report
from bench.report import Timing
from pipeline import run

if TYPE_CHECKING:
    from tests import support_engine

_TIMEOUT_S = 1800
_TITLE = "Rebuilding the training image"
_TAG = "tidegate-bench-rebuild"


class Builder:
    """Builds a copy of the repository, again and again, into one tag."""

    def __init__(self, engine: support_engine, base: str, tree: Path):
        self.engine, self.base, self.tree = engine, base, tree

    def seconds(self, *options: str) -> float:
        """How long a build takes. Raises ProgramFailed if it fails."""
        arguments = ["--file", str(self.tree / "docker/train.Dockerfile"), "--build-arg", f"BASE={self.base}"]
        argv = self.engine.build_command(*options, *arguments, "--tag", _TAG, context=self.tree)
        begun = time.perf_counter()
        run.run(argv, timeout_s=_TIMEOUT_S, env={"DOCKER_BUILDKIT": "1"}, echo=False)
        return time.perf_counter() - begun

    def change(self, name: str) -> None:
        """Changes a file as nobody did before."""
        with (self.tree / name).open("a") as file:
            file.write(f"\n# {uuid.uuid4().hex}\n")

    def rebuild(self, name: str) -> float:
        """How long a build takes after a change of one file."""
        self.change(name)
        return self.seconds()


def measure(builder: Builder, repeat: int) -> list[Timing]:
    """The clean build once, then a change of a module and of a guide in turn."""
    report.story("clean build …")
    clean = builder.seconds("--no-cache")
    steps: dict[str, Callable[[], float]] = {
        "after a change of train/model.py": lambda: builder.rebuild("train/model.py"),
        "after a change of docs/operate.md": lambda: builder.rebuild("docs/operate.md"),
    }
    rounds = []
    for number in range(repeat):
        report.story(f"round {number + 1} of {repeat}")
        rounds.append([step() for step in steps.values()])
    columns = zip(*rounds, strict=True)
    rebuilt = [Timing(name, tuple(column)) for name, column in zip(steps, columns, strict=True)]
    return [Timing("clean build", (clean,)), *rebuilt]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of one clean build and of rebuilds; without an engine, what is missing."""
    options = _parser().parse_args(argv)
    from tests import support_engine

    if lacks := support_engine.engine_lacks():
        report.show(_TITLE, report.timings([Timing("clean build", reason=lacks)], []))
        return 0
    base = options.base or support_engine.stand_in_base()
    machine = report.machine()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(".", tree, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "__pycache__"))
        shutil.copy(".dockerignore", tree)
        try:
            timings = measure(Builder(support_engine, base, tree), options.repeat)
        finally:
            run.run(["docker", "rmi", "--force", _TAG], timeout_s=_TIMEOUT_S, check=False, echo=False)
    saved = [f"{t.name}: saves {100 * (1 - t.median / timings[0].median):.1f} %\n" for t in timings[1:]]
    report.show(_TITLE, machine, report.timings(timings, ["clean build"]), *saved)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="", help="the base image (the tests' stand-in)")
    parser.add_argument("--repeat", type=int, default=5, help="how many rebuilds of each kind (%(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
