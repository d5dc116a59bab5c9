"""Throughput, latency, memory and start of our model server, beside its peers and TensorFlow alone.

Everything runs on this machine, client and server on the same cores, one server at a time. The peers are installed
below build/bench/, each into an environment of its own. Tables go to stdout, the story to stderr.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.serve import load, measure, models, plot, publish, results, tables
from bench.serve.measure import Plan
from bench.serve.peers.base import Peer
from pipeline.errors import TidegateError

PEERS = ("fastapi", "mlserver", "kserve", "bentoml", "ray", "litserve", "mlflow")
_MODELS_ROOM = Path("build/bench/serve-models")
_OURS = ("batched", "unbatched")
_QUICK = {"models": ["digits"], "seconds": 1}


def peer(name: str) -> Peer:
    """A peer by its name on the command line."""
    return importlib.import_module(f"bench.serve.peers.{name}").PEER


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, or reads what was measured before; prints tables, saves JSON and pictures."""
    options = _options(argv)
    # What was started is ended, as Ctrl-C does it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        found = results.read(options.read) if options.read else _measured(options)
    except TidegateError as error:
        print(f"bench serve: {error}", file=sys.stderr)
        return error.exit_code
    text = tables.document(found)
    report.show("Model servers", text)
    for path in plot.write(found, options.json.parent):
        report.story(f"picture: {path}")
    if options.write:
        publish.write(found, text)
    return 0


def _measured(options: argparse.Namespace) -> results.Results:
    load.check_programs()
    plan = Plan(
        options.rows,
        options.clients,
        options.seconds,
        options.warm_up,
        {how: tuple(getattr(options, how).split()) for how in options.ours},
    )
    now = datetime.datetime.now(datetime.UTC)
    found = results.Results(report.machine(), f"{now:%Y-%m-%d %H:%M} UTC", options.seconds)
    begun = time.monotonic()
    try:
        made = [models.made(name, _MODELS_ROOM) for name in options.models]
        measure.measure(made, [peer(name) for name in options.peers], plan, found)
    finally:
        found.took_s = time.monotonic() - begun
        results.write(found, options.json)
        report.story(f"saved: {options.json}")
    return found


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"Needs wrk and h2load: {load.INSTALL}. The machine should do nothing else meanwhile.",
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=models.NAMES, default=list(models.NAMES), help="which models (all)")
    add("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="which peers, none if empty (all)")
    add(
        "--ours",
        nargs="*",
        choices=_OURS,
        default=list(_OURS),
        help="which configurations of our server, none if empty (both)",
    )
    add(
        "--rows",
        nargs="+",
        type=int,
        choices=models.ROWS,
        default=list(models.ROWS),
        help="rows of a request (all)",
    )
    add("--clients", nargs="+", type=int, default=[1, 8, 64], help="numbers of clients (1 8 64)")
    add("--seconds", type=int, default=4, help="seconds of each figure (4)")
    add("--warm-up", type=int, default=1, help="seconds before, which do not count (1)")
    add(
        "--quick",
        action="store_true",
        help="the digits model alone, a second for each figure: about four minutes",
    )
    add("--batched", default="", metavar="FLAGS", help="our server's flags with batching (none: its default)")
    add(
        "--unbatched",
        default="--adaptive_batching=false",
        metavar="FLAGS",
        help="our server's flags without batching (%(default)s)",
    )
    add(
        "--json",
        type=Path,
        default=Path("build/bench/serve/results.json"),
        help="where to save (%(default)s)",
    )
    add(
        "--read", type=Path, metavar="JSON", help="measure nothing: make tables and pictures of saved results"
    )
    add("--write", action="store_true", help="write the tables and pictures into docs/, too")
    options = parser.parse_args(argv)
    if min(options.clients) < 1 or options.seconds < 1 or options.warm_up < 0:
        parser.error("--clients and --seconds must be at least 1, and --warm-up at least 0")
    if options.quick:
        vars(options).update(_QUICK)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
