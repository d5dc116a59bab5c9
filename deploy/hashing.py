"""sha256 of what is written or read, while it is."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, BinaryIO

from pipeline.digest import CHUNK_BYTES

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


class Hasher:
    """sha256 of a stream on a thread beside the one that writes it, one chunk behind: two cores, one pass."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._sha = hashlib.sha256()
        self._pool = pool
        self._pending: Future | None = None

    def update(self, chunk: bytes) -> None:
        self._settle()
        if len(chunk) < CHUNK_BYTES // 4:  # handing it over costs more than hashing it
            self._sha.update(chunk)
        else:
            self._pending = self._pool.submit(self._sha.update, chunk)

    def hexdigest(self) -> str:
        self._settle()
        return self._sha.hexdigest()

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


class Blob:
    """A blob that is being written: takes bytes, hashes them as they pass, and then has a digest and a size."""

    def __init__(self, stream: BinaryIO, pool: ThreadPoolExecutor):
        self._stream = stream
        self._hasher = Hasher(pool)
        self.size = 0

    def write(self, chunk: bytes) -> int:
        self._hasher.update(chunk)
        self.size += len(chunk)
        return self._stream.write(chunk)

    def tell(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"
