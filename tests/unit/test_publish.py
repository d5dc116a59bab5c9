"""Publishing into a folder: what is pushed, what it is called, and what never moves."""

import dataclasses
import errno
import json

import pytest

from deploy.disk import locked
from deploy.image import Recipe, build
from deploy.oci import REF_NAME, Layout
from deploy.publish import commit_tag, give_version, missing, publish
from pipeline.errors import IntegrityError, LostRace, ProgramFailed
from pipeline.stages import Outcome
from tests.support import FACTS, context, tree
from tests.support_images import model_image, savedmodel

COMMITS = ["a" * 40, "b" * 40, "c" * 40]


def published(tmp_path, name: str, seed: int, commit: str = "", **facts):
    """Publishes the image of `seed` to the shared registry; returns published.json."""
    layout, _ = model_image(tmp_path / name, seed)
    made = context(
        tmp_path / name,
        {"image/layout": layout},
        {"publish.registry": f"oci:{tmp_path}/registry"},
        commit=commit,
        **facts,
    )
    result = publish(made)
    assert result.outcome is Outcome.PASSED
    return json.loads((made.out / "published/published.json").read_text())


def tags(tmp_path) -> dict[str, str]:
    return {entry.annotations[REF_NAME]: entry.digest for entry in Layout(tmp_path / "registry").index()}


def still_there(tmp_path, name: str) -> str | None:
    return missing(context(tmp_path / name, {"publish/published": tmp_path / name / "out/published"}))


def test_published_image_is_addressed_by_digest_with_commit_and_version(tmp_path):
    _, image = model_image(tmp_path / "x")
    assert published(tmp_path, "one", 1, COMMITS[0]) == {
        "registry": f"oci:{tmp_path}/registry",
        "digest": image.digest,
        "version": 1,
        "tags": [COMMITS[0], "v1"],
        "reference": f"oci:{tmp_path}/registry@{image.digest}",
    }
    assert tags(tmp_path) == {COMMITS[0]: image.digest, "v1": image.digest}


def test_versions_count_up_and_an_image_keeps_its_own(tmp_path):
    assert published(tmp_path, "one", 1, COMMITS[0])["version"] == 1
    assert published(tmp_path, "two", 2, COMMITS[1])["version"] == 2
    again = published(tmp_path, "three", 1, COMMITS[2])
    assert (again["version"], again["tags"]) == (1, [COMMITS[2], "v1"])
    assert sorted(tags(tmp_path)) == sorted([*COMMITS, "v1", "v2"])


def test_publishing_again_sends_nothing_and_writes_the_same(tmp_path):
    first = published(tmp_path, "one", 1, COMMITS[0])
    before = tree(tmp_path / "registry")
    assert published(tmp_path, "two", 1, COMMITS[0]) == first
    assert tree(tmp_path / "registry") == before


def test_commit_that_made_another_image_is_refused_and_nothing_is_pushed(tmp_path):
    published(tmp_path, "one", 1, COMMITS[0])
    before = tree(tmp_path / "registry")
    with pytest.raises(IntegrityError, match="A tag never moves"):
        published(tmp_path, "two", 2, COMMITS[0])
    assert tree(tmp_path / "registry") == before


@pytest.mark.parametrize(
    ("commit", "dirty", "tag"), [("a" * 40, False, "a" * 40), ("a" * 40, True, ""), ("", False, "")]
)
def test_only_a_clean_commit_names_an_image(commit, dirty, tag):
    assert commit_tag(dataclasses.replace(FACTS, commit=commit, dirty=dirty)) == tag


def test_dirty_tree_gets_a_version_alone(tmp_path):
    assert published(tmp_path, "one", 1, COMMITS[0], dirty=True)["tags"] == ["v1"]


def test_images_share_the_blobs_that_are_the_same(tmp_path):
    published(tmp_path, "one", 1)
    model = tmp_path / "two/model-1"
    savedmodel(model)
    (model / "saved_model.pb").write_bytes(b"another graph")
    image = build(model, tmp_path / "two/layout", Recipe("digits"))
    before = {path.name for path in (tmp_path / "registry/blobs/sha256").iterdir()}
    address = {"publish.registry": f"oci:{tmp_path}/registry"}
    publish(context(tmp_path / "two", {"image/layout": tmp_path / "two/layout"}, address, commit=""))
    added = {path.name for path in (tmp_path / "registry/blobs/sha256").iterdir()} - before
    assert added == {digest[7:] for digest in (image.digest, image.config.digest, image.layers[1].digest)}


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_half_written_or_damaged_blob_is_not_trusted_but_written_again(tmp_path, damage):
    _, image = model_image(tmp_path / "x")
    path = Layout(tmp_path / "registry").create().path(image.layers[0].digest)
    path.write_bytes(damage if damage is not None else b"\0" * image.layers[0].size)
    published(tmp_path, "one", 1)
    assert path.stat().st_size == image.layers[0].size
    assert still_there(tmp_path, "one") is None


def test_what_a_killed_publish_left_is_swept_away(tmp_path):
    Layout(tmp_path / "registry").create()
    left = [tmp_path / "registry/blobs/sha256/.partial-1", tmp_path / "registry/.partial-2"]
    for path in left:
        path.write_bytes(b"half")
    published(tmp_path, "one", 1)
    assert not any(path.exists() for path in left)


def test_image_that_is_still_there_is_not_missing(tmp_path):
    published(tmp_path, "one", 1)
    assert still_there(tmp_path, "one") is None


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_image_of_which_a_part_is_gone_is_missing(tmp_path, which):
    _, image = model_image(tmp_path / "x")
    published(tmp_path, "one", 1)
    digest = {"manifest": image.digest, "config": image.config.digest, "layer": image.layers[1].digest}[which]
    Layout(tmp_path / "registry").path(digest).unlink()
    assert digest in still_there(tmp_path, "one")


def test_image_of_which_a_layer_is_shorter_is_missing(tmp_path):
    _, image = model_image(tmp_path / "x")
    published(tmp_path, "one", 1)
    Layout(tmp_path / "registry").path(image.layers[0].digest).write_bytes(b"short")
    assert "has 5 bytes instead of" in still_there(tmp_path, "one")


def test_image_in_a_real_registry_is_not_asked_for(tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "published.json").write_text(
        json.dumps({"registry": "registry.example/a/b", "digest": "sha256:0"})
    )
    assert missing(context(tmp_path, {"publish/published": folder})) is None


def test_image_whose_blob_was_changed_since_it_was_made_is_not_published(tmp_path):
    layout, image = model_image(tmp_path / "one")
    path = Layout(layout).path(image.layers[0].digest)
    path.write_bytes(b"\0" * image.layers[0].size)
    made = context(
        tmp_path / "one", {"image/layout": layout}, {"publish.registry": f"oci:{tmp_path}/registry"}
    )
    with pytest.raises(IntegrityError, match=image.layers[0].digest):
        publish(made)
    assert Layout(tmp_path / "registry").index() == []


def test_full_disk_is_said_and_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    layout, _ = model_image(tmp_path / "one")
    made = context(
        tmp_path / "one", {"image/layout": layout}, {"publish.registry": f"oci:{tmp_path}/registry"}
    )
    monkeypatch.setattr("deploy.hashing.Blob.write", full)
    with pytest.raises(ProgramFailed, match="No space left on device"):
        publish(made)
    assert list((tmp_path / "registry/blobs/sha256").iterdir()) == []
    assert not (made.out / "published").exists()


class Contested:
    """A registry where others take the next `lost` versions just before we look."""

    def __init__(self, lost: int, steals: bool = False):
        self.names = {"v3": "other", "latest": "other", "v03": "other", "v9x": "other"}
        self.lost = lost
        self.steals = steals

    def tags(self):
        return list(self.names)

    def resolve(self, reference):
        if self.lost and reference not in self.names and not self.steals:
            self.lost -= 1
            self.names[reference] = "other"
        return self.names.get(reference)

    def tag(self, name, image):
        self.names[name] = image.digest
        if self.lost and self.steals:
            self.lost -= 1
            self.names[name] = "other"


@pytest.mark.parametrize("steals", [False, True])
@pytest.mark.parametrize(("lost", "version"), [(0, 4), (1, 5), (3, 7)])
def test_version_that_another_publish_took_is_left_to_it(tmp_path, lost, version, steals):
    _, image = model_image(tmp_path)
    assert give_version(Contested(lost, steals), image, known=False) == version


def test_registry_that_keeps_no_tag_is_not_taken_for_a_lost_race(tmp_path):
    _, image = model_image(tmp_path)
    forgetful = Contested(0)
    forgetful.tag = lambda name, image: None
    with pytest.raises(ProgramFailed, match="does not keep what it is sent"):
        give_version(forgetful, image, known=False)


def test_race_that_is_lost_again_and_again_is_given_up(tmp_path):
    _, image = model_image(tmp_path)
    with pytest.raises(LostRace, match="run publish again"):
        give_version(Contested(1000), image, known=False)


def test_lock_that_another_process_keeps_is_named_after_the_patience(tmp_path):
    said = []
    held = pytest.raises(ProgramFailed, match=r"another process has held .*lock for 0\.1 s")
    with locked(tmp_path / "lock", said.append), held, locked(tmp_path / "lock", said.append, patience_s=0.1):
        pass
    assert said == ["waiting for another process that holds lock"]
    with locked(tmp_path / "lock", said.append, patience_s=0.1):
        assert len(said) == 1
