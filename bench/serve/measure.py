"""Measures: for each model first TensorFlow alone, then our server, then the peers, each alone on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import report
from bench.serve import load, ours, process
from bench.serve.load import Load, Seen
from bench.serve.models import Model
from bench.serve.peers.base import APPS, Exchange, Launch, Peer, Place
from bench.serve.results import OURS, Cell, Limit, Results, Server, Started
from pipeline.errors import ProgramFailed

# Larger requests of larger models would take longer than a cell does: of these the number of rows in flight is bounded.
ROWS_IN_FLIGHT = {"resnet": 256}
# A figure needs as many answers more as they take longer.
TIMES = {"resnet": 1.5}
LOGS = Path("build/bench/serve-logs")
_LIMIT_TIMEOUT_S = 200
# A batch of another size adds in another order.
_RELATIVE, _ABSOLUTE = 2e-3, 1e-5


@dataclass(frozen=True)
class Plan:
    """What is measured of each server and model. `flags` are ours, by the name of a configuration."""

    rows: Sequence[int]
    clients: Sequence[int]
    seconds: float
    warm_up_s: float
    flags: dict[str, tuple[str, ...]]

    def shapes(self, model: str) -> Iterator[tuple[int, int]]:
        """Rows of a request and numbers of clients."""
        at_most = ROWS_IN_FLIGHT.get(model, sys.maxsize)
        for rows in self.rows:
            yield from ((rows, clients) for clients in self.clients if rows * clients <= at_most)

    def load(self, model: str, clients: int) -> Load:
        """How a model is asked."""
        return Load(clients, self.seconds * TIMES.get(model, 1), self.warm_up_s)


@dataclass(frozen=True)
class Series:
    """A server as it is asked in one protocol: a check of its answer, and a load; both raise ProgramFailed."""

    server: Server
    check: Callable[[int], None]
    load: Callable[[int, Load], Seen]


def servers(plan: Plan, peers: Sequence[Peer]) -> list[Server]:
    """All that is measured, ours first."""
    mine = [_ours(protocol, how, flags) for how, flags in plan.flags.items() for protocol in ("REST", "gRPC")]
    return [*mine, *(Server(peer.name, f"{peer.version}: {peer.how}") for peer in peers)]


def _ours(protocol: str, how: str, flags: Sequence[str]) -> Server:
    told = " ".join(flags) or "nothing but the model and its ports"
    return Server(f"{OURS} {protocol}, {how}", f"`python -m serve` with {told}", is_ours=True)


def measure(models: Sequence[Model], peers: Sequence[Peer], plan: Plan, results: Results) -> None:
    """Adds all to `results` as it is found, so that what was found before a failure is there."""
    pythons = {peer.name: _installed(peer) for peer in peers}
    results.servers = servers(plan, peers)
    for model in models:
        report.story(f"{model.name}: TensorFlow alone")
        results.limits.append(limit(model, min(plan.seconds, 2)))
        results.parameters[model.name] = model.parameters
        for how, flags in plan.flags.items():
            _one(model, plan, results, _ours_runs(model, how, flags))
        for peer in peers:
            _one(model, plan, results, _peer_runs(model, peer, pythons[peer.name]))


def _installed(peer: Peer) -> Path | str:
    """The peer's Python, or why there is none."""
    try:
        return peer.installed()
    except ProgramFailed as error:
        return f"cannot be installed: {str(error).splitlines()[-1]}"


@dataclass(frozen=True)
class Run:
    """A process to start, and the series that are measured while it runs; or the reason why it cannot."""

    names: Sequence[str]
    launch: Callable[[Place], Launch] | None
    python: Path
    first: Callable[[], Exchange]
    series: Callable[[Place], Sequence[Series]]
    reason: str = ""


def _ours_runs(model: Model, how: str, flags: tuple[str, ...]) -> Run:
    rest, grpc = _ours("REST", how, flags), _ours("gRPC", how, flags)

    def series(place: Place) -> Sequence[Series]:
        return [
            rest_series(rest, model, place.port, ours.exchange),
            _grpc_series(grpc, model, place.spare[0]),
        ]

    return Run(
        [rest.name, grpc.name],
        lambda place: ours.launch(place, flags),
        Path(sys.executable),
        lambda: ours.exchange(model, 1),
        series,
    )


def _peer_runs(model: Model, peer: Peer, python: Path | str) -> Run:
    reason = python if isinstance(python, str) else ""
    server = Server(peer.name, peer.how)
    return Run(
        [peer.name],
        peer.launch,
        Path(python),
        lambda: peer.exchange(model, 1),
        lambda place: [rest_series(server, model, place.port, peer.exchange)],
        reason,
    )


def rest_series(
    server: Server, model: Model, port: int, exchange: Callable[[Model, int], Exchange]
) -> Series:
    """A server asked over HTTP."""

    def check(rows: int) -> None:
        asked = exchange(model, rows)
        check_outputs(model, rows, asked.outputs(process.post(port, asked)))

    def ask(rows: int, how: Load) -> Seen:
        asked = exchange(model, rows)
        return load.rest(port, asked.path, asked.body, how)

    return Series(server, check, ask)


def _grpc_series(server: Server, model: Model, port: int) -> Series:
    def check(rows: int) -> None:
        check_outputs(model, rows, ours.outputs(ours.call(port, model.grpc_request(rows))))

    def ask(rows: int, how: Load) -> Seen:
        message = model.grpc_request(rows)
        return load.grpc(port, message, len(ours.call(port, message)), how)

    return Series(server, check, ask)


def check_outputs(model: Model, rows: int, found: dict[str, np.ndarray]) -> None:
    """Raises ProgramFailed unless these are TensorFlow's own answers, all of them."""
    wrong = {
        name
        for name, array in model.expected.items()
        if name not in found
        or np.shape(found[name]) != array[:rows].shape
        or not np.allclose(found[name].astype(float), array[:rows], _RELATIVE, _ABSOLUTE)
    }
    if wrong:
        raise ProgramFailed(f"its answer for {', '.join(sorted(wrong))} is not TensorFlow's")


def _one(model: Model, plan: Plan, results: Results, run: Run) -> None:
    """Starts a server, measures all cells, ends it. What fails is noted with its reason."""
    report.story(f"{model.name}: {', '.join(run.names)}")
    try:
        if run.reason or run.launch is None:
            raise ProgramFailed(run.reason)
        with tempfile.TemporaryDirectory(prefix="bench-serve-", ignore_cleanup_errors=True) as room:
            port, *spare = process.free_ports(4)
            place = Place(model, port, tuple(spare), run.python, Path(room))
            _run(model, plan, results, run, place)
    except ProgramFailed as error:
        report.story(f"not measured: {error}")
        results.started += [
            Started(name, model.name, reason=" ".join(str(error).split())) for name in run.names
        ]


def _run(model: Model, plan: Plan, results: Results, run: Run, place: Place) -> None:
    assert run.launch is not None
    env = {
        "BENCH_MODEL": str(model.saved_model),
        "PYTHONPATH": str(APPS) if run.python != Path(sys.executable) else str(Path.cwd()),
        "PATH": f"{run.python.parent}{os.pathsep}{os.environ['PATH']}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HOME": str(place.room),
    }
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{model.name}-{run.names[0].replace(' ', '-').replace(',', '')}.log"
    with process.running(run.launch(place), place.port, run.first(), log, env) as (server, start_s):
        for series in run.series(place):
            results.cells += [
                cell(series, model, rows, clients, plan) for rows, clients in plan.shapes(model.name)
            ]
        memory = server.memory()
    started = Started("", model.name, start_s, memory.anonymous, memory.files)
    results.started += [replace(started, server=name) for name in run.names]


def cell(series: Series, model: Model, rows: int, clients: int, plan: Plan) -> Cell:
    """One measurement, after a look whether the answer is right."""
    empty = Cell(series.server.name, model.name, rows, clients)
    try:
        series.check(rows)
        seen = series.load(rows, plan.load(model.name, clients))
    except ProgramFailed as error:
        report.story(f"{rows} rows, {clients} clients: {error}")
        return replace(empty, reason=" ".join(str(error).split()))
    report.story(
        f"{series.server.name}: {rows} rows, {clients} clients: {seen.per_second * rows:.0f} rows/s, "
        f"median {seen.p50_ms:.2f} ms" + (f", {seen.failures} failed" if seen.failures else "")
    )
    return replace(
        empty,
        requests=seen.requests,
        failures=seen.failures,
        rows_per_s=seen.per_second * rows,
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
    )


def limit(model: Model, seconds: float) -> Limit:
    """TensorFlow alone, in a process of its own. Raises ProgramFailed."""
    argv = [sys.executable, "-m", "bench.serve.limit", str(model.folder), str(seconds)]
    begun = time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        watch = threading.Timer(_LIMIT_TIMEOUT_S, child.kill)
        watch.start()
        try:
            first = child.stdout.readline()
            start_s = time.monotonic() - begun
            rest = list(child.stdout)
        except BaseException:
            child.kill()
            raise
        finally:
            watch.cancel()
    if not first or child.returncode:
        raise ProgramFailed(
            f"TensorFlow alone could not run {model.name} within {_LIMIT_TIMEOUT_S} s: {' '.join(argv)}"
        )
    memory, *found = map(json.loads, rest)
    speeds = {
        each["batch"]: {int(callers): speed for callers, speed in each["rows_per_s"].items()}
        for each in found
    }
    return Limit(model.name, start_s, memory["anonymous"], memory["files"], speeds)
