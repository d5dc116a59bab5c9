"""Walks the table of stages: key -> skip or run -> record."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import attachments, ci, config, digest, key, pins, trees
from pipeline.authority import Authority
from pipeline.checkpoints import Shelf
from pipeline.child import function
from pipeline.digest import Digests
from pipeline.errors import GateRefused, ProgramFailed, TidegateError
from pipeline.execution import Executor, Paths, Work, now
from pipeline.locks import alone, deploying
from pipeline.record import Record
from pipeline.row import Row, row_of
from pipeline.settings import Settings
from pipeline.stages import BY_NAME, CHAMPION, OF_CHAMPION, STAGES, Context, Facts, Outcome, Stage
from pipeline.store import Channel, Entry, Store, open_store

_INTERRUPTED = 130
_SKEW = timedelta(minutes=5)


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
    def authority(self) -> Authority:
        """Whose signature, which record and which entry of a channel counts here."""
        return Authority(self.settings, self.paths, self.store, self.digests, self.approving)

    @cached_property
    def facts(self) -> Facts:
        live = (self.authority.channel(name).live for name in ("staging", "production"))
        highest = max((entry.highest for entry in live if entry), default=0)
        return dataclasses.replace(
            ci.facts(self.paths.root), approving=self.approving, highest_version=highest
        )

    @cached_property
    def executor(self) -> Executor:
        here, shelf = self.authority, None
        if here.must_sign:  # whose checkpoints would count nowhere keeps none, and takes none
            shelf = Shelf(self.store.bucket, here.signer, here.trust, here.policy.signers, now)
        return Executor(self.settings, self.paths, self.store, self.digests, here.signer, self.facts, shelf)

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
        hit = self.authority.passed(stage, name)
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
        row = row_of(made, cached=not plan.why)
        self.rows.append(row)
        if made.outcome != Outcome.PASSED:
            error = GateRefused(f"{stage.name}: {made.sentence}")
            error.exit_code = row.exit_code
            raise error

    def _run(self, plan: Plan) -> Record:
        """Runs a stage. One that feeds a channel is let in by the policy first; the channel moves once it passed."""
        stage, here, clock = plan.stage, self.authority, time.monotonic()
        try:
            if here.must_sign:
                here.policy.check_signer(stage, here.signer)
            with deploying(stage, self.paths.state):
                channel = here.channel(stage.channel) if stage.channel else None
                needs = self._evidence(stage)
                if stage.deploys:
                    here.policy.demand(stage, needs, self.done["publish"].digest)
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
        names = self.authority.policy.needed(stage)
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
            attachments.sign_model(registry, made.digest, model, self.authority.signer, self.paths)

    def _output(self, name: str) -> Path:
        """The folder of an output of a stage that is done, restored where it is not there."""
        tree = self.done[name.split("/")[0]].outputs[name]
        return trees.place(tree, self.paths.build / name, self.store, self.digests)

    def enter(self, channel: Channel, entry: Entry, work: Work) -> Record:
        """Runs a stage that feeds a channel, and moves the channel once it passed.

        The record signs what the entry says, so that nobody else can write one. What is about to be done is noted
        before: traffic moves in between, and whoever is killed then must be seen to have wanted it.
        """
        check_clock(channel)
        entry = channel.following(entry)
        self.store.begin(channel, dataclasses.replace(entry, at=now()))
        made = self.executor.execute(dataclasses.replace(work, enters=entry.claims(channel.name)))
        if made.outcome == Outcome.PASSED:
            self.store.append(channel, dataclasses.replace(entry, at=made.finished, evidence=made.sha256))
        else:
            self.store.end(channel)
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
        last = self.authority.accepted(stage, newest)
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
            if name in OF_CHAMPION:
                yield name.lstrip("?"), self._of_champion(name)
            else:
                yield name, self.done[name.split("/")[0]].outputs[name]

    def _of_champion(self, name: str) -> str | None:
        champion = self.authority.champion(self.done["train"].outputs["train/model"])
        if champion is None:
            return None
        return champion.savedmodel if name == CHAMPION else self.authority.scan_report(champion)

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
