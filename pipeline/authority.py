"""What counts on this machine: whose signature, which record of a stage, which entry of a channel."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from functools import cached_property

from pipeline import ci, record
from pipeline.digest import Digests
from pipeline.errors import IntegrityError
from pipeline.execution import Paths, now
from pipeline.heads import Heads
from pipeline.keys import Signer
from pipeline.policy import Policy
from pipeline.record import Record
from pipeline.settings import ON_THIS_MACHINE, Settings
from pipeline.stages import Outcome, Stage
from pipeline.store import Channel, Entry, Store
from pipeline.trust import Trust


@dataclass(frozen=True)
class Authority:
    """Answers whose signature counts here, which record of a stage does, and what each channel truly names.

    It follows from trust/, the settings, and where this runs: a laptop, a protected ref, a merge request. `approving`
    says that a person asked for the approval by name, whose key may be another than CI's.
    """

    settings: Settings
    paths: Paths
    store: Store
    digests: Digests
    approving: bool = False

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
        """Judges the evidence behind a record, by this trust and these settings."""
        return Policy(self.settings, self.store, self.trust)

    @cached_property
    def heads(self) -> Heads:
        """What was seen of each channel. A store in CI's checkout lasts one pipeline; so does this."""
        kind, _, place = self.settings.store.partition(":")
        checkout = self.paths.root.resolve()
        in_checkout = kind == "file" and (checkout / place).resolve().is_relative_to(checkout)
        passing = in_checkout and ci.vendor() != ci.LAPTOP
        return Heads(self.paths.build if passing else self.paths.state, self.store)

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

    def champion(self, candidate: str) -> Entry | None:
        """What a candidate (its model's digest) is compared with: production's newest entry that is another model.

        While production serves the candidate itself this is the one before, so that a promotion does
        not change the key of the evaluation that led to it.
        """
        others = (e for e in self.channel("production").newest_first() if e.model != candidate)
        return next(others, None)

    def scan_report(self, entry: Entry) -> str | None:
        """The tree digest of what the scan of an entry's image found; None where no such record is behind it."""

        def found() -> str | None:
            behind = self.policy.examine(entry.why, entry.evidence, entry.image)
            scans = [node.record for node in behind.walk() if node.stage == "scan" and node.record]
            return scans[0].outputs.get("scan/report") if scans else None

        return self.digests.remember(f"report:{entry.evidence}:{self.trust.digest}", found)

    def passed(self, stage: Stage, key: str) -> Record | None:
        """The newest record of this key that counts here and passed."""
        for sha256 in self.store.records(stage.name, key):
            found = self.accepted(stage, sha256)
            if found and found.key == key and found.outcome == Outcome.PASSED:
                return found
        return None

    def accepted(self, stage: Stage, sha256: str) -> Record | None:
        """A record that counts here; None, and a word of it, for another: the stage then counts as not run.

        Where nothing can be deployed from, as in a merge request, no key is trusted, and any whole record counts.
        """
        try:
            found = (
                self._signed(stage, sha256) if self.must_sign else record.read(self.store.fetch_bytes(sha256))
            )
            if found.stage != stage.name:
                raise IntegrityError(f"the record {sha256[:12]} is of {found.stage}")
            return found
        except IntegrityError as error:
            print(f"{stage.name}: {error}; it is not used", file=sys.stderr, flush=True)
            return None

    def _signed(self, stage: Stage, sha256: str) -> Record:
        """A record whose key may sign this stage, and has not expired. Raises IntegrityError for any other."""
        fetch = functools.partial(self.store.fetch_bytes, sha256)
        signed = self.trust.remembered(sha256, fetch, self.digests.remember)
        allowed = self.policy.signers(stage.name)
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
        return signed.record
