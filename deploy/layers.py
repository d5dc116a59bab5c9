"""Layers of images as tar archives: packed the same way everywhere, unpacked without trusting their names.

Format: https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md, whiteouts included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from deploy.disk import disk_trouble
from deploy.hashing import Blob, Hasher
from deploy.oci import LAYER, Descriptor, Image, Published
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_TAR_MODES = {LAYER: "r|", LAYER + "+gzip": "r|gz"}
_LINKS_AT_MOST = 40


@dataclass(frozen=True)
class Packed:
    """A file as it went into a layer: its sha256 and size in bytes."""

    sha256: str
    size: int


def pack(files: Iterable[tuple[str, Path]], blob: Blob) -> dict[str, Packed]:
    """Writes a tar archive of files (path in the image, file on disk) and of the folders above them.

    The bytes depend on paths and contents alone: sorted, owner 0, fixed modes and times.
    Files are streamed; memory does not grow with them. Returns what was read, by path.
    """
    ordered = sorted(files)
    packed = {}
    # typeshed knows no copybufsize, and asks for more of a stream than tarfile does
    archive = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115
        fileobj=blob, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK_BYTES
    )
    with archive, ThreadPoolExecutor(1) as pool:
        for folder in sorted({str(parent) for path, _ in ordered for parent in _above(path)}):
            archive.addfile(_entry(folder, tarfile.DIRTYPE, 0o755))
        for path, file in ordered:
            packed[path] = _add(archive, path, file, pool)
    return packed


def _above(path: str) -> list[PurePosixPath]:
    return list(PurePosixPath(path).parents)[:-1]


def _entry(path: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type, entry.mode, entry.size = kind, mode, size
    return entry  # a new TarInfo has time 0, owner 0 and no names


def _add(archive: tarfile.TarFile, path: str, file: Path, pool: ThreadPoolExecutor) -> Packed:
    with file.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        reader = _Reader(stream, Hasher(pool))
        try:
            archive.addfile(_entry(path, tarfile.REGTYPE, 0o644, size), reader)
        except OSError as error:
            if reader.size < size and error.errno is None:  # tarfile's way to say that the file ended early
                raise IntegrityError(
                    f"{file} became shorter while it was read; do not write to it, and run this again"
                ) from error
            raise
    return Packed(reader.hasher.hexdigest(), size)


class _Reader:
    """A stream that hashes and counts what is read from it."""

    def __init__(self, stream: BinaryIO, hasher: Any) -> None:
        self._stream = stream
        self.hasher = hasher
        self.size = 0

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        chunk = self._stream.read(size)
        self.hasher.update(chunk)
        self.size += len(chunk)
        return chunk


def unpack_image(source: Published, image: Image, into: Path) -> None:
    """Unpacks an image's layers, lowest first, into a folder that appears whole or not at all."""
    if into.is_dir() and any(into.iterdir()):
        raise ProgramFailed(f"{into} is not empty; an image is unpacked into a folder of its own")
    partial = into.with_name(f".{into.name}.{os.urandom(4).hex()}")
    try:
        with disk_trouble(str(into)):
            partial.mkdir(parents=True)
            _read_all(source, image.config)
            for layer in image.layers:
                apply(source, layer, partial)
            partial.replace(into)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_all(source: Published, blob: Descriptor) -> None:
    with source.open(blob) as stream:
        _finish(_Reader(stream, hashlib.sha256()), blob, source)


def _finish(reader: _Reader, blob: Descriptor, source: Published) -> None:
    """Reads a blob to its end and compares it with its digest."""
    while reader.read(CHUNK_BYTES):
        pass
    digest = f"sha256:{reader.hasher.hexdigest()}"
    if digest != blob.digest:
        raise IntegrityError(
            f"blob {blob.digest} is not what it says: its {reader.size} bytes have the digest {digest}."
            f" {source.mending(blob.digest)}"
        )


def apply(source: Published, layer: Descriptor, root: Path) -> None:
    """Unpacks one layer over what is below `root`. Raises IntegrityError if its bytes are not what its digest says."""
    mode = _TAR_MODES.get(layer.media_type)
    if mode is None:
        raise ProgramFailed(
            f"layer {layer.digest} is {layer.media_type}, which cannot be unpacked here;"
            " use a base image with tar or gzip layers"
        )
    with source.open(layer) as stream, ThreadPoolExecutor(1) as pool:
        reader = _Reader(stream, Hasher(pool))
        broken = None
        try:
            # typeshed lists the modes one by one
            with tarfile.open(fileobj=reader, mode=mode, bufsize=CHUNK_BYTES) as archive:  # type: ignore[call-overload]
                for member in archive:
                    _place(archive, member, root)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            broken = error
        _finish(reader, layer, source)
    if broken:
        raise IntegrityError(f"layer {layer.digest} is not a tar archive: {broken}") from broken


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Puts one entry of a layer in its place; devices and pipes, which no model needs, are left out."""
    parts = _parts(member.name)
    if not parts:
        return
    folder = _folder(root, parts[:-1])
    if parts[-1] == _OPAQUE:
        for child in folder.iterdir():
            _remove(child)
        return
    if parts[-1].startswith(_WHITEOUT):
        _remove(folder / _parts(parts[-1].removeprefix(_WHITEOUT))[0])
        return
    place = folder / parts[-1]
    kinds: tuple[tuple[bool, Callable], ...] = (
        (member.isdir(), lambda: _make_folder(place)),
        (member.isreg(), lambda: _make_file(archive, member, place)),
        (member.issym(), lambda: _make_link(member.linkname, place, root)),
        (member.islnk(), lambda: _make_hard_link(member.linkname, place, root)),
    )
    for applies, make in kinds:
        if applies:
            make()


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise IntegrityError(f"a layer names {name!r}, which lies outside of the image; nothing was unpacked")
    return parts


def _folder(root: Path, parts: list[str]) -> Path:
    """The folder of these names below `root`, made if it is not there. Links are followed inside `root` only."""
    here, names, links = root, parts[::-1], 0
    while names:
        name = names.pop()
        step = here / name
        if name in ("", "."):
            continue
        if name == "..":
            here = here.parent if here != root else root
        elif step.is_symlink():
            links += 1
            if links > _LINKS_AT_MOST:
                raise IntegrityError(
                    f"a layer's links lead in a circle at {'/'.join(parts)!r}; nothing was unpacked"
                )
            target = str(step.readlink())
            here = root if target.startswith("/") else here
            names.extend(reversed(target.split("/")))
        else:
            if not step.is_dir():
                _make_folder(step)
            here = step
    return here


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make_folder(place: Path) -> None:
    if place.is_symlink() or not place.is_dir():
        _remove(place)
        place.mkdir()
    place.chmod(0o755)


def _make_file(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    _remove(place)
    content = archive.extractfile(member)
    if content is None:
        raise IntegrityError(f"{member.name} of a layer says that it is a file, and has no content")
    with place.open("xb") as stream:
        shutil.copyfileobj(content, stream, CHUNK_BYTES)
    place.chmod((member.mode & 0o755) | 0o600)


def _make_link(target: str, place: Path, root: Path) -> None:
    """A symbolic link that means below `root` what it meant in the image, where `root` is `/`."""
    _remove(place)
    folder = place.parent.relative_to(root)
    meant = os.path.normpath(target if target.startswith("/") else f"/{folder}/{target}")
    place.symlink_to(os.path.relpath("/" + meant.lstrip("/"), f"/{folder}"))


def _make_hard_link(target: str, place: Path, root: Path) -> None:
    parts = _parts(target)
    first = _folder(root, parts[:-1]) / parts[-1] if parts else root
    if not first.is_file() or first.is_symlink():
        raise IntegrityError(f"a layer links to {target!r}, which is no file of the image")
    if first != place:
        _remove(place)
        os.link(first, place)
