"""The store's promises on a real S3-compatible server: what the unit tests show on disk."""

import dataclasses
import multiprocessing

import pytest

from pipeline import trees
from pipeline.digest import Digests
from pipeline.errors import GateRefused, LostRace
from pipeline.stages import BY_NAME
from pipeline.store import Entry, open_store
from tests.integration.support_s3 import BUCKET
from tests.support import settings
from tests.support_evidence import IMAGE, Evidence, add_key

pytest_plugins = ["tests.integration.support_s3"]

ENTRY = Entry(
    "sha256:" + "a" * 64, 1, "m", "s", "p", "ann@example.org", "2026-01-01T00:00:00Z", "promote", "e" * 64
)
TURNS = 200


@pytest.fixture
def address(aws, request):
    return f"s3://{BUCKET}/{request.node.name}"


def _promote(address, racer, start, outcomes):
    store = open_store(address, None)
    for turn in range(TURNS):
        seen = store.channel("production")
        start.wait()
        try:
            store.append(seen, dataclasses.replace(ENTRY, version=2 * turn + racer))
            outcomes.put((turn, "won"))
        except LostRace:
            outcomes.put((turn, "lost"))
        start.wait()


def test_of_two_promotions_at_once_exactly_one_wins_two_hundred_times(address):
    context = multiprocessing.get_context("spawn")
    start, outcomes = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_promote, args=(address, i, start, outcomes)) for i in range(2)]
    for racer in racers:
        racer.start()
    told = sorted(outcomes.get(timeout=200) for _ in range(2 * TURNS))
    for racer in racers:
        racer.join()
    assert told == [(turn, how) for turn in range(TURNS) for how in ("lost", "won")]
    channel = open_store(address, None).channel("production")
    assert channel.revision == TURNS
    assert [entry.version // 2 for entry in channel.newest_first()] == list(range(TURNS - 1, -1, -1))
    assert channel.of_version(channel.live.version) == channel.live
    assert channel.live_at("2026-01-02") == channel.live


def test_a_tree_goes_through_the_bucket_and_comes_back_the_same(address, tmp_path):
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for i in range(20):
        (folder / "below" / f"{i}.bin").write_bytes(bytes([i]) * (i * 1000))
    store, digests = open_store(address, None), Digests(tmp_path / "memory.json")
    name = trees.keep(folder, store, digests)
    assert trees.kept(name, store)
    assert digests.tree(trees.place(name, tmp_path / "back", store, digests)).digest == name


def test_policy_and_records_hold_as_on_disk(address, tmp_path):
    signers = {"ci": add_key(tmp_path, "ci", "ci"), "approve": add_key(tmp_path, "alice", "approver")}
    made = Evidence(tmp_path, settings({}), open_store(address, tmp_path), signers)
    made.walk()
    made.policy.demand(BY_NAME["promote"], made.needs, IMAGE)
    made.promote()
    assert made.policy.examine("promote", made.records["promote"].sha256, IMAGE).holds
    assert list(made.store.records("train", made.records["train"].key)) == [made.records["train"].sha256]
    assert made.store.newest_record("scan") == made.records["scan"].sha256
    made.store.bucket.write(f"blobs/sha256/{made.needs['scan'][:2]}/{made.needs['scan']}", b"{}")
    with pytest.raises(GateRefused, match="of the store is damaged"):
        made.policy.demand(BY_NAME["promote"], made.needs, IMAGE)
