"""The run as a table, as report.json, and as a page."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from pipeline.errors import TidegateError
from pipeline.row import Row

NOT_REACHED = "not reached"
_HEADINGS = ("stage", "outcome", "number that decided", "bound", "seconds", "digest")
_GREEN, _RED, _YELLOW, _GREY, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[90m", "\x1b[0m"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, as texts."""
    decided = f"{row.decided.name} {row.decided.number:g}" if row.decided else ""
    bound = str(row.decided.bound) if row.decided and row.decided.bound else ""
    digest = row.digest if row.digest.startswith("sha256:") else f"sha256:{row.digest}" if row.digest else ""
    outcome = "unchanged" if row.cached else row.outcome
    seconds = "" if row.cached or row.outcome == NOT_REACHED else f"{row.seconds:.1f}"
    return (row.stage, outcome, decided, bound, seconds, digest[:19])


def skipped(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """A row for each wanted stage that was not reached."""
    reached = {row.stage for row in rows}
    return [Row(name, NOT_REACHED, False, 0.0) for name in wanted if name not in reached]


def table(rows: Sequence[Row], stream: TextIO = sys.stderr) -> None:
    """Prints the closing table, and the warnings below it."""
    texts = [_HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(_HEADINGS))]
    for line, row in zip(texts, [None, *rows], strict=True):
        text = "  ".join(_aligned(cell, i, widths[i]) for i, cell in enumerate(line)).rstrip()
        print(_coloured(text, row, stream), file=stream)
    for row in rows:
        for warning in row.warnings:
            print(_painted(f"! {row.stage}: {warning}", _YELLOW, stream), file=stream)
    stream.flush()


def _aligned(cell: str, column: int, width: int) -> str:
    return cell.rjust(width) if _HEADINGS[column] in ("seconds", "bound") else cell.ljust(width)


def _coloured(text: str, row: Row | None, stream: TextIO) -> str:
    if row is None or row.cached or row.outcome == NOT_REACHED:
        return _painted("  " + text, _GREY, stream)
    passed = row.outcome == "passed"
    return _painted(("✓ " if passed else "✗ ") + text, _GREEN if passed else _RED, stream)


def _painted(text: str, colour: str, stream: TextIO) -> str:
    """Coloured for a terminal; plain where NO_COLOR is set or a pipe listens."""
    return f"{colour}{text}{_PLAIN}" if stream.isatty() and not os.environ.get("NO_COLOR") else text


def fault(error: TidegateError, stream: TextIO = sys.stderr) -> None:
    """Prints what went wrong."""
    print(_painted(str(error), _RED, stream), file=stream, flush=True)


def heading(model: str, rows: Sequence[Row]) -> str:
    """What a run came to, in a few words."""
    stopped = next((row for row in rows if row.outcome != "passed"), None)
    if stopped:
        return f"{model}: {stopped.outcome} at {stopped.stage}"
    return f"{model}: {rows[-1].stage} passed"


def write(folder: Path, rows: Sequence[Row], heading: str) -> None:
    """Writes report.json and index.html, and the job summary where CI asks for one.

    The same as STAGE.json, by the stage that it came to: jobs of one stage each put theirs beside the others'.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {"heading": heading, "stages": [dataclasses.asdict(row) for row in rows]}
    last = next((row.stage for row in reversed(rows) if row.outcome != NOT_REACHED), "")
    for name in filter(None, ("report", last)):
        _replace(folder / f"{name}.json", json.dumps(document, indent=1) + "\n")
    _replace(folder / "index.html", page(rows, heading))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as stream:
            stream.write(markdown(rows, heading))


def markdown(rows: Sequence[Row], heading: str) -> str:
    """The table in GitHub's and GitLab's Markdown."""
    lines = [f"### {heading}", "", "| " + " | ".join(_HEADINGS) + " |", "|---" * len(_HEADINGS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(rows: Sequence[Row], heading: str) -> str:
    """The run as one HTML page that needs nothing beside it."""
    return _PAGE.format(
        heading=html.escape(heading),
        head="".join(f"<th>{name}</th>" for name in _HEADINGS),
        body="\n".join(_html_row(row) for row in rows),
    )


def _html_row(row: Row) -> str:
    kind = "same" if row.cached else {"passed": "good", NOT_REACHED: "same"}.get(row.outcome, "bad")
    line = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row))
    texts = [row.sentence, *(f"⚠ {warning}" for warning in row.warnings)]
    below = "<br>".join(html.escape(text) for text in texts if text)
    return f'<tr class="{kind}">{line}</tr>\n<tr class="says"><td></td><td colspan="5">{below}</td></tr>'


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{heading}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1c2733 }}
h1 {{ font-size: 1.35rem }}
table {{ border-collapse: collapse; width: 100% }}
th {{ text-align: left; font-weight: 600; border-bottom: 2px solid #c9d3dc; padding: .35rem .6rem }}
td {{ padding: .3rem .6rem; font-variant-numeric: tabular-nums }}
tr.good td:nth-child(2) {{ color: #14743c; font-weight: 600 }}
tr.bad td:nth-child(2) {{ color: #b3261e; font-weight: 600 }}
tr.same td {{ color: #66727d }}
tr.says td {{ color: #4a5763; border-bottom: 1px solid #e3e9ee; padding-top: 0; font-size: .87rem }}
td:nth-child(6) {{ font-family: ui-monospace, monospace; font-size: .85rem }}
</style>
<h1>{heading}</h1>
<table><thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody></table>
</html>
"""
