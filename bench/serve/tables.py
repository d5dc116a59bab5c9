"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import report
from bench.serve.models import NAMES
from bench.serve.results import OURS, Cell, Results, Server

_NOTHING = "–"


def document(results: Results) -> str:
    """All tables, with a heading for each model."""
    parts = [
        _when(results),
        against_peers(results),
        against_limit(results),
        memory_and_start(results),
    ]
    for model in results.models:
        millions = results.parameters.get(model, 0) / 1e6
        parts.append(f"### {model}: {NAMES[model]} ({millions:.2g} million parameters)\n")
        parts.append(limits(results, model))
        for rows, clients in results.shapes(model):
            word = "row" if rows == 1 else "rows"
            parts.append(f"Requests of {rows} {word}:\n\n{cells(results, model, rows, clients)}")
    parts.append(configurations(results))
    parts.append(failures(results))
    return "\n".join(part for part in parts if part)


def _when(results: Results) -> str:
    minutes = results.took_s / 60
    return f"{results.machine}; {results.when}; {results.seconds:g} s for each figure, {minutes:.0f} min in all.\n"


def limits(results: Results, model: str) -> str:
    """TensorFlow alone, by batch size."""
    found = results.limit(model).rows_per_s
    rows = [["TensorFlow alone, rows/s", *(f"batch {size}" for size in found)]]
    for callers in next(iter(found.values())):
        label = f"{callers} thread{'s' if callers > 1 else ''}"
        rows.append([label, *(_speed_of(speeds, callers) for speeds in found.values())])
    return report.table(rows)


def _speed_of(speeds: dict[int, float], callers: int) -> str:
    return _number(speeds[callers]) if callers in speeds else _NOTHING


def cells(results: Results, model: str, rows: int, clients: Sequence[int]) -> str:
    """A server a line: rows per second, median and 99th percentile for each number of clients."""
    heading = ["clients"]
    for count in clients:
        heading += [f"{count}: rows/s", "p50 ms", "p99 ms"]
    lines = [heading]
    for server in results.servers:
        line = [f"**{server.name}**" if server.is_ours else server.name]
        for count in clients:
            cell = results.cell(server.name, model, rows, count)
            line += _figures(cell)
        lines.append(line)
    return report.table(lines)


def _figures(cell: Cell | None) -> list[str]:
    if cell is None:
        return [_NOTHING] * 3
    return [_number(cell.rows_per_s), _ms(cell.p50_ms), _NOTHING if cell.p99_ms is None else _ms(cell.p99_ms)]


def best_peer(results: Results, model: str, rows: int, clients: int) -> Cell | None:
    """The peer with the most rows per second and no failure; None if none was measured."""
    found = (
        results.cell(server.name, model, rows, clients) for server in results.servers if not server.is_ours
    )
    return max((cell for cell in found if cell and not cell.failures), key=_speed, default=None)


def best_of_ours(results: Results, model: str, rows: int, clients: int, protocol: str) -> Cell | None:
    """Our first configuration, which is the default one, over REST or gRPC."""
    for server in results.servers:
        if server.is_ours and server.name.startswith(f"{OURS} {protocol}"):
            return results.cell(server.name, model, rows, clients)
    return None


def _speed(cell: Cell) -> float:
    return cell.rows_per_s


def against_peers(results: Results) -> str:
    """Ours over REST, divided by the fastest peer of the same cell."""
    lines = [
        [
            "model, rows, clients",
            "best peer",
            "its rows/s",
            "ours",
            "ours / peer",
            "its p99 ms",
            "ours",
            "ours / peer",
        ]
    ]
    for model, rows, clients in _shapes(results):
        ours, peer = (
            best_of_ours(results, model, rows, clients, "REST"),
            best_peer(results, model, rows, clients),
        )
        if ours is None or peer is None:
            continue
        speeds = [
            _number(peer.rows_per_s),
            _number(ours.rows_per_s),
            _ratio(ours.rows_per_s, peer.rows_per_s),
        ]
        tails = [_NOTHING] * 3
        if ours.p99_ms is not None and peer.p99_ms is not None:
            tails = [_ms(peer.p99_ms), _ms(ours.p99_ms), _ratio(ours.p99_ms, peer.p99_ms)]
        lines.append([f"{model}, {rows}, {clients}", peer.server, *speeds, *tails])
    return f"{OURS} over REST beside the fastest peer:\n\n{report.table(lines)}" if len(lines) > 1 else ""


def against_limit(results: Results) -> str:
    """Ours, at its best number of clients, as a share of what TensorFlow does alone with its best batch."""
    protocols = [
        p for p in ("REST", "gRPC") if any(s.is_ours and f" {p}," in s.name for s in results.servers)
    ]
    lines = [["model, rows", "TensorFlow's best, rows/s", *(f"{OURS} {protocol}" for protocol in protocols)]]
    for model in results.models:
        limit = results.limit(model).best
        for rows, clients in results.shapes(model):
            shares = []
            for protocol in protocols:
                found = [best_of_ours(results, model, rows, count, protocol) for count in clients]
                speed = max((cell.rows_per_s for cell in found if cell), default=0.0)
                shares.append(f"{_number(speed)} ({speed / limit:.0%})" if speed else _NOTHING)
            lines.append([f"{model}, {rows}", _number(limit), *shares])
    return f"{OURS} beside TensorFlow alone, at its best batch size and number of threads:\n\n{report.table(lines)}"


def memory_and_start(results: Results) -> str:
    """Seconds to the first answer and MiB over TensorFlow's own; one line for a process that has two protocols."""
    heading = ["start s, MiB over TensorFlow's"]
    for model in results.models:
        heading += [f"{model}: s", "MiB"]
    lines = [heading, ["TensorFlow and the model alone"]]
    for model in results.models:
        limit = results.limit(model)
        lines[1] += [f"{limit.start_s:.1f}", f"(all: {limit.memory_mib:.0f})"]
    for server in results.servers:
        if server.is_ours and f"{OURS} gRPC" in server.name:
            continue
        line = [server.name.replace(" REST", "")]
        for model in results.models:
            line += _start(results, server, model)
        lines.append(line)
    return "From the start of the process to the first answer, and memory after the load:\n\n" + report.table(
        lines
    )


def _start(results: Results, server: Server, model: str) -> list[str]:
    for started in results.started:
        if (started.server, started.model, started.reason) == (server.name, model, ""):
            over = started.memory_mib - results.limit(model).memory_mib
            return [f"{started.start_s:.1f}", f"{over:+.0f}"]
    return [_NOTHING, _NOTHING]


def configurations(results: Results) -> str:
    """How each was configured."""
    return "Configurations:\n\n" + "".join(f"- {server.name}: {server.how}\n" for server in results.servers)


def failures(results: Results) -> str:
    """Whatever could not be measured, with its reason, and cells with failed requests."""
    texts = [f"{each.server}, {each.model}: {each.reason}" for each in results.started if each.reason]
    for cell in results.cells:
        where = f"{cell.server}, {cell.model}, {cell.rows} rows, {cell.clients} clients"
        if cell.reason:
            texts.append(f"{where}: {cell.reason}")
        elif cell.failures:
            texts.append(f"{where}: {cell.failures} of {cell.requests} requests failed")
    heading = "Not measured, or with failures:\n\n"
    return heading + "".join(f"- {text[:400]}\n" for text in texts) if texts else "No request failed.\n"


def _shapes(results: Results) -> Iterable[tuple[str, int, int]]:
    for model in results.models:
        for rows, clients in results.shapes(model):
            yield from ((model, rows, count) for count in clients)


def _number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.3g}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio(ours: float, peer: float) -> str:
    return f"{ours / peer:.2f}" if peer else _NOTHING
