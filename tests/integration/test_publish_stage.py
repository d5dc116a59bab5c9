"""Publishing into a folder by several processes, some of which are killed."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from deploy.oci import REF_NAME, Layout, load, unpack, verified
from deploy.publish import publish
from tests.support import context, finish_stage, run_stage, start_stage, tree
from tests.support_images import model_image


def given(tmp_path, name: str, seed: int, more=None):
    layout, image = model_image(tmp_path / f"images-{name}", seed, more)
    return image, {
        "inputs": {"image/layout": layout},
        "changes": {"publish.registry": f"oci:{tmp_path}/registry"},
    }


def whole(registry) -> dict[str, str]:
    """The tags of a registry, once every blob of every image in it has been verified."""
    layout = Layout(registry)
    tags = {entry.annotations[REF_NAME]: entry.digest for entry in layout.index()}
    for digest in set(tags.values()):
        image = load(layout, digest)
        assert all(verified(layout, blob) for blob in image.blobs)
    return tags


def publish_now(tmp_path, name: str, named: dict, commit: str, ready, results) -> None:
    """Publishes under a commit of its own once everybody is ready (in a process of its own)."""
    made = context(tmp_path / name, named["inputs"], named["changes"], commit=commit)
    ready.wait(30)
    results.put((commit, publish(made).numbers["version"]))


def test_publishes_at_the_same_moment_all_survive(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready, results = fork.Barrier(4), fork.Queue()
    cases = {str(seed) * 40: given(tmp_path, f"n{seed}", seed) for seed in (1, 2, 3, 4)}
    children = [
        fork.Process(target=publish_now, args=(tmp_path, commit, named, commit, ready, results))
        for commit, (_, named) in cases.items()
    ]
    for child in children:
        child.start()
    versions = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join(60)
    assert sorted(versions.values()) == [1, 2, 3, 4]
    expected = {commit: image.digest for commit, (image, _) in cases.items()}
    expected |= {f"v{version}": cases[commit][0].digest for commit, version in versions.items()}
    assert whole(tmp_path / "registry") == expected


@pytest.mark.parametrize("delay_s", [0.0, 0.03])
def test_publish_that_was_killed_ends_well_the_next_time(tmp_path, delay_s):
    more = {"variables/variables.data-big": os.urandom(1 << 20) * 100}
    image, named = given(tmp_path, "one", 1, more)
    child = start_stage("deploy.publish.publish", tmp_path / "killed", **named)
    blobs = tmp_path / "registry/blobs/sha256"
    deadline = time.monotonic() + 30
    while not (blobs.is_dir() and any(blobs.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay_s)
    child.send_signal(signal.SIGKILL)
    finish_stage(child)
    code, result, said = run_stage("deploy.publish.publish", tmp_path / "again", **named)
    assert code == 0, said
    assert result["digest"] == image.digest
    assert whole(tmp_path / "registry")["v1"] == image.digest
    assert not list((tmp_path / "registry").rglob(".partial-*"))
    unpack(f"oci:{tmp_path}/registry", image.digest, tmp_path / "out")
    assert tree(tmp_path / "out/models/digits/1") == tree(tmp_path / "images-one/model-1")


def test_publish_that_is_interrupted_leaves_nothing_half_done(tmp_path):
    _, named = given(tmp_path, "one", 1, {"variables/variables.data-big": os.urandom(1 << 20) * 100})
    child = start_stage("deploy.publish.publish", tmp_path / "stopped", **named)
    while not list((tmp_path / "registry").glob("blobs/sha256/.partial-*")):
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGTERM)
    code, _, said = finish_stage(child)
    assert code == 143, said
    assert not list((tmp_path / "registry").rglob(".partial-*"))
    assert not (tmp_path / "stopped/out/published").exists()
    assert json.loads((tmp_path / "registry/index.json").read_text())["manifests"] == []
