"""The whole walk on a store in S3: a team's keys, two machines, one bucket."""

import json
import shutil

import pytest

from tests.integration.support_s3 import BUCKET, environment

pytest_plugins = ["tests.integration.support_s3"]

FIRST_PORT = 20580


@pytest.fixture(scope="module")
def team(walk, weed):
    """Runs commands in the clone, its store in the bucket, with CI's key or the approver's."""
    keys = {}
    for name, role in (("ci", "ci"), ("alice", "approver")):
        walk("keygen", name, "--role", role)
        keys[name] = str(walk.folder / ".tidegate" / "keys" / f"{name}.pem")
    walk.commit("Keys")
    shared = {"TIDEGATE_STORE": f"s3://{BUCKET}/team", **environment(weed.endpoint)}

    def run(who: str, *arguments: str, expect: int = 0, walk=walk) -> str:
        return walk(*arguments, expect=expect, TIDEGATE_SIGNING_KEY=keys.get(who, ""), **shared)

    run.walk, run.keys, run.shared = walk, keys, shared
    return run


def test_a_walk_on_s3_reaches_production_with_an_approval(team):
    team("ci", "run", "--all", expect=3)
    team("alice", "approve")
    team("ci", "run", "--all")
    assert "Nothing to do" in team("ci", "run", "--all")
    assert not (team.walk.folder / ".tidegate" / "store").exists()
    document = json.loads(team("ci", "verify", "production", "--json"))
    assert document["holds"] is True


def test_a_laptop_without_a_key_can_look_and_verify_but_run_nothing_on_the_teams_store(team):
    assert team("", "verify", "production").startswith("✓ production v1")
    assert "v1" in team("", "history")
    said = team("", "run", "--force", "evaluate", "evaluate", expect=3)
    assert "the key that signs here is not in trust/roles.yaml" in said


def test_another_machine_finds_all_that_was_done_and_does_none_of_it_again(team, tmp_path):
    other = tmp_path / "other"
    leave = shutil.ignore_patterns(".tidegate", "build")
    shutil.copytree(team.walk.folder, other, ignore=leave)
    walk = type(team.walk)(other, team.walk.ports)
    team("ci", "run", "export", walk=walk)
    assert {row["cached"] for row in walk.rows().values()} == {True}
    assert (other / "build" / "export" / "savedmodel" / "saved_model.pb").exists()


def test_a_bucket_that_cannot_be_reached_is_said_with_its_address_and_changes_nothing(team):
    gone = {**team.shared, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    said = team.walk("run", "--all", expect=5, TIDEGATE_SIGNING_KEY=team.keys["ci"], **gone)
    assert "127.0.0.1:9" in said
    assert "Nothing to do" in team("ci", "run", "--all")
