"""Stage image: adds the model's layers to a base image. Nothing is executed, so no daemon is needed."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.disk import disk_trouble
from deploy.layers import Packed, pack
from deploy.oci import (
    CONFIG,
    LAYER,
    MANIFEST,
    Descriptor,
    Image,
    Layout,
    encode,
    load,
    parse_json,
)
from pipeline.digest import Leaf, Tree
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.stages import Context, Outcome, Result

EPOCH = "1970-01-01T00:00:00Z"
MODEL_DIGEST = "dev.tidegate.model.digest"
# TF Serving's official image serves the model that this variable of its base names.
_MODEL_NAME = "MODEL_NAME"
# Each goes into a layer of its own, so that a push sends only what changed. What no pattern takes is metadata.
_LAYERS = (
    ("weights", ("variables",)),
    ("graph", ("saved_model.pb", "fingerprint.pb", "assets")),
    ("metadata", ()),
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class Recipe:
    """What an image is made of, beside the SavedModel. `root` is the folder that a relative base path starts at."""

    model: str
    base: str = "scratch"
    source: str = ""
    revision: str = ""
    root: Path = Path()


def image(context: Context) -> Result:
    """Writes the model as an OCI image layout, `layout/`.

    The same SavedModel, base and revision give the same digest on any machine. Inside, the
    model lies at `models/NAME/1/`, where TF Serving looks for it.
    """
    recipe = Recipe(
        model=context.settings.model,
        base=context.settings.image.base,
        source=context.facts.source,
        revision=context.facts.revision,
        root=context.root,
    )
    layout = context.out / "layout"
    partial = context.out / ".layout"
    with disk_trouble(str(layout)):
        built = build(context.inputs["export/savedmodel"], partial, recipe)
        partial.replace(layout)
    for layer in built.layers:
        context.say(f"layer {layer.digest[7:19]}  {_mib(layer.size)}")
    base = recipe.base.partition("@")[0]
    sentence = f"{recipe.model} on {base}: {len(built.layers)} layers, {_mib(built.size_bytes)}"
    numbers = {"size_bytes": built.size_bytes, "layers": len(built.layers)}
    return Result(Outcome.PASSED, sentence, numbers, digest=built.digest)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def build(savedmodel: Path, into: Path, recipe: Recipe) -> Image:
    """Builds the image of a SavedModel folder as a layout in `into`, in one pass over the files.

    Raises IntegrityError if the folder is not a SavedModel or the base is not what its digest says.
    """
    files = model_files(savedmodel)
    layout = Layout(into).create()
    base, config = _base(recipe, layout)
    layers, history = list(base), list(config.get("history") or ())
    packed: dict[str, Packed] = {}
    for name, members in divided(files).items():
        layer, read = _layer(layout, recipe.model, members)
        packed |= read
        layers.append(layer)
        config["rootfs"]["diff_ids"].append(
            layer.digest
        )  # of an uncompressed layer both digests are the same
        history.append(
            {"created": EPOCH, "created_by": f"tidegate image: {name}", "comment": f"{len(members)} files"}
        )
    config |= {"history": history, "created": EPOCH}
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": layout.add(encode(config), CONFIG).document(),
        "layers": [layer.document() for layer in layers],
        "annotations": annotations(recipe, model_digest(files, packed)),
    }
    manifest = layout.add(encode(document), MANIFEST)
    layout.write_index([manifest])
    return load(layout, manifest.digest)


def model_files(savedmodel: Path) -> dict[str, Path]:
    """The files of a SavedModel by their path below it, with `/`. Links and special files are refused."""
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(savedmodel):
        for name in [*names, *folders]:
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise IntegrityError(
                    f"{path} is a link or special file; a SavedModel holds plain files only. Run export again."
                )
        found |= {Path(folder, name).relative_to(savedmodel).as_posix(): Path(folder, name) for name in names}
    if "saved_model.pb" not in found:
        raise IntegrityError(
            f"{savedmodel} holds no saved_model.pb, so it is not a SavedModel. Run export again."
        )
    return found


def divided(files: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """The files of each layer, by the layer's name; a layer without files is left out."""
    layers: dict[str, dict[str, Path]] = {name: {} for name, _ in _LAYERS}
    for path, file in files.items():
        top = path.partition("/")[0]
        layers[next(name for name, tops in _LAYERS if top in tops or not tops)][path] = file
    return {name: members for name, members in layers.items() if members}


def _layer(layout: Layout, model: str, members: Mapping[str, Path]) -> tuple[Descriptor, dict[str, Packed]]:
    """Packs files into a layer; returns it, and what was read by path below the SavedModel."""
    top = f"models/{model}/1/"
    with layout.writing() as blob:
        packed = pack([(top + path, file) for path, file in members.items()], blob)
    return Descriptor(LAYER, blob.digest, blob.size), {
        path.removeprefix(top): read for path, read in packed.items()
    }


def model_digest(files: Mapping[str, Path], packed: Mapping[str, Packed]) -> str:
    """The digest of the SavedModel as the records of export name it: that of its tree."""
    leaves = (
        Leaf(path, packed[path].size, packed[path].sha256, bool(file.stat().st_mode & 0o100))
        for path, file in files.items()
    )
    return f"sha256:{Tree(tuple(sorted(leaves, key=lambda leaf: leaf.path))).digest}"


def annotations(recipe: Recipe, model: str) -> dict[str, str]:
    """What the manifest says of the image; nothing that is not known, and no credentials of a clone's address."""
    said = {
        "org.opencontainers.image.title": recipe.model,
        "org.opencontainers.image.source": _CREDENTIALS.sub("", recipe.source),
        "org.opencontainers.image.revision": recipe.revision,
        "org.opencontainers.image.base.digest": recipe.base.partition("@")[2],
        MODEL_DIGEST: model,
    }
    return {name: value for name, value in said.items() if value}


def _base(recipe: Recipe, layout: Layout) -> tuple[tuple[Descriptor, ...], dict]:
    """The layers to build on, copied into the layout, and the configuration to go on from."""
    if recipe.base == "scratch":
        empty = {"type": "layers", "diff_ids": []}
        return (), {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": empty}
    place, _, digest = recipe.base.removeprefix("oci:").rpartition("@")
    source = Layout(recipe.root / place)
    if not source.path(digest).exists():
        raise ProgramFailed(
            f"image.base: {digest} is not in {source.root}. Copy the base image there"
            f" (skopeo copy docker://IMAGE@{digest} oci:{place}), or set image.base to scratch."
        )
    image = load(source, digest)
    for layer in image.layers:
        layout.take(layer, source)
    config = parse_json(source.read(image.config), image.config.digest)
    _check_base(config, image)
    return image.layers, _serving(config, recipe.model)


def _check_base(config: Mapping, image: Image) -> None:
    platform = (config.get("os"), config.get("architecture"))
    if platform != ("linux", "amd64"):
        raise IntegrityError(
            f"image.base {image.digest} is for {'/'.join(map(str, platform))}; name one for linux/amd64"
        )
    diffs = (config.get("rootfs") or {}).get("diff_ids") or []
    if len(diffs) != len(image.layers):
        raise IntegrityError(
            f"image.base {image.digest} has {len(image.layers)} layers and {len(diffs)} diff_ids;"
            " it is damaged, copy it again"
        )


def _serving(config: dict, model: str) -> dict:
    """The base's configuration; where its server takes the model's name from the environment, it gets this one."""
    inner = dict(config.get("config") or {})
    if "Env" in inner:
        inner["Env"] = [
            f"{_MODEL_NAME}={model}" if entry.startswith(f"{_MODEL_NAME}=") else entry
            for entry in inner["Env"]
        ]
    return json.loads(json.dumps({**config, "config": inner}))  # a copy that shares nothing with the base's
