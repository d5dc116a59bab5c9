"""OCI images on disk and from registries: descriptors, manifests, layouts, and how layers are unpacked.

Formats: https://github.com/opencontainers/image-spec (v1.1): descriptor.md, manifest.md, image-layout.md, layer.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from deploy.hashing import Blob
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
BASE_NAME = "org.opencontainers.image.base.name"
# What Docker's older formats call the same bytes.
DOCKER_TYPES = {
    "application/vnd.docker.distribution.manifest.v2+json": MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json": INDEX,
    "application/vnd.docker.container.image.v1+json": CONFIG,
    "application/vnd.docker.image.rootfs.diff.tar": LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER + "+gzip",
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Descriptor:
    """What some bytes are (media type), which ones (`sha256:…`) and how many.

    Of a manifest that is no image, `artifact_type` says what it is instead.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    @classmethod
    def parse(cls, raw: Mapping, where: str) -> Descriptor:
        """The descriptor in a JSON document. Raises IntegrityError naming the document for anything else."""
        try:
            media_type, digest, size = raw["mediaType"], raw["digest"], raw["size"]
            annotations, artifact_type = dict(raw.get("annotations") or {}), raw.get("artifactType") or ""
            media_type = DOCKER_TYPES.get(media_type, media_type)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(f"{where} holds something that is not an OCI descriptor: {raw!r}") from error
        if not isinstance(size, int) or size < 0 or not _DIGEST.fullmatch(str(digest)):
            raise IntegrityError(f"{where} names {digest!r} of {size!r} bytes, which cannot be a blob")
        return cls(media_type, digest, size, annotations, artifact_type)

    def document(self) -> dict:
        """The descriptor as JSON writes it."""
        raw = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        more = {"annotations": dict(self.annotations), "artifactType": self.artifact_type}
        return raw | {name: value for name, value in more.items() if value}


@dataclass(frozen=True)
class Image:
    """An image manifest: its exact bytes, and what they name."""

    digest: str
    body: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The layers and the configuration, which must be in a registry before the manifest is."""
        return (*self.layers, self.config)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(MANIFEST, self.digest, len(self.body))

    @property
    def annotations(self) -> dict[str, str]:
        """What the manifest says of the image."""
        return dict(parse_json(self.body, self.digest).get("annotations") or {})

    @property
    def size_bytes(self) -> int:
        """The bytes that travel when nothing of the image is there yet."""
        return len(self.body) + sum(blob.size for blob in self.blobs)


REPUBLISH = "publish again (python -m pipeline run --force publish --all)"


class Source(Protocol):
    """Where images come from: a layout on disk or a registry."""

    def manifest(self, digest: str) -> bytes:
        """The manifest of this digest, verified."""

    def open(self, blob: Descriptor) -> BinaryIO:
        """The bytes of a blob as they come; whoever reads them verifies them."""


class Published(Source, Protocol):
    """Where published images are: what is damaged there is mended there."""

    def mending(self, digest: str) -> str:
        """Where a damaged blob lies, and what to do about it."""


def load(source: Source, digest: str) -> Image:
    """The image of this digest; of an index (several platforms), the one for linux/amd64.

    Raises IntegrityError if what is found there is no image.
    """
    body = source.manifest(digest)
    document = parse_json(body, digest)
    if "manifests" in document:
        return load(source, _for_this_platform(document, digest))
    config = Descriptor.parse(document.get("config") or {}, digest)
    layers = tuple(Descriptor.parse(raw, digest) for raw in document.get("layers") or ())
    return Image(digest, body, config, layers)


def _for_this_platform(index: Mapping, digest: str) -> str:
    for raw in index["manifests"]:
        platform = raw.get("platform") or {}
        if platform.get("os") == "linux" and platform.get("architecture") == "amd64":
            return Descriptor.parse(raw, digest).digest
    raise IntegrityError(f"{digest} holds no image for linux/amd64; name the digest of one that does")


def parse_json(body: bytes, name: str) -> dict:
    """A JSON object. Raises IntegrityError with its name for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{name} is not an OCI document: it is a {type(document).__name__}")
    return document


def is_manifest(body: bytes) -> bool:
    """Whether a document is a manifest, of an image, an artifact or several of them."""
    try:
        return bool({"layers", "manifests"} & parse_json(body, "a manifest").keys())
    except IntegrityError:
        return False


def encode(document: Mapping) -> bytes:
    """A document as bytes; equal documents give equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def of_bytes(content: bytes) -> str:
    """The digest (`sha256:…`) of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Layout:
    """A folder in the OCI image layout: `oci-layout`, `index.json`, `blobs/sha256/…`.

    A blob is visible under its digest only when it is whole. With `durable`, what was
    written outlasts a power cut too.
    """

    def __init__(self, root: Path, *, durable: bool = False):
        self.root = root
        self.durable = durable

    def create(self) -> Layout:
        """Makes the folder what it should be, if it is not yet."""
        (self.root / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        if not (self.root / "oci-layout").exists():
            self._put(self.root / "oci-layout", encode({"imageLayoutVersion": "1.0.0"}))
        if not (self.root / "index.json").exists():
            self.write_index([])
        return self

    def path(self, digest: str) -> Path:
        """Where the blob of this digest lies, or would lie."""
        if not _DIGEST.fullmatch(digest):
            raise IntegrityError(f"{digest!r} is not a sha256 digest")
        return self.root / "blobs/sha256" / digest.removeprefix("sha256:")

    def lacks(self, blob: Descriptor) -> str | None:
        """Why a blob is not here, judged by its size alone; None if it is."""
        try:
            size = self.path(blob.digest).stat().st_size
        except OSError:
            return f"{blob.digest} is not in {self.root}"
        return (
            None
            if size == blob.size
            else f"{blob.digest} in {self.root} has {size} bytes instead of {blob.size}"
        )

    def manifest(self, digest: str) -> bytes:
        try:
            body = self.path(digest).read_bytes()
        except OSError as error:
            raise ProgramFailed(
                f"{digest} cannot be read from oci:{self.root}: {error.strerror}."
                " Publish it again, or name another registry."
            ) from error
        if of_bytes(body) != digest:
            raise IntegrityError(f"{digest} in oci:{self.root} is {of_bytes(body)}. {self.mending(digest)}")
        return body

    def mending(self, digest: str) -> str:
        """Where a damaged blob lies, and what to do about it."""
        return f"{self.path(digest)} was changed. If it was published, {REPUBLISH}: that reads what is there."

    def open(self, blob: Descriptor) -> BinaryIO:
        try:
            return self.path(blob.digest).open("rb")
        except OSError as error:
            raise ProgramFailed(
                f"{blob.digest} cannot be read from oci:{self.root}: {error.strerror}."
            ) from error

    def read(self, blob: Descriptor) -> bytes:
        """A small blob, verified."""
        return self.manifest(blob.digest)

    def index(self) -> list[Descriptor]:
        """The manifests that the layout lists, with their tags as annotations."""
        path = self.root / "index.json"
        try:
            body = path.read_bytes()
        except OSError as error:
            raise ProgramFailed(
                f"{path} cannot be read: {error.strerror}. {self.root} is no OCI layout."
            ) from error
        return [
            Descriptor.parse(raw, str(path)) for raw in parse_json(body, str(path)).get("manifests") or ()
        ]

    def only(self) -> str:
        """The digest of the one image in this layout. Raises IntegrityError if there are none or several."""
        digests = {entry.digest for entry in self.index()}
        if len(digests) != 1:
            raise IntegrityError(f"{self.root} holds {len(digests)} images, expected one")
        return digests.pop()

    def write_index(self, manifests: list[Descriptor]) -> None:
        """Replaces index.json in one step."""
        document = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [entry.document() for entry in manifests],
        }
        self._put(self.root / "index.json", encode(document))

    def add(self, content: bytes, media_type: str) -> Descriptor:
        """Writes a small blob."""
        with self.writing() as blob:
            blob.write(content)
        return Descriptor(media_type, blob.digest, blob.size)

    @contextlib.contextmanager
    def writing(self, expected: Descriptor | None = None) -> Iterator[Blob]:
        """A new blob of unknown digest; on leaving, it is put in its place, or thrown away if anything failed.

        Raises IntegrityError if it is not the blob that was expected.
        """
        from concurrent.futures import ThreadPoolExecutor  # not loaded to look at a manifest

        partial = self.root / "blobs/sha256" / f"{_PARTIAL}{os.urandom(8).hex()}"
        try:
            with partial.open("xb") as stream, ThreadPoolExecutor(1) as pool:
                blob = Blob(stream, pool)
                yield blob
                self._sync(stream)
            if expected and (blob.digest, blob.size) != (expected.digest, expected.size):
                raise IntegrityError(
                    f"{expected.digest} ({expected.size} bytes) was expected, {blob.digest} ({blob.size} bytes) came"
                )
            partial.replace(self.path(blob.digest))
            self._sync_folder(partial.parent)
        finally:
            partial.unlink(missing_ok=True)

    def take(self, blob: Descriptor, source: Source) -> None:
        """Copies a blob from `source`, verified on the way."""
        with source.open(blob) as stream, self.writing(blob) as copy:
            while chunk := stream.read(CHUNK_BYTES):
                copy.write(chunk)

    def sweep(self) -> None:
        """Deletes what killed writers left. Only for one who holds the layout's lock."""
        for partial in [*self.root.glob(f"blobs/sha256/{_PARTIAL}*"), *self.root.glob(f"{_PARTIAL}*")]:
            partial.unlink(missing_ok=True)

    def _put(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f"{_PARTIAL}{os.urandom(8).hex()}")
        try:
            with partial.open("xb") as stream:
                stream.write(content)
                self._sync(stream)
            partial.replace(path)
            self._sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)

    def _sync(self, stream: BinaryIO) -> None:
        if self.durable:
            stream.flush()
            os.fsync(stream.fileno())

    def _sync_folder(self, folder: Path) -> None:
        if self.durable:
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def verified(source: Source, blob: Descriptor) -> bool:
    """Whether the bytes of a blob are what its digest says; reads all of them."""
    sha = hashlib.sha256()
    with source.open(blob) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return f"sha256:{sha.hexdigest()}" == blob.digest


def open_source(registry: str) -> Published:
    """The images of `oci:PATH` (relative to the working directory) or of the registry `HOST[:PORT]/NAME`."""
    if registry.startswith("oci:"):
        return Layout(Path(registry.removeprefix("oci:")))
    from deploy.registry import Client  # HTTP is not loaded where a folder is enough

    return Client(registry)


def unpack(registry: str, digest: str, into: Path) -> None:
    """Pulls an image by digest, verifies every blob, and unpacks its layers below `into`.

    `into` must be empty or absent, and appears whole or not at all. Raises IntegrityError
    naming the blob whose bytes are not what its digest says, or the path that would leave
    the folder; ProgramFailed if the image is not there.
    """
    from deploy.layers import unpack_image  # tar and zlib are not loaded to look at a manifest

    source = open_source(registry)
    unpack_image(source, load(source, digest), into)
