"""The models of the benchmark: made once, and read by whoever asks or checks."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from pipeline import digest, run

NAMES: Mapping[str, str] = {
    "digits": "8 × 8 pixels through two convolutions, as the pipeline exports it",
    "wide": "10 strings and 30 numbers, each an input of its own: look-ups, hashing, dense layers",
    "resnet": "ResNet-50, 64 × 64 × 3 pixels",
}
ROWS = (1, 32)
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Model:
    """A model on disk. `base` is the folder above its version folders, as model servers want it."""

    name: str
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "model"

    @property
    def saved_model(self) -> Path:
        return self.base / "1"

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """32 rows for each input: float32 [32, ...], or text [32]."""
        return _arrays(self.folder / "rows.npz")

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """What TensorFlow answers to these rows, by output."""
        return _arrays(self.folder / "expected.npz")

    @property
    def parameters(self) -> int:
        return json.loads((self.folder / "about.json").read_text())["parameters"]

    def grpc_request(self, rows: int) -> bytes:
        """A PredictRequest of the first rows, serialized."""
        return (self.folder / f"predict-{rows}.pb").read_bytes()

    def columns(self, rows: int) -> dict[str, Any]:
        """The first rows in column form: a list for each input, as JSON has it."""
        return {alias: plain(array[:rows]) for alias, array in self.inputs.items()}

    def instances(self, rows: int) -> list[Any]:
        """The first rows in row form: an object per row, or the bare value where there is one input."""
        columns = self.columns(rows)
        if len(columns) == 1:
            return next(iter(columns.values()))
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def plain(array: np.ndarray) -> list[Any]:
    """Lists of strings, or of numbers written as short as float32 allows: 0.1234, and not 0.12340000271797180."""
    return array.astype(str).astype(float).tolist() if array.dtype == np.float32 else array.tolist()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def made(name: str, room: Path) -> Model:
    """The model, made below `room` unless this code made it before. Raises ProgramFailed."""
    key = digest.of_file(Path(__file__).with_name("make.py"))[-12:]
    folder = (room / f"{name}-{key}").absolute()
    if not folder.exists():
        report.story(f"making the model {name} …")
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        argv = [sys.executable, "-m", "bench.serve.make", name, str(part)]
        run.run(argv, timeout_s=_TIMEOUT_S, echo=False, env={"TF_CPP_MIN_LOG_LEVEL": "2"})
        part.rename(folder)
    return Model(name, folder)
