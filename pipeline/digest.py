"""sha256 of files and trees; remembers by size, modification time and inode, so that a second look is cheap."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import IntegrityError

CHUNK_BYTES = 1 << 20
# A file that changed this shortly before it was hashed could change again within the same tick of the
# file system's clock; git calls such files racy. They are hashed again next time.
_RACY_NS = 50_000_000
_REMEMBERED_AT_MOST = 20_000


def of_bytes(data: bytes) -> str:
    """The sha256 of some bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def of_json(value: Any) -> str:
    """The sha256 of a value's canonical JSON (sorted names, no spaces)."""
    return of_bytes(canonical(value))


def canonical(value: Any) -> bytes:
    """A value as canonical JSON: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def of_file(path: Path) -> str:
    """The sha256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Leaf:
    """A file of a tree: its path below the root (with /), size in bytes, sha256, and whether it is executable."""

    path: str
    size: int
    sha256: str
    executable: bool


@dataclass(frozen=True)
class Tree:
    """The files below a folder, sorted by path. Its digest is the sha256 of its canonical JSON."""

    leaves: tuple[Leaf, ...]

    def manifest(self) -> bytes:
        """The tree as canonical JSON; its sha256 is the tree's digest."""
        return canonical([[leaf.path, leaf.size, leaf.sha256, leaf.executable] for leaf in self.leaves])

    @property
    def digest(self) -> str:
        return of_bytes(self.manifest())

    @classmethod
    def parse(cls, manifest: bytes) -> Tree:
        """The tree that a manifest describes. Raises IntegrityError for paths that would leave the folder."""
        try:
            leaves = tuple(Leaf(*row) for row in json.loads(manifest))
        except (ValueError, TypeError, RecursionError) as error:
            raise IntegrityError(f"a tree in the store is not readable: {error}") from error
        if any(
            [type(x) for x in (n.path, n.size, n.sha256)] != [str, int, str] or "\0" in n.path for n in leaves
        ):
            raise IntegrityError(
                "a tree in the store is not readable: a row is not path, size, sha256, executable"
            )
        for leaf in leaves:
            parts = Path(leaf.path).parts
            if not parts or leaf.path.startswith("/") or ".." in parts:
                raise IntegrityError(
                    f"a tree in the store names {leaf.path!r}, which lies outside of its folder"
                )
        return cls(leaves)


class Digests:
    """Digests of files and trees, remembered in one file between runs."""

    def __init__(self, memory: Path):
        self._memory = memory
        self._known: dict[str, Any] = {}
        self._changed = False
        try:
            self._known = json.loads(memory.read_bytes())
        except (OSError, ValueError):
            self._known = {}

    def file(self, path: Path, stat: os.stat_result | None = None) -> str:
        """The sha256 of a file; read again only if its size, modification time or inode changed."""
        stat = stat or path.stat()
        name = str(path)
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known and known[:3] == seen:
            return known[3]
        digest = of_file(path)
        if time.time_ns() - stat.st_mtime_ns > _RACY_NS:
            self._known[name] = [*seen, digest]
            self._changed = True
        return digest

    def derived(self, path: Path, what: str, compute: Callable[[str], object]) -> Any:
        """`compute(text of the file)`, remembered by the file's content. `what` names the computation."""
        return self.remember(f"{what}:{self.file(path)}", lambda: compute(path.read_text(encoding="utf-8")))

    def remember(self, name: str, compute: Callable[[], object]) -> Any:
        """`compute()`, remembered by a name that says all that it depends on. An error is not remembered."""
        if name not in self._known:
            self._known[name] = compute()
            self._changed = True
        return self._known[name]

    def tree(self, root: Path) -> Tree:
        """The files below `root`. Raises IntegrityError on links and special files, which no output may have."""
        return Tree(tuple(sorted(self._leaves(root, ""), key=lambda leaf: leaf.path)))

    def _leaves(self, folder: Path, prefix: str) -> Iterable[Leaf]:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._leaves(Path(entry.path), name + "/")
                elif entry.is_file(follow_symlinks=False):
                    stat = entry.stat()
                    digest = self.file(Path(entry.path), stat)
                    yield Leaf(name, stat.st_size, digest, bool(stat.st_mode & 0o100))
                else:
                    raise IntegrityError(
                        f"{entry.path} is a link or special file; outputs hold plain files only"
                    )

    def save(self) -> None:
        """Keeps what was learnt. Losing it costs time, never truth; so a full disk is no error here."""
        if not self._changed:
            return
        if (
            len(self._known) > _REMEMBERED_AT_MOST
        ):  # what was learnt first is the least likely to be asked again
            self._known = dict(list(self._known.items())[-_REMEMBERED_AT_MOST // 2 :])
        partial = self._memory.with_name(f"{self._memory.name}.{os.getpid()}")
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(self._known))
            partial.replace(self._memory)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
