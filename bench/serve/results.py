"""What a run of the benchmark found: kept as JSON, read again to make tables and pictures of."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

OURS = "Tidegate"


@dataclass(frozen=True)
class Server:
    """A way to be served: a server, a protocol, a configuration. `is_ours` tells whom the ratios are of."""

    name: str
    how: str
    is_ours: bool = False


@dataclass(frozen=True)
class Started:
    """A server that ran a model, or the reason why it could not. MiB, after its load."""

    server: str
    model: str
    start_s: float = 0.0
    anonymous_mib: float = 0.0
    files_mib: float = 0.0
    reason: str = ""

    @property
    def memory_mib(self) -> float:
        return self.anonymous_mib + self.files_mib


@dataclass(frozen=True)
class Cell:
    """One measurement. `requests` are what was asked, of `rows` rows each; `reason` is why there is none."""

    server: str
    model: str
    rows: int
    clients: int
    requests: int = 0
    failures: int = 0
    rows_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Limit:
    """TensorFlow alone: rows per second by batch size, for one and for two threads; its start and its memory."""

    model: str
    start_s: float
    anonymous_mib: float
    files_mib: float
    rows_per_s: dict[int, dict[int, float]]

    @property
    def best(self) -> float:
        return max(speed for callers in self.rows_per_s.values() for speed in callers.values())

    @property
    def memory_mib(self) -> float:
        return self.anonymous_mib + self.files_mib


@dataclass
class Results:
    """All of a run."""

    machine: str
    when: str
    seconds: float
    servers: list[Server] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    took_s: float = 0.0
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """The models, in the order in which they were measured."""
        return list(dict.fromkeys(limit.model for limit in self.limits))

    def limit(self, model: str) -> Limit:
        """TensorFlow alone with that model."""
        return next(limit for limit in self.limits if limit.model == model)

    def cell(self, server: str, model: str, rows: int, clients: int) -> Cell | None:
        """What was measured there; None where nothing was."""
        for cell in self.cells:
            found = (cell.server, cell.model, cell.rows, cell.clients)
            if found == (server, model, rows, clients) and not cell.reason:
                return cell
        return None

    def shapes(self, model: str) -> list[tuple[int, list[int]]]:
        """The numbers of rows that were asked of a model, each with its numbers of clients."""
        mine = [cell for cell in self.cells if cell.model == model]
        return [
            (rows, sorted({cell.clients for cell in mine if cell.rows == rows}))
            for rows in sorted({cell.rows for cell in mine})
        ]


def write(results: Results, path: Path) -> None:
    """Saves them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")


def read(path: Path) -> Results:
    """Reads what `write` saved."""
    saved = json.loads(path.read_text())
    for limit in saved["limits"]:
        limit["rows_per_s"] = {
            int(batch): {int(callers): speed for callers, speed in found.items()}
            for batch, found in limit["rows_per_s"].items()
        }
    parts = {"servers": Server, "limits": Limit, "started": Started, "cells": Cell}
    lists = {name: [kind(**each) for each in saved[name]] for name, kind in parts.items()}
    return Results(**{**saved, **lists})
