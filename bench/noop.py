"""How long a run with nothing to do takes, beside make's own start, and beside doit and dvc on the same files.

The pipeline walks once in a scratch clone. The peers get the same twelve stages in folders of their own: the
same files of the repository and outputs to depend on, the same outputs written (by copying ours), the same
parts of pipeline.yaml. Then all are run in turn, each with nothing to do. Beyond what the peers do, ours asks
whether staging, production and the registry still are as recorded. The peers are installed below build/bench/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bench import report
from bench.report import Command, Timing
from pipeline import config, key, record, run
from pipeline.errors import ProgramFailed
from pipeline.stages import STAGES
from pipeline.store import open_store

if TYPE_CHECKING:  # a clone has no tests/e2e, and its check must not stumble over this file
    from tests.e2e.conftest import Walk

PEERS = {"doit": "0.37.0", "dvc": "3.67.1"}
FIRST_PORT = 20700
_ENVIRONMENTS = Path("build/bench")
_WALK_TIMEOUT_S = 400
_INSTALL_TIMEOUT_S = 180
# What makes a run unlike that on a laptop. Without bytecode our modules would be compiled in each run, the peers' not.
_FOREIGN = ("CI", "GITLAB", "GITHUB", "TIDEGATE", "PYTHONDONTWRITEBYTECODE")

_DODO = """
import json
from doit.tools import config_changed

def task_pipeline():
    for step in json.load(open("steps.json")):
        yield {
            "basename": step["name"],
            "actions": [step["command"]],
            "file_dep": step["files"],
            "targets": step["targets"],
            "task_dep": step["gates"],
            "uptodate": [config_changed(step["settings"])],
        }
"""


@dataclass(frozen=True)
class Step:
    """A stage as a peer sees it: files, outputs of other stages and settings to depend on, and outputs."""

    name: str
    files: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    gates: tuple[str, ...]
    settings: dict

    @property
    def command(self) -> str:
        """Makes the outputs, which lie ready in made/."""
        copies = (f"mkdir -p out/{self.name} && cp -r made/{name} out/{name}" for name in self.outputs)
        return f"rm -rf out/{self.name} && {' && '.join(copies)}"


def scrub() -> None:
    """Forgets what this environment adds: a laptop's run is measured. Makes SIGTERM clean up, as Ctrl-C does."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def clone(first_port: int) -> Iterator[Walk]:
    """A scratch clone with ports of its own; whatever it started is stopped in the end, and the folder deleted."""
    from tests.e2e.conftest import make_walk

    with tempfile.TemporaryDirectory(prefix="bench-clone-") as folder:
        made = make_walk(Path(folder), first_port)
        try:
            yield made
        finally:
            pipeline(made, "down")


def pipeline(walk: Walk, *arguments: str) -> None:
    """Runs `python -m pipeline ARGUMENTS` in a clone. Raises ProgramFailed with all that it said."""
    argv = [*walk.command, *arguments]
    done = run.run(argv, cwd=walk.folder, timeout_s=_WALK_TIMEOUT_S, check=False, echo=False)
    if done.returncode != 0:
        raise ProgramFailed(f"in the scratch clone, `pipeline {' '.join(arguments)}` failed:\n{done.stderr}")


def records(folder: Path) -> dict[str, record.Record]:
    """What each stage of a clone left behind when it last ran."""
    store = open_store(config.load(folder / "pipeline.yaml").store, folder)
    newest = {stage.name: store.newest_record(stage.name) for stage in STAGES}
    return {name: record.read(store.fetch_bytes(sha256)) for name, sha256 in newest.items()}


def steps(folder: Path) -> list[Step]:
    """The stages of a clone that walked once, as a peer sees them."""
    made = records(folder)
    return [
        Step(
            stage.name,
            files=(*made[stage.name].key_parts["files"], key.LOCK),
            reads=tuple(name for name, tree in made[stage.name].key_parts["reads"].items() if tree),
            outputs=tuple(made[stage.name].outputs),
            gates=stage.gates,
            settings=dict(made[stage.name].key_parts["settings"]),
        )
        for stage in STAGES
    ]


def furnish(room: Path, clone_folder: Path, pipeline_steps: Sequence[Step]) -> None:
    """Puts into a peer's folder what its stages read, and in made/ what they are to write."""
    for name in {"pipeline.yaml"}.union(*(step.files for step in pipeline_steps)):
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clone_folder / name, room / name)
    for name in (name for step in pipeline_steps for name in step.outputs):
        shutil.copytree(clone_folder / "build" / name, room / "made" / name)


def doit(room: Path, pipeline_steps: Sequence[Step], program: Path) -> Command:
    """doit, which depends on files and not on folders: each file of an output is one."""

    def below(name: str) -> list[str]:
        files = (path for path in sorted((room / "made" / name).rglob("*")) if path.is_file())
        return [f"out/{path.relative_to(room / 'made')}" for path in files]

    told = [
        {
            "name": step.name,
            "command": step.command,
            "files": [*step.files, *(file for name in step.reads for file in below(name))],
            "targets": [file for name in step.outputs for file in below(name)],
            "gates": step.gates,
            "settings": step.settings,
        }
        for step in pipeline_steps
    ]
    (room / "steps.json").write_text(json.dumps(told))
    (room / "dodo.py").write_text(_DODO)
    return Command("doit", (str(program), "run"), room, says=rf"(-- \S+\n){{{len(told)}}}")


def dvc(room: Path, pipeline_steps: Sequence[Step], program: Path) -> Command:
    """dvc, without git and without its look for updates; gates are not in its language."""
    quiet = {
        f"DVC_{name}_DIR": str(room / ".own") for name in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG")
    }
    quiet["DVC_NO_ANALYTICS"] = "1"
    stages = {
        step.name: {
            "cmd": step.command,
            "deps": [*step.files, *(f"out/{name}" for name in step.reads)],
            "params": [{"pipeline.yaml": list(step.settings)}] if step.settings else [],
            "outs": [f"out/{name}" for name in step.outputs],
        }
        for step in pipeline_steps
    }
    (room / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    for arguments in (["init", "-q", "--no-scm"], ["config", "-q", "core.check_update", "false"]):
        run.run([str(program), *arguments], cwd=room, env=quiet, timeout_s=60, echo=False)
    return Command("dvc", (str(program), "repro"), room, says=".*up to date.*", env=quiet)


def installed(name: str) -> Path:
    """A peer's program, in an environment of its own. Raises ProgramFailed if pip cannot install it."""
    environment = (_ENVIRONMENTS / f"{name}-{PEERS[name]}").absolute()
    program = environment / "bin" / name
    if not program.exists():
        report.story(f"installing {name} {PEERS[name]} into {_ENVIRONMENTS} …")
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "-q", f"{name}=={PEERS[name]}"]
        try:
            run.run([sys.executable, "-m", "venv", "--clear", str(environment)], timeout_s=60, echo=False)
            run.run(pip, timeout_s=_INSTALL_TIMEOUT_S, echo=False)
        except BaseException:
            shutil.rmtree(environment, ignore_errors=True)
            raise
    return program


def peer(name: str, room: Path, walk: Walk) -> Command | Timing:
    """A peer that has run its stages once and has nothing to do; or the reason why there is none."""
    setup = {"doit": doit, "dvc": dvc}[name]
    try:
        program = installed(name)
        room.mkdir()
        pipeline_steps = steps(walk.folder)
        furnish(room, walk.folder, pipeline_steps)
        command = setup(room, pipeline_steps, program)
        run.run(command.argv, cwd=room, env=command.env, timeout_s=_INSTALL_TIMEOUT_S, echo=False)
    except ProgramFailed as error:
        return Timing(name, reason=str(error).splitlines()[-1])
    return command


def measure(repeat: int, peers: Sequence[str]) -> list[Timing]:
    """Floors, ours and the peers, in turn, in one run."""
    with clone(FIRST_PORT) as walk, tempfile.TemporaryDirectory(prefix="bench-peers-") as rooms:
        report.story("walking once, in a scratch clone …")
        pipeline(walk, "run", "--all")
        make = ("make", "-n", "ci-local", f"VENV={sys.prefix}")
        commands = [
            Command("python -c pass", (sys.executable, "-c", "pass"), walk.folder),
            Command("make -n", make, walk.folder, says=".*pipeline run --all.*"),
            Command("tidegate", (*walk.command, "run", "--all"), walk.folder, says=".*Nothing to do.*"),
        ]
        beside = [peer(name, Path(rooms) / name, walk) for name in peers]
        commands += [command for command in beside if isinstance(command, Command)]
        absent = [timing for timing in beside if isinstance(timing, Timing)]
        return [*report.in_turn(commands, repeat), *absent]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table: seconds of a run with nothing to do, and ratios."""
    parser = argparse.ArgumentParser(prog="python -m bench.noop", description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=10, help="counted runs of each; the median counts (10)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="which peers, none if empty (all)"
    )
    options = parser.parse_args(argv)
    scrub()
    machine = report.machine()
    found = measure(options.repeat, options.peers)
    report.show(
        f"12 stages, nothing to do ({options.repeat} runs each, in turn)",
        report.timings(found, ("python -c pass", "tidegate")),
        machine,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
