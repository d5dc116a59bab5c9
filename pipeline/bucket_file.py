"""A bucket in a folder. Any number of processes may use it at once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from pipeline import digest
from pipeline.buckets import Item
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError

# What `_arriving` calls a file until it is whole.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}")
_FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


class FileBucket:
    """Objects as files. Everything is written beside its place, synced, and renamed or linked into it."""

    def __init__(self, root: Path):
        self.root = root

    def where(self, path: str) -> str:
        """The file's path."""
        return str(self._place(path))

    def read(self, path: str, at_most: int) -> bytes | None:
        """See Bucket."""
        place = self._place(path)
        try:
            with place.open("rb") as stream:
                data = stream.read(at_most + 1)
        except (FileNotFoundError, IsADirectoryError):
            return None
        except NotADirectoryError:
            raise _no_folder(place) from None
        if len(data) > at_most:
            raise IntegrityError(
                f"{place} has more than {at_most:,} bytes, which nothing here writes; it is not used"
            )
        return data

    def write(self, path: str, data: bytes) -> None:
        """See Bucket."""
        with self._arriving(path) as (partial, place):
            _write(partial, data)
            partial.replace(place)

    def create(self, path: str, data: bytes) -> bool:
        """See Bucket. A hard link is what only one of many can make."""
        with self._arriving(path) as (partial, place):
            _write(partial, data)
            try:
                place.hardlink_to(partial)
            except FileExistsError:
                return False
            _sync_folder(place.parent)
        return True

    def size(self, path: str) -> int | None:
        """See Bucket."""
        try:
            found = self._place(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if S_ISREG(found.st_mode) else None

    def upload(self, path: str, source: Path, sha256: str) -> None:
        """See Bucket. What was kept can be read, and by accident not written."""
        with self._arriving(path) as (partial, place):
            _copy(source, partial, sha256, str(source))
            partial.chmod(0o444)
            partial.replace(place)

    def download(self, path: str, to: Path, sha256: str) -> bool:
        """See Bucket."""
        place = self._place(path)
        if not place.is_file():
            return False
        with disk_errors(to):
            _copy(place, to, sha256, str(place))
        return True

    def items(self, prefix: str) -> Iterator[Item]:
        """See Bucket."""
        folder = self._place(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        found = []
        for parent, _, names in os.walk(folder):
            base = Path(parent).relative_to(self.root).as_posix()
            for name in names:
                path = name if base == "." else f"{base}/{name}"
                if path.startswith(prefix) and not name.startswith("."):
                    found.append(path)
        for path in sorted(found):
            with contextlib.suppress(FileNotFoundError):
                stat = (self.root / path).stat()
                yield Item(path, stat.st_size, stat.st_mtime)

    def delete(self, path: str) -> None:
        """See Bucket."""
        with disk_errors(self._place(path)):
            self._place(path).unlink(missing_ok=True)

    def sweep(self, before: float) -> int:
        """See Bucket."""
        swept = 0
        for parent, _, names in os.walk(self.root):
            for path in (Path(parent, name) for name in names if _PARTIAL.fullmatch(name)):
                with contextlib.suppress(FileNotFoundError), disk_errors(path):
                    if path.stat().st_mtime < before:
                        path.unlink()
                        swept += 1
        return swept

    def _place(self, path: str) -> Path:
        if path.startswith("/") or ".." in path.split("/"):
            raise IntegrityError(f"the store names {path!r}, which lies outside of it; it is not used")
        return self.root / path

    @contextlib.contextmanager
    def _arriving(self, path: str) -> Iterator[tuple[Path, Path]]:
        """A file to write, beside its place, and the place. What is left beside it is removed."""
        place = self._place(path)
        with disk_errors(place):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise _no_folder(place) from None
            partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}")
            try:
                yield partial, place
            finally:
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turns a full or read-only disk into an error that a person can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_OR_FORBIDDEN:
            raise ProgramFailed(
                f"{place} could not be written: {error.strerror}. Nothing half-written was kept; "
                "make room or mend the permissions, then run again."
            ) from error
        raise


def _no_folder(place: Path) -> SettingsError:
    return SettingsError(f"store: {place} cannot be there, because a part of its path is a file")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(source: Path, to: Path, sha256: str, what: str) -> None:
    """Copies a file while hashing it; removes the copy and raises IntegrityError if the hash is another."""
    hasher = hashlib.sha256()
    try:
        with source.open("rb") as reader, to.open("wb") as writer:
            while piece := reader.read(digest.CHUNK_BYTES):
                hasher.update(piece)
                writer.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
    except FileNotFoundError:
        raise IntegrityError(f"{what} is missing") from None
    if hasher.hexdigest() != sha256:
        to.unlink()
        raise IntegrityError(f"{what} has sha256 {hasher.hexdigest()}, not {sha256}; it is not used")
