"""Where a store keeps its objects: bytes by path, in a folder or in S3. What they mean is the store's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import SettingsError


@dataclass(frozen=True)
class Item:
    """An object as listed: its path, its size in bytes, when it was written (seconds since the epoch)."""

    path: str
    size: int
    modified: float


class Bucket(Protocol):
    """Objects by path (parts joined with /).

    Every change is atomic: a reader finds an object whole, or not at all. Raises ProgramFailed where the
    place cannot be reached or written, saying what to do about it.
    """

    def where(self, path: str) -> str:
        """What to call this object in a message: a file's path, or an s3:// address."""

    def read(self, path: str, at_most: int) -> bytes | None:
        """An object's bytes; None if there is none. Raises IntegrityError for one of more than `at_most` bytes."""

    def write(self, path: str, data: bytes) -> None:
        """Puts an object there, in place of one that is there."""

    def create(self, path: str, data: bytes) -> bool:
        """Puts an object there unless one is; whether it did. Of any number of callers exactly one does."""

    def size(self, path: str) -> int | None:
        """An object's size in bytes; None if there is none."""

    def upload(self, path: str, source: Path, sha256: str) -> None:
        """Puts a file's content there. Raises IntegrityError, and puts nothing, if its sha256 is another."""

    def download(self, path: str, to: Path, sha256: str) -> bool:
        """Copies an object into a file; False if there is none.

        Raises IntegrityError, naming the object, and leaves no file, if its sha256 is another.
        """

    def items(self, prefix: str) -> Iterator[Item]:
        """All objects whose path begins with `prefix`, sorted by path."""

    def delete(self, path: str) -> None:
        """Removes an object. No error if there is none."""

    def sweep(self, before: float) -> int:
        """Removes what killed writers left unfinished, if begun before a time (seconds since the epoch); how many."""


def open_bucket(address: str, root: Path) -> Bucket:
    """The bucket at `file:PATH` (relative to `root`) or `s3://BUCKET/PREFIX`."""
    if address.startswith("file:") and len(address) > len("file:"):
        from pipeline.bucket_file import FileBucket

        return FileBucket(root / address.removeprefix("file:"))
    if address.startswith("s3://"):
        from pipeline.bucket_s3 import S3Bucket

        return S3Bucket.at(address)
    raise SettingsError(f"store {address!r}: must be file:PATH or s3://BUCKET/PREFIX")
