"""What counts on a machine: which record of a stage, which entry of a channel."""

import dataclasses

import pytest

from pipeline import digest
from pipeline.authority import Authority
from pipeline.digest import Digests
from pipeline.errors import IntegrityError
from pipeline.execution import Paths
from pipeline.stages import BY_NAME, Outcome
from pipeline.store import open_store
from tests.support import settings
from tests.support_evidence import Evidence, add_key, ago, make

TRAIN = BY_NAME["train"]
MERGE_REQUEST = {"GITLAB_CI": "true", "CI_PIPELINE_SOURCE": "merge_request_event"}


@pytest.fixture(autouse=True)
def laptop(monkeypatch):
    for name in ("GITLAB_CI", "GITHUB_ACTIONS", "TIDEGATE_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def evidence(tmp_path):
    signers = {
        "ci": add_key(tmp_path, "ci", "ci"),
        "approve": add_key(tmp_path, "alice", "approver"),
        "past": add_key(tmp_path, "past", "ci", f', until: "{ago(5)[:10]}"'),
    }
    return Evidence(tmp_path, settings(), open_store("file:store", tmp_path), signers)


@pytest.fixture
def authority(evidence):
    root = evidence.root
    paths = Paths(root, root / "pipeline.yaml", root / "build", root / "state")
    return Authority(evidence.settings, paths, evidence.store, Digests(root / "digests.json"))


def test_a_record_counts_whose_key_may_sign_its_stage(evidence, authority):
    made = evidence.add(make("train"))
    assert authority.accepted(TRAIN, made.sha256) == made
    assert authority.passed(TRAIN, made.key) == made


@pytest.mark.parametrize(
    ("stage", "by", "said"),
    [
        ("train", "approve", "is signed by alice, and needs ci"),
        ("train", "past", "is signed by past, whose key expired"),
        ("data", "ci", "is of data"),
    ],
)
def test_a_record_that_does_not_count_is_told_and_not_used(evidence, authority, capsys, stage, by, said):
    """Also one that was made while its key was valid: an old key can claim any time."""
    made = evidence.add(make(stage, started=ago(10), finished=ago(10)), evidence.signers[by])
    assert authority.accepted(TRAIN, made.sha256) is None
    assert capsys.readouterr().err == f"train: the record {made.sha256[:12]} {said}; it is not used\n"


def test_in_a_merge_request_any_whole_record_counts(evidence, authority, monkeypatch, capsys):
    made = evidence.add(make("train"), evidence.signers["approve"])
    assert authority.passed(TRAIN, made.key) is None
    for name, value in MERGE_REQUEST.items():
        monkeypatch.setenv(name, value)
    assert authority.passed(TRAIN, made.key) == made
    capsys.readouterr()
    other = evidence.add(make("data"), evidence.signers["approve"])
    assert authority.accepted(TRAIN, other.sha256) is None
    assert "is of data" in capsys.readouterr().err


def test_what_failed_since_does_not_hide_what_passed(evidence, authority):
    passed = evidence.add(make("train", finished=ago(0.002)))
    failed = evidence.add(make("train", outcome=str(Outcome.FAILED), finished=ago(0.001)))
    assert passed.key == failed.key
    assert authority.passed(TRAIN, passed.key) == passed
    assert authority.accepted(TRAIN, failed.sha256) == failed


def test_the_champion_is_the_newest_other_model_with_what_its_scan_found(evidence, authority):
    evidence.walk()
    entry = evidence.promote()
    assert authority.champion("f" * 64) == entry
    assert authority.champion(entry.model) is None
    assert authority.scan_report(entry) == evidence.records["scan"].outputs["scan/report"]
    without = dataclasses.replace(entry, evidence=digest.of_bytes(b"gone"))
    assert authority.scan_report(without) is None


def test_a_channel_whose_live_entry_nobody_signed_is_refused_wherever_one_could_deploy(
    evidence, authority, monkeypatch
):
    evidence.walk()
    entry = evidence.promote()
    assert authority.channel("production").live == entry
    planted = dataclasses.replace(entry, version=666)
    evidence.store.append(evidence.store.channel("production"), planted)
    with pytest.raises(IntegrityError, match="is not what was signed"):
        authority.channel("production")
    for name, value in MERGE_REQUEST.items():
        monkeypatch.setenv(name, value)
    assert authority.channel("production").live.version == 666
