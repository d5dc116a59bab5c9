"""A store that grows version by version, for bench.store: signed records, entries in both channels, no model."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from pipeline import config, digest, operate
from pipeline.buckets import Item
from pipeline.digest import Digests
from pipeline.execution import Paths, now
from pipeline.runner import Runner
from pipeline.stages import ALL, STAGES, Stage
from pipeline.store import Channel, Entry, open_store

if TYPE_CHECKING:  # a clone has no tests, and its check must not stumble over this file
    from tests.support_evidence import Evidence

SIGNED = 10
"""So many versions have evidence of their own; what comes after them shares one version's, unless it is walked."""
ONLY_STAGED = 2
"""A version that never was in production."""
_PAGE = 1_000
"""How many objects S3 lists in one answer."""
_FIXED = ("check", "data")
_ROOT = Path(__file__).resolve().parent.parent
_DOCUMENTS: Mapping[str, str] = {
    "publish/published": "published.json",
    "approve/approval": "approval.json",
}
_OF_IMAGE = ("image", "scan", "publish", "staging", "approve", "canary", "promote")


class Counted:
    """A bucket that counts what is asked of it: objects, and pages of listings."""

    def __init__(self, bucket):
        self._bucket = bucket
        self._asked: list[str] = []  # and no number, since gc asks from several threads

    @property
    def asked(self) -> int:
        return len(self._asked)

    def items(self, prefix: str) -> Iterator[Item]:
        """See Bucket."""
        for number, item in enumerate(self._bucket.items(prefix)):
            if number % _PAGE == 0:
                self._asked.append("items")
            yield item

    def __getattr__(self, name: str):
        method = getattr(self._bucket, name)

        def counted(*arguments):
            self._asked.append(name)
            return method(*arguments)

        return method if name == "where" else counted


@dataclass
class Factory:
    """A repository without code, whose store gets version after version; each as `pipeline run --all` leaves it."""

    folder: Path
    evidence: Evidence
    versions: int = 1

    @classmethod
    def founded(cls, folder: Path) -> Factory:
        """One with a single version, a key for CI and one for an approver."""
        from tests.support_evidence import Evidence, add_key

        shutil.copy(_ROOT / "tests/settings.yaml", folder / "pipeline.yaml")
        shutil.copy(_ROOT / "requirements.txt", folder)
        signers = {"ci": add_key(folder, "ci", "ci"), "approve": add_key(folder, "alice", "approver")}
        settings = config.load(folder / "pipeline.yaml")
        made = cls(folder, Evidence(folder, settings, open_store(settings.store, folder), signers))
        made.evidence.walk()
        made.evidence.promote()
        made.enter("staging", made.evidence.store.channel("staging"))
        return made

    def runner(self) -> Runner:
        """What a command works with, having seen nothing yet; its bucket counts."""
        paths = Paths.of(self.folder, self.folder / "pipeline.yaml")
        store = open_store(self.evidence.settings.store, self.folder)
        store.bucket = Counted(store.bucket)
        return Runner(self.evidence.settings, paths, store, Digests(paths.state / "digests.json"))

    def grow(self, versions: int) -> None:
        """Adds versions until there are so many. Nothing is synced: a power cut here loses a benchmark."""
        with mock.patch("os.fsync"):
            while self.versions < min(versions, SIGNED):
                self.walk()
                if self.versions != ONLY_STAGED:
                    self.enter("production", self.sign_promotion())
            if self.versions < versions:
                self._share(versions)
        os.sync()

    def _share(self, versions: int) -> None:
        """Adds versions that share the evidence of the newest: entries and names of records are their own."""
        store, records = self.evidence.store, self.evidence.records
        envelopes = {
            name: store.fetch_bytes(made.sha256) for name, made in records.items() if name not in _FIXED
        }
        channels = [store.channel(name) for name in operate.CHANNELS]
        while self.versions < versions:
            self.versions += 1
            moment = now()
            for stage, envelope in envelopes.items():
                key = digest.of_json([stage, self.versions])
                store.add_record(stage, key, moment.replace(":", "").replace("-", ""), envelope)
            changed = {"version": self.versions, "at": moment, "image": self.image(self.versions)}
            model = digest.of_json(["train/model", self.versions])
            channels = [
                store.append(
                    seen, dataclasses.replace(seen.live, **changed, model=model, left=seen.live.image)
                )
                for seen in channels
            ]

    def walk(self) -> None:
        """The records of the next version up to the canary's: other outputs and another image than any before."""
        self.versions += 1
        for stage in STAGES:
            if stage.name not in (*_FIXED, "promote"):
                staging = self.evidence.store.channel("staging") if stage.name == "staging" else None
                self._record(stage, staging)
                if staging:
                    self.enter("staging", staging)

    def judge(self, runner: Runner) -> None:
        """What the policy says of the newest version; raises GateRefused if it may not be let in."""
        needs = {name: self.evidence.records[name].sha256 for name in self.evidence.records["promote"].needs}
        runner.authority.policy.demand(ALL["promote"], needs, self.image(self.versions))

    def sign_promotion(self) -> Channel:
        """Signs the record that lets the newest version in; returns production, which it follows."""
        production = self.evidence.store.channel("production")
        self._record(ALL["promote"], production)
        return production

    def enter(self, name: str, seen: Channel) -> None:
        """Appends the newest version to a channel."""
        made = self.evidence.records[{"production": "promote"}.get(name, name)]
        entry = self._entry(made.stage, seen)
        self.evidence.store.append(seen, dataclasses.replace(entry, at=made.finished, evidence=made.sha256))

    def _entry(self, stage: str, seen: Channel) -> Entry:
        """What the newest version's record of a stage signs of its entry."""
        records = self.evidence.records
        return seen.following(
            Entry(
                self.image(self.versions) if self.versions > 1 else records["publish"].digest, self.versions,
                records["train"].outputs["train/model"], records["export"].outputs["export/savedmodel"],
                records["publish"].outputs["publish/published"], "ann", "", stage, "",
                seen.live.image if seen.live else "",
            )
        )  # fmt: skip

    def _record(self, stage: Stage, seen: Channel | None = None) -> None:
        """The record of a stage for this version, made after that of the version before; `seen` is what it enters."""
        before, records = self.evidence.records[stage.name], self.evidence.records
        reads = {
            name: records[name.split("/")[0]].outputs[name] if tree else None
            for name, tree in before.key_parts["reads"].items()
        }
        parts = {**before.key_parts, "reads": reads}
        moment = now()
        made = dataclasses.replace(
            before,
            key=digest.of_json(parts),
            key_parts=parts,
            outputs={name: self._output(name) for name in before.outputs},
            needs={name: records[name].sha256 for name in before.needs},
            digest=self.image(self.versions) if stage.name in _OF_IMAGE else "",
            started=moment,
            finished=moment,
            enters=self._entry(stage.name, seen).claims(stage.channel) if seen else {},
        )
        self.evidence.add(made)

    def _output(self, name: str) -> str:
        if name in _DOCUMENTS:
            said = {"digest": self.image(self.versions), "version": self.versions}
            return self.evidence.document(_DOCUMENTS[name], said)
        return digest.of_json([name, self.versions])

    def image(self, version: int) -> str:
        """The image of a version that this made (not of the first)."""
        return "sha256:" + digest.of_json(["image", version])
