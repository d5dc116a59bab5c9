"""Small images for tests: a SavedModel folder that needs no TensorFlow, and base images made by hand."""

import io
import random
import tarfile
from pathlib import Path

from deploy.image import Recipe, build
from deploy.oci import CONFIG, LAYER, MANIFEST, Descriptor, Image, Layout, encode


def savedmodel(folder: Path, seed: int = 1, more: dict[str, bytes] | None = None) -> Path:
    """A folder shaped like a SavedModel, about 150 kB of bytes from `seed`; `more` are further files by path."""
    chance = random.Random(seed)
    files = {
        "saved_model.pb": chance.randbytes(20_000),
        "fingerprint.pb": chance.randbytes(50),
        "variables/variables.index": chance.randbytes(1_000),
        "variables/variables.data-00000-of-00001": chance.randbytes(120_000),
        "assets.extra/tf_serving_warmup_requests": chance.randbytes(2_000),
        **(more or {}),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def model_image(
    tmp: Path, seed: int = 1, more: dict[str, bytes] | None = None, base: str = "scratch"
) -> tuple[Path, Image]:
    """A layout below `tmp` with the image of `savedmodel(seed, more)`, and that image."""
    layout = tmp / f"layout-{seed}"
    return layout, build(savedmodel(tmp / f"model-{seed}", seed, more), layout, Recipe("digits", base))


def tar(files: dict[str, bytes]) -> bytes:
    """An uncompressed tar archive."""
    return tar_of(*((tarfile.TarInfo(name), content) for name, content in files.items()))


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An uncompressed tar archive of entries that a test shaped itself."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def hand_image(folder: Path, *layers: bytes, config: dict | None = None, media_type: str = LAYER) -> str:
    """A layout whose image has exactly these bytes as layers; returns its digest."""
    layout = Layout(folder).create()
    blobs = [layout.add(layer, media_type) for layer in layers]
    return add_image(layout, blobs, config or {})


def add_image(layout: Layout, layers: list[Descriptor], config: dict) -> str:
    """An image of layers that are in the layout already; returns its digest."""
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    inner = layout.add(
        encode({"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}), CONFIG
    )
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": inner.document(),
        "layers": [layer.document() for layer in layers],
    }
    manifest = layout.add(encode(body), MANIFEST)
    layout.write_index([manifest])
    return manifest.digest
