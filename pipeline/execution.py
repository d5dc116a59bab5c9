"""Runs one stage: a process of its own, its outputs into the store, a signed record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pipeline import locked, record, reproduce, run, trees
from pipeline.checkpoints import Shelf
from pipeline.child import result_path
from pipeline.digest import Digests
from pipeline.errors import ProgramFailed, SettingsError, TidegateError
from pipeline.keeper import Keeper
from pipeline.keys import APPROVAL_VARIABLE, KEY_VARIABLE, Signer
from pipeline.locked import LOCK
from pipeline.record import Record
from pipeline.settings import Bound, Settings
from pipeline.stages import Decided, Facts, Outcome, Result, Stage
from pipeline.store import Store

_DAY_S = 86_400.0
# A stage that writes a checkpoint when it is stopped; those who take a machine away give 30 to 120 s of notice.
_CHECKPOINT_GRACE_S = 100.0
# A stage that keeps its limit itself says more than that it was late; its own last words take this long.
_MARGIN_S = 10.0
_BUG = 1


@dataclass(frozen=True)
class Paths:
    """Where things lie: the repository, its settings file, this run's outputs, and what lasts on this machine."""

    root: Path
    settings: Path
    build: Path
    state: Path

    @classmethod
    def of(cls, root: Path, settings: Path) -> Paths:
        if not (root / LOCK).is_file():
            raise SettingsError(
                f"{root} has no {LOCK}: this is not the repository's root. Run the command there."
            )
        # Empty is unset, as CI has a variable that nobody filled.
        state = root / (os.environ.get("TIDEGATE_STATE") or ".tidegate")
        if state.resolve() == root.resolve():
            raise SettingsError(
                f"TIDEGATE_STATE: {state} is the repository itself, and keys would lie among its files. Name a folder "
                "of its own."
            )
        if state.exists() and not state.is_dir():
            raise SettingsError(f"TIDEGATE_STATE: {state} is not a folder")
        return cls(root, settings, root / "build", state)


@dataclass(frozen=True)
class Work:
    """A stage to be run: the key that its record will have, and the folders that it reads.

    `needs` names the records before it; `enters` and `reason` go into its own as they are.
    """

    stage: Stage
    key: str
    key_parts: Mapping
    inputs: Mapping[str, Path | None]
    needs: Mapping[str, str]
    enters: Mapping = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class Executor:
    """Runs stages, given everything that a stage itself must not know.

    `shelf` holds the checkpoints of stages that were not finished; None where none may be kept or taken.
    """

    settings: Settings
    paths: Paths
    store: Store
    digests: Digests
    signer: Signer
    facts: Facts
    shelf: Shelf | None = None

    def execute(self, work: Work) -> Record:
        """Runs a stage and records it; its outputs lie in build/STAGE and in the store.

        A stage that failed is recorded too, with what evidence it wrote. One that raised is not: it came to
        no result. Raises that error again.
        """
        started, clock = now(), time.monotonic()
        out = self.paths.build / ".work" / work.stage.name
        lasting = self.paths.state / "work" / f"{work.stage.name}-{work.key[:16]}"
        result, reproducible = self._settled(work, out, lasting)
        outputs = self._keep(work.stage, out, result)
        made = self.record(work, result, outputs, started, time.monotonic() - clock, reproducible)
        if result.outcome != Outcome.NO_DATA:
            self._forget(work, lasting)
        place = self.paths.build / work.stage.name
        shutil.rmtree(place, ignore_errors=True)
        out.replace(place)
        return made

    def _settled(self, work: Work, out: Path, lasting: Path) -> tuple[Result, str]:
        """The stage's result, and how well it was reproduced ("" where it was executed once).

        What outlasts a kill lies in `.tidegate/work` by key, for each execution its own; the first one's in the store,
        too.
        """
        own = getattr(self.settings, work.stage.name, None)
        twice = getattr(own, "executions", 1) > 1
        result, reached = self._resuming(work, out, lasting, twice), ""
        if result.outcome == Outcome.PASSED and twice:
            result, reached = self._again(work, out, result, _second(lasting))
        return result, reached

    def _resuming(self, work: Work, out: Path, lasting: Path, twice: bool) -> Result:
        """Runs a stage; one that resumes from the newest checkpoint in the store, where it leaves its own."""
        if self.shelf is None or not work.stage.resumes:
            return self.call(work, out, lasting)
        refused = self.shelf.bring(work.stage.name, work.key, lasting)
        for text in refused:
            print(f"  ! {text}", file=sys.stderr, flush=True)
        keeper, more = Keeper(self.shelf, work.stage.name, work.key, lasting), True
        keeper.start()
        try:
            result = self.call(work, out, lasting)
            more = result.outcome != Outcome.PASSED or twice
        finally:
            keeper.close(last=more)
        return dataclasses.replace(result, warnings=(*result.warnings, *refused, *keeper.warnings))

    def _forget(self, work: Work, lasting: Path) -> None:
        """Removes what a finished stage would go on from: checkpoints of two executions that differ would make them
        differ for ever. Not before its outputs are in the store."""
        for folder in (lasting, _second(lasting)):
            shutil.rmtree(folder, ignore_errors=True)
        if self.shelf and work.stage.resumes:
            try:
                self.shelf.clear(work.stage.name, work.key)
            except TidegateError as error:
                text = (
                    f"! checkpoints of {work.stage.name} stay in the store until `gc` removes them: {error}"
                )
                print(f"  {text}", file=sys.stderr, flush=True)

    def _again(self, work: Work, out: Path, first: Result, lasting: Path) -> tuple[Result, str]:
        """Executes a stage that passed a second time: what both come to, and the class of reproducibility reached."""
        print("  once more, to see whether it gives the same:", file=sys.stderr, flush=True)
        other = out.with_name(f"{out.name}-again")
        second = self.call(work, other, lasting)
        if second.outcome == Outcome.NO_DATA:  # it was not finished, which tells nothing of the first
            return second, ""
        alike = reproduce.compare(work.stage, out, other)
        shutil.rmtree(other, ignore_errors=True)
        tolerance = getattr(self.settings, work.stage.name).tolerance
        return reproduce.judge(work.stage.name, first, second, alike, tolerance)

    def call(self, work: Work, out: Path, lasting: Path) -> Result:
        """Runs a stage in a process of its own: task in, result out. Records nothing.

        It writes to `out`, which is emptied before, and may leave in `lasting` what helps it after a kill. Raises
        ProgramFailed where the environment is not the lock's, before or after: `make` elsewhere may have changed it.
        """
        lock = (self.paths.root / LOCK).read_text()
        demand_environment(work.stage, lock)
        task_path = out.with_name(f"{out.name}.json")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        lasting.mkdir(parents=True, exist_ok=True)
        result_path(task_path).unlink(missing_ok=True)
        task_path.write_text(json.dumps(self._task(work, out, lasting)))
        name = work.stage.name
        limit_s = getattr(getattr(self.settings, name, None), "timeout_s", _DAY_S)
        try:
            status = run.attend(
                [sys.executable, "-m", "pipeline.child", str(task_path)],
                timeout_s=limit_s + _MARGIN_S,
                late=f"{name} did not end within {limit_s:g} s and was stopped; "
                f"if it needs longer, raise {name}.timeout_s.",
                cwd=self.paths.root,
                # A stage never signs, and so never has a key: it runs a team's own code, and loads others' models.
                # Nor has it packages from elsewhere than the environment that its record names.
                env={"PYTHONHASHSEED": "0", "PYTHONPATH": None, "PYTHONNOUSERSITE": "1"}
                | {KEY_VARIABLE: None, APPROVAL_VARIABLE: None},
                grace_s=_CHECKPOINT_GRACE_S if work.stage.resumes else None,
            )
        except (KeyboardInterrupt, ProgramFailed):  # stopped, or out of time
            _tell_last_words(task_path)
            raise
        demand_environment(work.stage, lock)
        return _answer(work.stage, status, task_path)

    def _task(self, work: Work, out: Path, lasting: Path) -> dict:
        return {
            "function": work.stage.function,
            "settings": str(self.paths.settings),
            "smoke": self.facts.merge_request,
            "facts": dataclasses.asdict(self.facts),
            "inputs": {name: str(path) if path else None for name, path in work.inputs.items()},
            "out": str(out),
            "work": str(lasting),
            "state": str(self.paths.state),
            "root": str(self.paths.root),
            "parent": os.getpid(),
        }

    def _keep(self, stage: Stage, out: Path, result: Result) -> dict[str, str]:
        """Puts a stage's outputs into the store; their tree digests by name. One that passed wrote them all."""
        written = [name for name in stage.outputs if (out / name).is_dir()]
        if result.outcome == Outcome.PASSED and len(written) < len(stage.outputs):
            missing = set(stage.outputs) - set(written)
            raise RuntimeError(f"{stage.function} passed, and did not write {', '.join(sorted(missing))}")
        return {f"{stage.name}/{name}": trees.keep(out / name, self.store, self.digests) for name in written}

    def record(
        self,
        work: Work,
        result: Result,
        outputs: Mapping[str, str],
        started: str,
        seconds: float,
        reproducible: str = "",
    ) -> Record:
        """Signs a record and keeps it."""
        made = Record(
            stage=work.stage.name,
            key=work.key,
            key_parts=work.key_parts,
            outcome=str(result.outcome),
            sentence=result.sentence,
            outputs=outputs,
            needs=work.needs,
            numbers=dict(result.numbers),
            decided=dataclasses.asdict(result.decided) if result.decided else None,
            digest=result.digest,
            warnings=result.warnings,
            seconds=round(seconds, 3),
            started=started,
            finished=now(),
            facts=dataclasses.asdict(self.facts),
            enters=work.enters,
            reason=work.reason,
            reproducible=reproducible,
        )
        statement = record.statement(made, work.stage.predicate, result.predicate)
        envelope = record.sign(statement, self.signer.crypto)
        name = made.finished.replace(":", "").replace("-", "")
        return dataclasses.replace(made, sha256=self.store.add_record(made.stage, made.key, name, envelope))


def _second(lasting: Path) -> Path:
    """The lasting folder of a second execution."""
    return lasting.with_name(f"{lasting.name}-again")


def now() -> str:
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decided_of(value: Mapping | None) -> Decided | None:
    """A `Decided` from its JSON form."""
    if value is None:
        return None
    return Decided(value["name"], value["number"], Bound(**value["bound"]) if value["bound"] else None)


def demand_environment(stage: Stage, lock: str) -> None:
    """Raises ProgramFailed where the environment is not the lock's. In an incident that is told, and stops nobody."""
    try:
        locked.demand(lock)
    except ProgramFailed as error:
        if not (stage.manual and stage.deploys):
            raise
        print(f"  {error} {stage.name} goes on.", file=sys.stderr, flush=True)


def _answer(stage: Stage, status: int, task_path: Path) -> Result:
    """The result that the child wrote; its error, raised again; or an error saying that it wrote neither."""
    try:
        answer = json.loads(result_path(task_path).read_bytes())
    except FileNotFoundError:
        raise _silent(stage, status) from None
    if "error" in answer:
        error = TidegateError(answer["text"])
        error.exit_code = answer["exit_code"]
        raise error
    result = answer["result"]
    changed = {
        "outcome": Outcome(result["outcome"]),
        "decided": decided_of(result["decided"]),
        "warnings": tuple(result["warnings"]),
    }
    return Result(**{**result, **changed})


def _tell_last_words(task_path: Path) -> None:
    """Shows what a stage said that was stopped, if it said anything: how far it got, and how it goes on."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        print(f"  {json.loads(result_path(task_path).read_bytes())['text']}", file=sys.stderr, flush=True)


def _silent(stage: Stage, status: int) -> TidegateError:
    """The error for a child that ended without an answer: a bug, or a kill."""
    how = f"was ended by signal {-status}" if status < 0 else f"left with exit status {status}"
    error = ProgramFailed(
        f"{stage.name} {how} before it had a result; what it printed is above. Its unfinished output is not used."
    )
    if status == _BUG:
        error.exit_code = _BUG
    return error
