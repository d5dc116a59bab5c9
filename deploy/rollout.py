"""How production moves from one version to the next: canary, promotion, rollback.

The decision is a pure function of what was counted. Around it the controller looks, decides,
does one thing, and writes it down. After a canary that passed the new version keeps the last
step's share of the traffic until it is promoted; after any other end it has none and is stopped.
"""

import dataclasses
import enum
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from deploy import handles, standing
from deploy.bounds import broken, nearest
from deploy.environment import STABLE, Environment, open_environment
from deploy.handles import Handle
from deploy.load import Load, bodies
from deploy.router import Counts
from deploy.standing import not_in_production  # noqa: F401  the table of stages finds it here, too
from deploy.targets.base import Release, Version
from pipeline.errors import GateRefused, ProgramFailed
from pipeline.settings import Canary
from pipeline.stages import Context, Decided, Outcome, Result

_POLL_S = 0.2
_SAY_EVERY_S = 10.0


class Move(enum.StrEnum):
    """What a canary may do next."""

    WAIT = "wait"
    NEXT = "next step"
    PASS = "pass"  # noqa: S105
    BACK = "roll back"
    GIVE_UP = "hold, no data"


@dataclass(frozen=True)
class Seen:
    """What is known at one moment of a step: counts of both versions since it began.

    `stable` is None where no other version runs; `alive` is whether the new version runs and answers health checks.
    """

    elapsed_s: float
    candidate: Counts
    stable: Counts | None
    alive: bool = True
    last: bool = False


@dataclass(frozen=True)
class Step:
    """A decision, why it was taken, and the numbers behind it."""

    move: Move
    reason: str
    measured: tuple[Decided, ...] = ()


def measure(seen: Seen, plan: Canary) -> tuple[Decided, ...]:
    """The numbers that are judged, each with its bound; NaN where nothing was counted.

    A 4xx answer may be the client's own mistake, so it counts in the comparison alone; where
    there is nothing to compare with, it counts as an error.
    """
    new, old = seen.candidate, seen.stable
    slow = _share(new.slow, new.timed)
    if old is None:
        return (
            Decided("error rate", _share(new.failed + new.refused, new.requests), plan.error_rate),
            Decided("slow share", slow, plan.extra_slow_rate),
        )
    extra = _share(new.failed + new.refused, new.requests) - _share(old.failed + old.refused, old.requests)
    return (
        Decided("error rate", _share(new.failed, new.requests), plan.error_rate),
        Decided("extra error rate", extra, plan.extra_error_rate),
        Decided("extra slow rate", slow - _share(old.slow, old.timed), plan.extra_slow_rate),
    )


def decide(seen: Seen, plan: Canary) -> Step:
    """The next move of a canary. No clock, no network.

    A version that dies goes back at once, and so does one whose own errors are too many once it has
    answered enough; comparisons wait for the end of the step.
    """
    measured = measure(seen, plan)
    errors, worse = measured[0], broken(measured)
    lacking, late = _lacking(seen, plan), seen.elapsed_s >= plan.step_timeout_s
    if not seen.alive:
        return Step(Move.BACK, "the new version has ended, or hangs", measured)
    if (
        errors in worse
        and (late or seen.candidate.requests >= plan.requests_at_least)
        and seen.candidate.requests
    ):
        return Step(Move.BACK, _told(errors), measured)
    if lacking and late:
        return Step(Move.GIVE_UP, f"{lacking} after {seen.elapsed_s:.0f} s", measured)
    if lacking or seen.elapsed_s < plan.step_s:
        return Step(Move.WAIT, lacking or f"the step lasts {plan.step_s:g} s", measured)
    if worse:
        return Step(Move.BACK, "; ".join(map(_told, worse)), measured)
    return Step(Move.PASS if seen.last else Move.NEXT, "within all bounds", measured)


def _told(one: Decided) -> str:
    return f"{one}, allowed {one.bound}"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _lacking(seen: Seen, plan: Canary) -> str:
    """Which version has too few requests to be judged; empty if none."""
    for name, counts in (("new", seen.candidate), ("running", seen.stable)):
        if counts is not None and min(counts.requests, counts.timed) < plan.requests_at_least:
            return f"the {name} version has answered {counts.requests} of {plan.requests_at_least} requests"
    return ""


# --- the stages ---------------------------------------------------------------------------------------


def canary(context: Context) -> Result:
    """Moves traffic to the published version step by step, judges it, and goes back where it is worse."""
    release = Release.read(context.inputs["publish/published"])
    here = open_environment(context, "production")
    here.back()  # what a killed canary left
    walk = _Walk(context, here)
    try:
        walk.begin(release)
        with _load(context, here) as load:
            step = walk.run()
            told = load.told()
            if step.move is Move.PASS:
                here.target.keep(walk.candidate)
            else:
                here.back()
    except BaseException:
        here.abandon()
        raise
    _write_evidence(context, "canary", walk.evidence(step) | {"clients": told.summary()})
    return _verdict(walk, step)


def promote(context: Context) -> Result:
    """Gives all traffic to the version that was judged; the one before stays warm."""
    release = Release.read(context.inputs["publish/published"])
    judged = _judged(context.inputs.get("canary/evidence"), release)
    return _switch(context, release, judged, "promote")


def rollback(context: Context) -> Result:
    """Gives all traffic back to the version that `publish/published` names; the one that is left stays warm."""
    release = Release.read(context.inputs["publish/published"])
    return _switch(context, release, None, "rollback")


# --- how ----------------------------------------------------------------------------------------------


class _Walk:
    """One canary: the steps, what was counted in each, and what was decided."""

    def __init__(self, context: Context, here: Environment):
        self.context, self.here, self.plan = context, here, context.settings.canary
        self.again = False
        self.steps: list[dict] = []

    def begin(self, release: Release) -> None:
        """Starts the new version; one that has all the traffic already is measured as it runs."""
        running = self.here.placed(STABLE)
        self.again = self.here.serves(release)
        self.candidate = running if running and self.again else self.here.start(release)
        self.stable = None if self.again else running
        if self.again:
            self.context.say(
                f"{self.candidate.name} has all the traffic already; it is measured all the same"
            )
        elif running is None:
            self.context.say("nothing runs to compare with: judged by absolute bounds, at all the traffic")

    def run(self) -> Step:
        """Walks through the steps until one of them does not lead to the next."""
        shares = self.plan.steps if self.stable else (100,)
        for share in shares:
            if not self.again:
                self.here.share(share)
            step = self._step(share, last=share == shares[-1])
            if step.move is not Move.NEXT:
                break
        return step

    def _step(self, share: int, last: bool) -> Step:
        """Looks and decides until a step is over."""
        before, began, said = self._counts(), time.monotonic(), time.monotonic()
        while True:
            time.sleep(_POLL_S)
            now = self._counts()
            elapsed_s = time.monotonic() - began
            since = {name: now[name] - before[name] for name in now}
            alive = self.here.answering(self.candidate)
            seen = Seen(elapsed_s, since["candidate"], since.get("stable"), alive, last)
            step = decide(seen, self.plan)
            if step.move is not Move.WAIT:
                break
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                self.context.say(f"{share} % to version {self.candidate.number}: {step.reason}")
        self._note(share, seen, step)
        return step

    def _counts(self) -> dict[str, Counts]:
        versions = {"candidate": self.candidate} | ({"stable": self.stable} if self.stable else {})
        found = self.here.router.counts([v.key for v in versions.values()], self.plan.slow_ms)
        return {name: found[version.key] for name, version in versions.items()}

    def _note(self, share: int, seen: Seen, step: Step) -> None:
        counted = {"candidate": seen.candidate} | ({"stable": seen.stable} if seen.stable else {})
        self.steps.append(
            {
                "share": share,
                "seconds": round(seen.elapsed_s, 3),
                "move": str(step.move),
                "reason": step.reason,
                **{name: dataclasses.asdict(counts) for name, counts in counted.items()},
                "measured": [
                    {"name": m.name, "number": m.number, "bound": str(m.bound)} for m in step.measured
                ],
            }
        )
        story = "; ".join(f"{name} {_story(counts)}" for name, counts in counted.items())
        self.context.say(f"{share} % for {seen.elapsed_s:.1f} s: {story}. {step.move}: {step.reason}")

    def evidence(self, step: Step) -> dict:
        """All that the verdict stands on."""
        return {
            "candidate": _named(self.candidate),
            "stable": _named(self.stable) if self.stable else None,
            "steps": self.steps,
            "verdict": str(step.move),
            "reason": step.reason,
        }


def _story(counts: Counts) -> str:
    return (
        f"answered {counts.requests} ({counts.failed} failed, {counts.refused} refused, {counts.slow} slow)"
    )


def _plain(one: Decided) -> dict:
    return {"name": one.name, "number": None if isnan(one.number) else one.number, "bound": str(one.bound)}


def _named(version: Version) -> dict:
    return {"version": version.number, "digest": version.digest, **handles.document(version.process)}


def _verdict(walk: _Walk, step: Step) -> Result:
    number, last = walk.candidate.number, walk.steps[-1]
    share = last["share"]
    against = f"version {walk.stable.number}" if walk.stable else "absolute bounds"
    left = "it had all the traffic before, and keeps it" if walk.again else "traffic went back"
    outcome, sentence = {
        Move.PASS: (Outcome.PASSED, f"version {number} held against {against} at {share} % of the traffic"),
        Move.BACK: (Outcome.FAILED, f"version {number} is worse at {share} %: {step.reason}; {left}"),
        Move.GIVE_UP: (Outcome.NO_DATA, f"version {number} could not be judged: {step.reason}; {left}"),
    }[step.move]
    known = tuple(one for one in step.measured if not isnan(one.number))
    numbers = {one.name.replace(" ", "_"): one.number for one in known}
    numbers |= {"requests": sum(s["candidate"]["requests"] for s in walk.steps), "share": share}
    return Result(outcome, sentence, numbers, nearest(known), walk.candidate.digest)


def _load(context: Context, here: Environment) -> Load:
    rps = context.settings.canary.load_rps
    requests = bodies(context.inputs["data/rows"] / "test_features.npy") if rps else []
    return Load(here.router.rest, f"/v1/models/{context.settings.model}:predict", requests, rps)


def _judged(evidence: Path | None, release: Release) -> Handle | None:
    """The process that the canary judged. Raises GateRefused where it judged another digest."""
    if evidence is None:
        return None
    try:
        said: Mapping = json.loads((evidence / "canary.json").read_text())["candidate"]
        digest, process = said["digest"], handles.read(said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProgramFailed(
            f"{evidence}/canary.json cannot be read ({error!r}). Run canary again."
        ) from error
    if digest != release.digest:
        raise GateRefused(f"The canary judged {digest}, and {release.digest} is published. Run canary again.")
    return process


def _switch(context: Context, release: Release, judged: Handle | None, name: str) -> Result:
    """All traffic to a release: to the judged process, else to any that runs it, else to one started now."""
    here = open_environment(context, "production")
    before = here.placed(STABLE)
    found = (here.warm(release, judged) if judged else None) or here.warm(release)
    warm = found is not None
    took_s = here.settle(found or here.start(release))
    version = here.placed(STABLE)
    if version is None:
        raise ProgramFailed("the version that was given the traffic is gone. Run the stage again.")
    here.back()  # a candidate that this release left behind
    here.tidy()
    silent = standing.silent(context, "production")
    if silent:
        raise ProgramFailed(
            f"{silent}, though version {version.number} has its traffic. Run the stage again."
        )
    former = _named(before) if before and before != version else None
    evidence = {"version": _named(version), "former": former, "warm": warm, "switch_s": took_s}
    _write_evidence(context, name, evidence)
    how = "" if warm else " (started again: no process of it was left)"
    sentence = f"production serves {version.name}, switched in {1000 * took_s:.0f} ms{how}"
    return Result(
        Outcome.PASSED, sentence, {"switch_s": took_s, "version": version.number}, None, release.digest
    )


def _write_evidence(context: Context, name: str, evidence: Mapping) -> None:
    folder = context.out / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(evidence, indent=1) + "\n")
