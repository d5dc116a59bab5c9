"""Which records let a version into a channel; the verdict on each, with its reasons.

Nothing enters a channel because someone says so. The records of all stages before it must be in the store, signed by
a key that the repository trusts with that stage, passed, and name one another, and one another's outputs, by digest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pipeline import digest
from pipeline.errors import GateRefused, IntegrityError
from pipeline.keys import Signer
from pipeline.record import Record
from pipeline.settings import Demand, Settings, TrustedKey
from pipeline.stages import ALL, BREAK_GLASS, CHAMPION, ROLLBACK, STAGES, Outcome, Stage
from pipeline.store import Entry, Store
from pipeline.trees import document
from pipeline.trust import Trust

# Who may sign a stage's record where the settings do not say.
_SIGNERS: Mapping[str, tuple[str, ...]] = {
    "approve": ("approver",),
    "rollback": ("ci", "approver", "break-glass"),
    "break-glass": ("break-glass",),
    "follow-up": ("approver",),
}
# What lets a version into each channel.
_LETS_IN: Mapping[str, tuple[str, ...]] = {
    "staging": ("staging",),
    "production": ("promote", "rollback", "break-glass"),
}
_CALLED: Mapping[str, str] = {"by": "person", "previous": "entry before"}
_SKEW = timedelta(minutes=5)
# Stages whose record names the image itself.
_OF_IMAGE = ("image", "scan", "publish", "staging", "approve", "canary", "promote", "rollback", "break-glass")


@dataclass(frozen=True)
class Node:
    """A record in a tree of evidence, and what is wrong with it; `needs` are those before it, in its order."""

    stage: str
    sha256: str
    record: Record | None = None
    key: TrustedKey | None = None
    faults: tuple[str, ...] = ()
    needs: tuple[Node, ...] = ()

    @property
    def signer(self) -> str:
        """The name of the key that signed it; nothing for a record that no trusted key did."""
        return self.key.name if self.key else ""

    def walk(self) -> Iterator[Node]:
        """This node and all behind it, each record once."""
        seen: set[str] = set()
        waiting = [self]
        while waiting:
            node = waiting.pop(0)
            if node.sha256 not in seen:
                seen.add(node.sha256)
                yield node
                waiting += node.needs

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong with this record and all behind it."""
        return not any(node.faults for node in self.walk())


@dataclass
class Policy:
    """Judges evidence for a channel. `now` is the time that ages are measured at."""

    settings: Settings
    store: Store
    trust: Trust
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _looked: dict[tuple, Node] = field(default_factory=dict)

    def demand(self, stage: Stage, needs: Mapping[str, str], image: str) -> None:
        """Raises GateRefused, with every reason, unless the records that `stage` stands on let it deploy `image`.

        `needs` maps stages to the sha256 of their records.
        """
        demands = self.demands(stage)
        faults = [f"{name}: has no record" for name in self.needed(stage) if name not in needs]
        faults += [f"rollback: {fault}" for fault in _goal_faults(stage.name, needs)]
        nodes = [self.examine(name, sha256, image, demands.get(name)) for name, sha256 in needs.items()]
        bad = (f"{one.stage}: {fault}" for node in nodes for one in node.walk() for fault in one.faults)
        faults += dict.fromkeys(bad)
        if faults:
            reasons = "\n".join(f"  {fault}" for fault in faults)
            channel = stage.channel or stage.environment
            raise GateRefused(f"the {channel} channel does not let this version in:\n{reasons}")

    def check_signer(self, stage: Stage, signer: Signer) -> None:
        """Raises GateRefused, before anything is done, if what this key signs of a stage would count for nothing."""
        key = self.trust.key_of(signer)
        if key is None:
            raise GateRefused(
                f"{stage.name}: the key that signs here is not in trust/roles.yaml, so what it signs counts for "
                f"nothing in {self.settings.store}. Set TIDEGATE_SIGNING_KEY to one that is, or work on a store of "
                "your own (TIDEGATE_STORE=file:PATH)."
            )
        allowed = self.signers(stage.name)
        if key.revoked or not set(allowed) & set(key.roles):
            which = "is revoked" if key.revoked else f"has the role {', '.join(key.roles)}"
            raise GateRefused(
                f"{stage.name} takes a key with the role {' or '.join(allowed)}, and the key that signs here, "
                f"{key.name}, {which}."
            )

    def signers(self, stage: str) -> tuple[str, ...]:
        """The roles that may sign a record of a stage: as production demands, or staging, else as is usual."""
        asked = self.settings.policy
        demand = asked.production.get(stage) or asked.staging.get(stage)
        return (demand.signed_by,) if demand else _SIGNERS.get(stage, ("ci",))

    def needed(self, stage: Stage) -> tuple[str, ...]:
        """The stages whose records this one's must name: those that it needs, and those that its channel demands."""
        before = {*stage.needs, *self.demands(stage)}
        return tuple(name for name in _before(stage) if name in before)

    def demands(self, stage: Stage) -> Mapping[str, Demand]:
        """What the settings ask of the records that a stage stands on.

        Nothing of a rollback, which stands on the promotion that it goes back to, whatever its age; and
        nothing of a break-glass, which stands on a person.
        """
        if not stage.deploys or stage in (ROLLBACK, BREAK_GLASS):
            return {}
        return getattr(self.settings.policy, stage.channel or stage.environment)

    def examine(
        self,
        stage: str,
        sha256: str,
        image: str = "",
        demand: Demand | None = None,
        at: datetime | None = None,
    ) -> Node:
        """The tree of evidence behind a record, each with its faults. Never raises for what it finds there.

        `image` is the image that it must be about ("" for any); `demand` is what a channel asks of this record, its
        age measured `at` a time (now). What let a version into a channel is held to what that channel demands, at
        its own time.
        """
        known = (stage, sha256, image, demand, at)
        if known not in self._looked:
            self._looked[known] = self._examine(stage, sha256, image, demand, at or self.now)
        return self._looked[known]

    def _examine(self, stage: str, sha256: str, image: str, demand: Demand | None, at: datetime) -> Node:
        try:
            signed = self.trust.verify(self.store.fetch_bytes(sha256))
        except IntegrityError as error:
            return Node(stage, sha256, faults=(str(error),))
        made = signed.record
        needs = tuple(self._behind(made, image))
        # A rollback names the promotion alone, and reads what that one's publish wrote.
        near = [one for node in needs for one in node.walk()] if stage == ROLLBACK.name else needs
        behind = {node.stage: node.record for node in near if node.record}
        faults = [
            *_kind_faults(made, stage),
            *_role_faults(stage, signed.key, demand),
            *_age_faults(made, demand, at),
            *self._chain_faults(made, behind),
            *_goal_faults(stage, made.needs),
            *_same_faults(made, behind),
            *self._model_faults(made),
            *(
                [f"is about {made.digest}, not {image}"]
                if stage in _OF_IMAGE and image and made.digest != image
                else []
            ),
        ]
        if stage == "approve" and not faults:
            authors = {
                one.record.facts.get("author", "") for node in needs for one in node.walk() if one.record
            }
            faults += self._approval_faults(made, signed.key, {name.strip().casefold() for name in authors})
        return Node(stage, sha256, made, signed.key, tuple(faults), needs)

    def _behind(self, made: Record, image: str) -> Iterator[Node]:
        """The evidence that a record names."""
        row = ALL.get(made.stage)
        demands = self.demands(row) if row else {}
        at = datetime.fromisoformat(made.finished)
        for name, before in made.needs.items():
            yield self.examine(name, before, image, demands.get(name), at if name in demands else None)

    def _chain_faults(self, made: Record, behind: Mapping[str, Record]) -> list[str]:
        """Whether the record names all that it must, and read what those wrote."""
        row = ALL.get(made.stage)
        demanded = self.needed(row) if row else ()
        faults = [f"names no record of {name}" for name in demanded if name not in made.needs]
        for output, tree in made.key_parts.get("reads", {}).items():
            producer = behind.get(output.split("/")[0])
            if f"?{output}" != CHAMPION and (producer is None or producer.outputs.get(output) != tree):
                faults.append(f"read another {output} than the one recorded before it")
        return faults

    def _model_faults(self, made: Record) -> list[str]:
        """A record of another model may be signed by the same keys."""
        model, ours = _model(made), self.settings.model
        return (
            [f"is of the model {model}, and this repository's is {ours}"] if model not in ("", ours) else []
        )

    def accept(self, channel: str, entry: Entry) -> None:
        """Raises IntegrityError unless a trusted key signed that this very entry enters this channel.

        That alone: what the evidence behind it is worth today, `examine` says.
        """
        try:
            signed = self.trust.verify(self.store.fetch_bytes(entry.evidence))
        except IntegrityError as error:
            faults = [str(error)]
        else:
            faults = [
                *entry_faults(channel, entry, signed.record),
                *_role_faults(entry.why, signed.key, None),
            ]
        if faults:
            raise IntegrityError(
                f"{channel}'s entry of {entry.at} (v{entry.version}, {entry.why}) is not what was signed: "
                f"{'; '.join(faults)}. Bring the channel back from a copy of the store; where its key was revoked, "
                f"move channels/{channel} of the store aside, and promote anew."
            )

    def _approval_faults(self, made: Record, key: TrustedKey, authors: Collection[str]) -> list[str]:
        """Whether the approval names the published image, and its author is another than the approver.

        `authors` are all that the records before it name.
        """
        try:
            approved = document(made.outputs["approve/approval"], "approval.json", self.store)["digest"]
        except (IntegrityError, KeyError) as error:
            return [f"its approval cannot be read: {error}"]
        faults = (
            [] if approved == made.digest else [f"approves {approved}, and its record names {made.digest}"]
        )
        if self.settings.policy.author_may_approve:
            return faults
        approvers = {
            name.strip().casefold() for name in (key.name, made.facts.get("actor", ""), *key.identities)
        }
        for author in sorted(authors):
            if not author:
                faults.append(
                    "nobody knows who wrote the model's last commit, and its author may not approve it"
                )
            elif author in approvers:
                faults.append(f"{author} wrote the model's last commit, and may not approve it")
        return faults


def _kind_faults(made: Record, stage: str) -> list[str]:
    """Whether a record is what it is taken for."""
    faults = []
    if made.stage != stage:
        faults.append(f"is a record of {made.stage}")
    if made.outcome != Outcome.PASSED:
        faults.append(f"ended as {made.outcome}: {made.sentence}")
    if digest.of_json(made.key_parts) != made.key:
        faults.append("its key is not that of what it says it read")
    return faults


def _role_faults(stage: str, key: TrustedKey, demand: Demand | None) -> list[str]:
    """Whether this key may sign a record of this stage: as a channel demands, else as is usual."""
    allowed = (demand.signed_by,) if demand else _SIGNERS.get(stage, ("ci",))
    if set(allowed) & set(key.roles):
        return []
    return [f"is signed by {key.name} ({', '.join(key.roles)}), and needs {' or '.join(allowed)}"]


def _age_faults(made: Record, demand: Demand | None, at: datetime) -> list[str]:
    if demand is None:
        return []
    age = at - datetime.fromisoformat(made.finished)
    if age <= timedelta(days=demand.max_age_days):
        return []
    days = age / timedelta(days=1)
    again = (
        "approve it again"
        if made.stage == "approve"
        else f"python -m pipeline run --force {made.stage} --all"
    )
    return [f"is {days:.1f} days old, at most {demand.max_age_days:g} are allowed: {again}"]


def _same_faults(made: Record, behind: Mapping[str, Record]) -> list[str]:
    """Whether model and locked environment are those of the records before."""
    faults = []
    for name, before in behind.items():
        for what, old, new in (
            ("model", _model(before), _model(made)),
            ("locked environment", _environment(before), _environment(made)),
        ):
            if old and new and old != new:
                faults.append(f"was made of another {what} than {name} before it ({new[:12]}, {old[:12]})")
    return faults


def entry_faults(channel: str, entry: Entry, made: Record) -> list[str]:
    """Whether a channel's entry says what the record that let it in signed."""
    if entry.why not in _LETS_IN.get(channel, ()) or made.stage != entry.why:
        return [f"a record of {made.stage} lets nothing into {channel} as {entry.why}"]
    claims = entry.claims(channel)
    faults = [
        f"the channel names another {_CALLED.get(name, name)} than the record that let it in: "
        f"{claims[name] or 'none'}, not {made.enters.get(name) or 'none'}"
        for name in claims
        if claims[name] != made.enters.get(name)
    ]
    if made.outcome != Outcome.PASSED or made.digest != entry.image:
        faults.append(f"its record is about {made.digest or 'no image'}, and {made.outcome}")
    since = datetime.fromisoformat(entry.at) - datetime.fromisoformat(made.finished)
    if not timedelta(0) <= since <= _SKEW:
        faults.append(
            f"the channel was changed at {entry.at}, and the record that let it in was made at {made.finished}"
        )
    return faults


def _goal_faults(stage: str, needs: Mapping[str, str]) -> list[str]:
    """Whether a rollback goes back to what once let a version into production, and to nothing else."""
    if stage != ROLLBACK.name or (len(needs) == 1 and set(needs) <= set(_LETS_IN["production"])):
        return []
    return [f"goes back to {', '.join(needs) or 'nothing'}, which never lets a version into production"]


def _model(made: Record) -> str:
    return made.key_parts.get("settings", {}).get("model", "")


def _environment(made: Record) -> str:
    return made.key_parts.get("environment", {}).get("requirements.txt", "")


def _before(stage: Stage) -> tuple[str, ...]:
    """The stages of the table that come before this one; all of them for one that is not in the walk."""
    names = tuple(row.name for row in STAGES)
    return names[: names.index(stage.name)] if stage.name in names else names
