"""What tests of stage functions share: a context made by hand, and a stage run in a process of its own.

As a program: `support.py DOTTED.FUNCTION CONTEXT.json` calls the function and prints its Result as JSON.
"""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pipeline import config  # noqa: E402  the repository must be on the path first
from pipeline.bucket_file import disk_errors  # noqa: E402
from pipeline.errors import TidegateError  # noqa: E402
from pipeline.settings import Bound, Settings  # noqa: E402
from pipeline.stages import Context, Facts  # noqa: E402

FACTS = Facts(
    commit="0" * 40,
    source="https://git.example/team/digits",
    revision="0" * 40,
    dirty=False,
    ref="main",
    protected=False,
    merge_request=False,
    actor="tester",
    vendor="laptop",
)


def settings(changes: Mapping[str, object] | None = None) -> Settings:
    """The repository's settings, with `changes` by dotted name: {"train.epochs": 2}.

    Bounds may be given as {"at_least": 0.9}, and dictionaries of them as dictionaries of those.
    """
    made = config.load(ROOT / "tests" / "settings.yaml", {})
    for name, value in (changes or {}).items():
        made = _replace(made, name.split("."), _bounds(value))
    return made


def context(
    tmp_path: Path,
    inputs: Mapping[str, Path | str | None] | None = None,
    changes: Mapping[str, object] | None = None,
    **facts,
) -> Context:
    """A context as the runner makes it: empty `out` and lasting `work` and `state` below `tmp_path`."""
    for name in ("out", "work", "state"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    return Context(
        settings=settings(changes),
        facts=dataclasses.replace(FACTS, **facts),
        inputs={name: Path(path) if path else None for name, path in (inputs or {}).items()},
        out=tmp_path / "out",
        work=tmp_path / "work",
        state=tmp_path / "state",
        root=ROOT,
    )


def start_stage(
    function: str,
    tmp_path: Path,
    inputs: Mapping[str, Path | None] | None = None,
    changes: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    **facts,
) -> subprocess.Popen:
    """Starts a stage function in a process of its own; `finish_stage` waits for it."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    case = tmp_path / "case.json"
    named = {name: str(path) if path else None for name, path in (inputs or {}).items()}
    given = {"tmp_path": str(tmp_path), "inputs": named, "changes": dict(changes or {}), "facts": facts}
    case.write_text(json.dumps(given))
    return subprocess.Popen(
        [sys.executable, __file__, function, str(case)],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_stage(child: subprocess.Popen, timeout_s: float = 120) -> tuple[int, dict, str]:
    """Exit code, the result as a dictionary (empty if there is none), and what was said."""
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
    finally:
        child.kill()
    lines = stdout.strip().splitlines()
    return child.returncode, json.loads(lines[-1]) if lines else {}, stderr


def run_stage(function: str, tmp_path: Path, **named) -> tuple[int, dict, str]:
    """Runs a stage function in a process of its own, to its end. See `start_stage`."""
    return finish_stage(start_stage(function, tmp_path, **named))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _replace(section, names: list[str], value):
    if len(names) == 1:
        return dataclasses.replace(section, **{names[0]: value})
    return dataclasses.replace(section, **{names[0]: _replace(getattr(section, names[0]), names[1:], value)})


def _bounds(value):
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, Mapping):
        return value
    if set(value) & {"at_least", "at_most"}:
        return Bound(**value)
    return {name: _bounds(member) for name, member in value.items()}


def main(function: str, case: str) -> int:
    """Calls a stage function as the runner's child does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    module, _, name = function.rpartition(".")
    try:
        given = json.loads(Path(case).read_text())
        made = context(Path(given["tmp_path"]), given["inputs"], given["changes"], **given.get("facts", {}))
        with disk_errors(made.out):
            result = getattr(importlib.import_module(module), name)(made)
    except TidegateError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
