"""Executes a sample of hits again, and compares what comes out with what the records say.

A hit is believed because its record is signed; a recheck believes nothing. It runs the stage in a process of its own
on the recorded inputs, without a checkpoint, records nothing, and leaves `build/STAGE` alone.
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import ci, reproduce, trees
from pipeline.errors import IntegrityError, NoData, SettingsError, TidegateError
from pipeline.execution import Work
from pipeline.locks import alone
from pipeline.reproduce import Likeness
from pipeline.runner import Plan, Runner, needed, refuse_unprotected
from pipeline.stages import BY_NAME, Facts, Outcome, Result

_SEEDS = 1_000_000


@dataclass(frozen=True)
class Rechecked:
    """A hit that was executed again: its plan, the new result, how the outputs compare, and where the new ones lie."""

    plan: Plan
    result: Result
    alike: Likeness
    folder: Path

    def fault(self, tolerance: float) -> str:
        """What is wrong, with every file that differs and the remedy; nothing where the record holds."""
        stage, made = self.plan.stage.name, self.plan.held
        if self.result.outcome == Outcome.PASSED and self.alike.within(tolerance):
            return ""
        what = "other bytes than its record names"
        if self.result.outcome != Outcome.PASSED:
            what = f"{self.result.outcome}, and its record says passed: {self.result.sentence}"
        facts = made.facts
        where = f"{made.finished} by {facts.get('actor') or 'nobody named'} ({facts.get('vendor') or 'somewhere'})"
        lines = [
            f"{stage}: executed again with the same inputs it gave {what} ({made.sha256[:12]}, of {where}).",
            *(f"  {line}" for line in self.alike.lines("recorded", "now")),
            f"  What it gave now lies in {self.folder}.",
            f"  Recheck it once more: python -m pipeline run --recheck 1 {stage}",
            "  Bytes that are new again: the stage is not deterministic. Look for what has no seed or depends on time.",
            "  The same as now: this machine is not as the record's (processor, driver, packages other than locked),",
            "  or the record is wrong. Recheck it where it was made; if it differs there too, find out who signed it,",
            f"  and record what is true: python -m pipeline run --force {stage}",
        ]
        return "\n".join(lines)


def recheck(runner: Runner, names: Sequence[str], count: int, seed: int | None = None) -> None:
    """Executes up to `count` hits among the named stages again; prints a line for each (stdout).

    Which ones, `seed` decides (a new one where it is None, which is told). Raises IntegrityError if one is not what
    its record says, NoData if there is no hit, SettingsError for a count below 1 or stages that cannot be compared.
    """
    if count < 1:
        raise SettingsError(f"--recheck is {count}; it must be at least 1.")
    comparable = [name for name in names if BY_NAME[name].same]
    if not comparable:
        can = ", ".join(name for name, stage in BY_NAME.items() if stage.same)
        raise SettingsError(
            f"{', '.join(names)}: the outputs hold times, or something runs behind them; they cannot be compared. "
            f"Stages that can be rechecked: {can}."
        )
    with alone(runner.paths.build):
        try:
            _recheck_all(runner, _drawn(_hits(runner, comparable), count, seed))
        finally:
            runner.digests.save()


def _hits(runner: Runner, names: Sequence[str]) -> list[Plan]:
    """The plans of those named stages that a run would skip; says why of the others."""
    found = []
    for stage in (BY_NAME[name] for name in needed(names)):
        waits = [name for name in stage.producers if name not in runner.done]
        plan = None if waits else runner.plan(stage)
        if plan and not plan.why:
            runner.done[stage.name] = plan.held
            found += [plan] if stage.name in names else []
        elif stage.name in names:
            why = f"would run: {'; '.join(plan.why[:3])}" if plan else f"waits for {', '.join(waits)}"
            _say(f"{stage.name} is no hit and is not rechecked: it {why}")
    return found


def _drawn(hits: Sequence[Plan], count: int, seed: int | None) -> list[Plan]:
    """`count` of the hits, or all if there are fewer, in the table's order."""
    if not hits:
        raise NoData("there is no hit to recheck. Run the stages first: python -m pipeline run STAGE.")
    seed = secrets.randbelow(_SEEDS) if seed is None else seed
    chance = random.Random(seed)  # noqa: S311  a sample that can be drawn again, no secret
    chosen = sorted(chance.sample(range(len(hits)), min(count, len(hits))))
    drawn = [hits[place] for place in chosen]
    stages = ", ".join(plan.stage.name for plan in drawn)
    _say(f"rechecking {len(drawn)} of {len(hits)} hits: {stages} (--recheck-seed {seed} draws them again)")
    return drawn


def _recheck_all(runner: Runner, plans: Sequence[Plan]) -> None:
    """Rechecks each; what is wrong with any is told once all were looked at."""
    refuse_unprotected({plan.stage.name for plan in plans})
    faults, errors = [], []
    for plan in plans:
        name, clock = plan.stage.name, time.monotonic()
        try:
            with ci.fold(f"recheck-{name}", f"recheck {name}: {plan.stage.does}"):
                found = _again(runner, plan)
        except TidegateError as error:
            _tell(f"✗ {name}: could not be rechecked")
            if error.exit_code == IntegrityError.exit_code:
                faults.append(str(error))
            else:
                errors.append(error)
            continue
        tolerance = getattr(getattr(runner.settings, name, None), "tolerance", 0.0)
        fault = found.fault(tolerance)
        if fault:
            _tell(f"✗ {name}: not what its record {plan.held.sha256[:12]} names")
            faults.append(fault)
            continue
        shutil.rmtree(found.folder.parent, ignore_errors=True)
        _tell(f"✓ {name}: {_held(found, tolerance)}, {time.monotonic() - clock:.1f} s")
    if faults:
        raise IntegrityError("\n".join([*faults, *map(str, errors)]))
    if errors:
        raise errors[0]


def _again(runner: Runner, plan: Plan) -> Rechecked:
    """Executes a hit once more, under the facts of its record, beside what the store holds of it, byte by byte."""
    stage, made = plan.stage, plan.held
    folder = runner.paths.build / ".recheck" / stage.name
    shutil.rmtree(folder, ignore_errors=True)
    _place_recorded(runner, plan, folder / "recorded")
    known = {field.name for field in dataclasses.fields(Facts)}
    facts = Facts(**{name: value for name, value in made.facts.items() if name in known})
    work = Work(stage, plan.key, plan.parts, runner.input_folders(stage), made.needs)
    executor = dataclasses.replace(runner.executor, facts=facts)
    result = executor.call(work, folder / "now", folder / "work")
    if stage.resumes and result.outcome == Outcome.NO_DATA:
        raise NoData(
            f"{stage.name} was not executed to its end, which tells nothing of its record: {result.sentence}"
        )
    return Rechecked(
        plan, result, reproduce.compare(stage, folder / "recorded", folder / "now"), folder / "now"
    )


def _place_recorded(runner: Runner, plan: Plan, folder: Path) -> None:
    """Fetches what the record names out of the store, verified."""
    for name in plan.stage.same:
        tree = plan.held.outputs[f"{plan.stage.name}/{name}"]
        try:
            trees.place(tree, folder / name, runner.store, runner.digests)
        except IntegrityError as error:
            raise IntegrityError(
                f"{plan.stage.name}: the store does not hold what record {plan.held.sha256[:12]} names: {error}. "
                "Delete that blob, or bring it back from a copy, and run the stage again."
            ) from error


def _held(found: Rechecked, tolerance: float) -> str:
    record = found.plan.held.sha256[:12]
    if not found.alike.files:
        return f"the same bytes as its record {record} names"
    return (
        f"{found.alike.reached(tolerance)} of what its record {record} names "
        f"(largest difference {found.alike.difference:.2g})"
    )


def _tell(text: str) -> None:
    print(text, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
