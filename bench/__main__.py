"""Runs all benchmarks one after the other, or those named. Results go to stdout as Markdown, the story to stderr."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from pipeline.errors import TidegateError

BENCHMARKS: Mapping[str, str] = {
    "noop": "a run with nothing to do, beside make's start, doit and dvc",
    "overhead": "what the pipeline adds around a stage, and to a whole walk",
    "image": "building an image, beside reading, hashing and writing its bytes once, buildah and docker",
    "rebuild": "the training image after a change of code or docs, beside a build without any cache",
    "publish": "building and pushing weights to a registry, beside docker build and push and skopeo alone",
    "store": "status, history, promote, verify and gc as a store grows, beside a history in one JSON document",
    "upload": "hashing and uploading a large file to file: and s3://, beside plain sha256 and a plain copy",
}
# What keeps all of them together within a few minutes.
_SHORT = {
    "image": ("--size-mb=256",),
    "publish": ("--size-mb=128",),
    "upload": ("--size-mb=256",),
    "rebuild": ("--repeat=3",),
    "store": ("--sizes", "10", "100", "1000"),
}
_EPILOG = """Each has options of its own: python -m bench.image --help.
Model servers stand apart, as they take 25 minutes: python -m bench.serve --help.
A figure is a result, never a pass or a failure. The machine should do nothing else meanwhile."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks in the order in which they are named."""
    parser = _parser()
    names = parser.parse_args(argv).names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such benchmark. There are {', '.join(BENCHMARKS)}.")
    for name in names:
        print(f"▸ {name}: {BENCHMARKS[name]}", file=sys.stderr, flush=True)
        try:
            importlib.import_module(f"bench.{name}").main(_SHORT.get(name, ()))
        except TidegateError as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    menu = "\n".join(f"  {name:<9} {does}" for name, does in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measures speed, as ratios to floors and peers in the same run.\n\n{menu}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="which benchmarks (all: about three minutes, and as long again with a Docker engine)",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
