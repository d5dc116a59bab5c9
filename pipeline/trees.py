"""Trees of files between a folder and the store."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.digest import Digests, Leaf, Tree
from pipeline.errors import IntegrityError
from pipeline.store import Store

_AT_ONCE = 8


def keep(folder: Path, store: Store, digests: Digests) -> str:
    """Puts the files below a folder into the store; returns the tree's digest."""
    tree = digests.tree(folder)
    _each(tree.leaves, lambda leaf: store.put(folder / leaf.path, leaf.sha256))
    return store.put_bytes(tree.manifest())


def kept(tree_digest: str, store: Store) -> bool:
    """Whether the store has a tree and, as far as sizes tell, all of its blobs."""
    try:
        tree = Tree.parse(store.fetch_bytes(tree_digest))
    except IntegrityError:
        return False
    return all(store.has(leaf.sha256, leaf.size) for leaf in tree.leaves)


def place(tree_digest: str, folder: Path, store: Store, digests: Digests) -> Path:
    """Makes `folder` the tree of this digest, if it is not already; returns it.

    Each blob is verified on its way. Raises IntegrityError naming one that is missing or damaged; the
    folder is then as it was.
    """
    with contextlib.suppress(OSError, IntegrityError):
        if digests.tree(folder).digest == tree_digest:
            return folder
    tree = Tree.parse(store.fetch_bytes(tree_digest))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def fetch(leaf: Leaf) -> None:
        target = partial / leaf.path
        target.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(leaf.sha256, target)
        target.chmod(0o755 if leaf.executable else 0o644)

    _each(tree.leaves, fetch)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


def document(tree_digest: str, name: str, store: Store) -> dict:
    """A JSON document of an output, from the store, verified. Raises IntegrityError if it is not there."""
    for leaf in Tree.parse(store.fetch_bytes(tree_digest)).leaves:
        if leaf.path == name:
            try:
                return json.loads(store.fetch_bytes(leaf.sha256))
            except (ValueError, RecursionError) as error:
                raise IntegrityError(
                    f"{name} of the output {tree_digest} is not readable: {error}"
                ) from error
    raise IntegrityError(f"the output {tree_digest} has no {name}")


def _each(leaves: Sequence[Leaf], work: Callable[[Leaf], object]) -> None:
    """Does `work` for each leaf, a few at once: a store may be far away. Raises the first error."""
    if len(leaves) == 1:
        work(leaves[0])
        return
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and most commands move nothing

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done in [pool.submit(work, leaf) for leaf in leaves]:
            done.result()
