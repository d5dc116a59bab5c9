"""The table of stages, and what a stage is: a function of a context that returns a result."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline import offers
from pipeline.settings import Bound, Settings


class Inputs(Protocol):
    """The folders of a stage's inputs by name. One that may be absent is asked for with `get`."""

    def __getitem__(self, name: str, /) -> Path:
        """The folder of an output that the stage cannot do without."""

    def get(self, name: str, /) -> Path | None:
        """The folder, or None where there is none."""


class Outcome(enum.StrEnum):
    """How a stage ended. Only *passed* opens a gate."""

    PASSED = "passed"
    FAILED = "failed"
    NO_DATA = "no data"
    ERROR = "error"


@dataclass(frozen=True)
class Decided:
    """The number that decided, and the bound that it was held against."""

    name: str
    number: float
    bound: Bound | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.number:g}"


@dataclass(frozen=True)
class Result:
    """What a stage says of its work.

    `numbers` go into the record and the metrics report; `decided` and `digest` into the
    closing table; `digest` names what the stage made (`sha256:…`) where it has a name of
    its own, as an image has. `warnings` are repeated loudly at the end. `predicate` holds members of the
    record's predicate that only the stage knows.
    """

    outcome: Outcome
    sentence: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    decided: Decided | None = None
    digest: str = ""
    warnings: tuple[str, ...] = ()
    predicate: Mapping = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What is known of this run that no input tells: who runs it, where, on which commit.

    A stage may note these or refuse because of them (`protected`), and never lets them
    change the bytes that it makes.
    """

    commit: str = ""
    source: str = ""
    revision: str = ""
    dirty: bool = False
    ref: str = ""
    protected: bool = False
    merge_request: bool = False
    actor: str = ""
    author: str = ""
    invocation: str = ""
    vendor: str = "laptop"
    approving: bool = False
    highest_version: int = 0


@dataclass(frozen=True)
class Context:
    """All that a stage may read, and where it writes.

    `inputs` maps an output's name, as `data/rows`, to its folder; an optional one that
    is not there is None. The stage writes each of its outputs to `out / NAME`, where
    `out` is an empty folder. `work` outlasts a run that was killed: checkpoints go there;
    it belongs to this key alone, and is removed when the stage passes. `state` is the
    folder that lasts on this machine (`.tidegate/`), `root` the repository.
    """

    settings: Settings
    facts: Facts
    inputs: Inputs
    out: Path
    work: Path
    state: Path
    root: Path

    def say(self, text: str) -> None:
        """Tells the person who watches how the work goes (stderr)."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def checkpoint(self, files: Iterable[Path], step: int, epoch: int, seconds: float) -> None:
        """Offers files below `work` as the newest checkpoint, after so many steps and epochs, and seconds in all.

        With `Stage.resumes` the runner puts it into the store in the background; where this stage was not finished,
        `work` begins as the newest one. Raises OSError where the disk will not have it; `work` is still whole then.
        """
        offers.offer(self.work, files, offers.Progress(step, epoch, seconds))

    @property
    def progress(self) -> offers.Progress:
        """How far the newest checkpoint in `work` is, as `checkpoint` said; at the beginning where there is none."""
        return offers.progress(self.work)


CHAMPION = "?champion/savedmodel"
CHAMPION_REPORT = "?champion/report"
"""Read by stages that compare with what production serves: its SavedModel, and what its scan found. Absent while
nothing was ever promoted."""
OF_CHAMPION = (CHAMPION, CHAMPION_REPORT)

Function = Callable[[Context], Result]


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    `function` is the dotted name of what the runner calls. `reads` are outputs of other stages; those
    OF_CHAMPION may be absent. `gates` are stages that must have passed before, whose outputs are not read. `settings`
    are the parts of pipeline.yaml that the stage reads, `files` what it reads of the repository beside
    the import closure of its function (`settings:NAME` is the file that a setting names); both are in its
    key, as is the kind of accelerator with `hardware`.
    `same` are the outputs that the same inputs give byte for byte (no times in them, nothing that runs behind
    them), so that the stage can be executed again and compared; `compare` is the dotted name of a function of two
    folders of such an output that says how far apart their numbers are (inf: it cannot be said).
    `alive` is the dotted name of a function that says why a passed stage no longer holds (None: it does),
    for stages whose result is a running server. `attaches` names the stages whose records are attached to the image
    in the registry once this one passed. `resumes` says that it offers checkpoints, which outlast this machine, and
    that it may take a while to write one when it is stopped. `channel` is what it feeds once it passed; `deploys` says
    that it starts or switches versions. The rest is for CI: who may run it, and where.
    """

    name: str
    does: str
    function: str
    outputs: tuple[str, ...]
    reads: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    alive: str = ""
    same: tuple[str, ...] = ()
    compare: str = ""
    hardware: bool = False
    predicate: str = "https://slsa.dev/provenance/v1"
    protected: bool = False
    runner: str = "cpu"
    environment: str = ""
    manual: bool = False
    channel: str = ""
    deploys: bool = False
    attaches: tuple[str, ...] = ()
    resumes: bool = False

    @property
    def producers(self) -> tuple[str, ...]:
        """The stages whose outputs it reads."""
        named = {read.split("/")[0] for read in self.reads if read not in OF_CHAMPION}
        return tuple(stage.name for stage in STAGES if stage.name in named)

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that come before, each once, in the table's order."""
        before = {*self.producers, *self.gates}
        return tuple(stage.name for stage in STAGES if stage.name in before)


_TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
_CODE = (
    "pipeline",
    "train",
    "deploy",
    "serve",
    "bench",
    "tests",
    "scripts",
    "docker",
    ".ci",
    ".github",
    ".gitlab-ci.yml",
    ".hadolint.yaml",
    ".yamllint.yaml",
    "Makefile",
    "pyproject.toml",
    "requirements-override.txt",
    "requirements.in",
    "requirements.txt",
)

STAGES: tuple[Stage, ...] = (
    Stage(
        "check",
        "lint, types, pins, unit tests, coverage",
        "pipeline.check.check",
        outputs=("report",),
        files=_CODE,
        settings=("check",),
        predicate=_TEST_RESULT,
    ),
    Stage(
        "data",
        "fetch, pin, check and split the data",
        "train.data.data",
        outputs=("rows",),
        same=("rows",),
        settings=("data",),
    ),
    Stage(
        "train",
        "fit the model under MirroredStrategy",
        "train.fit.train",
        outputs=("model", "log"),
        same=("model",),
        compare="train.weights.difference",
        reads=("data/rows",),
        gates=("check",),
        settings=("model", "train", "data.classes", "data.row_shape", "data.value_range"),
        hardware=True,
        protected=True,
        runner="gpu",
        resumes=True,
    ),
    Stage(
        "evaluate",
        "measure on held-out rows, against the gates and the champion",
        "train.evaluate.evaluate",
        outputs=("metrics", "predictions"),
        same=("metrics", "predictions"),
        reads=("train/model", "data/rows", CHAMPION),
        settings=("evaluate", "data.classes"),
        predicate=_TEST_RESULT,
    ),
    Stage(
        "export",
        "write the SavedModel, with preprocessing and warm-up requests",
        "train.export.export",
        outputs=("savedmodel",),
        same=("savedmodel",),
        reads=("train/model", "data/rows", CHAMPION),
        gates=("evaluate",),
        settings=("model", "export", "data.row_shape", "data.value_range"),
    ),
    Stage(
        "image",
        "add the model's layers to the base image",
        "deploy.image.image",
        outputs=("layout",),
        same=("layout",),
        reads=("export/savedmodel",),
        settings=("model", "image"),
        protected=True,
    ),
    Stage(
        "scan",
        "judge vulnerabilities, secrets, misconfiguration and licences",
        "deploy.scan.scan",
        outputs=("report",),
        reads=("image/layout", CHAMPION_REPORT),
        settings=("scan",),
        files=("settings:scan.ignore_file", *_CODE),
        alive="deploy.scan.outdated",
        predicate="https://in-toto.io/attestation/vulns/v0.2",
        protected=True,
    ),
    Stage(
        "publish",
        "push the image to the registry, by digest",
        "deploy.publish.publish",
        outputs=("published",),
        reads=("image/layout",),
        gates=("scan",),
        settings=("model", "publish"),
        alive="deploy.publish.missing",
        attaches=("image", "scan", "publish"),
        protected=True,
    ),
    Stage(
        "staging",
        "start the published digest and question it",
        "deploy.smoke.staging",
        outputs=("evidence",),
        reads=("publish/published", "evaluate/predictions", "data/rows"),
        settings=("model", "target", "staging", "publish"),
        files=("serve",),
        alive="deploy.standing.not_in_staging",
        predicate=_TEST_RESULT,
        protected=True,
        environment="staging",
        channel="staging",
        deploys=True,
    ),
    Stage(
        "approve",
        "a person lets this digest in",
        "pipeline.approval.approve",
        outputs=("approval",),
        reads=("publish/published", CHAMPION),
        gates=("staging",),
        alive="pipeline.approval.withdrawn",
        predicate="https://tidegate.dev/approval/v1",
        protected=True,
        environment="production",
        manual=True,
    ),
    Stage(
        "canary",
        "move traffic step by step, and judge",
        "deploy.rollout.canary",
        outputs=("evidence",),
        reads=("approve/approval", "publish/published", "data/rows", CHAMPION),
        settings=("model", "target", "canary", "production", "publish"),
        files=("serve",),
        predicate="https://tidegate.dev/canary/v1",
        protected=True,
        environment="production",
        deploys=True,
    ),
    Stage(
        "promote",
        "give all traffic to the version that was judged",
        "deploy.rollout.promote",
        outputs=("evidence",),
        reads=("canary/evidence", "publish/published", "approve/approval"),
        gates=("check", "evaluate", "scan", "staging"),
        settings=("model", "target", "production", "publish"),
        alive="deploy.standing.not_in_production",
        attaches=("staging", "approve", "canary", "promote"),
        predicate="https://tidegate.dev/promotion/v1",
        protected=True,
        environment="production",
        channel="production",
        deploys=True,
    ),
)

BY_NAME: Mapping[str, Stage] = {stage.name: stage for stage in STAGES}

# Not in the walk: a person calls it, and it reads production's history instead of the stages before.
ROLLBACK = Stage(
    "rollback",
    "put the version before back into production",
    "deploy.rollout.rollback",
    outputs=("evidence",),
    settings=("model", "target", "production", "publish"),
    predicate="https://tidegate.dev/promotion/v1",
    protected=True,
    environment="production",
    manual=True,
    channel="production",
    deploys=True,
)

# A person puts a published version into production without the evidence that is usually demanded, in writing.
BREAK_GLASS = Stage(
    "break-glass",
    "put a published version into production without the usual evidence",
    "deploy.rollout.rollback",
    outputs=("evidence",),
    reads=("publish/published",),
    settings=("model", "target", "production", "publish"),
    predicate="https://tidegate.dev/break-glass/v1",
    protected=True,
    environment="production",
    manual=True,
    channel="production",
    deploys=True,
)

# A person says what became of a break-glass. It runs nothing.
FOLLOW_UP = Stage(
    "follow-up",
    "say what became of a break-glass",
    "",
    outputs=(),
    predicate="https://tidegate.dev/follow-up/v1",
    manual=True,
)

ALL: Mapping[str, Stage] = {**BY_NAME, **{stage.name: stage for stage in (ROLLBACK, BREAK_GLASS, FOLLOW_UP)}}
