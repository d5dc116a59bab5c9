"""The policy: nothing enters a channel that signed records do not show."""

import dataclasses

import pytest

from pipeline.errors import GateRefused, IntegrityError
from pipeline.settings import Demand
from pipeline.stages import ALL, BY_NAME, STAGES
from pipeline.store import Entry, open_store
from tests.support import settings
from tests.support_evidence import IMAGE, Evidence, add_key, ago, make

OTHER = "sha256:" + "2" * 64


@pytest.fixture
def walked(tmp_path):
    """The records of a whole walk before promote, signed by CI and an approver who are trusted."""
    signers = {"ci": add_key(tmp_path, "ci", "ci"), "approve": add_key(tmp_path, "alice", "approver")}
    made = Evidence(tmp_path, settings({}), open_store("file:store", tmp_path), signers)
    made.walk()
    return made


def refusal(evidence, stage="promote", image=IMAGE, needs=None) -> str:
    with pytest.raises(GateRefused) as caught:
        evidence.policy.demand(BY_NAME[stage], evidence.needs if needs is None else needs, image)
    return str(caught.value)


def test_a_whole_walk_is_let_in_and_every_record_of_it_is_in_the_tree(walked):
    walked.policy.demand(BY_NAME["promote"], walked.needs, IMAGE)
    walked.policy.demand(BY_NAME["canary"], walked.needs, IMAGE)
    walked.policy.demand(BY_NAME["staging"], walked.needs, IMAGE)
    walked.promote()
    tree = walked.policy.examine("promote", walked.records["promote"].sha256, IMAGE)
    assert tree.holds
    assert {node.stage for node in tree.walk()} == {row.name for row in STAGES}


@pytest.mark.parametrize("stage", ["check", "evaluate", "scan", "staging", "approve", "canary", "publish"])
def test_production_demands_the_record_of_each_of_these(walked, stage):
    needs = {name: sha256 for name, sha256 in walked.needs.items() if name != stage}
    assert f"{stage}: has no record" in refusal(walked, needs=needs)


@pytest.mark.parametrize("stage", [row.name for row in STAGES[:-1]])
def test_a_record_that_was_removed_from_the_store_anywhere_in_the_chain_is_told(walked, stage):
    (path,) = (walked.root / "store" / "blobs").rglob(walked.records[stage].sha256)
    path.unlink()
    assert f"blob {walked.records[stage].sha256} is not in the store" in refusal(walked)


@pytest.mark.parametrize("stage", [row.name for row in STAGES[:-1]])
def test_one_flipped_byte_in_any_record_of_the_chain_is_told(walked, stage):
    (path,) = (walked.root / "store" / "blobs").rglob(walked.records[stage].sha256)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"blob {walked.records[stage].sha256} of the store is damaged" in refusal(walked)


@pytest.mark.parametrize("outcome", ["failed", "no data", "error"])
def test_only_passed_lets_in(walked, outcome):
    walked.change("scan", outcome=outcome)
    assert f"scan: ended as {outcome}" in refusal(walked)


def test_a_record_that_read_another_model_than_was_trained_is_refused(walked):
    walked.change("train", outputs={"train/model": "9" * 64, "train/log": "8" * 64})
    assert "read another train/model than the one recorded" in refusal(walked)


def test_the_evidence_of_another_image_does_not_let_this_one_in(walked):
    said = refusal(walked, image=OTHER)
    assert f"canary: is about {IMAGE}, not {OTHER}" in said
    assert f"scan: is about {IMAGE}, not {OTHER}" in said


def test_a_replayed_canary_of_another_image_is_refused(walked):
    walked.change("canary", digest=OTHER)
    assert f"canary: is about {OTHER}, not {IMAGE}" in refusal(walked)


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("settings", {"model": "faces"}, "was made of another model than"),
        ("environment", {"requirements.txt": "9" * 64}, "was made of another locked environment than"),
    ],
)
def test_a_record_of_another_model_or_environment_does_not_fit_into_the_chain(walked, part, value, said):
    old = walked.records["export"]
    parts = {**old.key_parts, part: value}
    fresh = make("export", old.outputs, needs=old.needs, key_parts=parts)
    walked.change("export", key_parts=parts, key=fresh.key)
    assert said in refusal(walked)


def test_a_record_of_another_stage_is_not_taken_for_this_one(walked):
    needs = walked.needs | {"canary": walked.needs["scan"]}
    assert "canary: is a record of scan" in refusal(walked, needs=needs)


def test_a_record_under_a_key_that_is_not_its_own_is_refused(walked):
    walked.change("train", key="0" * 64)
    assert "train: its key is not that of what it says it read" in refusal(walked)


def test_a_record_that_names_less_than_its_stage_needs_is_refused(walked):
    walked.change("export", needs={"data": walked.needs["data"], "train": walked.needs["train"]})
    assert "export: names no record of evaluate" in refusal(walked)


def test_a_record_signed_by_a_stranger_is_refused(walked, tmp_path):
    stranger = add_key(tmp_path / "elsewhere", "mallory", "ci")
    walked.change("evaluate", signer=stranger)
    assert "evaluate: the record of evaluate" in refusal(walked)
    assert "not signed by a key that is trusted here" in refusal(walked)


@pytest.mark.parametrize(
    ("stage", "signer", "said"),
    [
        ("approve", "ci", "approve: is signed by ci (ci), and needs approver"),
        ("canary", "approve", "canary: is signed by alice (approver), and needs ci"),
        ("train", "approve", "train: is signed by alice (approver), and needs ci"),
    ],
)
def test_nobody_signs_what_is_not_theirs_to_sign(walked, stage, signer, said):
    walked.change(stage, signer=walked.signers[signer])
    assert said in refusal(walked)


def test_a_revoked_key_takes_all_that_it_signed_with_it(walked):
    file = walked.root / "trust" / "roles.yaml"
    file.write_text(file.read_text().replace("roles: [approver]", "roles: [approver], revoked: true"))
    assert "signed by alice, whose key is revoked" in refusal(walked)


# Ages --------------------------------------------------------------------------------------------------------


def demand(evidence, **stages) -> Evidence:
    """The same evidence, with other demands of production."""
    policy = dataclasses.replace(evidence.settings.policy, production=stages)
    return dataclasses.replace(evidence, settings=dataclasses.replace(evidence.settings, policy=policy))


def test_evidence_that_is_too_old_is_refused_with_the_way_to_renew_it(walked):
    strict = demand(walked, scan=Demand("ci", 1.0), approve=Demand("approver", 0.5))
    strict.change("scan", finished=ago(2), started=ago(2))
    strict.change("approve", finished=ago(0.6), started=ago(0.6))
    said = refusal(strict)
    assert "scan: is 2.0 days old, at most 1 are allowed: python -m pipeline run --force scan --all" in said
    assert "approve: is 0.6 days old, at most 0.5 are allowed: approve it again" in said


def test_what_was_young_enough_when_it_let_a_version_in_stays_good_for_the_audit(walked):
    strict = demand(walked, scan=Demand("ci", 1.0))
    for row in STAGES[:-1]:
        strict.change(row.name, finished=ago(30), started=ago(30))
    made = strict.add(
        dataclasses.replace(
            make("promote", {"promote/evidence": "e" * 64}, digest=IMAGE, finished=ago(29.5)),
            needs={name: strict.needs[name] for name in strict.policy.needed(BY_NAME["promote"])},
        )
    )
    strict.records.pop("promote")
    node = strict.policy.examine("promote", made.sha256, IMAGE)
    assert [fault for one in node.walk() for fault in one.faults] == []
    assert "scan: is 30.0 days old" in refusal(strict)


def test_who_signs_what_is_the_settings_word(walked):
    lax = demand(walked, approve=Demand("ci", 30.0))
    assert "approve: is signed by alice (approver), and needs ci" in refusal(lax)


# Approval ----------------------------------------------------------------------------------------------------


def test_an_approval_counts_for_its_digest_alone(walked):
    other = walked.document("approval.json", {"digest": OTHER, "version": 2})
    walked.change("approve", outputs={"approve/approval": other})
    assert f"approve: approves {OTHER}, and its record names {IMAGE}" in refusal(walked)


@pytest.mark.parametrize(
    ("author", "said"),
    [
        ("alice@example.org", "alice@example.org wrote the model's last commit, and may not approve it"),
        ("alice", "alice wrote the model's last commit"),
        ("", "nobody knows who wrote the model's last commit"),
    ],
)
def test_the_author_does_not_approve_where_the_settings_forbid_it(walked, author, said):
    file = walked.root / "trust" / "roles.yaml"
    file.write_text(file.read_text().replace("[approver]", "[approver], identities: [alice@example.org]"))
    policy = dataclasses.replace(walked.settings.policy, author_may_approve=False)
    strict = dataclasses.replace(walked, settings=dataclasses.replace(walked.settings, policy=policy))
    strict.policy.demand(BY_NAME["promote"], strict.needs, IMAGE)  # bob wrote it
    publish = strict.records["publish"]
    strict.change("publish", facts={**publish.facts, "author": author})
    assert said in refusal(strict)


# Rollback and break-glass --------------------------------------------------------------------------------------


def test_a_rollback_stands_on_the_promotion_that_it_goes_back_to_however_old(walked):
    strict = demand(walked, scan=Demand("ci", 1.0))
    strict.promote()
    needs = {"promote": strict.records["promote"].sha256}
    strict.policy.demand(ALL["rollback"], needs, IMAGE)
    reads = {"publish/published": strict.records["publish"].outputs["publish/published"]}
    back = make("rollback", {"rollback/evidence": "b" * 64}, reads, digest=IMAGE, needs=needs)
    assert strict.policy.examine("rollback", strict.add(back).sha256, IMAGE).holds
    other = dataclasses.replace(
        back, key_parts={**back.key_parts, "reads": {"publish/published": "0" * 64}}, key="k"
    )
    assert not strict.policy.examine("rollback", strict.add(other).sha256, IMAGE).holds
    with pytest.raises(GateRefused, match=f"promote: is about {IMAGE}, not {OTHER}"):
        strict.policy.demand(ALL["rollback"], needs, OTHER)


def test_a_break_glass_needs_what_was_built_and_a_person_who_may(walked):
    needs = {"publish": walked.needs["publish"]}
    walked.policy.demand(ALL["break-glass"], needs, IMAGE)
    reads = {"publish/published": walked.records["publish"].outputs["publish/published"]}
    record = make(
        "break-glass", {"break-glass/evidence": "b" * 64}, reads, digest=IMAGE, needs=needs, reason="a fire"
    )
    by_ci = walked.add(record)
    assert (
        "is signed by ci (ci), and needs break-glass"
        in walked.policy.examine("break-glass", by_ci.sha256).faults
    )
    fireman = add_key(walked.root, "fireman", "break-glass")
    by_fireman = walked.add(record, fireman)
    assert walked.policy.examine("break-glass", by_fireman.sha256, IMAGE).holds
    assert by_fireman.reason == "a fire"


def test_an_entry_knows_the_highest_version_and_the_entry_before(walked):
    first, second = walked.promote(3), walked.promote(2)
    assert isinstance(first, Entry)
    assert (second.highest, second.left) == (3, IMAGE)
    assert second.previous == walked.store.entry("production", 1)[1]
    assert walked.records["promote"].enters == second.claims("production")


# What somebody with the bucket, and no key, would like ---------------------------------------------------------


@pytest.mark.parametrize("stage", ["check", "train", "scan", "staging", "canary"])
def test_a_rollback_goes_back_to_no_record_but_what_let_a_version_into_production(walked, stage):
    with pytest.raises(GateRefused, match="which never lets a version into production"):
        walked.policy.demand(ALL["rollback"], {stage: walked.needs[stage]}, IMAGE)
    back = make("rollback", digest=IMAGE, needs={stage: walked.needs[stage]})
    assert not walked.policy.examine("rollback", walked.add(back).sha256, IMAGE).holds


def test_an_honest_entry_is_what_was_signed(walked):
    walked.policy.accept("production", walked.promote())


@pytest.mark.parametrize(
    "change",
    [
        {"image": OTHER},
        {"version": 99},
        {"model": "9" * 64},
        {"savedmodel": "9" * 64},
        {"published": "9" * 64},
        {"by": "eve"},
        {"left": OTHER},
        {"highest": 7},
        {"broken": 3},
        {"previous": "9" * 64},
        {"at": "2020-01-01T00:00:00.000Z"},
        {"at": "2099-01-01T00:00:00.000Z"},
        {"why": "rollback"},
    ],
    ids=str,
)
def test_no_part_of_an_entry_can_be_changed(walked, change):
    entry = dataclasses.replace(walked.promote(), **change)
    with pytest.raises(IntegrityError, match="is not what was signed"):
        walked.policy.accept("production", entry)


def test_an_entry_of_one_channel_is_none_of_another_and_a_gates_record_enters_none(walked):
    entry = walked.promote()
    with pytest.raises(IntegrityError, match="lets nothing into staging"):
        walked.policy.accept("staging", entry)
    for stage in ("staging", "check", "canary"):
        forged = dataclasses.replace(
            entry, why=stage, evidence=walked.needs[stage], at=walked.records[stage].finished
        )
        with pytest.raises(IntegrityError, match="lets nothing into production"):
            walked.policy.accept("production", forged)


def test_a_promotion_of_another_model_by_the_same_keys_is_refused(walked):
    other = dataclasses.replace(walked, settings=dataclasses.replace(walked.settings, model="faces"))
    with pytest.raises(GateRefused, match="is of the model digits, and this repository's is faces"):
        other.policy.demand(BY_NAME["promote"], other.needs, IMAGE)


@pytest.mark.parametrize("stage", ["train", "export", "publish"])
def test_the_author_in_any_record_behind_counts_in_whatever_case(walked, stage):
    policy = dataclasses.replace(walked.settings.policy, author_may_approve=False)
    strict = dataclasses.replace(walked, settings=dataclasses.replace(walked.settings, policy=policy))
    facts = strict.records[stage].facts
    strict.change(stage, facts={**facts, "author": "ALICE"})
    assert "alice wrote the model's last commit" in refusal(strict)
