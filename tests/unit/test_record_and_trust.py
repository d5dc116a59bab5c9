"""Records are signed statements; whose signature counts stands in trust/."""

import base64
import dataclasses
import errno
import json
import os
import re

import pytest

from pipeline import keygen, keys, record
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError
from pipeline.execution import Paths
from pipeline.keys import Signer
from pipeline.trust import Trust
from tests.support_evidence import add_key, ago, make


@pytest.fixture
def signer(tmp_path):
    return Signer(tmp_path / "state", environ={})


@pytest.fixture
def own(signer, tmp_path):
    return Trust.load(tmp_path, signer)


def signed(signer, made=None, predicate=record.SLSA) -> bytes:
    return record.sign(record.statement(made or make(), predicate), signer.crypto)


def test_a_record_is_an_in_toto_statement_in_a_dsse_envelope(signer):
    made = make(outputs={"train/model": "a" * 64}, reads={"data/rows": "b" * 64}, needs={"data": "9" * 64})
    envelope = json.loads(signed(signer, made))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert envelope["signatures"][0]["sig"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "train/model", "digest": {"sha256": "a" * 64}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["settings"] == {"model": "digits", "train": {"epochs": 1}}
    for dependency in (
        {"uri": "https://git.example/m", "digest": {"gitCommit": "c" * 40}},
        {"name": "data/rows", "digest": {"sha256": "b" * 64}},
        {"name": "requirements.txt", "digest": {"sha256": "d" * 64}},
        {"name": "record/data", "digest": {"sha256": "9" * 64}},
    ):
        assert dependency in definition["resolvedDependencies"]
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == "https://tidegate.dev/runner/laptop"
    assert details["metadata"]["startedOn"] == made.started


def test_what_was_signed_is_what_is_read_back(signer, own):
    made = make()
    found = own.verify(signed(signer, made))
    assert found.record == made
    assert found.key.name == "this machine"
    assert found.key.roles == ("ci", "approver", "break-glass")


@pytest.mark.parametrize("part", ["payload", "signature"])
def test_one_changed_byte_and_a_record_does_not_verify(signer, own, part):
    envelope = json.loads(signed(signer))
    if part == "payload":
        text = base64.b64decode(envelope["payload"]).replace(b'"passed"', b'"Passed"')
        envelope["payload"] = base64.b64encode(text).decode()
    else:
        sig = envelope["signatures"][0]["sig"]
        envelope["signatures"][0]["sig"] = ("B" if sig[20] == "A" else "A").join([sig[:20], sig[21:]])
    with pytest.raises(IntegrityError, match="not signed by a key that is trusted here") as caught:
        own.verify(json.dumps(envelope).encode())
    assert caught.value.exit_code == 6


def test_a_record_signed_by_another_key_does_not_verify(own, tmp_path):
    with pytest.raises(IntegrityError, match="not signed by a key that is trusted here"):
        own.verify(signed(Signer(tmp_path / "other", environ={})))


@pytest.mark.parametrize("envelope", [b"", b"{}", b"[]", b'{"payload": "eyJ9"}', b"\xff\xfe"])
def test_an_unreadable_record_is_an_integrity_error(envelope):
    with pytest.raises(IntegrityError, match="not readable"):
        record.read(envelope)


# The key that signs ------------------------------------------------------------------------------------------


def test_the_laptops_key_is_made_once_and_is_for_its_owner_alone(signer, tmp_path):
    first = signer.crypto.public_key.keyid
    assert (tmp_path / "state" / "keys" / "laptop.pem").stat().st_mode & 0o777 == 0o600
    assert Signer(tmp_path / "state", environ={}).crypto.public_key.keyid == first


def test_ci_signs_with_the_key_that_its_variable_holds_or_names(signer, tmp_path):
    for value in (signer.pem.decode(), str(tmp_path / "state" / "keys" / "laptop.pem")):
        given = Signer(tmp_path / "elsewhere", environ={keys.KEY_VARIABLE: value})
        assert given.crypto.public_key.keyid == signer.crypto.public_key.keyid
        assert not given.is_own


def test_an_approval_is_signed_with_the_approvers_key_although_cis_own_is_there(signer, tmp_path):
    private = signer.pem.decode()
    other = keys.new_private_key().decode()
    given = {keys.KEY_VARIABLE: other, keys.APPROVAL_VARIABLE: private}
    assert Signer(tmp_path, environ=given, approving=True).pem.decode() == private
    assert Signer(tmp_path, environ=given).pem.decode() == other
    alone = {keys.KEY_VARIABLE: other, keys.APPROVAL_VARIABLE: ""}
    assert Signer(tmp_path, environ=alone, approving=True).pem.decode() == other


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_key_is_told_and_keeps_no_half_of_one(tmp_path, monkeypatch, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", full)
    with pytest.raises(ProgramFailed, match=rf"laptop.pem could not be written: {os.strerror(number)}"):
        _ = Signer(tmp_path, environ={}).pem
    assert list((tmp_path / "keys").iterdir()) == []


def test_an_own_key_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "keys/laptop.pem").mkdir(parents=True)
    with pytest.raises(SettingsError, match="own key cannot be read"):
        _ = Signer(tmp_path, environ={}).pem


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "-x"])
def test_a_name_that_no_key_can_have_is_refused_before_anything_is_made(tmp_path, name):
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust/roles.yaml").write_text("keys: []\n")
    paths = Paths(tmp_path, tmp_path / "pipeline.yaml", tmp_path / "build", tmp_path / "state")
    with pytest.raises(SettingsError, match=f"{re.escape(repr(name))} cannot name a key. Allowed: letters"):
        keygen.make(paths, name, ["ci"], [])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["roles.yaml", "trust"]


def test_a_row_that_the_trust_would_not_take_is_told_by_the_name_of_its_file(tmp_path):
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust/roles.yaml").write_text("keys: nobody\n")
    paths = Paths(tmp_path, tmp_path / "pipeline.yaml", tmp_path / "build", tmp_path / "state")
    with pytest.raises(SettingsError, match=r"^roles\.yaml:"):
        keygen.make(paths, "alice", ["ci"], [])


@pytest.mark.parametrize("value", ["-----BEGIN NONSENSE-----hush", "/nonexistent/hush.pem"])
def test_a_variable_without_a_key_is_refused_without_showing_a_key(tmp_path, value):
    with pytest.raises(SettingsError, match=keys.KEY_VARIABLE) as caught:
        _ = Signer(tmp_path, environ={keys.KEY_VARIABLE: value}).crypto
    assert "NONSENSE" not in str(caught.value)


def test_a_protected_ref_without_its_key_is_told_and_makes_none(tmp_path):
    with pytest.raises(SettingsError, match="TIDEGATE_SIGNING_KEY is not set"):
        _ = Signer(tmp_path, may_use_own=False, environ={}).pem
    assert list(tmp_path.iterdir()) == []
    own = Signer(tmp_path, environ={}).pem
    assert own
    with pytest.raises(SettingsError, match="TIDEGATE_SIGNING_KEY is not set"):
        _ = Signer(tmp_path, may_use_own=False, environ={}).pem


def test_looking_makes_no_key(tmp_path):
    signer = Signer(tmp_path / "state", environ={})
    trust = Trust.load(tmp_path, signer)
    assert trust.digest
    assert not trust.has_role("ci")
    assert not signer.exists
    assert trust.key_of(signer).name == "this machine"
    assert signer.exists


# Who is trusted ----------------------------------------------------------------------------------------------


def test_a_key_of_the_repository_counts_with_its_roles_and_a_strangers_does_not(tmp_path):
    ci = add_key(tmp_path, "ci", "ci")
    alice = add_key(tmp_path, "alice", "approver, break-glass", ", identities: [alice@example.org]")
    trust = Trust.load(tmp_path)
    assert trust.verify(signed(ci)).key.roles == ("ci",)
    assert trust.verify(signed(alice)).key.identities == ("alice@example.org",)
    assert trust.has_role("approver")
    assert not Trust.load(tmp_path / "empty").has_role("ci")


@pytest.mark.parametrize(
    ("more", "finished", "said"),
    [
        (", revoked: true", "2026-01-31T23:00:00.000Z", "ci, whose key is revoked in trust/roles.yaml"),
        (", until: 2026-01-31", "2026-02-01T00:00:00.000Z", "its key expired with 2026-01-31"),
        ("", "9999-01-31T23:00:00.000Z", "in the future: a clock is wrong"),
    ],
)
def test_a_revoked_or_expired_key_or_a_record_from_the_future_does_not_count(tmp_path, more, finished, said):
    ci = add_key(tmp_path, "ci", "ci", more)
    with pytest.raises(IntegrityError, match=said):
        Trust.load(tmp_path).verify(signed(ci, make(finished=finished)))


def test_what_an_expired_key_signed_in_its_time_still_counts(tmp_path):
    ci = add_key(tmp_path, "ci", "ci", ", until: 2026-01-31")
    assert Trust.load(tmp_path).verify(signed(ci, make(finished="2026-01-31T23:00:00.000Z"))).key.name == "ci"


def test_a_clock_that_is_a_minute_ahead_is_forgiven(signer, own):
    assert own.verify(signed(signer, make(finished=ago(-1 / 1440)))).record.stage == "train"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "keys: [{name: a, file: a.pem, roles: [boss]}]",
            "keys[0].roles[0]: is 'boss', must be one of ci",
        ),
        (
            "keys: [{name: a, file: ../a.pem, roles: [ci]}]",
            "is '../a.pem', must be a file's name in trust/",
        ),
        ("keys: [{name: a, file: a.pem, roles: [ci]}]", "trust/a.pem does not exist"),
        (
            "keys:\n- {name: a, file: a.pem, roles: [ci], until: soon}",
            "roles.yaml:2: keys[0].until: is 'soon'",
        ),
        ("keys: [{name: a, file: a.pem, rolls: [ci]}]", "Did you mean keys[0].roles?"),
        ("keys: [", "is not YAML"),
    ],
)
def test_faults_of_the_roles_are_told_with_their_line(tmp_path, text, said):
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "roles.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        Trust.load(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"), [("ci", "the name 'ci' is taken"), ("other", "other and ci are the same key")]
)
def test_two_rows_share_neither_name_nor_key(tmp_path, name, said):
    add_key(tmp_path, "ci", "ci")
    add_key(tmp_path, "bob", "approver")
    file, second = tmp_path / "trust" / "roles.yaml", "bob.pem" if name == "ci" else "ci.pem"
    text = file.read_text().replace("name: bob, file: bob.pem", f"name: {name}, file: {second}")
    file.write_text(text)
    with pytest.raises(SettingsError, match=said):
        Trust.load(tmp_path)


def test_what_is_read_is_what_was_signed_byte_for_byte(signer, own):
    """A payload that a lax decoder would read otherwise than the one that verifies is none."""
    envelope = json.loads(signed(signer))
    envelope["payload"] = envelope["payload"][:40] + "-_" + envelope["payload"][40:]
    with pytest.raises(IntegrityError, match="not readable"):
        own.verify(json.dumps(envelope).encode())


@pytest.mark.parametrize("depth", [100_000])
def test_a_record_that_is_nested_without_end_is_named_and_not_a_crash(own, depth):
    with pytest.raises(IntegrityError, match="not readable"):
        own.verify(b"[" * depth)


def test_a_payload_of_another_type_is_no_record(signer, own):
    envelope = json.loads(signed(signer))
    envelope["payloadType"] = "application/other"
    with pytest.raises(IntegrityError, match="its payload is 'application/other'"):
        own.verify(json.dumps(envelope).encode())


def test_a_remembered_signature_is_verified_anew_once_trust_changes(tmp_path):
    ci = add_key(tmp_path, "ci", "ci")
    envelope, memory = signed(ci), {}

    def remember(name, compute):
        if name not in memory:
            memory[name] = compute()
        return memory[name]

    def ask():
        return Trust.load(tmp_path).remembered("a" * 64, lambda: envelope, remember)

    assert ask().key.name == "ci"
    assert len(memory) == 1
    file = tmp_path / "trust" / "roles.yaml"
    file.write_text(file.read_text().replace("roles: [ci]", "roles: [ci], revoked: true"))
    with pytest.raises(IntegrityError, match="revoked"):
        ask()


def test_equal_records_differ_only_in_what_was_not_signed():
    made = make()
    assert dataclasses.replace(made, sha256="a" * 64) == made
