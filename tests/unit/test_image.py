"""The image of a model: the same everywhere, in layers that say what they hold."""

import json
import os
import shutil
import tarfile

import pytest

from deploy.image import MODEL_DIGEST, Recipe, annotations, build, divided, image
from deploy.oci import CONFIG, MANIFEST, Layout, encode, load, of_bytes
from pipeline.digest import Digests
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.stages import Outcome
from tests.support import context, tree
from tests.support_images import hand_image, savedmodel, tar


def config_of(layout: Layout, built) -> dict:
    return json.loads(layout.read(built.config))


def members(layout: Layout, digest: str) -> list[str]:
    with tarfile.open(layout.path(digest)) as archive:
        return [member.name for member in archive if member.isreg()]


def test_image_has_weights_graph_and_metadata_in_layers_of_their_own(tmp_path):
    made = context(
        tmp_path, {"export/savedmodel": savedmodel(tmp_path / "m", more={"assets/vocabulary": b"v"})}
    )
    result = image(made)
    layout = Layout(made.out / "layout")
    top = "models/digits/1/"
    assert result.outcome is Outcome.PASSED
    assert result.digest == layout.only()
    assert [members(layout, layer.digest) for layer in load(layout, result.digest).layers] == [
        [top + "variables/variables.data-00000-of-00001", top + "variables/variables.index"],
        [top + "assets/vocabulary", top + "fingerprint.pb", top + "saved_model.pb"],
        [top + "assets.extra/tf_serving_warmup_requests"],
    ]
    assert result.numbers["layers"] == 3
    assert sorted(path.name for path in made.out.iterdir()) == ["layout"]


def test_same_model_gives_the_same_image_from_copies_with_other_times_order_and_umask(tmp_path):
    first = savedmodel(tmp_path / "first")
    second = tmp_path / "second"
    old = os.umask(0o077)
    try:
        for path in sorted((p for p in first.rglob("*") if p.is_file()), reverse=True):
            copy = second / path.relative_to(first)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            os.utime(copy, (1, 1))
        one = build(first, tmp_path / "one", Recipe("digits", revision="abc"))
        two = build(second, tmp_path / "two", Recipe("digits", revision="abc"))
    finally:
        os.umask(old)
    assert one.digest == two.digest
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_other_weights_change_the_weights_layer_alone(tmp_path):
    first = build(savedmodel(tmp_path / "m"), tmp_path / "one", Recipe("digits"))
    (tmp_path / "m/variables/variables.index").write_bytes(b"other")
    second = build(tmp_path / "m", tmp_path / "two", Recipe("digits"))
    assert [a.digest == b.digest for a, b in zip(first.layers, second.layers, strict=True)] == [
        False,
        True,
        True,
    ]
    assert first.digest != second.digest


def test_manifest_names_source_revision_title_and_the_model_as_the_records_do(tmp_path):
    model = savedmodel(tmp_path / "m")
    built = build(
        model, tmp_path / "l", Recipe("digits", source="https://git.example/team/digits", revision="abc")
    )
    assert json.loads(built.body)["annotations"] == {
        "org.opencontainers.image.title": "digits",
        "org.opencontainers.image.source": "https://git.example/team/digits",
        "org.opencontainers.image.revision": "abc",
        MODEL_DIGEST: f"sha256:{Digests(tmp_path / 'memory').tree(model).digest}",
    }


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("https://ci-token:hunter2@git.example/team/digits", "https://git.example/team/digits"),
        ("https://hunter2@git.example/team/digits", "https://git.example/team/digits"),
        ("https://git.example/team/digits@v1", "https://git.example/team/digits@v1"),
        ("ssh://git@git.example/team/digits", "ssh://git.example/team/digits"),
    ],
)
def test_credentials_of_a_clone_do_not_reach_the_image(source, kept):
    assert annotations(Recipe("digits", source=source), "m")["org.opencontainers.image.source"] == kept


def test_what_is_not_known_is_not_said():
    assert set(annotations(Recipe("digits"), "m")) == {"org.opencontainers.image.title", MODEL_DIGEST}


def test_configuration_has_no_time_or_machine_in_it(tmp_path):
    built = build(savedmodel(tmp_path / "m"), tmp_path / "l", Recipe("digits"))
    config = config_of(Layout(tmp_path / "l"), built)
    assert (config["os"], config["architecture"], config["created"]) == (
        "linux",
        "amd64",
        "1970-01-01T00:00:00Z",
    )
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in built.layers]
    assert len(config["history"]) == len(built.layers)
    assert all(
        layer.digest == of_bytes(Layout(tmp_path / "l").path(layer.digest).read_bytes())
        for layer in built.layers
    )


def test_base_keeps_its_layers_environment_and_entrypoint(tmp_path):
    config = {"Env": ["PATH=/bin", "MODEL_NAME=model", "MODEL_NAMES=x"], "Entrypoint": ["/usr/bin/server"]}
    digest = hand_image(tmp_path / "base", tar({"bin/sh": b"#!"}), tar({"b": b"2"}), config=config)
    recipe = Recipe("digits", base=f"oci:base@{digest}", root=tmp_path)
    built = build(savedmodel(tmp_path / "m"), tmp_path / "l", recipe)
    layout = Layout(tmp_path / "l")
    base = load(Layout(tmp_path / "base"), digest)
    assert built.layers[:2] == base.layers
    assert len(built.layers) == 5
    assert config_of(layout, built)["config"] == {
        "Env": ["PATH=/bin", "MODEL_NAME=digits", "MODEL_NAMES=x"],
        "Entrypoint": ["/usr/bin/server"],
    }
    assert len(config_of(layout, built)["rootfs"]["diff_ids"]) == 5
    assert json.loads(built.body)["annotations"]["org.opencontainers.image.base.digest"] == digest


def test_absent_base_is_named_with_the_next_move(tmp_path):
    recipe = Recipe("digits", base="oci:nowhere@sha256:" + "0" * 64, root=tmp_path)
    with pytest.raises(ProgramFailed, match="Copy the base image there"):
        build(savedmodel(tmp_path / "m"), tmp_path / "l", recipe)


def test_damaged_base_is_refused(tmp_path):
    digest = hand_image(tmp_path / "base", tar({"bin/sh": b"#!"}))
    layer = load(Layout(tmp_path / "base"), digest).layers[0]
    path = Layout(tmp_path / "base").path(layer.digest)
    path.write_bytes(path.read_bytes().replace(b"#!", b"!#"))
    with pytest.raises(IntegrityError, match=layer.digest):
        build(
            savedmodel(tmp_path / "m"), tmp_path / "l", Recipe("digits", base=f"oci:{tmp_path}/base@{digest}")
        )


def test_folder_that_is_not_a_savedmodel_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.keras").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"no saved_model\.pb"):
        build(tmp_path / "m", tmp_path / "l", Recipe("digits"))


@pytest.mark.parametrize("target", ["/etc/passwd", "saved_model.pb", "variables"])
def test_link_in_the_model_is_refused(tmp_path, target):
    model = savedmodel(tmp_path / "m")
    (model / "assets").mkdir()
    (model / "assets/link").symlink_to(target)
    with pytest.raises(IntegrityError, match="link or special file"):
        build(model, tmp_path / "l", Recipe("digits"))


def test_failed_stage_leaves_no_layout(tmp_path):
    made = context(tmp_path, {"export/savedmodel": tmp_path / "nothing"})
    with pytest.raises(IntegrityError):
        image(made)
    assert not (made.out / "layout").exists()


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("variables/variables.index", "weights"),
        ("saved_model.pb", "graph"),
        ("fingerprint.pb", "graph"),
        ("assets/vocabulary.txt", "graph"),
        ("assets.extra/tf_serving_warmup_requests", "metadata"),
        ("keras_metadata.pb", "metadata"),
        ("variables.txt", "metadata"),
    ],
)
def test_file_goes_into_the_layer_of_its_kind(tmp_path, path, layer):
    assert divided({path: tmp_path}) == {layer: {path: tmp_path}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "arm64"}, "is for linux/arm64"),
        ({"rootfs": {"diff_ids": []}}, "has 1 layers and 0 diff_ids"),
    ],
)
def test_base_for_another_machine_or_with_a_damaged_configuration_is_refused(tmp_path, change, says):
    layout = Layout(tmp_path / "base")
    made = load(layout, hand_image(tmp_path / "base", tar({"bin/sh": b"#!"})))
    config = layout.add(encode(config_of(layout, made) | change), CONFIG)
    body = encode(json.loads(made.body) | {"config": config.document()})
    base = f"oci:{tmp_path}/base@{layout.add(body, MANIFEST).digest}"
    with pytest.raises(IntegrityError, match=says):
        build(savedmodel(tmp_path / "m"), tmp_path / "l", Recipe("digits", base=base))


def test_file_that_shrinks_while_it_is_read_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.layers._Reader.read", lambda self, size: b"")
    with pytest.raises(IntegrityError, match="became shorter while it was read"):
        build(savedmodel(tmp_path / "m"), tmp_path / "l", Recipe("digits"))


@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        ((10, 10), 1),
        ((600, 600, 600), 3),
        ((400, 400, 400), 2),
        ((5000,), 1),
        ((100,) * 40, 4),
        ((900,) * 20, 10),
    ],
)
def test_weights_in_several_files_are_in_several_layers(tmp_path, monkeypatch, sizes, layers):
    monkeypatch.setattr("deploy.image._SHARD_BYTES", 1000)
    monkeypatch.setattr("deploy.image._SHARDS_AT_MOST", 10)
    files = {f"variables/{n:03}": tmp_path / f"{n:03}" for n in range(len(sizes))}
    for path, size in zip(files.values(), sizes, strict=True):
        path.write_bytes(b"w" * size)
    made = divided(files)
    assert len(made) == layers
    assert [path for members in made.values() for path in members] == sorted(files)


def test_retrained_shards_are_divided_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.image._SHARD_BYTES", 100_000)
    images = []
    for name, letter in (("one", b"a"), ("two", b"b")):
        shards = {f"variables/variables.data-0000{n}-of-00003": letter * 60_000 for n in range(1, 3)}
        model = savedmodel(
            tmp_path / name, more=shards | {"variables/variables.data-00000-of-00003": b"c" * 90_000}
        )
        images.append(build(model, tmp_path / f"{name}-layout", Recipe("digits")))
    one, two = ([layer.digest for layer in image.layers] for image in images)
    assert len(one) == len(two) > 3
    assert {a == b for a, b in zip(one, two, strict=True)} == {True, False}
