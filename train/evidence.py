"""Write what evaluation found: metrics.json, metrics.txt (OpenMetrics), confusion.csv, confusion.svg."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from train.gates import Verdict
from train.measure import METRICS, Interval

_CELL = 36
_EDGE = 56


def document(
    rows: int,
    confidence: float,
    metrics: Mapping[str, Interval],
    classes: list[dict],
    champion: dict | None,
    verdicts: Mapping[str, tuple[Verdict, ...]],
) -> dict:
    """All numbers as plain values; what could not be measured is null."""
    return _plain(
        {
            "rows": rows,
            "confidence": confidence,
            "metrics": {name: asdict(interval) for name, interval in metrics.items()},
            "classes": [
                {k: asdict(v) if isinstance(v, Interval) else v for k, v in c.items()} for c in classes
            ],
            "champion": champion,
            "verdicts": [_verdict(verdict, of) for of, group in verdicts.items() for verdict in group],
        }
    )


def _verdict(verdict: Verdict, of: str) -> dict:
    bound = {word: limit for word, limit in asdict(verdict.bound).items() if limit is not None}
    return {
        "of": of,
        "name": verdict.name,
        "number": verdict.number,
        **bound,
        "outcome": str(verdict.outcome),
        "sentence": f"{verdict}.",
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, found: dict, confusion: np.ndarray) -> None:
    """Writes all four files below `folder`, which must not exist."""
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    (folder / "metrics.txt").write_text("\n".join(open_metrics(found)) + "\n")
    (folder / "confusion.csv").write_text(_csv(confusion))
    (folder / "confusion.svg").write_text("\n".join(_svg(confusion)) + "\n")


def open_metrics(found: dict) -> Iterator[str]:
    """The numbers in OpenMetrics text form, for GitLab's metrics report. What is null is left out."""
    for name, says in METRICS.items():
        interval = found["metrics"][name]
        yield f"# TYPE {name} gauge"
        yield f"# HELP {name} {says}"
        yield from _sample(name, interval["value"])
        yield from _sample(f'{name}{{bound="low"}}', interval["low"])
        yield from _sample(f'{name}{{bound="high"}}', interval["high"])
    for name in ("recall", "precision"):
        yield f"# TYPE {name} gauge"
        for row in found["classes"]:
            yield from _sample(f'{name}{{class="{row["class"]}"}}', row[name]["value"])
    if found["champion"] and "differences" in found["champion"]:
        yield "# TYPE minus_champion gauge"
        for name, interval in found["champion"]["differences"].items():
            yield from _sample(f'minus_champion{{metric="{name}"}}', interval["value"])
    yield "# EOF"


def _sample(name: str, value: float | None) -> Iterator[str]:
    if value is not None:
        yield f"{name} {value:.6g}"


def _csv(confusion: np.ndarray) -> str:
    header = ",".join(["true\\predicted", *map(str, range(len(confusion)))])
    return "\n".join([header, *(f"{c},{','.join(map(str, row))}" for c, row in enumerate(confusion))]) + "\n"


def _svg(confusion: np.ndarray) -> Iterator[str]:
    """The confusion matrix as a heat map: the share of each true class that got each answer."""
    side = _EDGE + _CELL * len(confusion)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 8} {side + 8}" font-family="sans-serif">'
    yield f'<rect width="{side + 8}" height="{side + 8}" fill="#fff"/>'
    yield f'<text x="{_EDGE}" y="16" font-size="13">predicted class, by true class (rows)</text>'
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for place in range(len(confusion)):
        middle = _EDGE + _CELL * place + _CELL // 2
        yield f'<text x="{middle}" y="{_EDGE - 8}" font-size="12" text-anchor="middle">{place}</text>'
        yield f'<text x="{_EDGE - 8}" y="{middle + 4}" font-size="12" text-anchor="end">{place}</text>'
    for (truth, predicted), count in np.ndenumerate(confusion):
        yield from _svg_cell(truth, predicted, int(count), float(shares[truth, predicted]))
    yield "</svg>"


def _svg_cell(truth: int, predicted: int, count: int, share: float) -> Iterator[str]:
    x, y = _EDGE + _CELL * predicted, _EDGE + _CELL * truth
    hue = 205 if truth == predicted else 12  # right answers blue, wrong ones red
    light = 97 - 55 * share**0.5
    yield f'<rect x="{x}" y="{y}" width="{_CELL - 1}" height="{_CELL - 1}" fill="hsl({hue},70%,{light:.0f}%)"/>'
    if count:
        ink = "#fff" if light < 60 else "#222"
        yield (
            f'<text x="{x + _CELL // 2}" y="{y + _CELL // 2 + 4}" font-size="12" text-anchor="middle" '
            f'fill="{ink}">{count}</text>'
        )
