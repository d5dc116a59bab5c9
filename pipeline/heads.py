"""What this machine last saw of each channel, so that nobody who writes to the store takes entries back unseen.

Each entry names the one before, so that none in the middle can be taken out or changed; but a store whose newest
entries are gone looks like the store before them. A machine that serves saw them.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline import digest
from pipeline.errors import IntegrityError
from pipeline.store import Channel, Store


@dataclass(frozen=True)
class Seen:
    """A channel as it was: how many entries it had, and the sha256 of the newest."""

    revision: int = 0
    head: str = ""


class Heads:
    """The channels of one store, as seen last; kept in a file each, in this machine's state folder."""

    def __init__(self, state: Path, store: Store):
        self._folder, self._store = state / "seen", store

    def channel(self, name: str) -> Channel:
        """A channel as it is now. Raises IntegrityError where it is not what was seen before, or more."""
        # In this order: what is read later can have more entries than were seen, never fewer.
        seen = self._recall(name)
        channel = self._store.channel(name)
        self._compare(seen, channel)
        return channel

    def remember(self, channel: Channel) -> None:
        """Keeps what a channel is now, for the next look.

        Only for one whose live entry is what was signed: who removes one that somebody planted does not cut it short.
        Not being able to costs the protection, and stops nobody who only looks.
        """
        seen = self._recall(channel.name)
        if channel.revision < seen.revision or channel.head == seen.head:
            return
        file = self._file(channel.name)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"revision": channel.revision, "head": channel.head}))
            partial.replace(file)

    def _compare(self, seen: Seen, now: Channel) -> None:
        if now.revision < seen.revision:
            raise IntegrityError(
                f"{now.name} had {seen.revision} entries when this machine last looked, and has {now.revision} now: "
                f"the newest were taken out of the store. {self._remedy(now.name)}"
            )
        head = now.head if now.revision == seen.revision else ""
        if seen.revision and (head or self._store.entry(now.name, seen.revision)[1]) != seen.head:
            raise IntegrityError(
                f"{now.name}: entry {seen.revision} is another than the one that this machine saw there: the history "
                f"was changed. {self._remedy(now.name)}"
            )

    def _remedy(self, name: str) -> str:
        return (
            "Bring them back from a copy of the store. Only if the store was emptied or replaced on purpose, remove "
            f"{self._file(name)}."
        )

    def _file(self, name: str) -> Path:
        place = self._store.bucket.where(f"channels/{name}.json")
        return self._folder / f"{name}-{digest.of_bytes(place.encode())[:12]}.json"

    def _recall(self, name: str) -> Seen:
        try:
            return Seen(**json.loads(self._file(name).read_bytes()))
        except (OSError, ValueError, TypeError):
            return Seen()
