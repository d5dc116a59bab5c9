"""What a peer tells: its packages, how it is started, how it is asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.serve.models import Model
from pipeline import run

APPS = Path(__file__).parent.parent / "apps"
TENSORFLOW = "tensorflow-cpu==2.20.0"
_ENVIRONMENTS = Path("build/bench")
_INSTALL_TIMEOUT_S = 400
_TRIAL_TIMEOUT_S = 120


@dataclass(frozen=True)
class Place:
    """Where a server runs: its model, its ports, its Python, and a folder of its own for what it needs."""

    model: Model
    port: int
    spare: tuple[int, ...]
    python: Path
    room: Path

    def program(self, name: str) -> str:
        """A program of the peer's environment."""
        return str(self.python.with_name(name))


@dataclass(frozen=True)
class Launch:
    """A command line. `before` are commands that prepare it, and are not in its start."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    before: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Exchange:
    """A POST of JSON, and how its answer is read: outputs by name, one row after the other."""

    path: str
    body: bytes
    read: Callable[[Any], Mapping[str, Any]]

    def outputs(self, answer: bytes) -> dict[str, np.ndarray]:
        """The outputs in an answer's body."""
        return {name: np.asarray(values) for name, values in self.read(json.loads(answer)).items()}


@dataclass(frozen=True)
class Peer:
    """A model server that is not ours. `how` says in words how it is configured."""

    name: str
    packages: tuple[str, ...]
    how: str
    launch: Callable[[Place], Launch]
    exchange: Callable[[Model, int], Exchange]

    @property
    def version(self) -> str:
        return self.packages[0].partition("==")[2]

    @property
    def environment(self) -> Path:
        """Its virtual environment; another version has another."""
        return (_ENVIRONMENTS / f"serve-{self.name.lower().replace(' ', '-')}-{self.version}").absolute()

    def installed(self) -> Path:
        """The Python of its environment, made by the locked uv if need be. Raises ProgramFailed.

        That TensorFlow can be imported there is tried each time: so its files are in memory when the start is timed.
        """
        python = self.environment / "bin/python"
        if not python.exists():
            try:
                self._install(python)
            except BaseException:
                shutil.rmtree(self.environment, ignore_errors=True)
                raise
        trial = [str(python), "-c", "import tensorflow"]
        run.run(trial, timeout_s=_TRIAL_TIMEOUT_S, echo=False, env={"TF_CPP_MIN_LOG_LEVEL": "2"})
        return python

    def _install(self, python: Path) -> None:
        report.story(f"installing {self.name} {self.version} into {_ENVIRONMENTS} …")
        make = ["uv", "venv", "-q", "--python", sys.executable, str(self.environment)]
        run.run(make, timeout_s=_TRIAL_TIMEOUT_S, echo=False)
        install = ["uv", "pip", "install", "-q", "--compile-bytecode", "--python", str(python)]
        run.run([*install, *self.packages, TENSORFLOW], timeout_s=_INSTALL_TIMEOUT_S, echo=False)


def in_rows(path: str) -> Callable[[Model, int], Exchange]:
    """Requests as `{"instances": [row, ...]}`, answers as an object of outputs."""

    def exchange(model: Model, rows: int) -> Exchange:
        return Exchange(path, as_json({"instances": model.instances(rows)}), lambda answer: answer)

    return exchange


def as_json(value: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def by_name(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of objects, as one object of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}
