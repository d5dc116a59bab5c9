"""Garbage collection in S3, as in a folder: the same goes, the same stays, also when the server is in trouble."""

import time
import uuid
from dataclasses import dataclass, field

import pytest

from pipeline import gc, trees
from pipeline.bucket_s3 import Limits, S3Bucket
from pipeline.digest import Digests
from pipeline.errors import ProgramFailed
from pipeline.logs import collect
from pipeline.settings import Retention
from pipeline.store import Store, open_store
from tests.integration.support_s3 import BUCKET, Fault
from tests.support import settings
from tests.support_evidence import Evidence, add_key

pytest_plugins = ["tests.integration.support_s3"]

VERSIONS = (1, 2, 3)
IMAGES = {version: "sha256:" + str(version) * 64 for version in VERSIONS}
QUICK = Limits(connect_s=1, read_s=5, tries=2)
ALWAYS = 10_000
DAY_S = 86_400


@dataclass
class Walks(Evidence):
    """Evidence of versions in production, each with a SavedModel of its own."""

    models: dict[int, str] = field(default_factory=dict)

    def _tree(self, output, said, image):
        if output == "export/savedmodel":
            return self.document("saved_model.json", {"of": image})
        return super()._tree(output, said, image)

    def live(self, version: int) -> None:
        self.walk(IMAGES[version])
        self.models[version] = self.records["export"].outputs["export/savedmodel"]
        self.promote(version, IMAGES[version])

    def whole(self, store: Store) -> set[int]:
        """The versions whose SavedModel is there."""
        return {version for version, tree in self.models.items() if trees.kept(tree, store)}

    def proven(self) -> set[int]:
        """The versions whose evidence holds."""
        entries = self.store.channel("production").newest_first()
        judged = {e.version: self.policy.examine(e.why, e.evidence, e.image) for e in entries}
        return {version for version, tree in judged.items() if tree.holds}


@pytest.fixture
def walks(tmp_path, aws):
    """Makes the evidence of three versions in a store at an address."""

    def make(address: str) -> Walks:
        root = tmp_path / uuid.uuid4().hex
        signers = {"ci": add_key(root, "ci", "ci"), "approve": add_key(root, "alice", "approver")}
        made = Walks(root, settings(), open_store(address, root), signers)
        for version in VERSIONS:
            made.live(version)
        made.store.put_bytes(b"left over")
        report = root / "report"
        report.mkdir()
        (report / "index.html").write_text("<html>")
        collect(made.store, Digests(root / "memory.json"), "abc/2026", {"report": report})
        return made

    return make


@pytest.fixture
def address():
    return f"s3://{BUCKET}/gc/{uuid.uuid4().hex}"


def sweep(store: Store) -> gc.Sweep:
    """A collection in a hundred days: S3 says itself when an object was written, and is not told otherwise."""
    return gc.Sweep(store, Retention(versions=1, days=90, checkpoint_days=14), time.time() + 100 * DAY_S)


def all_objects(store: Store) -> set[str]:
    return {item.path for item in store.bucket.items("")}


def test_the_same_goes_and_the_same_stays_in_s3_as_in_a_folder(walks, address):
    seen = []
    for place in ("file:store", address):
        made = walks(place)
        before = all_objects(made.store)
        found = sweep(made.store).find()
        assert all_objects(made.store) == before
        once = sweep(made.store)
        assert once.remove(once.find()) == found
        gone = before - all_objects(made.store)
        assert gone == {item.path for item in (*found.records, *found.blobs, *found.logs)}
        assert "logs/abc/2026/report/index.html" in gone
        again = sweep(made.store).find()
        assert (again.records, again.blobs, again.logs) == ((), (), ())
        seen.append((len(found.blobs), found.of, found.size_bytes, made.whole(made.store), made.proven()))
    assert seen[0] == seen[1]
    assert seen[1][3:] == ({2, 3}, {1, 2, 3})


def test_what_is_young_by_the_servers_clock_stays(walks, address):
    made = walks(address)
    before = all_objects(made.store)
    once = gc.Sweep(made.store, Retention(versions=1, days=1, checkpoint_days=14))
    once.remove(once.find())
    assert all_objects(made.store) == before


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_server_in_trouble_ends_it_with_nothing_needed_lost_and_the_next_one_finishes(
    walks, address, weed, proxy, aws, method
):
    aws(weed.endpoint)
    made = walks(address)
    before = all_objects(made.store)
    proxy.faults.append(Fault("answer", method, times=ALWAYS, after=2))
    aws(proxy.endpoint)
    troubled = Store(S3Bucket.at(address, QUICK))
    once = sweep(troubled)
    with pytest.raises(ProgramFailed, match="500 InternalError"):
        once.remove(once.find())
    proxy.faults.clear()
    if method == "GET":
        assert all_objects(made.store) == before
    assert made.whole(made.store) >= {2, 3}
    assert made.proven() == set(VERSIONS)
    once = sweep(made.store)
    once.remove(once.find())
    assert made.whole(made.store) == {2, 3}
    assert made.proven() == set(VERSIONS)
