"""A team's keys, and those who hold less than a team's keys: what lets a version in, and what does not.

The store and the registry are open to every attacker here: they write into both as they like.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal

import pytest

from deploy import attest, model_signature

FIRST_PORT = 20560
KILLS = int(os.environ.get("TIDEGATE_TEST_KILLS", "10"))


class Team:
    """A walk where CI, an approver and a firefighter have keys of their own, and a machine's own key counts nothing."""

    def __init__(self, walk):
        self.walk = walk
        self.keys = {}
        for name, role in (("ci", "ci"), ("alice", "approver"), ("fred", "break-glass")):
            said = walk("keygen", name, "--role", role)
            assert "have it reviewed" in said
            # whoever it is for takes it away; the state folder keeps none
            private = walk.folder.parent / f"{walk.folder.name}-{name}.pem"
            (walk.folder / ".tidegate" / "keys" / f"{name}.pem").rename(private)
            assert private.stat().st_mode & 0o077 == 0
            self.keys[name] = str(private)
        walk.commit("Keys")

    def __call__(self, name: str, *arguments: str, expect: int = 0) -> str:
        return self.walk(*arguments, expect=expect, TIDEGATE_SIGNING_KEY=self.keys[name])

    @property
    def store(self):
        return self.walk.folder / ".tidegate" / "store"

    def blob(self, sha256: str):
        return self.store / "blobs" / "sha256" / sha256[:2] / sha256

    def record(self, stage: str) -> str:
        """The sha256 of the record of a stage behind what production serves."""
        document = json.loads(self("ci", "verify", "production", "--json"))
        return next(sha256 for sha256, node in document["records"].items() if node["stage"] == stage)


@pytest.fixture(scope="module")
def team(walk):
    return Team(walk)


def test_ci_alone_comes_as_far_as_staging_and_no_further(team):
    said = team("ci", "run", "--all", expect=3)
    assert (
        "approve takes a key with the role approver, and the key that signs here, ci, has the role ci" in said
    )
    assert team.walk.live("staging")["version"] == 1
    assert team.walk.live() is None


def test_an_approver_lets_the_digest_in_and_ci_takes_it_to_production(team):
    image = team.walk.live("staging")["image"]
    assert image in team("alice", "approve", image)
    team("ci", "run", "--all")
    assert team.walk.live()["image"] == image
    assert "Nothing to do" in team("ci", "run", "--all")


def test_an_auditor_sees_every_record_with_who_signed_it(team):
    document = json.loads(team("ci", "verify", "production", "--json"))
    assert document["holds"] is True
    signed = {node["stage"]: node["signed_by"] for node in document["records"].values()}
    assert signed.pop("approve") == "alice"
    assert set(signed.values()) == {"ci"}
    assert "train" in signed
    commit = next(node["commit"] for node in document["records"].values() if node["stage"] == "train")
    assert len(commit) == 40
    image = team.walk.live()["image"]
    for subject in ("v1", image, f"registry.example/digits@{image}"):
        assert team("ci", "verify", subject).startswith("✓ production v1")
    assert "flowchart TD" in team("ci", "lineage")


def test_the_image_carries_its_evidence_and_a_signature_of_the_model(team, monkeypatch):
    """What is attached is what the store holds, byte for byte, and the model verifies by key and files alone."""
    monkeypatch.chdir(team.walk.folder)
    image = team.walk.live()["image"]
    attached = {
        hashlib.sha256(envelope).hexdigest() for envelope in attest.fetch("oci:.tidegate/registry", image)
    }
    named = ("image", "scan", "publish", "staging", "approve", "canary", "promote")
    assert attached == {team.record(stage) for stage in named}
    (signature,) = attest.fetch_bundles("oci:.tidegate/registry", image, model_signature.PREDICATE)
    public = (team.walk.folder / "trust" / "ci.pem").read_bytes()
    model_signature.verify(team.walk.folder / "build" / "export" / "savedmodel", signature, public)


def test_this_machines_own_key_counts_for_nothing_beside_a_teams(team):
    """Who has the team's store and no key of the team can run what he likes: production takes none of it."""
    before = team.walk.live()
    shared = {"TIDEGATE_STORE": f"file:{team.store}", "GITLAB_CI": "true", "CI_COMMIT_REF_PROTECTED": "true"}
    said = team.walk("run", "--force", "evaluate", "evaluate", expect=2, **shared)
    assert "TIDEGATE_SIGNING_KEY is not set" in said
    assert team.walk.live() == before


@pytest.mark.parametrize("stage", ["data", "train", "scan", "approve", "canary", "promote"])
@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_a_record_that_somebody_with_the_bucket_harmed_is_named_by_verify(team, stage, harm):
    sha256 = team.record(stage)
    blob = team.blob(sha256)
    content = blob.read_bytes()
    try:
        blob.chmod(0o644)
        blob.unlink() if harm == "remove" else blob.write_bytes(
            content[:50] + bytes([content[50] ^ 1]) + content[51:]
        )
        said = team("ci", "verify", "production", expect=6)
        assert re.search(rf"✗ {stage} +{sha256[:12]}", said)
        assert ("is not in the store" if harm == "remove" else "is damaged") in said
    finally:
        blob.write_bytes(content)
    team("ci", "verify", "production")


def test_a_channel_entry_that_somebody_forged_does_not_verify(team):
    entries = team.store / "channels" / "production"
    newest = max(entries.glob("*.json"))
    forged = entries / f"{int(newest.stem) + 1:010d}.json"
    entry = json.loads(newest.read_bytes())
    follows = {"previous": hashlib.sha256(newest.read_bytes()).hexdigest()}
    for change, said in (
        ({"image": "sha256:" + "0" * 64} | follows, "is about"),
        ({"by": "mallory"} | follows, "the channel names another person"),
        (follows, "the channel names another entry before"),  # the same promotion once more
        ({}, "does not follow entry 1: no promotion wrote it so"),
    ):
        forged.write_text(json.dumps({**entry, **change}))
        assert said in team("ci", "verify", "production", expect=6)
    forged.unlink()
    team("ci", "verify", "production")


def test_a_past_that_somebody_rewrote_is_seen(team):
    team("ci", "run", "--force", "promote", "--all")
    first = min((team.store / "channels" / "production").glob("*.json"))
    content = first.read_bytes()
    first.write_bytes(content.replace(b'"why":"promote"', b'"why":"rollback"'))
    assert "does not follow entry 1" in team("ci", "history", expect=6)
    first.write_bytes(content)
    assert team("ci", "history").count("promote") == 2


def test_a_record_that_somebody_without_a_key_planted_is_no_hit(team):
    """The bucket's writer signs a better accuracy with a key of his own, under the very key of the stage."""
    place = next((team.store / "records" / "evaluate").glob("*/*Z-*"))
    mallory = team.walk.folder.parent / "mallory"
    shutil.copytree(team.walk.folder, mallory, ignore=shutil.ignore_patterns(".git", "keys", "build", "run"))
    walk = type(team.walk)(mallory, team.walk.ports)
    walk("keygen", "mallory", "--role", "ci")
    own = str(mallory / ".tidegate" / "keys" / "mallory.pem")
    assert "passed" in walk("run", "--force", "evaluate", "evaluate", TIDEGATE_SIGNING_KEY=own)
    for kind in ("blobs", "records"):
        shutil.copytree(mallory / ".tidegate" / "store" / kind, team.store / kind, dirs_exist_ok=True)
    newest = max((team.store / "records" / "evaluate" / place.parent.name).glob("*Z-*"))
    assert newest != place
    said = team("ci", "run", "--all")
    assert "is not signed by a key that is trusted here" in said
    assert "it is not used" in said
    team("ci", "verify", "production")


def test_an_approver_whose_key_is_revoked_takes_the_evidence_along(team):
    file = team.walk.folder / "trust" / "roles.yaml"
    text = file.read_text()
    file.write_text(text.replace("roles: [approver]", "roles: [approver], revoked: true"))
    said = team("ci", "verify", "production", expect=6)
    assert "signed by alice, whose key is revoked" in said
    refused = team("ci", "run", "--force", "promote", "--all", expect=3)
    assert "approve" in refused
    file.write_text(text)
    team("ci", "verify", "production")


def test_a_break_glass_needs_its_key_and_is_red_until_it_was_followed_up(team):
    team.walk.edit("pipeline.yaml", "  seed: 7", "  seed: 11")
    reason = "all answers are wrong since noon, and nobody may wait"
    team("ci", "run", "publish")
    said = team("ci", "break-glass", "--reason", reason, expect=3)
    assert "break-glass takes a key with the role break-glass" in said
    assert "is no reason" in team("fred", "break-glass", "--reason", "fire", expect=2)
    assert team.walk.live()["version"] == 1
    team("fred", "break-glass", "--reason", reason)
    assert team.walk.live()["version"] == 2
    for look in ("status", "history"):
        assert f'BREAK-GLASS, not followed up: "{reason}"' in team("ci", look)
    node = json.loads(team("ci", "verify", "production", "--json"))
    assert node["holds"] is True
    assert {one["stage"] for one in node["records"].values()}.isdisjoint({"approve", "canary", "staging"})
    assert "takes a key with the role approver" in team(
        "fred", "follow-up", "--note", "it is all fine, believe me", expect=3
    )
    assert "BREAK-GLASS" in team("ci", "status")
    team("alice", "follow-up", "--note", "a column had moved; fixed at the source")
    assert "BREAK-GLASS" not in team("ci", "status")
    assert "a column had moved" in team("ci", "history")


def test_going_back_demands_the_evidence_that_once_let_the_version_in(team):
    sha256 = team.walk("history", "--json")
    first = next(entry for entry in json.loads(sha256) if entry["version"] == 1)
    blob = team.blob(first["evidence"])
    content = blob.read_bytes()
    blob.unlink()
    assert "is not in the store" in team("ci", "rollback", "v1", expect=6)
    assert team.walk.live()["version"] == 2
    blob.write_bytes(content)
    team("ci", "rollback", "v1")
    assert team.walk.live()["version"] == 1
    team("ci", "verify", "production")


def test_kills_at_random_moments_of_publish_and_promote_leave_nothing_torn(team):
    """After each: the channel is whole and verifies, and a rerun ends well."""
    team.walk.edit("pipeline.yaml", "  seed: 11", "  seed: 7")
    rng = random.Random(7)
    env = {"TIDEGATE_SIGNING_KEY": team.keys["ci"]}
    again = ["run", "--force", "publish", "--force", "promote", "promote"]
    team("ci", "run", "staging")
    team("alice", "approve")
    team("ci", "run", "--all")
    for _ in range(KILLS):
        child = team.walk.start(*again, **env)
        try:
            child.wait(rng.uniform(0.2, 2.0))
        except Exception:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        team("ci", "verify", "production")
        assert json.loads(team.walk("history", "--json", "--all"))
    said = team("ci", *again)
    assert "promote" in said
    team("ci", "run", "--all")
    team("ci", "verify", "production")
    partial = [path for path in team.store.rglob(".*") if path.is_file()]
    assert len(partial) <= KILLS, "what a kill left beside its place is never more than one file each"
