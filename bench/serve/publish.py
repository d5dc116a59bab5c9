"""Writes what was measured into the documentation: the section between two marks, and the pictures."""

from __future__ import annotations

from pathlib import Path

from bench.serve import plot
from bench.serve.results import Results
from pipeline.errors import IntegrityError

PAGE = Path("docs/serving_benchmarks.md")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- measured: python -m bench.serve --write -->", "<!-- /measured -->"
_NEW = f"""# Serving benchmarks

{BEGIN}
{END}
"""


def write(results: Results, text: str) -> list[Path]:
    """Puts the tables and the pictures into docs/; returns what was written."""
    pictures = plot.write(results, IMAGES)
    shown = "\n".join(
        f"![{path.stem}: rows per second against latency]({IMAGES.name}/{path.name})\n" for path in pictures
    )
    page = PAGE.read_text() if PAGE.exists() else _NEW
    PAGE.write_text(replaced(page, f"{shown}\n{text}"))
    return [PAGE, *pictures]


def replaced(page: str, text: str) -> str:
    """The page with another measured section. Raises IntegrityError if the page has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise IntegrityError(f"{PAGE} lacks the lines {BEGIN} and {END}; put them where the tables belong")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
