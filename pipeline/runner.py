"""Walks the table of stages: key -> skip or run -> record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import attachments, ci, config, digest, key, pins, record, trees
from pipeline.checkpoints import Shelf
from pipeline.child import function
from pipeline.digest import Digests
from pipeline.errors import GateRefused, IntegrityError, LostRace, ProgramFailed, TidegateError
from pipeline.execution import Executor, Paths, Work, decided_of, now
from pipeline.heads import Heads
from pipeline.keys import Signer
from pipeline.locks import locked
from pipeline.policy import Policy
from pipeline.record import Record
from pipeline.settings import ON_THIS_MACHINE, Settings
from pipeline.stages import (
    BY_NAME,
    CHAMPION,
    CHAMPION_REPORT,
    STAGES,
    Context,
    Decided,
    Facts,
    Outcome,
    Stage,
)
from pipeline.store import Channel, Entry, Store, open_store
from pipeline.trust import Trust

_EXIT = {Outcome.PASSED: 0, Outcome.FAILED: 3, Outcome.NO_DATA: 4}
_INTERRUPTED = 130
_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Row:
    """A line of the closing table."""

    stage: str
    outcome: str
    cached: bool
    seconds: float
    sentence: str = ""
    decided: Decided | None = None
    digest: str = ""
    warnings: tuple[str, ...] = ()
    exit_code: int = 0


@dataclass(frozen=True)
class Plan:
    """Whether a stage would run. `why` is empty for a hit; `parts` are what its key is computed from."""

    stage: Stage
    key: str
    parts: Mapping
    hit: Record | None
    why: tuple[str, ...]

    @property
    def held(self) -> Record:
        """The record of a hit. Asking for it without one is a bug."""
        if self.hit is None:
            raise RuntimeError(f"{self.stage.name} holds no record for {self.key[:12]}")
        return self.hit


@dataclass
class Runner:
    """One walk over the table.

    `approving` says that a person asked for the approval by name; a laptop approves for itself otherwise.
    `forced` stages run although a record of the same key exists.
    """

    settings: Settings
    paths: Paths
    store: Store
    digests: Digests
    approving: bool = False
    forced: frozenset[str] = frozenset()
    done: dict[str, Record] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, paths: Paths, **options: Any) -> Runner:
        """A runner for the settings file as it is now."""
        settings = config.load(paths.settings)
        if ci.is_protected():
            pins.refuse_moving(settings)
        if ci.is_merge_request():
            settings = config.smoke(settings)
        store = open_store(settings.store, paths.root)
        return cls(settings, paths, store, Digests(paths.state / "digests.json"), **options)

    @cached_property
    def facts(self) -> Facts:
        live = (self.channel(name).live for name in ("staging", "production"))
        highest = max((entry.highest for entry in live if entry), default=0)
        return dataclasses.replace(
            ci.facts(self.paths.root), approving=self.approving, highest_version=highest
        )

    @cached_property
    def signer(self) -> Signer:
        """What signs here. A protected ref in CI must be given its key; others make one that nobody else trusts."""
        return Signer(self.paths.state, may_use_own=not ci.is_protected(), approving=self.approving)

    @cached_property
    def trust(self) -> Trust:
        """Whose records count: those of trust/, and on a laptop its own for its own target and store."""
        at_home = self.settings.target.kind in ON_THIS_MACHINE and self.settings.store.startswith("file:")
        own = self.signer if at_home and ci.vendor() == ci.LAPTOP and self.signer.is_own else None
        return Trust.load(self.paths.root, own)

    @property
    def must_sign(self) -> bool:
        """Whether records count here only if a trusted key signed them: everywhere that could deploy."""
        return ci.vendor() == ci.LAPTOP or (ci.is_protected() and not ci.is_merge_request())

    @cached_property
    def policy(self) -> Policy:
        return Policy(self.settings, self.store, self.trust)

    def channel(self, name: str) -> Channel:
        """A channel whose live entry is what a trusted key signed; with it all before, which it names by digest.

        Raises IntegrityError for one that somebody changed in the store, or cut short since this machine looked.
        """
        channel = self.heads.channel(name)
        if channel.live and self.must_sign:
            seen, live = f"entry:{name}:{channel.head}:{self.trust.digest}", channel.live
            self.digests.remember(seen, lambda: self.policy.accept(name, live))
            self.heads.remember(channel)
        return channel

    @cached_property
    def heads(self) -> Heads:
        """What was seen of each channel. A store in CI's checkout lasts one pipeline; so does this."""
        kind, _, place = self.settings.store.partition(":")
        checkout = self.paths.root.resolve()
        in_checkout = kind == "file" and (checkout / place).resolve().is_relative_to(checkout)
        passing = in_checkout and ci.vendor() != ci.LAPTOP
        return Heads(self.paths.build if passing else self.paths.state, self.store)

    @cached_property
    def executor(self) -> Executor:
        shelf = None
        if self.must_sign:  # whose checkpoints would count nowhere keeps none, and takes none
            shelf = Shelf(self.store.bucket, self.signer, self.trust, self.policy.signers, now)
        return Executor(self.settings, self.paths, self.store, self.digests, self.signer, self.facts, shelf)

    def walk(self, names: Iterable[str]) -> None:
        """Runs the named stages in the table's order; stops at the first that does not pass."""
        wanted = set(names)
        refuse_unprotected(wanted)
        with alone(self.paths.build):
            try:
                for stage in STAGES:
                    if stage.name in wanted:
                        self._step(stage)
            finally:
                self.digests.save()

    def plan(self, stage: Stage) -> Plan:
        """Looks at a stage, whose needs are in `done`, without running it."""
        parts = key.parts(stage, self.settings, dict(self._reads(stage)), self.paths.root, self.digests)
        name = digest.of_json(parts)
        hit = self._hit(stage, name)
        return Plan(stage, name, parts, hit, tuple(self._why(stage, hit, parts)))

    def recall(self, names: Iterable[str]) -> None:
        """Fills `done` with the passed records of these stages for the inputs as they are; runs nothing.

        Raises GateRefused naming the first that has none.
        """
        for name in names:
            plan = self.plan(BY_NAME[name])
            if plan.hit is None:
                raise GateRefused(
                    f"{name} has not passed for these inputs ({'; '.join(plan.why)}). "
                    f"Run it first: python -m pipeline run {name}"
                )
            self.restore(plan.hit)
            self.done[name] = plan.hit

    def restore(self, made: Record) -> None:
        """Makes build/STAGE what the record says, from the store, if it is not already."""
        for name, tree in made.outputs.items():
            trees.place(tree, self.paths.build / name, self.store, self.digests)

    def champion(self) -> Entry | None:
        """What the candidate is compared with: the newest entry of production that is another model.

        While production serves the candidate itself this is the one before, so that a promotion does
        not change the key of the evaluation that led to it.
        """
        candidate = self.done["train"].outputs["train/model"]
        others = (e for e in self.channel("production").newest_first() if e.model != candidate)
        return next(others, None)

    def _champion_report(self) -> str | None:
        """The tree digest of what the scan of the champion found; None where there is no champion."""
        champion = self.champion()
        if champion is None:
            return None

        def found() -> str | None:
            behind = self.policy.examine(champion.why, champion.evidence, champion.image)
            scans = [node.record for node in behind.walk() if node.stage == "scan" and node.record]
            return scans[0].outputs.get("scan/report") if scans else None

        return self.digests.remember(f"report:{champion.evidence}:{self.trust.digest}", found)

    def _step(self, stage: Stage) -> None:
        """One stage: a hit is restored, anything else runs."""
        plan = self.plan(stage)
        if plan.why:
            with ci.fold(stage.name, f"{stage.name}: {stage.does}"):
                print(f"  runs because {'; '.join(plan.why[:3])}", file=sys.stderr, flush=True)
                made = self._run(plan)
        else:
            made = plan.held
            self.restore(made)
        self.done[stage.name] = made
        self.rows.append(row_of(made, cached=not plan.why))
        if made.outcome != Outcome.PASSED:
            error = GateRefused(f"{stage.name}: {made.sentence}")
            error.exit_code = _EXIT[Outcome(made.outcome)]
            raise error

    def _run(self, plan: Plan) -> Record:
        """Runs a stage. One that feeds a channel is let in by the policy first; the channel moves once it passed."""
        stage, clock = plan.stage, time.monotonic()
        try:
            if self.must_sign:
                self.policy.check_signer(stage, self.signer)
            with deploying(stage, self.paths.state):
                channel = self.channel(stage.channel) if stage.channel else None
                needs = self._evidence(stage)
                if stage.deploys:
                    self.policy.demand(stage, needs, self.done["publish"].digest)
                work = Work(stage, plan.key, plan.parts, self.input_folders(stage), needs)
                made = (
                    self.enter(channel, self.entry(channel, stage), work)
                    if channel
                    else self.executor.execute(work)
                )
            if stage.attaches and made.outcome == Outcome.PASSED:
                self._attach(stage, made)
            return made
        except TidegateError as error:
            seconds = time.monotonic() - clock
            self.rows.append(Row(stage.name, "error", False, seconds, str(error), exit_code=error.exit_code))
            raise
        except BaseException:
            self.rows.append(
                Row(stage.name, "stopped", False, time.monotonic() - clock, exit_code=_INTERRUPTED)
            )
            raise

    def _evidence(self, stage: Stage) -> dict[str, str]:
        """The records that a stage's own will name: those that it needs, and those that its channel demands."""
        names = self.policy.needed(stage)
        return {name: self.done[name].sha256 for name in names if name in self.done}

    def _attach(self, stage: Stage, made: Record) -> None:
        """Puts the evidence so far beside the image in the registry, for those who have no more than that."""
        records = {**self.done, stage.name: made}
        envelopes = [self.store.fetch_bytes(records[name].sha256) for name in stage.attaches]
        registry = self.settings.publish.registry
        attachments.attach(registry, made.digest, envelopes, self.paths)
        if stage.name == "publish":
            model, report = self._output("export/savedmodel"), self._output("scan/report")
            attachments.attach_sboms(registry, made.digest, report, self.paths)
            attachments.sign_model(registry, made.digest, model, self.signer, self.paths)

    def _output(self, name: str) -> Path:
        """The folder of an output of a stage that is done, restored where it is not there."""
        tree = self.done[name.split("/")[0]].outputs[name]
        return trees.place(tree, self.paths.build / name, self.store, self.digests)

    def enter(self, channel: Channel, entry: Entry, work: Work) -> Record:
        """Runs a stage that feeds a channel, and moves the channel once it passed.

        The record signs what the entry says, so that nobody else can write one.
        """
        check_clock(channel)
        entry = channel.following(entry)
        made = self.executor.execute(dataclasses.replace(work, enters=entry.claims(channel.name)))
        if made.outcome == Outcome.PASSED:
            self.store.append(channel, dataclasses.replace(entry, at=made.finished, evidence=made.sha256))
        return made

    def entry(self, channel: Channel, stage: Stage) -> Entry:
        """What a stage would write into a channel; its record and time come once it passed."""
        published = self.done["publish"].outputs["publish/published"]
        said = trees.document(published, "published.json", self.store)
        return Entry(
            image=said["digest"],
            version=said["version"],
            model=self.done["train"].outputs["train/model"],
            savedmodel=self.done["export"].outputs["export/savedmodel"],
            published=published,
            by=self.facts.actor,
            at="",
            why=stage.name,
            evidence="",
            left=channel.live.image if channel.live else "",
        )

    def _hit(self, stage: Stage, name: str) -> Record | None:
        """The newest passed record of this key."""
        for sha256 in self.store.records(stage.name, name):
            found = self._trusted(stage, sha256)
            if found and found.key == name and found.outcome == Outcome.PASSED:
                return found
        return None

    def _trusted(self, stage: Stage, sha256: str) -> Record | None:
        """A record that counts here; None, and a word of it, for another: the stage then counts as not run.

        Where nothing can be deployed from, as in a merge request, no key is trusted, and any whole record counts.
        """
        try:
            if not self.must_sign:
                found = record.read(self.store.fetch_bytes(sha256))
            else:
                fetch = functools.partial(self.store.fetch_bytes, sha256)
                signed = self.trust.remembered(sha256, fetch, self.digests.remember)
                found, allowed = signed.record, self.policy.signers(stage.name)
                if not set(allowed) & set(signed.key.roles):
                    needs = " or ".join(allowed)
                    raise IntegrityError(
                        f"the record {sha256[:12]} is signed by {signed.key.name}, and needs {needs}"
                    )
                if signed.key.until and signed.key.until < now()[:10]:
                    # Only what was made in its time counts, and that is a claim: in the chain it may stand, as the
                    # start of something new it may not, since a stolen old key can claim any time.
                    raise IntegrityError(
                        f"the record {sha256[:12]} is signed by {signed.key.name}, whose key expired"
                    )
            if found.stage != stage.name:
                raise IntegrityError(f"the record {sha256[:12]} is of {found.stage}")
            return found
        except IntegrityError as error:
            print(f"{stage.name}: {error}; it is not used", file=sys.stderr, flush=True)
            return None

    def _why(self, stage: Stage, hit: Record | None, parts: Mapping) -> list[str]:
        """Why a stage has to run; nothing if the hit still holds."""
        if stage.name in self.forced:
            return ["it was asked to run again"]
        if hit is None:
            return self._news(stage, parts)
        lost = [name for name, tree in hit.outputs.items() if not trees.kept(tree, self.store)]
        if lost:
            return [f"{name} is no longer in the store" for name in lost]
        if stage.alive:
            reason = function(stage.alive)(self._alive_context(stage, hit))
            return [reason] if reason else []
        return []

    def _news(self, stage: Stage, parts: Mapping) -> list[str]:
        """What is new since the stage last ran."""
        newest = self.store.newest_record(stage.name)
        if newest is None:
            return ["it has never run"]
        last = self._trusted(stage, newest)
        if last is None:
            return ["its newest record does not count"]
        return key.differences(last.key_parts, parts) or [f"it last ended as {last.outcome}"]

    def _alive_context(self, stage: Stage, hit: Record) -> Context:
        """What a stage's `alive` function may read: the stage's inputs and its own outputs."""
        self.restore(hit)
        names = [*(name.lstrip("?") for name in stage.reads), *hit.outputs]
        paths = self.paths
        inputs = {name: paths.build / name for name in names}
        facts = Facts(protected=ci.is_protected(), vendor=ci.vendor())
        return Context(self.settings, facts, inputs, paths.build, paths.build, paths.state, paths.root)

    def _reads(self, stage: Stage) -> Iterable[tuple[str, str | None]]:
        """The tree digest of each output that a stage reads; None for a champion that is not there."""
        for name in stage.reads:
            if name == CHAMPION:
                champion = self.champion()
                yield name.lstrip("?"), champion.savedmodel if champion else None
            elif name == CHAMPION_REPORT:
                yield name.lstrip("?"), self._champion_report()
            else:
                yield name, self.done[name.split("/")[0]].outputs[name]

    def input_folders(self, stage: Stage) -> dict[str, Path | None]:
        """The folder of each output that a stage reads, restored where it is not there."""
        return {
            name: trees.place(tree, self.paths.build / name, self.store, self.digests) if tree else None
            for name, tree in self._reads(stage)
        }


def check_clock(channel: Channel) -> None:
    """Raises ProgramFailed where this machine's clock is far behind the channel's last entry."""
    now = datetime.now(UTC)
    if channel.live and datetime.fromisoformat(channel.live.at) > now + _SKEW:
        raise ProgramFailed(
            f"{channel.name} was changed at {channel.live.at}, and here it is {now:%Y-%m-%dT%H:%M:%SZ}: one of the two "
            "clocks is wrong. Set this machine's clock (timedatectl), or wait."
        )


def refuse_unprotected(wanted: set[str]) -> None:
    """Only protected refs train, publish or deploy. A laptop may, for its own target."""
    if ci.vendor() == ci.LAPTOP or (ci.is_protected() and not ci.is_merge_request()):
        return
    allowed = {"train"} if ci.is_merge_request() else set()
    refused = [stage.name for stage in STAGES if stage.protected and stage.name in wanted - allowed]
    if refused:
        raise GateRefused(
            f"{', '.join(refused)}: only a protected ref may do this, and CI says that this one is not protected. "
            "Protect the branch in the project's settings, or run the stages that any branch may."
        )


def alone(build: Path) -> contextlib.AbstractContextManager:
    """One run at a time in this folder."""

    def busy(holder: str) -> LostRace:
        return LostRace(f"another run is at work in this folder ({holder}). Wait for it, or stop it.")

    return locked(build / ".lock", busy)


def deploying(stage: Stage, state: Path) -> contextlib.AbstractContextManager:
    """One deployment at a time on this machine; a stage that deploys nothing holds no lock."""
    return deployment_lock(state) if stage.deploys else contextlib.nullcontext()


def deployment_lock(state: Path) -> contextlib.AbstractContextManager:
    """Held by whatever starts, stops or switches versions on this machine."""

    def busy(holder: str) -> LostRace:
        return LostRace(
            f"a deployment is going on here ({holder}). Wait for it, or stop it with Ctrl-C: a canary that is "
            "stopped gives its traffic back."
        )

    return locked(state / "run" / ".lock", busy)


def needed(names: Iterable[str]) -> list[str]:
    """The named stages and all that they need, in the table's order."""
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += BY_NAME[name].needs
    return [stage.name for stage in STAGES if stage.name in wanted]


def row_of(made: Record, cached: bool) -> Row:
    """A record as a line of the closing table."""
    first = f"{made.stage}/{BY_NAME[made.stage].outputs[0]}"
    named = made.digest or made.outputs.get(first, "")
    exit_code = _EXIT[Outcome(made.outcome)]
    decided = decided_of(made.decided)
    return Row(
        made.stage,
        made.outcome,
        cached,
        made.seconds,
        made.sentence,
        decided,
        named,
        tuple(made.warnings),
        exit_code,
    )
