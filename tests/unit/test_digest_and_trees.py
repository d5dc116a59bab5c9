"""Digests remember files, notice changes; trees travel through the store and arrive as they left."""

import os
import time

import pytest

from pipeline import digest, trees
from pipeline.bucket_file import FileBucket
from pipeline.digest import Digests, Leaf, Tree
from pipeline.errors import IntegrityError
from pipeline.store import Store


@pytest.fixture
def digests(tmp_path):
    return Digests(tmp_path / "memory.json")


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "folder"
    (place / "below").mkdir(parents=True)
    (place / "a.txt").write_text("a")
    (place / "below" / "b.bin").write_bytes(bytes(range(256)))
    (place / "below" / "run").write_text("#!/bin/sh\n")
    (place / "below" / "run").chmod(0o755)
    return place


def age(path, seconds=10):
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_a_known_file_is_not_read_again(digests, folder, monkeypatch):
    age(folder / "a.txt")
    first = digests.file(folder / "a.txt")
    monkeypatch.setattr(digest, "of_file", lambda path: pytest.fail(f"{path} was read again"))
    assert digests.file(folder / "a.txt") == first == digest.of_bytes(b"a")


def test_a_file_that_just_changed_is_read_again(digests, folder):
    path = folder / "a.txt"
    first = digests.file(path)
    stat = path.stat()
    path.write_text("b")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digests.file(path) != first


def test_the_memory_outlasts_the_process_and_a_damaged_one_is_forgotten(digests, folder, tmp_path):
    age(folder / "a.txt")
    wanted = digests.file(folder / "a.txt")
    digests.save()
    assert Digests(tmp_path / "memory.json").file(folder / "a.txt") == wanted
    (tmp_path / "memory.json").write_text("{broken")
    assert Digests(tmp_path / "memory.json").file(folder / "a.txt") == wanted


def test_a_tree_is_its_paths_contents_and_modes_and_not_its_times(digests, folder):
    before = digests.tree(folder).digest
    age(folder / "a.txt", 1000)
    assert digests.tree(folder).digest == before
    (folder / "a.txt").chmod(0o755)
    assert digests.tree(folder).digest != before


def test_a_link_in_an_output_is_refused(digests, folder):
    (folder / "link").symlink_to("a.txt")
    with pytest.raises(IntegrityError, match="link"):
        digests.tree(folder)


def test_a_tree_goes_through_the_store_and_comes_back_the_same(digests, folder, tmp_path):
    store = Store(FileBucket(tmp_path / "store"))
    name = trees.keep(folder, store, digests)
    back = trees.place(name, tmp_path / "back", store, digests)
    assert digests.tree(back).digest == name
    assert (back / "below" / "run").stat().st_mode & 0o100
    assert trees.kept(name, store)


def test_a_folder_that_was_changed_is_restored(digests, folder, tmp_path):
    store = Store(FileBucket(tmp_path / "store"))
    name = trees.keep(folder, store, digests)
    (folder / "a.txt").write_text("changed")
    (folder / "extra").write_text("x")
    trees.place(name, folder, store, digests)
    assert (folder / "a.txt").read_text() == "a"
    assert not (folder / "extra").exists()


def test_a_damaged_blob_is_named_and_the_folder_stays_as_it_was(digests, folder, tmp_path):
    store = Store(FileBucket(tmp_path / "store"))
    name = trees.keep(folder, store, digests)
    sha256 = digest.of_bytes(b"a")
    blob = tmp_path / "store" / "blobs" / "sha256" / sha256[:2] / sha256
    blob.chmod(0o644)
    blob.write_text("x")
    (folder / "a.txt").write_text("mine")
    with pytest.raises(IntegrityError, match=sha256):
        trees.place(name, folder, store, digests)
    assert (folder / "a.txt").read_text() == "mine"


def test_a_missing_blob_means_that_the_tree_is_not_kept(digests, folder, tmp_path):
    store = Store(FileBucket(tmp_path / "store"))
    name = trees.keep(folder, store, digests)
    sha256 = digest.of_bytes(b"a")
    (tmp_path / "store" / "blobs" / "sha256" / sha256[:2] / sha256).unlink()
    assert not trees.kept(name, store)


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../b", ""])
def test_a_tree_that_leaves_its_folder_is_refused(path):
    manifest = Tree((Leaf(path, 1, "0" * 64, False),)).manifest()
    with pytest.raises(IntegrityError, match="outside"):
        Tree.parse(manifest)


def test_what_is_derived_from_a_file_is_computed_once_for_each_content(digests, folder):
    calls = []
    path = folder / "a.txt"
    age(path)
    for _ in range(2):
        digests.derived(path, "length", lambda text: calls.append(text) or len(text))
    path.write_text("longer")
    assert digests.derived(path, "length", lambda text: calls.append(text) or len(text)) == 6
    assert calls == ["a", "longer"]


def test_the_memory_forgets_what_was_learnt_first_and_does_not_grow_without_end(
    digests, tmp_path, monkeypatch
):
    monkeypatch.setattr(digest, "_REMEMBERED_AT_MOST", 10)
    for number in range(11):
        digests.remember(f"name {number}", lambda: "learnt")
    digests.save()
    again = Digests(tmp_path / "memory.json")
    assert again.remember("name 10", lambda: "anew") == "learnt"
    assert again.remember("name 0", lambda: "anew") == "anew"
