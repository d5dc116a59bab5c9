"""Records are signed statements; the policy lets nothing in that they do not show."""

import base64
import dataclasses
import json

import pytest

from pipeline import policy, record
from pipeline.digest import Digests
from pipeline.errors import GateRefused, IntegrityError, SettingsError
from pipeline.record import Keys, Record
from pipeline.stages import BY_NAME, STAGES, Facts
from pipeline.store import FileStore
from pipeline.trees import keep


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.delenv(record.KEY_VARIABLE, raising=False)
    return Keys(tmp_path / "state")


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "store")


def make(stage="train", outputs=None, reads=None, **changes) -> Record:
    values = {
        "stage": stage,
        "key": "k" * 64,
        "key_parts": {
            "reads": reads or {},
            "files": {"train/fit.py": "f" * 64},
            "settings": {"train": {"epochs": 1}},
        },
        "outcome": "passed",
        "sentence": "it did",
        "outputs": outputs or {},
        "needs": {},
        "numbers": {"loss": 0.5},
        "decided": None,
        "digest": "",
        "warnings": (),
        "seconds": 1.0,
        "started": "2026-01-01T00:00:00.000Z",
        "finished": "2026-01-01T00:00:01.000Z",
        "facts": dataclasses.asdict(Facts(commit="c" * 40, source="https://git.example/m")),
    }
    return Record(**{**values, **changes})


def keep_record(made: Record, store, keys) -> Record:
    envelope = keys.sign(record.statement(made, BY_NAME[made.stage].predicate))
    sha256 = store.add_record(made.stage, made.key, made.finished, envelope)
    return dataclasses.replace(made, sha256=sha256)


def test_a_record_is_an_in_toto_statement_in_a_dsse_envelope(keys):
    made = make(outputs={"train/model": "a" * 64}, reads={"data/rows": "b" * 64})
    envelope = json.loads(keys.sign(record.statement(made, record.SLSA)))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert envelope["signatures"][0]["sig"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "train/model", "digest": {"sha256": "a" * 64}}]
    definition = statement["predicate"]["buildDefinition"]
    assert {"uri": "https://git.example/m", "digest": {"gitCommit": "c" * 40}} in definition[
        "resolvedDependencies"
    ]
    assert {"name": "data/rows", "digest": {"sha256": "b" * 64}} in definition["resolvedDependencies"]
    assert definition["externalParameters"]["settings"] == {"train": {"epochs": 1}}


def test_what_was_signed_is_what_is_read_back(keys):
    made = make()
    assert keys.verify(keys.sign(record.statement(made, record.SLSA))) == made


def test_a_changed_record_does_not_verify(keys):
    envelope = json.loads(keys.sign(record.statement(make(), record.SLSA)))
    text = base64.b64decode(envelope["payload"]).replace(b'"passed"', b'"Passed"')
    envelope["payload"] = base64.b64encode(text).decode()
    with pytest.raises(IntegrityError, match="not signed by a key that this machine trusts") as caught:
        keys.verify(json.dumps(envelope).encode())
    assert caught.value.exit_code == 6


def test_a_record_signed_by_another_key_does_not_verify(keys, tmp_path):
    other = Keys(tmp_path / "other")
    with pytest.raises(IntegrityError, match="not signed"):
        keys.verify(other.sign(record.statement(make(), record.SLSA)))


@pytest.mark.parametrize("envelope", [b"", b"{}", b"[]", b'{"payload": "eyJ9"}', b"\xff\xfe"])
def test_an_unreadable_record_is_an_integrity_error(envelope):
    with pytest.raises(IntegrityError, match="not readable"):
        record.read(envelope)


def test_the_laptops_key_is_made_once_and_is_for_its_owner_alone(keys, tmp_path):
    first = keys.signer.public_key.keyid
    assert (tmp_path / "state" / "keys" / "laptop.pem").stat().st_mode & 0o777 == 0o600
    assert Keys(tmp_path / "state").signer.public_key.keyid == first


def test_ci_signs_with_the_key_that_its_variable_holds(keys, tmp_path, monkeypatch):
    pem = tmp_path / "state" / "keys" / "laptop.pem"
    keyid = keys.signer.public_key.keyid
    for value in (str(pem), pem.read_text()):
        monkeypatch.setenv(record.KEY_VARIABLE, value)
        assert Keys(tmp_path / "elsewhere").signer.public_key.keyid == keyid


def test_a_variable_without_a_key_is_refused_without_showing_its_value(tmp_path, monkeypatch):
    monkeypatch.setenv(record.KEY_VARIABLE, "-----BEGIN NONSENSE-----hush")
    with pytest.raises(SettingsError, match=record.KEY_VARIABLE) as caught:
        _ = Keys(tmp_path).signer
    assert "hush" not in str(caught.value)


# The policy ------------------------------------------------------------------------------------------------


def document(store, tmp_path, output, name, content) -> str:
    folder = tmp_path / output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return keep(folder, store, Digests(tmp_path / "memory.json"))


@pytest.fixture
def walked(store, keys, tmp_path):
    """The records of a whole walk before promote, each reading what the ones before wrote."""
    digest = {"digest": "sha256:" + "1" * 64}
    special = {
        "publish/published": document(store, tmp_path, "publish/published", "published.json", digest),
        "approve/approval": document(store, tmp_path, "approve/approval", "approval.json", digest),
    }
    outputs, done = {"champion/savedmodel": None}, {}
    for stage in STAGES[:-1]:
        mine = {
            f"{stage.name}/{n}": special.get(f"{stage.name}/{n}", f"{stage.name}{n}") for n in stage.outputs
        }
        reads = {name.lstrip("?"): outputs[name.lstrip("?")] for name in stage.reads}
        done[stage.name] = keep_record(make(stage.name, mine, reads), store, keys)
        outputs |= mine
    return done


def refusal(done, store, keys) -> str:
    with pytest.raises(GateRefused) as caught:
        policy.demand(BY_NAME["promote"], done, store, keys)
    return str(caught.value)


def test_a_whole_walk_is_let_in(walked, store, keys):
    policy.demand(BY_NAME["promote"], walked, store, keys)
    assert [v.stage for v in policy.verdicts(BY_NAME["promote"], walked, store, keys)] == [
        s.name for s in STAGES[:-1]
    ]


@pytest.mark.parametrize("stage", [s.name for s in STAGES[:-1]])
def test_production_demands_the_record_of_every_stage(walked, store, keys, stage):
    del walked[stage]
    assert f"{stage}: has no record" in refusal(walked, store, keys)


@pytest.mark.parametrize("outcome", ["failed", "no data"])
def test_only_passed_lets_in(walked, store, keys, outcome):
    walked["scan"] = keep_record(dataclasses.replace(walked["scan"], outcome=outcome), store, keys)
    assert f"scan: the record is of scan, which ended as {outcome}" in refusal(walked, store, keys)


def test_a_record_of_another_model_is_refused(walked, store, keys):
    other = dataclasses.replace(walked["train"], outputs={"train/model": "another", "train/log": "trainlog"})
    walked["train"] = keep_record(other, store, keys)
    assert "it read another train/model than the one recorded" in refusal(walked, store, keys)


def test_a_record_of_another_stage_is_refused(walked, store, keys):
    walked["canary"] = walked["scan"]
    assert "canary: the record is of scan" in refusal(walked, store, keys)


def test_a_record_signed_by_a_stranger_is_refused(walked, store, keys, tmp_path):
    walked["evaluate"] = keep_record(walked["evaluate"], store, Keys(tmp_path / "stranger"))
    assert "evaluate: the record of evaluate" in refusal(walked, store, keys)


def test_an_approval_counts_for_its_digest_alone(walked, store, keys, tmp_path):
    other = document(store, tmp_path, "other/approval", "approval.json", {"digest": "sha256:" + "2" * 64})
    approval = dataclasses.replace(walked["approve"], outputs={"approve/approval": other})
    walked["approve"] = keep_record(approval, store, keys)
    assert "approves sha256:2222" in refusal(walked, store, keys)
