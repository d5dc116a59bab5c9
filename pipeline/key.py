"""The key of a stage: the sha256 of all that changes its result, part by part, so that it can be explained."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import closure, digest
from pipeline.errors import SettingsError
from pipeline.locked import LOCK
from pipeline.settings import Settings
from pipeline.stages import Stage

# Raised when the spine itself changes what a key or a record means.
FORMAT = 1


def parts(
    stage: Stage, settings: Settings, reads: Mapping[str, str | None], root: Path, digests: digest.Digests
) -> dict:
    """What the key is computed from: files, reads, settings, environment, hardware.

    `reads` maps each output that the stage reads to its tree digest (None: an optional one that is absent).
    """
    return {
        "format": FORMAT,
        "function": stage.function,
        "files": _files(stage, settings, root, digests),
        "reads": dict(reads),
        "settings": {path: _setting(settings, path) for path in stage.settings},
        "environment": {
            LOCK: digests.file(root / LOCK),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "machine": platform.machine(),
        },
        "hardware": _hardware(settings) if stage.hardware else "",
    }


def differences(old: Mapping, new: Mapping, path: str = "") -> list[str]:
    """What differs between the parts of two keys, an item a line, in words."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        where = f"{path} {name}".strip()
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, where)
        elif before is None:
            found.append(f"{where} is new: {_short(after)}")
        elif after is None:
            found.append(f"{where} is gone")
        else:
            found.append(f"{where} changed: {_short(before)} -> {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else digest.canonical(value).decode()
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _files(stage: Stage, settings: Settings, root: Path, digests: digest.Digests) -> dict[str, str]:
    """The repository's files that the stage reads, by path, with their sha256."""
    module = stage.function.rpartition(".")[0]
    files = set(closure.of(module, root, lambda path: _imports(path, root, digests)))
    for name in stage.files:
        place = root / (
            _setting(settings, name.removeprefix("settings:")) if name.startswith("settings:") else name
        )
        files |= set(code_below(place)) if place.is_dir() else ({place} if place.is_file() else set())
    return {path.relative_to(root).as_posix(): digests.file(path) for path in sorted(files)}


def _imports(path: Path, root: Path, digests: digest.Digests) -> list[closure.Import]:
    try:
        return digests.derived(path, "imports", closure.parse)
    except SyntaxError as error:
        where = f"{path.relative_to(root)}:{error.lineno}"
        raise SettingsError(
            f"{where}: is not Python: {error.msg}. `make check` shows all such faults."
        ) from error


def code_below(folder: Path) -> list[Path]:
    """The files below a folder, but for hidden ones and what Python makes by itself."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith("__pycache__")]
        found += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and not name.endswith((".pyc", "~"))
        ]
    return found


def _setting(settings: Settings, path: str) -> Any:
    """A part of the settings, as `train` or `data.classes`, in plain JSON values."""
    value = settings
    for name in path.split("."):
        value = getattr(value, name)
    return _plain(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("keyed", True)]
        return {f.name: _plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _hardware(settings: Settings) -> str:
    """The kind of accelerator that training takes: as the settings say or, with auto, what this machine has.

    With `gpu` it is the same on every machine, so that a CI job without one finds the record of the job with one.
    """
    if settings.train.accelerator != "auto":
        return settings.train.accelerator
    found = []
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = [line for line in information.read_text().splitlines() if line.startswith("Model:")]
        found.append(model[0].partition(":")[2].strip() if model else "unknown GPU")
    return ", ".join(found) or "cpu"
