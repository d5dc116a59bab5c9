"""Base images from a registry, each blob of which is downloaded once and then kept on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from deploy.disk import disk_trouble, locked
from deploy.oci import MANIFEST, Descriptor, Layout
from deploy.registry import Client
from deploy.transport import CONNECTIONS, Refused
from pipeline.errors import IntegrityError, ProgramFailed


class CachedRegistry:
    """A repository whose blobs are kept in a layout below `folder`. Deleting the folder costs a download."""

    def __init__(
        self, repository: str, folder: Path, say: Callable[[str], None], client: Client | None = None
    ):
        self._client = client or Client(repository)
        self._repository = repository
        self._kept = Layout(folder)
        self._say = say

    def manifest(self, digest: str) -> bytes:
        """The manifest of this digest, verified. Raises ProgramFailed if it is neither here nor there."""
        with disk_trouble(str(self._kept.root)):
            self._kept.create()
            if self._kept.path(digest).exists():
                try:
                    return self._kept.manifest(digest)
                except IntegrityError:
                    self._kept.path(digest).unlink()  # rotted; the registry has it still
            body = self._fetched(digest)
            self._kept.add(body, MANIFEST)
            return body

    def _fetched(self, digest: str) -> bytes:
        try:
            return self._client.manifest(digest)
        except Refused as refusal:
            if refusal.status != 404:
                raise
            raise ProgramFailed(
                f"image.base: {digest} is not in {self._repository}; it was deleted there, or never was. Name a digest"
                " that is (docker/images.lock lists them; make lock-images brings it up to date), and keep a copy of"
                " what production stands on."
            ) from refusal

    def open(self, blob: Descriptor) -> BinaryIO:
        """The bytes of a blob; whoever reads them verifies them."""
        self._fetch(blob)
        return self._kept.open(blob)

    def read(self, blob: Descriptor) -> bytes:
        """A small blob, verified."""
        self.copy([blob])
        try:
            return self._kept.read(blob)
        except IntegrityError:  # what is kept has rotted; the registry has it still
            self._again(blob)
            return self._kept.read(blob)

    def copy(self, blobs: Iterable[Descriptor], into: Layout | None = None) -> None:
        """Fetches what is not kept yet, some side by side; then copies all into a layout, verified on the way."""
        blobs = list({blob.digest: blob for blob in blobs}.values())
        place = self._kept.root
        with (
            disk_trouble(str(place)),
            locked(place / ".lock", self._say),
            ThreadPoolExecutor(CONNECTIONS) as pool,
        ):
            self._kept.create().sweep()
            list(pool.map(self._fetch, blobs))
            if into:
                for blob in blobs:
                    self._copy_one(blob, into)

    def _fetch(self, blob: Descriptor) -> None:
        if self._kept.lacks(blob):
            self._say(f"downloading {blob.digest[7:19]}  {blob.size / 2**20:.1f} MiB from {self._repository}")
            self._kept.take(blob, self._client)

    def _copy_one(self, blob: Descriptor, into: Layout) -> None:
        try:
            into.take(blob, self._kept)
        except IntegrityError:  # as in read
            self._again(blob)
            into.take(blob, self._kept)

    def _again(self, blob: Descriptor) -> None:
        self._kept.path(blob.digest).unlink(missing_ok=True)
        self._fetch(blob)
