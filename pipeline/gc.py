"""Garbage collection: removes from a store what no channel and no retention rule needs any more.

Kept are

- every entry of every channel, and all records behind each: `verify` and `history` answer for all that ever was live;
- with the outputs of all records behind them: the newest entries of each channel (`retention.versions`), the one that a
  rollback goes back to, the champion, what was recorded lately (`retention.days`), and each stage's newest record, so
  that where nothing changed nothing runs again;
- the checkpoints of what was not finished, for `retention.checkpoint_days` after the newest of them;
- whatever is younger than an hour (GRACE_S): a run uploads blobs first and names them in a record last; and for a week
  what a killed upload left (UNFINISHED_S), since its next run goes on from there.

Nothing is removed while anything that must be followed cannot be read: a record, a tree, a channel's entry, or an
object below records/ that this version does not know.

On this machine no run and no deployment of this repository goes on meanwhile: gc holds their locks. Runs elsewhere may
use the same store, as may another gc. Blobs are therefore listed before records are followed, so that what is uploaded
later is not even looked at; names of records go before any blob, so that no run finds a record whose blobs are about
to go; and what was recorded until then is followed before the blobs go. What remains is a run elsewhere that at this
very moment builds on blobs or records older than `retention.days` that nothing kept names. It loses work, never
evidence: the stage runs again, or the policy says which record is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline import ci, operate, record
from pipeline.buckets import Item
from pipeline.digest import Tree
from pipeline.errors import GateRefused, IntegrityError, SettingsError
from pipeline.locks import alone, deployment_lock
from pipeline.record import Record
from pipeline.runner import Runner
from pipeline.settings import Retention
from pipeline.stages import FOLLOW_UP, Outcome
from pipeline.store import Channel, Entry, Store, blob

GRACE_S = 3600.0
# Longer than any upload takes, and than whoever was killed waits before it goes on where it stopped.
UNFINISHED_S = 7 * 86_400.0
_DAY_S = 86_400.0
_AT_ONCE, _SLICE = 8, 1000
_RECORD = re.compile(r"records/(?P<stage>[a-z-]+)/[0-9a-f]{64}/[0-9TZ.]+-(?P<sha256>[0-9a-f]{64})")
_NEWEST = re.compile(r"records/[a-z-]+/newest")
_ENTRY = re.compile(r"channels/(?P<channel>[^/]+)/(?P<revision>[0-9]{10})\.json")
# What `verify` and a rollback to any version read, beside records: small, and kept for every version.
_DOCUMENTS = ("approve/approval", "publish/published")


@dataclass(frozen=True)
class Waste:
    """What nothing needs: names of records, blobs (records, trees, files), logs, checkpoints. `of` counts all blobs."""

    records: tuple[Item, ...]
    blobs: tuple[Item, ...]
    logs: tuple[Item, ...]
    of: int
    checkpoints: tuple[Item, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(item.size for item in (*self.blobs, *self.logs, *self.checkpoints))

    def __str__(self) -> str:
        return (
            f"{len(self.records):,} records, {len(self.blobs):,} of {self.of:,} blobs, {len(self.logs):,} logs and "
            f"{len(self.checkpoints):,} files of checkpoints, {self.size_bytes:,} bytes"
        )


def gc(runner: Runner, dry_run: bool, lost: Collection[str] = ()) -> str:
    """Removes what nothing needs, or says what would go; returns one sentence.

    `lost` are records and trees (sha256) that are known to be beyond repair: gc goes on without them, and without what
    only they name. Raises IntegrityError for others that cannot be read, LostRace while a run goes on here.
    """
    for sha256 in lost:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise SettingsError(f"--lost {sha256}: must be 64 hexadecimal digits, as the error names them.")
    sweep = Sweep(runner.store, runner.settings.retention, lost=lost)
    if dry_run:
        return f"would remove {sweep.find()}"
    if ci.vendor() != ci.LAPTOP and not ci.is_protected():
        raise GateRefused(
            "gc: only a protected ref may remove anything, since another's settings say what is kept. "
            "--dry-run may be asked for everywhere."
        )
    with alone(runner.paths.build), deployment_lock(runner.paths.state):
        removed, unfinished = sweep.remove(sweep.find()), sweep.end_unfinished()
        return f"removed {removed}" + (f"; unfinished uploads: {unfinished:,}" if unfinished else "")


class Sweep:
    """One garbage collection of a store. `now` is in seconds since the epoch."""

    def __init__(
        self, store: Store, retention: Retention, now: float | None = None, lost: Collection[str] = ()
    ):
        now = time.time() if now is None else now
        self._bucket = store.bucket
        self._unfinished = now - UNFINISHED_S
        self._grace = now - GRACE_S
        self._since = now - max(retention.days * _DAY_S, GRACE_S)
        self._resumable_since = now - max(retention.checkpoint_days * _DAY_S, GRACE_S)
        self._kept = _Kept(store, retention.versions, self._since, lost)

    def find(self) -> Waste:
        """What may go. Changes nothing. Raises IntegrityError where that cannot be known."""
        blobs = [item for item in self._bucket.items("blobs/sha256/") if _is_blob(item.path)]
        self._kept.look()
        return Waste(
            tuple(item for item, sha256 in self._kept.named if self._may_go(item, sha256)),
            tuple(item for item in blobs if self._may_go(item, _name(item.path))),
            tuple(item for item in self._bucket.items("logs/") if item.modified < self._since),
            len(blobs),
            tuple(self._checkpoints()),
        )

    def remove(self, found: Waste) -> Waste:
        """Removes it, save what came to be needed since; returns what was removed."""
        self._delete(found.records)
        self._kept.look()
        still = tuple(item for item in found.blobs if self._may_go(item, _name(item.path)))
        self._delete(still)
        self._delete(found.logs)
        self._delete(found.checkpoints)
        return dataclasses.replace(found, blobs=still)

    def _checkpoints(self) -> Iterator[Item]:
        """Those of a stage and key that passed, or that nobody has gone on from for long."""
        for name, items in itertools.groupby(self._bucket.items("checkpoints/"), _stage_and_key):
            group = list(items)
            newest = max(item.modified for item in group)
            finished = newest < self._grace and self._kept.passed(*name)
            if finished or newest < self._resumable_since:
                yield from group

    def end_unfinished(self) -> int:
        """Removes what killed uploads left a week ago or earlier; how many."""
        return self._bucket.sweep(self._unfinished)

    def _may_go(self, item: Item, sha256: str) -> bool:
        return sha256 not in self._kept.blobs and item.modified < self._grace

    def _delete(self, items: Sequence[Item]) -> None:
        for _ in _each(lambda item: self._bucket.delete(item.path), items):
            pass


class _Kept:
    """The blobs that are needed: found by following channels and records, and never fewer at a second look."""

    def __init__(self, store: Store, versions: int, since: float, lost: Collection[str]):
        self.blobs: set[str] = set()
        self.named: list[tuple[Item, str]] = []
        self._store, self._versions, self._since, self._lost = store, versions, since, frozenset(lost)
        self._whole: set[str] = set()
        self._proof: set[str] = set()
        self._trees: set[str] = set()
        self._past: dict[str, list[Entry]] = {}

    def look(self) -> None:
        """Follows all that the store names now."""
        stages = self._names()
        recent = {sha256 for item, sha256 in self.named if item.modified >= self._since}
        newest = {self._store.newest_record(stage) for stage in stages}
        recent |= {name for _, name in self.named if name in newest}
        # A follow-up names what it follows up, and nothing names a follow-up.
        proof = self._there(stages.get(FOLLOW_UP.name, set()))
        whole = self._there(recent)
        for channel in self._channels():
            entries = self._entries(channel)
            proof |= {entry.evidence for entry in entries}
            whole |= {entry.evidence for entry in in_use(channel, entries, self._versions)}
        self._follow(whole, self._whole, whole=True)
        self._follow(proof, self._proof, whole=False)

    def passed(self, stage: str, key: str) -> bool:
        """Whether a record says that this stage passed with this key, whoever signed it."""
        there = (
            sha256
            for sha256 in self._store.records(stage, key)
            if sha256 not in self._lost and self._store.bucket.size(blob(sha256)) is not None
        )
        return any(self._record(sha256).outcome == Outcome.PASSED for sha256 in there)

    def _names(self) -> dict[str, set[str]]:
        """Lists the names of records; the sha256 of those of each stage."""
        self.named = []
        stages: dict[str, set[str]] = {}
        for item in self._store.bucket.items("records/"):
            match = _RECORD.fullmatch(item.path)
            if match:
                self.named.append((item, match["sha256"]))
                stages.setdefault(match["stage"], set()).add(match["sha256"])
            elif not _NEWEST.fullmatch(item.path):
                raise IntegrityError(
                    f"gc removed no artifact: {self._store.bucket.where(item.path)} is no name of a record that this "
                    "version writes, so what it needs is not known. Another version's gc may know it; else remove it."
                )
        return stages

    def _channels(self) -> Iterator[Channel]:
        """Every channel of which anything is there. Raises IntegrityError for one with entries that are not read."""
        last: dict[str, int] = {}
        for item in self._store.bucket.items("channels/"):
            entry = _ENTRY.fullmatch(item.path)
            name = entry["channel"] if entry else item.path.split("/")[1].removesuffix(".json")
            last[name] = max(last.get(name, 1), int(entry["revision"]) if entry else 1)
        for name, revision in last.items():
            channel = self._store.channel(name)
            if channel.revision < revision:
                raise IntegrityError(
                    f"gc removed no artifact: channel {name} has {revision} entries or more, and {channel.revision} "
                    "can be read. Bring the others back from a copy of the store."
                )
            yield channel

    def _entries(self, channel: Channel) -> list[Entry]:
        """All entries of a channel, newest first; read again only if there are more than at the last look."""
        if len(self._past.get(channel.name, ())) != channel.revision:
            self._past[channel.name] = list(channel.newest_first())
        return self._past[channel.name]

    def _there(self, names: Iterable[str]) -> set[str]:
        """Those records whose blob is there. The name of one that was deleted leads nowhere, as for a run."""
        new = [name for name in names if name not in self._whole and name not in self._lost]
        sizes = _each(lambda name: self._store.bucket.size(blob(name)), new)
        return {name for name, size in zip(new, sizes, strict=True) if size is not None}

    def _follow(self, waiting: set[str], seen: set[str], whole: bool) -> None:
        """Keeps these records and all behind them, with their outputs, or with no more than documents."""
        while waiting := waiting - seen - self._whole - self._lost:
            outputs, needs = set(), set()
            for made in _each(self._record, sorted(waiting)):
                outputs |= {tree for name, tree in made.outputs.items() if whole or name in _DOCUMENTS}
                needs |= set(made.needs.values())
            self._keep_trees(outputs - self._trees - self._lost)
            seen |= waiting
            self.blobs |= waiting
            waiting = needs

    def _keep_trees(self, trees: set[str]) -> None:
        for blobs in _each(self._tree, sorted(trees)):
            self.blobs |= blobs
        self._trees |= trees

    def _record(self, sha256: str) -> Record:
        try:
            made = record.read(self._store.fetch_bytes(sha256))
            if not all(isinstance(name, str) for name in (*made.needs.values(), *made.outputs.values())):
                raise IntegrityError(f"the record {sha256} names something that is no digest")
        except IntegrityError as error:
            raise _unknown(sha256, error) from error
        return made

    def _tree(self, sha256: str) -> set[str]:
        """The blobs of an output; none for one that an earlier gc removed."""
        try:
            leaves = Tree.parse(self._store.fetch_bytes(sha256)).leaves
        except IntegrityError as error:
            if self._store.bucket.size(blob(sha256)) is None:
                return set()
            raise _unknown(sha256, error) from error
        return {sha256, *(leaf.sha256 for leaf in leaves)}


def in_use(channel: Channel, entries: Sequence[Entry], versions: int) -> list[Entry]:
    """The entries whose artifacts may be asked for.

    A candidate is compared with the newest entry that is another model: the live one or, where the candidate is what is
    live already, the newest that differs from it.
    """
    kept = list(entries[:versions])
    kept += [entry for entry in entries if entry.model != entries[0].model][:1]
    with contextlib.suppress(GateRefused):
        kept.append(operate.earlier(channel, None))
    return kept


def _unknown(sha256: str, error: IntegrityError) -> IntegrityError:
    return IntegrityError(
        f"gc removed no artifact, because what is needed cannot be known: {error}\nIf {sha256} is lost for good, "
        f"`python -m pipeline gc --lost {sha256}` goes on without it and what it alone names."
    )


def _each(work: Callable, items: Sequence) -> Iterator:
    """`work` of each, a few at once, in their order; memory holds a thousand results. Raises the first error."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(items), _SLICE):
            yield from pool.map(work, items[start : start + _SLICE])


def _stage_and_key(item: Item) -> tuple[str, str]:
    """Of which stage and key a checkpoint is (pipeline/checkpoints.py)."""
    _, stage, key, *_ = [*item.path.split("/"), "", ""]
    return stage, key


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _is_blob(path: str) -> bool:
    """Whether a path is one that a store gives to a blob; what others put there stays."""
    with contextlib.suppress(IntegrityError):
        return path == blob(_name(path))
    return False
