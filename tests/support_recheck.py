"""A small pipeline of two stages, data and train, whose stage functions do as the files of `state/knobs` say."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from pipeline import child, locked, runner, trees
from pipeline.execution import Paths, Work, now
from pipeline.runner import Runner
from pipeline.stages import BY_NAME, Context, Outcome, Result, Stage
from tests.support import FACTS, ROOT

DATA = Stage("data", "make rows", "tests.support_recheck.data", ("rows",), settings=("data",), same=("rows",))
TRAIN = Stage(
    "train",
    "make a model",
    "tests.support_recheck.train",
    ("model", "log"),
    reads=("data/rows",),
    settings=("train",),
    same=("model",),
    compare="train.weights.difference",
)
_CI = ("GITLAB_CI", "GITHUB_ACTIONS", "TIDEGATE_SIGNING_KEY", "TIDEGATE_TRAIN_EXECUTIONS", "TIDEGATE_STATE")


def data(context: Context) -> Result:
    """Writes the seed and the revision; with the knob `clock` the time, with `fail` nothing."""
    if _knob(context.state, "fail"):
        return Result(Outcome.FAILED, "the rows are bad.")
    folder = context.out / "rows"
    folder.mkdir()
    (folder / "seed.txt").write_text(f"{context.settings.data.seed} {context.facts.revision}")
    (folder / "clock.txt").write_text(str(time.time_ns()) if _knob(context.state, "clock") else "noon")
    return Result(Outcome.PASSED, "made rows.")


def train(context: Context) -> Result:
    """Writes weights of one more than the knob `drift` times how often it was executed; logs what it found in `work`.

    What it leaves in `work`, as a checkpoint, would change the weights of who finds it.
    """
    executions = context.state / "executions"
    count = int(executions.read_text()) + 1 if executions.exists() else 1
    executions.write_text(str(count))
    found = sorted(path.name for path in context.work.iterdir())
    (context.work / f"checkpoint-{count}").write_text("weights")
    for name in ("model", "log"):
        (context.out / name).mkdir()
    (context.out / "log" / "log.json").write_text(json.dumps({"execution": count, "found": found}))
    (context.out / "model" / "architecture.json").write_text("{}")
    drift = float(_knob(context.state, "drift") or 0)
    np.savez(context.out / "model" / "weights.npz", w=np.array([1.0 + drift * count + len(found)]))
    return Result(Outcome.PASSED, "made a model.", numbers={"loss": 0.5})


def turn(state: Path, knob: str, value: str = "on") -> None:
    """Sets a knob."""
    (state / "knobs").mkdir(parents=True, exist_ok=True)
    (state / "knobs" / knob).write_text(value)


def _knob(state: Path, name: str) -> str:
    path = state / "knobs" / name
    return path.read_text() if path.exists() else ""


class House:
    """A folder with a settings file and a store, and runners that see it."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, root: Path | None):
        self._patch = patch
        self.root = root or folder
        self.paths = Paths(self.root, folder / "pipeline.yaml", folder / "build", folder / ".tidegate")
        self.store = folder / "store"
        text = (ROOT / "tests" / "settings.yaml").read_text()
        self.paths.settings.write_text(text)
        self.edit("store: ${TIDEGATE_STORE:-file:.tidegate/store}", f"store: file:{self.store}")
        if self.root == folder:
            self.site = folder / "site-packages"
            patch.setattr(locked, "site_packages", lambda: self.site)
            self.lock("2.0.0")

    def edit(self, old: str, new: str) -> None:
        text = self.paths.settings.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the settings"
        self.paths.settings.write_text(text.replace(old, new))

    def lock(self, version: str) -> None:
        """Locks this version of NumPy, and installs it."""
        shutil.rmtree(self.site, ignore_errors=True)
        (self.site / f"numpy-{version}.dist-info").mkdir(parents=True)
        (self.root / "requirements.txt").write_text(f"numpy=={version}\n")

    def put(self, *stages: Stage) -> None:
        """Puts stages into the table, in the place of those of the same name."""
        for stage in stages:
            self._patch.setitem(BY_NAME, stage.name, stage)
        self._patch.setattr(runner, "STAGES", tuple(BY_NAME.values()))

    def runner(self, **options) -> Runner:
        """A runner for the settings as they are now."""
        return Runner.open(self.paths, **options)

    def walk(self, *names: str) -> Runner:
        """Runs these stages; returns the runner, with their records in `done`."""
        made = self.runner()
        made.walk(names)
        return made

    def records(self) -> list[str]:
        """The name of every record in the store."""
        return sorted(str(path) for path in (self.store / "records").rglob("*-*") if path.is_file())

    def blob(self, sha256: str) -> Path:
        return self.store / "blobs" / "sha256" / sha256[:2] / sha256

    def forge(self, stage: Stage, files: dict[str, dict[str, bytes]]) -> str:
        """Signs a record, with this machine's own key, of outputs that the stage never gave; returns its sha256."""
        maker = self.runner()
        for name in stage.producers:
            maker.done[name] = maker.plan(BY_NAME[name]).hit
        plan = maker.plan(stage)
        outputs = {}
        for output, content in files.items():
            folder = self.paths.build / "forged" / output
            folder.mkdir(parents=True)
            for name, data in content.items():
                (folder / name).write_bytes(data)
            outputs[f"{stage.name}/{output}"] = trees.keep(folder, maker.store, maker.digests)
        work = Work(stage, plan.key, plan.parts, {}, plan.hit.needs)
        result = Result(Outcome.PASSED, "honestly.")
        return maker.executor.record(work, result, {**plan.hit.outputs, **outputs}, now(), 1.0).sha256


@contextmanager
def house_of(folder: Path, *stages: Stage, root: Path | None = None) -> Iterator[House]:
    """A house on a laptop whose table has these stages in the place of those of the same name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _CI:
            patch.delenv(name, raising=False)
        patch.setattr("pipeline.ci.facts", lambda root: FACTS)
        house = House(patch, folder, root)
        house.put(*stages)
        yield house


def attend_here(argv: list[str], **_) -> int:
    """In the place of `run.attend`: does in this process what the stage's own process does."""
    task_path = Path(argv[-1])
    task = json.loads(task_path.read_text())
    result = child.function(task["function"])(child._context(task))
    child.result_path(task_path).write_text(json.dumps({"result": asdict(result)}))
    return 0
