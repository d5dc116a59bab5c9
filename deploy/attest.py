"""Attestations on a published image: in-toto statements in DSSE envelopes, where auditors' tools look for them.

Each is attached in two forms. A Sigstore bundle that refers to the image (OCI 1.1 referrers) is what cosign 3
reads; the tag `sha256-….att`, with a layer for each envelope, is what cosign 2 reads, and cosign 3 where an
image has no bundle. Either is checked with

    cosign verify-attestation --key trust/ci.pub --insecure-ignore-tlog --type URI IMAGE@DIGEST

(cosign 3 also wants --private-infrastructure). The forms follow cosign's source and the specifications below.
cosign itself was not run against them: tests/support_cosign.py takes its steps instead.

https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md, ATTESTATION_SPEC.md
https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md#referrers-tag-schema
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from deploy.attestations import (
    BUNDLE,
    DSSE,
    EMPTY_CONFIG,
    KEY_ID_NOTE,
    MANIFEST_BYTES_AT_MOST,
    Attestation,
    in_bundle,
    in_envelope,
    listed,
    referrer,
    tag_of,
    with_layers,
    with_referrers,
)
from deploy.disk import disk_trouble, locked
from deploy.oci import INDEX, MANIFEST, REF_NAME, Descriptor, Layout, encode, of_bytes, parse_json, verified
from pipeline.errors import IntegrityError, LostRace

_BYTES_AT_MOST = 64 << 20
_RACES_AT_MOST = 20
_SETTLE_MS = (200, 500)
_BLOB = "application/octet-stream"

Say = Callable[[str], None]


class Place(Protocol):
    """A registry as attaching sees it: bytes by digest, and tags that move."""

    def manifest(self, digest: str) -> bytes:
        """The manifest of this digest, verified."""

    def open(self, blob: Descriptor) -> BinaryIO:
        """The bytes of a blob, not verified."""

    def tagged(self, tag: str) -> bytes | None:
        """The manifest that a tag names; None if it names nothing."""

    def referrers(self, image: str) -> list[dict] | None:
        """Descriptors of what refers to the image; None where the registry keeps no such list."""

    def keep(self, content: bytes) -> None:
        """Stores a small blob, if it is not there."""

    def publish(self, body: bytes, media_type: str, tag: str = "") -> None:
        """Stores a manifest whose blobs are there, and lets the tag name it."""

    def settle(self) -> None:
        """Waits until another writer that had read the tag before our write has written, too."""


def attach(
    registry: str,
    image: str,
    envelopes: Sequence[bytes],
    say: Say,
    *,
    root: Path = Path(),
    state: Path | None = None,
) -> list[str]:
    """Attaches DSSE envelopes to the image `sha256:…` in `oci:PATH` (below `root`) or in `HOST[:PORT]/NAME`.

    Envelopes that do not name the image are passed over, and `say` tells so. What is attached
    already is not written again. With `state`, a folder, the processes of this machine take turns.
    Returns the digests of the manifests that refer to the image, one for each envelope that names
    it. Raises IntegrityError for something that is no signed statement, LostRace if others kept
    replacing what was written, ProgramFailed if the image is not there.
    """
    fitting = []
    for number, envelope in enumerate(envelopes, 1):
        attestation = in_envelope(envelope, f"envelope {number} for {image}")
        if attestation.names(image):
            fitting.append(attestation)
        else:
            say(f"envelope {number} ({attestation.predicate_type}) does not name {image[:19]}; not attached")
    if not fitting:
        return []
    with _opened(registry, say, root, state) as place:
        attached = _refer(place, image, [(each.bundle(), each.predicate_type) for each in fitting])
        _merge(place, tag_of(image, ".att"), MANIFEST, lambda body: with_layers(body, fitting))
    say(f"{len(fitting)} attestations are attached to {image[:19]} in {registry}")
    return attached


def attach_bundle(
    registry: str, image: str, bundle: bytes, say: Say, *, root: Path = Path(), state: Path | None = None
) -> str:
    """Attaches a Sigstore bundle, such as a model's signature, to an image; it need not name the image.

    Returns the digest of the manifest that refers to the image. The rest is as with `attach`.
    """
    predicate_type = in_bundle(bundle, f"the bundle for {image}").predicate_type
    with _opened(registry, say, root, state) as place:
        [attached] = _refer(place, image, [(bundle, predicate_type)])
    say(f"{predicate_type} is attached to {image[:19]} in {registry}")
    return attached


def fetch(registry: str, image: str, *, root: Path = Path()) -> list[bytes]:
    """The envelopes that are attached to an image in either form and name it, each once, as they were signed.

    Nobody's signature is verified. Raises IntegrityError for what cannot be an attestation, or is too large.
    """
    reader = _Reader(_place(registry, root), image)
    found: dict[tuple, bytes] = {}
    for attestation in (*reader.layers(), *(in_bundle(body, name) for name, body in reader.bundles())):
        if attestation.names(image):
            identity = (attestation.signature, encode(attestation.statement))
            found.setdefault(identity, attestation.envelope)
    return list(found.values())


def fetch_bundles(registry: str, image: str, predicate_type: str, *, root: Path = Path()) -> list[bytes]:
    """The Sigstore bundles of one predicate type that refer to an image, whatever they name. See `fetch`."""
    reader = _Reader(_place(registry, root), image)
    return [body for name, body in reader.bundles() if in_bundle(body, name).predicate_type == predicate_type]


def _refer(place: Place, image: str, bundles: Sequence[tuple[bytes, str]]) -> list[str]:
    """Lets bundles, each with its predicate type, refer to the image; the digests of the manifests that do."""
    tag = tag_of(image)
    body = place.manifest(image)
    subject = Descriptor(parse_json(body, image).get("mediaType") or MANIFEST, image, len(body))
    there, kept_by_registry = _referrers(place, image)
    known = {each.digest for each in there}
    made = []
    for bundle, predicate_type in bundles:
        entry, manifest = referrer(subject, bundle, predicate_type)
        if entry.digest not in known:
            place.keep(bundle)
            place.keep(EMPTY_CONFIG)
            place.publish(manifest, MANIFEST)
        made.append(entry)
    if not kept_by_registry:
        _merge(place, tag, INDEX, lambda body: with_referrers(body, made))
    return [entry.digest for entry in made]


def _referrers(place: Place, image: str) -> tuple[list[Descriptor], bool]:
    """The manifests that refer to an image, and whether the registry itself keeps that list."""
    kept = place.referrers(image)
    if kept is not None:
        return listed(encode({"manifests": kept}), "manifests"), True
    body = place.tagged(tag_of(image))
    return (listed(body, "manifests") if body else []), False


def _merge(place: Place, tag: str, media_type: str, add: Callable) -> None:
    """Moves a tag to `add(what it names)`, until `add` says None: all is there.

    Registries have no compare-and-swap for tags. So what was written is looked at again after a
    while, and what another writer replaced meanwhile is added again. A writer that stands still
    for longer than that, between its last look and its write, can still undo what others wrote:
    attaching again mends it, and a `state` rules it out among the processes of one machine.
    """
    for _ in range(_RACES_AT_MOST):
        seen = place.tagged(tag)
        wanted = add(seen)
        if wanted is None:
            return
        manifest, blobs = wanted
        for blob in blobs:
            place.keep(blob)
        if place.tagged(tag) == seen:
            place.publish(manifest, media_type, tag)
            place.settle()
    raise LostRace(f"others replaced the tag {tag} {_RACES_AT_MOST} times in a row; run this again.")


class _Reader:
    """What a registry says is attached to an image, read with limits."""

    def __init__(self, place: Place, image: str):
        self._place = place
        self._image = image
        self._left = _BYTES_AT_MOST

    def layers(self) -> Iterator[Attestation]:
        """What cosign's tag names."""
        body = self._place.tagged(tag_of(self._image, ".att"))
        for layer in listed(body, "layers") if body else ():
            if layer.media_type == DSSE:
                yield in_envelope(self._read(layer), layer.digest, layer.annotations.get(KEY_ID_NOTE))

    def bundles(self) -> Iterator[tuple[str, bytes]]:
        """The Sigstore bundles that refer to the image, with their digests."""
        for manifest in _referrers(self._place, self._image)[0]:
            if manifest.artifact_type == BUNDLE:
                self._charge(manifest)
                for layer in listed(self._place.manifest(manifest.digest), "layers"):
                    yield layer.digest, self._read(layer)

    def _charge(self, blob: Descriptor) -> None:
        self._left -= blob.size
        if self._left < 0:
            raise IntegrityError(
                f"more than {_BYTES_AT_MOST >> 20} MiB are attached to {self._image}: {blob.digest} has {blob.size}"
                " bytes and was not read. Look at who else pushes there."
            )

    def _read(self, blob: Descriptor) -> bytes:
        self._charge(blob)
        with self._place.open(blob) as stream:
            content = stream.read(blob.size + 1)
        if of_bytes(content) != blob.digest:
            raise IntegrityError(
                f"{blob.digest}, attached to {self._image}, has other bytes than its digest says"
            )
        return content


@contextlib.contextmanager
def _opened(registry: str, say: Say, root: Path, state: Path | None) -> Iterator[Place]:
    """A registry to write to: a folder held alone, a remote one held alone on this machine if there is a `state`."""
    place = _place(registry, root)
    if isinstance(place, FolderPlace):
        with disk_trouble(registry), locked(place.layout.root / ".lock", say):
            place.layout.create().sweep()
            yield place
    elif state:
        name = re.sub(r"[^A-Za-z0-9.-]", "_", registry)
        with locked(state / f"attach-{name}.lock", say):
            yield place
    else:
        yield place


def _place(registry: str, root: Path) -> FolderPlace | RemotePlace:
    if registry.startswith("oci:"):
        return FolderPlace(Layout(root / registry.removeprefix("oci:"), durable=True))
    from deploy.registry import Client  # HTTP is not loaded where a folder is enough

    return RemotePlace(Client(registry))


class FolderPlace:
    """An OCI layout. Hold its lock to write."""

    def __init__(self, layout: Layout):
        self.layout = layout

    def manifest(self, digest: str) -> bytes:
        path = self.layout.path(digest)
        if path.is_file() and path.stat().st_size > MANIFEST_BYTES_AT_MOST:
            raise IntegrityError(f"{path} has {path.stat().st_size} bytes, more than a manifest can have")
        return self.layout.manifest(digest)

    def open(self, blob: Descriptor) -> BinaryIO:
        return self.layout.open(blob)

    def tagged(self, tag: str) -> bytes | None:
        named = [entry.digest for entry in self.layout.index() if entry.annotations.get(REF_NAME) == tag]
        return self.manifest(named[0]) if named else None

    def referrers(self, image: str) -> None:
        """A layout has no such list; the tag stands in, as it does in regclient's and oras's layouts."""

    def keep(self, content: bytes) -> None:
        blob = Descriptor(_BLOB, of_bytes(content), len(content))
        if self.layout.lacks(blob) or not verified(self.layout, blob):
            self.layout.add(content, _BLOB)

    def publish(self, body: bytes, media_type: str, tag: str = "") -> None:
        self.keep(body)
        if tag:
            others = [entry for entry in self.layout.index() if entry.annotations.get(REF_NAME) != tag]
            entry = Descriptor(media_type, of_bytes(body), len(body), {REF_NAME: tag})
            self.layout.write_index([*others, entry])

    def settle(self) -> None:
        """Nothing to wait for: whoever writes holds the lock."""


class RemotePlace:
    """A repository of a registry that is spoken to over HTTP."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def manifest(self, digest: str) -> bytes:
        return self._client.manifest(digest)

    def open(self, blob: Descriptor) -> BinaryIO:
        return self._client.open(blob)

    def tagged(self, tag: str) -> bytes | None:
        return self._client.tagged(tag)

    def referrers(self, image: str) -> list[dict] | None:
        return self._client.referrers(image)

    def keep(self, content: bytes) -> None:
        blob = Descriptor(_BLOB, of_bytes(content), len(content))
        if self._client.lacks(blob):
            self._client.push(blob, lambda: BytesIO(content))

    def publish(self, body: bytes, media_type: str, tag: str = "") -> None:
        self._client.put_manifest(body, tag or of_bytes(body), media_type)

    def settle(self) -> None:
        shortest, longest = _SETTLE_MS
        time.sleep((shortest + secrets.randbelow(longest - shortest)) / 1000)
