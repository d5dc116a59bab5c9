"""How much time the pipeline adds around a stage, and how much of a whole walk is not spent in stages.

Around a stage: its function called directly in a fresh Python process, with the same context, against
`python -m pipeline run --force STAGE STAGE`, which computes keys, starts the stage's process, keeps its outputs
in the store and signs a record. Of a walk: the clone's `pipeline/child.py` is changed to note how long each
function took, the imports of its module included; the records say how long its process and the storing took.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from bench import report
from bench.noop import clone, pipeline, records, scrub
from bench.report import Command
from pipeline.execution import Paths
from pipeline.stages import BY_NAME

if TYPE_CHECKING:  # a clone has no tests/e2e, and its check must not stumble over this file
    from tests.e2e.conftest import Walk

FIRST_PORT = 20710
# Stages that can be run again and again: they neither deploy nor take long.
REPEATABLE = ("data", "image", "publish")

# What a person would write who has only the function: the context that the runner gave, and the call.
_DIRECTLY = """
import json, shutil, sys
from pathlib import Path
from {module} import {function}
from pipeline import config
from pipeline.stages import Context, Facts
task = json.loads(Path(sys.argv[1]).read_bytes())
out, work = Path(sys.argv[2], "out"), Path(sys.argv[2], "work")
shutil.rmtree(sys.argv[2], ignore_errors=True)
out.mkdir(parents=True), work.mkdir()
inputs = {{name: path and Path(path) for name, path in task["inputs"].items()}}
settings, facts = config.load(Path(task["settings"])), Facts(**task["facts"])
context = Context(settings, facts, inputs, out, work, Path(task["state"]), Path(task["root"]))
assert {function}(context).outcome == "passed"
"""

_CALL = 'result = function(task["function"])(context)'
_CLOCKED_CALL = """import time

            begun = time.perf_counter()
            result = function(task["function"])(context)
            task_path.with_suffix(".clock").write_text(str(time.perf_counter() - begun))"""


def directly(walk: Walk, stage: str) -> Command:
    """The stage's function in a fresh process, with the context of the walk before."""
    module, _, function = BY_NAME[stage].function.rpartition(".")
    program = _DIRECTLY.format(module=module, function=function)
    task, folder = _tasks(walk.folder) / f"{stage}.json", walk.folder / "build/.direct"
    argv = (sys.executable, "-c", program, str(task), str(folder))
    return Command(f"{stage}: function alone", argv, walk.folder, env={"PYTHONHASHSEED": "0"})


def through_pipeline(walk: Walk, stage: str) -> Command:
    """The stage as a person runs it again."""
    argv = (*walk.command, "run", "--force", stage, stage)
    says = rf".*{stage}\s+passed.*"
    return Command(f"{stage}: pipeline run", argv, walk.folder, says=says)


def around(walk: Walk, stages: Sequence[str], repeat: int) -> str:
    """A table for each stage: its function alone, through the pipeline, and what that adds."""
    made = {stage: (directly(walk, stage), through_pipeline(walk, stage)) for stage in stages}
    floor = Command("python -c pass", (sys.executable, "-c", "pass"), walk.folder)
    found = iter(report.in_turn([floor, *chain.from_iterable(made.values())], repeat))
    floor_timing, texts = next(found), []
    for stage in stages:
        alone, whole = next(found), next(found)
        added = (whole.median - alone.median) * 1000
        least = (min(whole.seconds) - min(alone.seconds)) * 1000
        texts.append(report.timings([floor_timing, alone, whole], (alone.name,)))
        texts.append(
            f"The pipeline adds {added:.0f} ms to {stage} (fastest against fastest: {least:.0f} ms).\n"
        )
    return "\n".join(texts)


def whole_walk(walk: Walk) -> str:
    """Walks for the first time; the table of where the time went."""
    walk.edit("pipeline/child.py", _CALL, _CLOCKED_CALL)
    begun = time.perf_counter()
    pipeline(walk, "run", "--all")
    wall = time.perf_counter() - begun
    functions = {name: float((_tasks(walk.folder) / f"{name}.clock").read_text()) for name in BY_NAME}
    recorded = {name: made.seconds for name, made in records(walk.folder).items()}
    walk.edit("pipeline/child.py", _CLOCKED_CALL, _CALL)
    return _shares(functions, recorded, wall)


def _shares(functions: Mapping[str, float], recorded: Mapping[str, float], wall: float) -> str:
    """Per stage, then of the whole walk: seconds in the function, in the record, and the rest."""
    inside, told = sum(functions.values()), sum(recorded.values())
    rows = [["stage", "function s", "recorded s", "around it s"]]
    for name, seconds in functions.items():
        rows.append([name, f"{seconds:.2f}", f"{recorded[name]:.2f}", f"{recorded[name] - seconds:.2f}"])
    rows.append(["all", f"{inside:.2f}", f"{told:.2f}", f"{told - inside:.2f}"])
    rows.append(["runner", "", "", f"{wall - told:.2f}"])
    sentence = (
        f"Of {wall:.2f} s of wall time, stage functions and the imports of their modules took {inside / wall:.1%}; "
        f"starting and ending their processes, and storing outputs, {(told - inside) / wall:.1%}; "
        f"the runner itself (keys, git, policy, signing, channels, the report) {(wall - told) / wall:.1%}."
    )
    return f"{report.table(rows)}\n{sentence}\n"


def _tasks(folder: Path) -> Path:
    """Where the runner leaves what it told each stage."""
    return Paths.of(folder, folder / "pipeline.yaml").build / ".work"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints two tables: what is added around a stage, and where the time of a whole walk goes."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="counted runs of each; the median counts (10)")
    parser.add_argument(
        "--stages", nargs="+", choices=REPEATABLE, default=["data", "image"], help="around which (data image)"
    )
    options = parser.parse_args(argv)
    scrub()
    machine = report.machine()
    with clone(FIRST_PORT) as walk:
        report.story("walking once, in a scratch clone …")
        shares = whole_walk(walk)
        added = around(walk, options.stages, options.repeat)
    report.show(
        f"What the pipeline adds around a stage ({options.repeat} runs each, in turn)", added, machine
    )
    report.show("Where the time of a first walk goes (one walk; its check runs a single unit test)", shares)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
