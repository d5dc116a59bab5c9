"""Stage publish: puts the image into the registry, by digest, with tags that never move."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from deploy.disk import disk_trouble, locked
from deploy.oci import BASE_NAME, REF_NAME, Descriptor, Image, Layout, load, verified
from pipeline.errors import IntegrityError, LostRace, ProgramFailed
from pipeline.stages import Context, Facts, Outcome, Result

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_RACES_AT_MOST = 20
_SETTLE_MS = (200, 500)


class Registry(Protocol):
    """Where images are published: a folder or a registry."""

    def push(self, image: Image, source: Layout, say: Callable[[str], None]) -> int:
        """Makes the image available by digest; returns how many bytes travelled."""

    def tags(self) -> Iterable[str]:
        """The names that are taken."""

    def resolve(self, reference: str) -> str | None:
        """The digest of a tag or digest; None if the registry has it not."""

    def tag(self, name: str, image: Image) -> None:
        """Lets a free name stand for the image; one that is taken stays as it is. Read back who has it."""

    def verify(self, image: Image) -> None:
        """Reads back what was pushed. Raises IntegrityError or ProgramFailed if anything of it is not there."""


def publish(context: Context) -> Result:
    """Pushes the image to `publish.registry` and gives it its tags: the commit, and a version number.

    An existing tag never moves. Raises IntegrityError if the commit's tag names another
    image already. Writes `published/published.json`.
    """
    address = context.settings.publish.registry
    source = Layout(context.inputs["image/layout"])
    image = load(source, source.only())
    with opened(address, context) as registry:
        commit = commit_tag(context.facts)
        if not commit:
            context.say("no clean commit, so a version number alone names this image")
        _refuse_moved(registry, commit, image)
        known = registry.resolve(image.digest) is not None
        sent = registry.push(image, source, context.say)
        version = give_version(registry, image, known=known, above=context.facts.highest_version)
        if commit:
            _refuse_moved(registry, commit, image)
            registry.tag(commit, image)
            _refuse_moved(
                registry, commit, image
            )  # another publisher of the same commit may have been faster
        registry.verify(image)
    published = {
        "registry": address,
        "digest": image.digest,
        "version": version,
        "tags": [*([commit] if commit else []), f"v{version}"],
        "reference": f"{address}@{image.digest}",
    }
    with disk_trouble(str(context.out)):
        (context.out / "published").mkdir()
        text = json.dumps(published, indent=2, sort_keys=True) + "\n"
        (context.out / "published/published.json").write_text(text)
    sentence = f"{address} v{version}, {sent / 2**20:.1f} of {image.size_bytes / 2**20:.1f} MiB sent"
    return Result(Outcome.PASSED, sentence, {"version": version, "sent_bytes": sent}, digest=image.digest)


def missing(context: Context) -> str | None:
    """Why the published image is no longer in its registry; None if it is, or if only a network could tell."""
    path = context.inputs["publish/published"] / "published.json"
    published = json.loads(path.read_bytes())
    if not published["registry"].startswith("oci:"):
        return None
    layout = Layout(_place(published["registry"], context.root))
    try:
        image = load(layout, published["digest"])
    except (ProgramFailed, IntegrityError) as error:
        return str(error)
    return next(filter(None, map(layout.lacks, image.blobs)), None)


def commit_tag(facts: Facts) -> str:
    """The commit that may name the image; empty where the working tree differs from every commit."""
    return "" if facts.dirty else facts.commit


def give_version(registry: Registry, image: Image, *, known: bool, above: int = 0) -> int:
    """The image's version number: the one it has, or the next after the highest, tagged.

    `known` says whether the registry had the image before, so that looking for a version
    that it has already is worth the questions. A new number is higher than `above`, the highest that
    a channel remembers: a registry that was emptied gives no number twice.
    """
    taken = sorted(
        (int(found[1]) for found in map(_VERSION.fullmatch, registry.tags()) if found), reverse=True
    )
    if known:
        for version in taken:
            if registry.resolve(f"v{version}") == image.digest:
                return version
    first = max(next(iter(taken), 0), above) + 1
    for version in range(first, first + _RACES_AT_MOST):
        if registry.resolve(f"v{version}") is None:
            registry.tag(f"v{version}", image)
            there = registry.resolve(f"v{version}")
            if there == image.digest:
                return version
            if there is None:
                raise ProgramFailed(
                    f"the registry took the tag v{version}, and has it not: it does not keep what it is sent. "
                    "Look at its log and its disk, then run publish again."
                )
    raise LostRace(
        f"others took the versions v{first} to v{first + _RACES_AT_MOST - 1} meanwhile; run publish again."
    )


def _refuse_moved(registry: Registry, commit: str, image: Image) -> None:
    there = registry.resolve(commit) if commit else None
    if there not in (None, image.digest):
        raise IntegrityError(
            f"tag {commit} names {there}, and this run of the same commit made {image.digest}. A tag never moves."
            " Find out what differs (settings from the environment, hardware, locked packages), or commit a change."
        )


@contextlib.contextmanager
def opened(address: str, context: Context) -> Iterator[Registry]:
    """The registry of this address, held alone: at least among the publishers of this machine."""
    if address.startswith("oci:"):
        layout = Layout(_place(address, context.root), durable=True)
        with disk_trouble(address), locked(layout.root / ".lock", context.say):
            layout.create().sweep()
            yield FolderRegistry(layout)
        return
    from deploy.registry import Client  # HTTP is not loaded where a folder is enough

    name = re.sub(r"[^A-Za-z0-9.-]", "_", address)
    with locked(context.state / f"publish-{name}.lock", context.say):
        yield RemoteRegistry(Client(address))


def _place(address: str, root: Path) -> Path:
    return root / address.removeprefix("oci:")


class FolderRegistry:
    """A layout that many images share; its index lists each image once for each of its tags. Hold its lock."""

    def __init__(self, layout: Layout):
        self._layout = layout

    def push(self, image: Image, source: Layout, say: Callable[[str], None]) -> int:
        sent = 0
        for blob in (*image.blobs, image.descriptor):
            if self._layout.lacks(blob) is None and verified(self._layout, blob):
                continue
            say(f"writing {blob.digest[7:19]}  {blob.size / 2**20:.1f} MiB")
            self._layout.take(blob, source)
            sent += blob.size
        return sent

    def tags(self) -> list[str]:
        return list(self._tagged())

    def resolve(self, reference: str) -> str | None:
        listed = self._tagged()
        return listed.get(reference) or next(
            (digest for digest in listed.values() if digest == reference), None
        )

    def tag(self, name: str, image: Image) -> None:
        if self.resolve(name) is None:
            entry = replace(image.descriptor, annotations={REF_NAME: name})
            self._layout.write_index([*self._layout.index(), entry])

    def verify(self, image: Image) -> None:
        there = load(self._layout, image.digest)
        for blob in there.blobs:
            if complaint := self._layout.lacks(blob):
                raise IntegrityError(
                    f"{complaint}, just after it was written; the disk of {self._layout.root} loses data"
                )

    def _tagged(self) -> dict[str, str]:
        entries: list[Descriptor] = self._layout.index()
        return {
            entry.annotations[REF_NAME]: entry.digest for entry in entries if REF_NAME in entry.annotations
        }


def settle() -> None:
    """Waits longer than another publisher takes from looking at a tag to writing it."""
    shortest, longest = _SETTLE_MS
    time.sleep((shortest + secrets.randbelow(longest - shortest)) / 1000)


class RemoteRegistry:
    """A repository of a registry that is spoken to over HTTP."""

    def __init__(self, client: Any, *, settle: Callable[[], None] = settle) -> None:
        self._client = client
        self._settle = settle

    def push(self, image: Image, source: Layout, say: Callable[[str], None]) -> int:
        from deploy.transfer import push  # HTTP is not loaded where a folder is enough

        sent = push(self._client, image.blobs, source, say, origin=self._origin(image))
        if self._client.resolve(image.digest) is None:
            self._client.put_manifest(image.body, image.digest)
            sent += len(image.body)
        return sent

    def _origin(self, image: Image) -> str:
        """The base image's repository, if it is another one of this registry: layers are mounted from there."""
        host, _, name = image.annotations.get(BASE_NAME, "").partition("/")
        return name if host == self._client.host and name != self._client.name else ""

    def tags(self) -> list[str]:
        return self._client.tags()

    def resolve(self, reference: str) -> str | None:
        return self._client.resolve(reference)

    def tag(self, name: str, image: Image) -> None:
        """Registries let anyone move a tag, and know no "only if it is free". So: look, write, wait until another
        publisher that looked at the same moment has written too; the caller then reads who won."""
        if self._client.resolve(name) is None:
            self._client.put_manifest(image.body, name)
            self._settle()

    def verify(self, image: Image) -> None:
        there = load(self._client, image.digest)
        for blob in there.blobs:
            if complaint := self._client.lacks(blob):
                raise IntegrityError(
                    f"{complaint}, though it was sent what it lacked. {self._client.mending(blob.digest)}"
                )
