"""Pictures: throughput against latency, a line for each server, a point for each number of clients, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from bench.serve.results import OURS, Cell, Results, Server

WIDTH, HEIGHT = 1000, 570
_LEFT, _TOP, _GAP, _PLOT_W, _PLOT_H = 70, 96, 80, 400, 340
_LEGEND_TOP, _LEGEND_ROW, _LEGEND_COLUMN, _LEGEND_COLUMNS = 502, 22, 235, 4
_OUR_COLOURS = {"REST": "#1558b0", "gRPC": "#00846b"}
_PEER_COLOURS = ("#e08e00", "#cc3d0f", "#b8569a", "#7a5cc2", "#777777", "#94651a", "#4f9a1d")
_INK, _GRID, _PALE = "#24292f", "#e4e7eb", "#6a737d"


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end` pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within it: 1, 2 and 5 times the powers of ten; powers alone where it is long."""
        steps = (1, 2, 5) if self.high / self.low < 2000 else (1,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (step * 10.0**power for power in powers for step in steps)
        return [value for value in values if self.low <= value <= self.high]


@dataclass(frozen=True)
class Line:
    """A server's way through the numbers of clients: its cells in that order, and how it is drawn."""

    name: str
    cells: Sequence[Cell]
    colour: str
    width: float
    dashes: str


def write(results: Results, folder: Path) -> list[Path]:
    """A picture for each model, below `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for model in results.models:
        text = picture(results, model)
        if text:
            path = folder / f"serving-{model}.svg"
            path.write_text(text)
            written.append(path)
    return written


def picture(results: Results, model: str) -> str:
    """A panel for each number of rows; empty where nothing has a 99th percentile."""
    panels = [(rows, lines(results, model, rows)) for rows, _ in results.shapes(model)]
    panels = [(rows, found) for rows, found in panels if found][:2]
    if not panels:
        return ""
    limit = results.limit(model).best
    parts = [
        _text(_LEFT, 30, f"{model}: rows per second against latency", size=18, weight="600"),
        _text(
            _LEFT,
            50,
            "Right and down is better. Along a line the number of clients grows, as noted beside ours.",
            size=12.5,
            colour=_PALE,
        ),
    ]
    for number, (rows, found) in enumerate(panels):
        parts += _panel(_LEFT + number * (_PLOT_W + _GAP), rows, found, limit)
    names = {line.name: line for _, found in panels for line in found}
    parts += _legend(list(names.values()))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f"<title>{escape(model)}: throughput against latency of model servers</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def lines(results: Results, model: str, rows: int) -> list[Line]:
    """A line for each server that has a 99th percentile, peers first, so that ours are drawn above."""
    found = []
    peers = [server for server in results.servers if not server.is_ours]
    for server in [*peers, *(server for server in results.servers if server.is_ours)]:
        cells = [
            cell
            for cell in results.cells
            if (cell.server, cell.model, cell.rows) == (server.name, model, rows)
            and cell.p99_ms
            and cell.rows_per_s
        ]
        if cells:
            order = sorted(cells, key=lambda cell: cell.clients)
            found.append(Line(server.name, order, *_look(server, peers)))
    return found


def _look(server: Server, peers: Sequence[Server]) -> tuple[str, float, str]:
    """Colour, width and dashes."""
    if not server.is_ours:
        return _PEER_COLOURS[peers.index(server) % len(_PEER_COLOURS)], 1.5, ""
    protocol = server.name.removeprefix(OURS).split(",")[0].strip()
    dashes = "5 4" if "unbatched" in server.name else ""
    return _OUR_COLOURS.get(protocol, _INK), 1.8 if dashes else 3, dashes


def around(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis with some room beside the smallest and the largest value."""
    return Axis(min(values) / 1.3, max(values) * 1.3, start, end)


def _panel(left: float, rows: int, found: Sequence[Line], limit: float) -> Iterator[str]:
    cells = [cell for line in found for cell in line.cells]
    across = around([*(cell.rows_per_s for cell in cells), limit], left, left + _PLOT_W)
    up = around([cell.p99_ms or 0.0 for cell in cells], _TOP + _PLOT_H, _TOP)
    yield from _grid(across, up)
    yield _text(left, _TOP - 10, f"Requests of {rows} row{'s' if rows > 1 else ''}", size=13.5, weight="600")
    yield _text(left + _PLOT_W / 2, _TOP + _PLOT_H + 40, "rows per second", size=13, anchor="middle")
    middle = _TOP + _PLOT_H / 2
    turned = f'transform="rotate(-90 {left - 46} {middle})"'
    yield _text(left - 46, middle, "99th percentile, ms", size=13, anchor="middle", more=turned)
    x = across.at(limit)
    yield f'<path d="M{x:.1f} {_TOP}V{_TOP + _PLOT_H}" stroke="{_PALE}" stroke-width="1.2" stroke-dasharray="2 3"/>'
    aside = f'transform="rotate(-90 {x - 6:.1f} {_TOP + 30})"'
    yield _text(x - 6, _TOP + 30, "TensorFlow alone", size=11, anchor="end", colour=_PALE, more=aside)
    for line in found:
        yield from _line(line, across, up)


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    left, right, bottom, top = across.start, across.end, up.start, up.end
    for value in across.ticks():
        x = across.at(value)
        yield f'<path d="M{x:.1f} {top}V{bottom}" stroke="{_GRID}"/>'
        yield _text(x, bottom + 18, short(value), size=11.5, anchor="middle")
    for value in up.ticks():
        y = up.at(value)
        yield f'<path d="M{left} {y:.1f}H{right}" stroke="{_GRID}"/>'
        yield _text(left - 8, y + 4, short(value), size=11.5, anchor="end")
    yield f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{_INK}"/>'


def _line(line: Line, across: Axis, up: Axis) -> Iterator[str]:
    points = [(across.at(cell.rows_per_s), up.at(cell.p99_ms or 1.0), cell) for cell in line.cells]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    yield (
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="{line.width}" '
        f'stroke-linejoin="round"{dashes}/>'
    )
    for x, y, cell in points:
        told = f"{line.name}, {cell.clients} clients: {cell.rows_per_s:.0f} rows/s, {cell.p99_ms:.2f} ms"
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2.2 + line.width / 2:.1f}" fill="{line.colour}" '
            f'stroke="#ffffff" stroke-width="0.8"><title>{escape(told)}</title></circle>'
        )
        if line.width >= 3:
            colour = line.colour
            yield _text(x + 8, y + 4, f"{cell.clients}", size=11, colour=colour, weight="600")


def _legend(found: Sequence[Line]) -> Iterator[str]:
    """Ours first."""
    for number, line in enumerate(sorted(found, key=lambda line: not line.name.startswith(OURS))):
        x = _LEFT + number % _LEGEND_COLUMNS * _LEGEND_COLUMN
        y = _LEGEND_TOP + number // _LEGEND_COLUMNS * _LEGEND_ROW
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        yield (
            f'<path d="M{x} {y - 4}h26" stroke="{line.colour}" stroke-width="{line.width}"{dashes}/>'
            f'<circle cx="{x + 13}" cy="{y - 4}" r="{2.2 + line.width / 2:.1f}" fill="{line.colour}"/>'
        )
        yield _text(x + 34, y, line.name, size=12.5, weight="600" if line.width >= 3 else "400")


def short(value: float) -> str:
    """A tick's label: 0.5, 20, 1k, 200k, 1M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    anchor: str = "start",
    weight: str = "400",
    colour: str = _INK,
    more: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}" {more}>{escape(text)}</text>'
    )
