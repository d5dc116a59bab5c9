"""Checkpoints in the store, so that a stage that was stopped goes on where it was, on any machine.

    checkpoints/STAGE/KEY/000000000240-SHA256.json      a signed document, created once: how far it is, and its files
    checkpoints/STAGE/KEY/files/SHA256                  the files

A checkpoint decides what the stage makes of it, so a document counts as a record of that stage would: signed by a
trusted key of a role that may sign the stage. It is an in-toto statement of a type of its own in a DSSE envelope, so
that neither can be taken for the other. It names stage and key, so that none counts for other inputs.

The files lie apart from the artifacts, because they go as soon as newer ones are there: what is shared with nothing
can be removed at once, without asking who else needs it.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import digest, offers, record
from pipeline.bucket_file import disk_errors
from pipeline.buckets import Bucket, Item
from pipeline.digest import Leaf, Tree
from pipeline.errors import IntegrityError
from pipeline.keys import Signer
from pipeline.offers import Progress
from pipeline.store import SMALL_BYTES
from pipeline.trust import Trust

PREDICATE = "https://tidegate.dev/checkpoint/v1"
KEPT = 2
"""So many of an attempt's newest are kept: where one is damaged, the one before still serves."""
_LOOKED_AT = 50
_NAME = re.compile(r"(?P<step>[0-9]{12})-[0-9a-f]{64}\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What is signed of a checkpoint. `at` is when (UTC, ISO 8601)."""

    stage: str
    key: str
    at: str
    progress: Progress
    tree: Tree

    def statement(self) -> dict:
        """It as an in-toto statement, whose subjects are its files."""
        rows = json.loads(self.tree.manifest())
        said = {"stage": self.stage, "key": self.key, "at": self.at, "files": rows}
        return {
            "_type": record.STATEMENT,
            "subject": [{"name": leaf.path, "digest": {"sha256": leaf.sha256}} for leaf in self.tree.leaves],
            "predicateType": PREDICATE,
            "predicate": {**said, "progress": dataclasses.asdict(self.progress)},
        }

    @classmethod
    def parse(cls, envelope: bytes) -> Checkpoint:
        """The checkpoint in an envelope, whose signature is not looked at. Raises IntegrityError if it is none."""
        try:
            outer = json.loads(envelope)
            said = json.loads(base64.b64decode(outer["payload"], validate=True))
            kinds = outer["payloadType"], said["_type"], said["predicateType"]
            if kinds != (record.PAYLOAD, record.STATEMENT, PREDICATE):
                raise ValueError(f"it is {kinds[2]!r}, not {PREDICATE}")
            about = said["predicate"]
            progress = Progress.parse(about["progress"])
            tree = Tree.parse(digest.canonical(about["files"]))
            made = cls(about["stage"], about["key"], about["at"], progress, tree)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(f"it is not readable as a checkpoint: {error!r}") from error
        if not all(isinstance(text, str) for text in (made.stage, made.key, made.at)):
            raise IntegrityError("it is not readable as a checkpoint: stage, key or time is no text")
        return made


@dataclass(frozen=True)
class Shelf:
    """The checkpoints in a store. `roles` are those that may sign a stage; `now` is this moment, as in records."""

    bucket: Bucket
    signer: Signer
    trust: Trust
    roles: Callable[[str], Collection[str]]
    now: Callable[[], str]

    def keep(self, stage: str, key: str, folder: Path, progress: Progress) -> str:
        """Puts the files below a folder into the store, then signs what they are; returns the document's path."""
        tree = _tree(folder)
        for leaf in tree.leaves:
            place = _file(stage, key, leaf)
            if self.bucket.size(place) != leaf.size:
                self.bucket.upload(place, folder / leaf.path, leaf.sha256)
        made = Checkpoint(stage, key, self.now(), progress, tree)
        envelope = record.sign(made.statement(), self.signer.crypto)
        path = f"{_place(stage, key)}{progress.step:012d}-{digest.of_bytes(envelope)}.json"
        self.bucket.create(path, envelope)
        return path

    def drop(self, paths: Sequence[str], kept: Sequence[str]) -> None:
        """Removes documents of one key that newer ones stand for, and the files that those `kept` do not name."""
        needed = {leaf.sha256 for path in kept for leaf in self._leaves(path)}
        for path in paths:
            leaves = self._leaves(path)
            self.bucket.delete(path)
            for leaf in leaves:
                if leaf.sha256 not in needed:
                    self.bucket.delete(f"{path.rpartition('/')[0]}/files/{leaf.sha256}")

    def clear(self, stage: str, key: str) -> None:
        """Removes all checkpoints of a key: what was made from them is in the store now."""
        for item in list(self.bucket.items(_place(stage, key))):
            self.bucket.delete(item.path)

    def bring(self, stage: str, key: str, work: Path) -> tuple[str, ...]:
        """Makes `work` the newest checkpoint that counts, unless what lies there is as far.

        Returns what is wrong with those that do not count, a sentence each. Raises ProgramFailed where the store
        cannot be reached, or the disk has no room: to begin anew without being asked would cost all that was done.
        """
        here, refused = offers.progress(work), []
        for item, step in itertools.islice(self._newest_first(stage, key), _LOOKED_AT):
            if step <= here.step:
                break
            try:
                found = self._verified(item.path, stage, key, step)
                self._fetch(found, work)
            except IntegrityError as error:
                refused.append(f"the checkpoint {self.bucket.where(item.path)} is not used: {error}")
                continue
            here = found.progress
            _say(f"a checkpoint of {found.at} is in the store: {here}")
            break
        if refused and not here.step:
            refused.append(f"{stage} starts from the beginning: no checkpoint of it counts")
        return tuple(refused)

    def _newest_first(self, stage: str, key: str) -> list[tuple[Item, int]]:
        place = _place(stage, key)
        items = ((item, _NAME.fullmatch(item.path.removeprefix(place))) for item in self.bucket.items(place))
        named = [(item, int(match["step"])) for item, match in items if match]
        return sorted(named, key=lambda pair: (pair[1], pair[0].path), reverse=True)

    def _verified(self, path: str, stage: str, key: str, step: int) -> Checkpoint:
        """A document that counts here for this stage and key. Raises IntegrityError for another."""
        envelope = self.bucket.read(path, SMALL_BYTES)
        if envelope is None:
            raise IntegrityError("it is gone")
        made = Checkpoint.parse(envelope)
        by = self.trust.signer_of(envelope, "the checkpoint", made.at)
        allowed = self.roles(stage)
        if not set(allowed) & set(by.roles):
            raise IntegrityError(f"it is signed by {by.name}, and needs {' or '.join(allowed)}")
        if by.until and by.until < self.now()[:10]:
            raise IntegrityError(f"it is signed by {by.name}, whose key expired with {by.until}")
        if (made.stage, made.key, made.progress.step) != (stage, key, step):
            raise IntegrityError(
                f"it is of {made.stage} with the key {made.key[:12]}, step {made.progress.step}, and lies where step "
                f"{step} of {stage} {key[:12]} belongs"
            )
        return made

    def _fetch(self, made: Checkpoint, work: Path) -> None:
        """Makes `work` a checkpoint, each file verified on its way; it is as it was if one is not what was signed."""
        partial = work.with_name(f".{work.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with disk_errors(partial):
                for leaf in made.tree.leaves:
                    self._fetch_file(made, leaf, partial / leaf.path)
                offers.note(partial, made.progress)
                shutil.rmtree(work, ignore_errors=True)
                partial.replace(work)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _fetch_file(self, made: Checkpoint, leaf: Leaf, to: Path) -> None:
        place = _file(made.stage, made.key, leaf)
        size = self.bucket.size(place)
        if size != leaf.size:
            what = "is missing" if size is None else f"has {size:,} bytes, not {leaf.size:,}"
            raise IntegrityError(f"{self.bucket.where(place)} {what}")
        to.parent.mkdir(parents=True, exist_ok=True)
        if not self.bucket.download(place, to, leaf.sha256):
            raise IntegrityError(f"{self.bucket.where(place)} is missing")

    def _leaves(self, path: str) -> tuple[Leaf, ...]:
        """The files of a document; none for one that is gone or damaged."""
        try:
            return Checkpoint.parse(self.bucket.read(path, SMALL_BYTES) or b"").tree.leaves
        except IntegrityError:
            return ()


def _tree(folder: Path) -> Tree:
    """The files below a folder, each read: what was just written is not in any memory of digests."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in paths)
    return Tree(tuple(Leaf(name, path.stat().st_size, digest.of_file(path), False) for name, path in named))


def _place(stage: str, key: str) -> str:
    return f"checkpoints/{stage}/{key}/"


def _file(stage: str, key: str, leaf: Leaf) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", leaf.sha256):
        raise IntegrityError(f"{leaf.sha256!r} is not a sha256")
    return f"{_place(stage, key)}files/{leaf.sha256}"


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
