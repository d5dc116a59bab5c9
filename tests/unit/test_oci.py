"""Layouts, manifests, and layers that do not want to stay in their folder."""

import gzip
import io
import json
import tarfile

import pytest

from deploy.image import Recipe, build
from deploy.layers import pack
from deploy.oci import INDEX, LAYER, MANIFEST, Descriptor, Layout, encode, load, of_bytes, unpack
from pipeline.errors import IntegrityError, ProgramFailed
from tests.support import tree
from tests.support_images import add_image, hand_image, model_image, savedmodel, tar, tar_of


def unpacked(tmp_path, *layers: bytes, media_type: str = LAYER):
    """What comes out of an image of these layers."""
    digest = hand_image(tmp_path / "registry", *layers, media_type=media_type)
    unpack(f"oci:{tmp_path}/registry", digest, tmp_path / "out")
    return tmp_path / "out"


def shaped(name: str, kind: bytes, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = kind, target, mode
    return entry


def test_image_comes_out_as_the_model_went_in(tmp_path):
    layout, image = model_image(tmp_path)
    unpack(f"oci:{layout}", image.digest, tmp_path / "out")
    assert tree(tmp_path / "out/models/digits/1") == tree(tmp_path / "model-1")


def test_relative_registry_is_relative_to_the_working_directory(tmp_path, monkeypatch):
    layout, image = model_image(tmp_path)
    monkeypatch.chdir(tmp_path)
    unpack(f"oci:{layout.name}", image.digest, tmp_path / "out")
    assert (tmp_path / "out/models/digits/1/saved_model.pb").is_file()


def test_higher_layer_wins_and_whiteouts_remove(tmp_path):
    out = unpacked(
        tmp_path,
        tar({"a": b"low", "b": b"low", "full/x": b"1", "full/y": b"2", "gone/z": b"3"}),
        tar({"a": b"high", ".wh.b": b"", "full/.wh..wh..opq": b"", "full/w": b"4", ".wh.gone": b""}),
    )
    assert tree(out) == {"a": b"high", "full/w": b"4"}


def test_compressed_layers_of_a_base_are_unpacked(tmp_path):
    out = unpacked(tmp_path, gzip.compress(tar({"a": b"x" * 100_000})), media_type=LAYER + "+gzip")
    assert tree(out) == {"a": b"x" * 100_000}


def test_layer_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ProgramFailed, match=r"tar\+zstd, which cannot be unpacked here"):
        unpacked(tmp_path, b"whatever", media_type=LAYER + "+zstd")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a/..", "./../evil"])
def test_layer_that_names_a_path_outside_is_refused(tmp_path, name):
    with pytest.raises(IntegrityError, match="outside of the image"):
        unpacked(tmp_path, tar({"good": b"x", name: b"evil"}))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("target", ["/", "..", "../../..", "/tmp", "a/../../.."])
def test_layer_cannot_write_outside_through_a_link(tmp_path, target):
    below = tmp_path / "deep/er"
    below.mkdir(parents=True)
    layers = [tar_of((shaped("link", tarfile.SYMTYPE, target), b"")), tar({"link/evil": b"x"})]
    out = unpacked(below, *layers)
    assert [path for path in tmp_path.rglob("evil") if out not in path.parents] == []
    assert len(list(out.rglob("evil"))) == 1


@pytest.mark.parametrize(
    ("name", "target", "meant"),
    [
        ("link", "/etc/passwd", "etc/passwd"),
        ("a/b/link", "/etc/passwd", "etc/passwd"),
        ("a/link", "../../../../etc/passwd", "etc/passwd"),
        ("a/link", "neighbour", "a/neighbour"),
        ("lib", "usr/lib", "usr/lib"),
    ],
)
def test_link_means_inside_what_it_meant_in_the_image(tmp_path, name, target, meant):
    out = unpacked(tmp_path, tar_of((shaped(name, tarfile.SYMTYPE, target), b"")))
    assert (out / name).resolve() == (out / meant).resolve()
    assert not (out / name).readlink().is_absolute()


def test_links_in_a_circle_are_refused(tmp_path):
    loop = tar_of((shaped("a", tarfile.SYMTYPE, "b"), b""), (shaped("b", tarfile.SYMTYPE, "a"), b""))
    with pytest.raises(IntegrityError, match="circle"):
        unpacked(tmp_path, loop, tar({"a/x": b""}))


@pytest.mark.parametrize("target", ["../outside", "/etc/passwd", "nothing", "folder"])
def test_hard_link_to_anything_but_a_file_of_the_image_is_refused(tmp_path, target):
    (tmp_path / "outside").write_text("secret")
    with pytest.raises(IntegrityError):
        unpacked(
            tmp_path,
            tar_of((shaped("folder", tarfile.DIRTYPE), b""), (shaped("l", tarfile.LNKTYPE, target), b"")),
        )


def test_hard_links_within_the_image_are_kept(tmp_path):
    out = unpacked(tmp_path, tar({"d/a": b"x"}), tar_of((shaped("b", tarfile.LNKTYPE, "d/a"), b"")))
    assert tree(out) == {"b": b"x", "d/a": b"x"}


def test_devices_and_privileges_are_left_out(tmp_path):
    out = unpacked(
        tmp_path,
        tar_of(
            (shaped("null", tarfile.CHRTYPE), b""),
            (shaped("pipe", tarfile.FIFOTYPE), b""),
            (shaped("su", tarfile.REGTYPE, mode=0o6777), b"x"),
        ),
    )
    assert [path.name for path in out.iterdir()] == ["su"]
    assert (out / "su").stat().st_mode & 0o7777 == 0o755


def test_file_that_becomes_a_folder_and_back_is_replaced(tmp_path):
    out = unpacked(tmp_path, tar({"a": b"1", "b/c": b"2"}), tar({"a/x": b"3", "b": b"4"}))
    assert tree(out) == {"a/x": b"3", "b": b"4"}


@pytest.mark.parametrize("which", ["config", "weights", "graph", "manifest"])
@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer"])
def test_damaged_blob_is_named_and_nothing_is_unpacked(tmp_path, which, damage):
    layout, image = model_image(tmp_path)
    digest = {
        "config": image.config.digest,
        "weights": image.layers[0].digest,
        "graph": image.layers[1].digest,
        "manifest": image.digest,
    }[which]
    path = Layout(layout).path(digest)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "shorter": whole[:-512],
            "longer": whole + b"\0" * 512,
        }[damage]
    )
    with pytest.raises(IntegrityError, match=f"{digest}.*{path} was changed.*publish again"):
        unpack(f"oci:{layout}", image.digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_absent_image_is_named_with_the_next_move(tmp_path):
    layout, _ = model_image(tmp_path)
    with pytest.raises(ProgramFailed, match="Publish it again"):
        unpack(f"oci:{layout}", "sha256:" + "0" * 64, tmp_path / "out")


def test_folder_with_something_in_it_is_not_unpacked_into(tmp_path):
    layout, image = model_image(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/keep").write_text("x")
    with pytest.raises(ProgramFailed, match="not empty"):
        unpack(f"oci:{layout}", image.digest, tmp_path / "out")
    assert (tmp_path / "out/keep").exists()


def test_index_of_several_platforms_gives_the_one_for_this_machine(tmp_path):
    layout, image = model_image(tmp_path)
    other = {
        **image.descriptor.document(),
        "digest": "sha256:" + "1" * 64,
        "platform": {"os": "linux", "architecture": "arm64"},
    }
    this = {**image.descriptor.document(), "platform": {"os": "linux", "architecture": "amd64"}}
    index = Layout(layout).add(encode({"schemaVersion": 2, "manifests": [other, this]}), INDEX)
    assert load(Layout(layout), index.digest).digest == image.digest
    alone = Layout(layout).add(encode({"schemaVersion": 2, "manifests": [other]}), INDEX)
    with pytest.raises(IntegrityError, match="no image for linux/amd64"):
        load(Layout(layout), alone.digest)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        None,
        {"mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1},
        {"mediaType": "x", "digest": of_bytes(b""), "size": -1},
    ],
)
def test_descriptor_that_is_none_is_refused(raw):
    with pytest.raises(IntegrityError, match="somewhere"):
        Descriptor.parse(raw, "somewhere")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"nonsense", b'{"layers": []}'])
def test_manifest_that_is_none_is_refused(tmp_path, body):
    layout = Layout(tmp_path).create()
    with pytest.raises(IntegrityError):
        load(layout, layout.add(body, MANIFEST).digest)


def test_blob_that_is_not_the_expected_one_is_never_visible(tmp_path):
    layout = Layout(tmp_path).create()
    expected = Descriptor(LAYER, of_bytes(b"right"), 5)
    with pytest.raises(IntegrityError), layout.writing(expected) as blob:
        blob.write(b"wrong")
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_blob_whose_writer_fails_is_never_visible(tmp_path):
    layout = Layout(tmp_path).create()
    with pytest.raises(ZeroDivisionError), layout.writing() as blob:
        blob.write(b"half" * (1 // 0))
    assert list((tmp_path / "blobs/sha256").iterdir()) == []


def test_digest_of_large_and_small_chunks_is_that_of_the_whole(tmp_path):
    layout = Layout(tmp_path).create()
    chunks = [b"a" * 3, b"b" * 2**20, b"c", b"d" * 2**19, b"e" * 2**20]
    with layout.writing() as blob:
        for chunk in chunks:
            blob.write(chunk)
    assert blob.digest == of_bytes(b"".join(chunks))
    assert layout.path(blob.digest).read_bytes() == b"".join(chunks)


def test_packed_files_have_no_owner_time_or_mode_of_this_machine(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "f").chmod(0o700)
    layout = Layout(tmp_path / "l").create()
    with layout.writing() as blob:
        pack([("a/b/f", tmp_path / "f")], blob)
    with tarfile.open(fileobj=io.BytesIO(layout.path(blob.digest).read_bytes())) as archive:
        seen = [(m.name, m.mode, m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive]
    assert seen == [
        ("a", 0o755, 0, 0, 0, "", ""),
        ("a/b", 0o755, 0, 0, 0, "", ""),
        ("a/b/f", 0o644, 0, 0, 0, "", ""),
    ]


def test_layout_with_several_images_is_not_taken_for_one(tmp_path):
    layout = Layout(tmp_path).create()
    with pytest.raises(IntegrityError, match="holds 0 images"):
        layout.only()
    blob = layout.add(tar({}), LAYER)
    first = layout.path(add_image(layout, [blob], {}))
    entries = layout.index()
    add_image(layout, [blob, blob], {})
    layout.write_index([*entries, *layout.index()])
    assert first.is_file()
    with pytest.raises(IntegrityError, match="holds 2 images"):
        layout.only()


def test_long_and_foreign_names_survive(tmp_path):
    name = "assets/" + "ü" * 60 + "/" + "n" * 120
    build(savedmodel(tmp_path / "m", more={name: b"x"}), tmp_path / "l", Recipe("digits"))
    unpack(f"oci:{tmp_path}/l", Layout(tmp_path / "l").only(), tmp_path / "out")
    assert (tmp_path / "out/models/digits/1" / name).read_bytes() == b"x"


def test_index_is_json_that_others_read(tmp_path):
    layout, image = model_image(tmp_path)
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert [entry["digest"] for entry in index["manifests"]] == [image.digest]
