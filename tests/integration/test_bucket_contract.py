"""What a bucket promises, of a folder and of S3 alike (a real server: SeaweedFS)."""

import hashlib
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.buckets import open_bucket
from pipeline.errors import IntegrityError
from tests.integration.support_s3 import BUCKET

pytest_plugins = ["tests.integration.support_s3"]

MIB = 1 << 20
LARGE = 40 * MIB + 12345
EVERY_SIZE = [0, 1, 5 * MIB, 16 * MIB, 16 * MIB + 1, LARGE]
# Without a backslash, which SeaweedFS takes for a slash.
ODD = [
    "a b/c d",
    "plus+and%25/percent%2F",
    "é/ü/模型",
    "q?a=b&c#d",
    "~tilde/semi;colon,comma=equals@at:colon",
    "quote'double\"/x",
    "long/" + "n" * 200,
    "many/" + "/".join("abcdefgh"),
    "star*/[brackets]/{braces}/<angle>|",
]
OUTSIDE = ["../x", "/x", "a/../../x", ".."]


@pytest.fixture(params=["file", "s3"])
def address(request, tmp_path):
    if request.param == "file":
        return f"file:{tmp_path / 'store'}"
    request.getfixturevalue("aws")
    return f"s3://{BUCKET}/contract/{uuid.uuid4().hex}"


@pytest.fixture
def bucket(address, root):
    return open_bucket(address, root)


@pytest.fixture
def source(tmp_path):
    """A function that writes a file of some size; its path and its sha256."""

    def make(size):
        path = tmp_path / f"source-{size}"
        path.write_bytes(os.urandom(size))
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return make


def test_what_was_written_is_read_back_and_replaced_by_the_next(bucket):
    assert bucket.read("channels/production", 100) is None
    bucket.write("channels/production", b"one")
    bucket.write("channels/production", b"two, and longer")
    assert bucket.read("channels/production", 100) == b"two, and longer"
    assert bucket.size("channels/production") == 15


def test_an_object_is_created_once_and_the_second_changes_nothing(bucket):
    assert bucket.create("locks/one", b"first") is True
    assert bucket.create("locks/one", b"second") is False
    assert bucket.create("locks/one", b"first") is False
    assert bucket.read("locks/one", 100) == b"first"


def test_an_object_that_was_deleted_is_gone_and_can_be_created_again(bucket):
    bucket.create("locks/one", b"first")
    bucket.delete("locks/one")
    assert bucket.read("locks/one", 100) is None
    assert bucket.size("locks/one") is None
    assert list(bucket.items("locks/")) == []
    bucket.delete("locks/one")
    bucket.delete("never/was")
    assert bucket.create("locks/one", b"second") is True


def test_an_empty_object_is_an_object(bucket, source, tmp_path):
    path, sha256 = source(0)
    bucket.write("written", b"")
    bucket.upload("uploaded", path, sha256)
    assert bucket.create("created", b"") is True
    assert bucket.create("created", b"x") is False
    assert [(item.path, item.size) for item in bucket.items("")] == [
        ("created", 0),
        ("uploaded", 0),
        ("written", 0),
    ]
    for name in ("written", "uploaded", "created"):
        assert bucket.read(name, 0) == b""
        assert bucket.size(name) == 0
        assert bucket.download(name, tmp_path / "to", sha256) is True
        assert (tmp_path / "to").read_bytes() == b""


@pytest.mark.parametrize("path", ODD)
def test_odd_paths_are_paths_like_all_others(bucket, source, tmp_path, path):
    file, sha256 = source(10)
    bucket.write(path, b"odd")
    assert bucket.read(path, 10) == b"odd"
    assert bucket.create(path, b"again") is False
    assert bucket.size(path) == 3
    assert [item.path for item in bucket.items("")] == [path]
    assert [item.path for item in bucket.items(path[:3])] == [path]
    bucket.upload(path, file, sha256)
    assert bucket.download(path, tmp_path / "to", sha256) is True
    bucket.delete(path)
    assert list(bucket.items("")) == []


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_the_store_is_refused_whatever_is_asked(bucket, source, tmp_path, path):
    file, sha256 = source(10)
    for ask in (
        lambda: bucket.read(path, 10),
        lambda: bucket.write(path, b"x"),
        lambda: bucket.create(path, b"x"),
        lambda: bucket.size(path),
        lambda: bucket.upload(path, file, sha256),
        lambda: bucket.download(path, tmp_path / "to", sha256),
        lambda: bucket.delete(path),
    ):
        with pytest.raises(IntegrityError, match="lies outside"):
            ask()
    assert not (tmp_path / "to").exists()


def test_a_folder_of_objects_is_no_object(bucket, tmp_path):
    bucket.write("records/train/one", b"1")
    assert bucket.size("records/train") is None
    assert bucket.read("records/train", 10) is None
    assert bucket.download("records/train", tmp_path / "to", "0" * 64) is False


def test_an_object_as_large_as_allowed_is_read_and_one_byte_more_is_refused_by_name(bucket):
    bucket.write("records/large", b"x" * 1000)
    assert bucket.read("records/large", 1000) == b"x" * 1000
    with pytest.raises(IntegrityError, match=r"records/large has more than 999 bytes"):
        bucket.read("records/large", 999)


def test_objects_are_listed_by_path_in_the_order_of_their_bytes(bucket):
    paths = ["a/b", "a-b", "a.b", "a/b-c", "a/c/d", "a/c.d", "Z", "z", "é", "a0"]
    for path in paths:
        bucket.write(path, path.encode())
    found = list(bucket.items(""))
    assert [item.path for item in found] == sorted(paths)
    assert [item.size for item in found] == [len(path.encode()) for path in sorted(paths)]
    # The server's clock and the file system's may differ from ours, not by a day.
    assert all(abs(item.modified - time.time()) < 86_400 for item in found)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("records/", ["records/test/ab1", "records/train/ab1", "records/train/ab2", "records/train/b"]),
        ("records/train/", ["records/train/ab1", "records/train/ab2", "records/train/b"]),
        ("records/train/ab", ["records/train/ab1", "records/train/ab2"]),
        ("records/train/ab2", ["records/train/ab2"]),
        ("records/t", ["records/test/ab1", "records/train/ab1", "records/train/ab2", "records/train/b"]),
        ("rec", ["records/test/ab1", "records/train/ab1", "records/train/ab2", "records/train/b"]),
        ("records/train/c", []),
        ("nothing/here/", []),
        ("record/", []),
    ],
)
def test_a_prefix_lists_what_begins_with_it_also_in_the_middle_of_a_name(bucket, prefix, expected):
    for path in (
        "records/train/ab1",
        "records/train/ab2",
        "records/train/b",
        "records/test/ab1",
        "channels/x",
    ):
        bucket.write(path, b"1")
    assert [item.path for item in bucket.items(prefix)] == expected


def test_more_objects_than_one_page_are_all_listed(bucket):
    paths = [f"records/train/{number:04}" for number in range(1010)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: bucket.write(path, b"1"), paths))
    assert [item.path for item in bucket.items("records/")] == paths


@pytest.mark.parametrize("size", EVERY_SIZE)
def test_a_file_of_any_size_comes_back_as_it_went(bucket, source, tmp_path, size):
    path, sha256 = source(size)
    bucket.upload("blobs/x", path, sha256)
    assert bucket.size("blobs/x") == size
    assert bucket.download("blobs/x", tmp_path / "to", sha256) is True
    assert (tmp_path / "to").read_bytes() == path.read_bytes()
    assert [(item.path, item.size) for item in bucket.items("")] == [("blobs/x", size)]


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_file_that_is_not_what_it_should_be_leaves_nothing(bucket, source, size):
    path, sha256 = source(size)
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(IntegrityError, match=f"{path.name} has sha256 {sha256}, not {other}"):
        bucket.upload("blobs/x", path, other)
    assert bucket.size("blobs/x") is None
    assert list(bucket.items("")) == []


@pytest.mark.parametrize("size", [100, LARGE])
def test_a_wrong_file_does_not_replace_the_right_one(bucket, source, tmp_path, size):
    path, sha256 = source(size)
    bucket.upload("blobs/x", path, sha256)
    path.write_bytes(os.urandom(size))
    with pytest.raises(IntegrityError):
        bucket.upload("blobs/x", path, sha256)
    assert bucket.download("blobs/x", tmp_path / "to", sha256) is True


def test_a_file_that_is_missing_is_named(bucket, tmp_path):
    with pytest.raises(IntegrityError, match="nowhere is missing"):
        bucket.upload("blobs/x", tmp_path / "nowhere", "0" * 64)


def test_an_object_of_other_content_is_named_and_leaves_no_file(bucket, tmp_path):
    bucket.write("blobs/x", b"other")
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(IntegrityError, match=f"blobs/x has sha256 .*, not {'0' * 64}"):
        bucket.download("blobs/x", into / "to", "0" * 64)
    assert list(into.iterdir()) == []


def test_a_download_of_nothing_leaves_no_file(bucket, tmp_path):
    into = tmp_path / "into"
    into.mkdir()
    assert bucket.download("blobs/none", into / "to", "0" * 64) is False
    assert list(into.iterdir()) == []


def test_an_object_is_called_by_an_address_that_leads_there(bucket, address):
    assert bucket.where("blobs/x") == f"{address.removeprefix('file:')}/blobs/x"


def test_a_reader_finds_every_object_whole_while_it_is_replaced(bucket):
    whole = {letter * MIB for letter in (b"a", b"b")}
    bucket.write("channels/x", b"a" * MIB)
    over = threading.Event()

    def write():
        for _ in range(10):
            for data in sorted(whole):
                bucket.write("channels/x", data)
        over.set()

    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        seen = [bucket.read("channels/x", MIB)]
        while not over.is_set() and not writing.done():
            seen.append(bucket.read("channels/x", MIB))
        writing.result()
    assert set(seen) <= whole


CLAIM = """
import sys
from pathlib import Path
from pipeline.buckets import open_bucket
address, name, count = sys.argv[1:]
bucket = open_bucket(address, Path())
bucket.create(f"warm/{name}", b"")
print("ready", flush=True)
sys.stdin.readline()
print(*(n for n in range(int(count)) if bucket.create(f"versions/{n}", name.encode())))
"""


def test_of_two_processes_exactly_one_creates_each_of_many_objects(bucket, address, root):
    count, names = 60, ("left", "right")
    children = {
        name: subprocess.Popen(
            [sys.executable, "-c", CLAIM, address, name, str(count)],
            cwd=root,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    }
    for child in children.values():
        assert child.stdout.readline() == "ready\n"
    for child in children.values():
        child.stdin.write("go\n")
        child.stdin.flush()
    won = {
        name: [int(n) for n in child.communicate(timeout=60)[0].split()] for name, child in children.items()
    }
    assert sorted(won["left"] + won["right"]) == list(range(count))
    for name in names:
        assert {bucket.read(f"versions/{n}", 10) for n in won[name]} <= {name.encode()}


@pytest.mark.parametrize("size", [100, LARGE])
def test_the_same_file_uploaded_by_two_at_once_ends_well_for_both(address, root, source, tmp_path, size):
    path, sha256 = source(size)
    with ThreadPoolExecutor(2) as threads:
        for number in range(2):
            each = [open_bucket(address, root) for _ in range(2)]
            both = [threads.submit(one.upload, f"blobs/{number}", path, sha256) for one in each]
            for one in both:
                one.result()
            assert each[0].download(f"blobs/{number}", tmp_path / "to", sha256) is True
