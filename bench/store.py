"""What looking, promoting and verifying cost as a store grows: 10 to 10,000 versions, 100,000 records.

Every version has an entry in staging, one in production, and ten records of its own (data and check are those of
the first, as they are where neither changed). The first ten versions and the newest six of each size are signed
and hold; those between share the envelopes of one version, under keys of their own, so that all is set up in
minutes. At each size the commands are called in this process, after one call that is not counted: how long they
take, and how many objects of the store they ask for, which in S3 are requests. The store lies in memory where the
machine has room there, so that no other program's disk traffic is measured; nothing is far away.

No peer does this offline. What stands beside it is the plain layout: one JSON document with the whole history of a
channel, read for each question and rewritten at each promotion, as this pipeline once did. It verifies nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench import report
from bench.noop import scrub
from bench.versions import ONLY_STAGED, SIGNED, Factory
from pipeline import audit, digest, gc, operate
from pipeline.errors import ProgramFailed
from pipeline.runner import Runner
from pipeline.store import Entry

SIZES = (SIGNED, 100, 1_000, 10_000)
PROMOTIONS = 6
"""How many of the versions of each size are promoted with the clock running."""
_OLD = 3
_LIVE, _PLAIN_LIVE = "what is live", "plain: what is live"
_APPEND, _PLAIN_APPEND = "append an entry", "plain: append an entry"
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 << 30


@dataclass(frozen=True)
class Look:
    """A command that changes nothing, called with a runner that has seen nothing yet."""

    name: str
    call: Callable[[Runner], Any]
    repeat: int = 1_000


def looks(factory: Factory) -> Iterator[Look]:
    """The commands that look, for the versions that there are now. The old version is among the first ten."""
    old = _OLD
    entry = factory.evidence.store.channel("production").of_version(old)
    yield Look("status", lambda runner: operate.print_status(operate.status(runner), runner.authority))
    yield Look("history", _history)
    yield Look(
        "history --at",
        lambda runner: _told(operate.channel(runner.authority, "production").live_at(entry.at)),
    )
    yield Look("verify production", lambda runner: _verify(runner, "production"))
    yield Look(f"verify v{old}", lambda runner: _verify(runner, f"v{old}"))
    yield Look(f"verify IMAGE of v{old}", lambda runner: _verify(runner, factory.image(old)))
    yield Look(f"verify v{ONLY_STAGED}, only in staging", lambda runner: _verify(runner, f"v{ONLY_STAGED}"))
    yield Look("gc --dry-run", lambda runner: gc.gc(runner, dry_run=True), repeat=1)


def _history(runner: Runner) -> None:
    production = operate.channel(runner.authority, "production")
    operate.print_history(runner.authority, list(itertools.islice(production.newest_first(), 20)))


def _told(entry: Entry | None) -> None:
    if entry is None:
        raise ProgramFailed("history --at found nothing at the time of an entry")


def _verify(runner: Runner, subject: str) -> None:
    found = audit.audit(runner.authority, subject)
    if not found.holds:
        raise ProgramFailed("\n".join(audit.lines(found)))
    print("\n".join(audit.lines(found)))


@dataclass(frozen=True)
class Cost:
    """What something took at one size: the fewest seconds, and how many objects were asked for."""

    seconds: float
    asked: int = 0


def look_cost(factory: Factory, look: Look, repeat: int) -> Cost:
    """The fewest seconds of a command that looks, out of some calls."""
    taken, asked = [], 0
    for _ in range(min(repeat, look.repeat) + 1):
        runner = factory.runner()
        with contextlib.redirect_stdout(io.StringIO()):
            begun = time.perf_counter()
            look.call(runner)
            taken.append(time.perf_counter() - begun)
        asked = runner.store.bucket.asked
    return Cost(min(taken[1:]), asked)


def promotion_costs(factory: Factory, count: int) -> tuple[Cost, Cost]:
    """Letting in a version that was judged (policy, signing, record, entry; all synced), and the entry alone."""
    whole, entry, asked = [], [], (0, 0)
    for _ in range(count):
        with mock.patch("os.fsync"):
            factory.walk()
        os.sync()
        runner = factory.runner()
        factory.evidence.store = runner.store
        begun = time.perf_counter()
        factory.judge(runner)
        seen = factory.sign_promotion()
        signed, before = time.perf_counter(), runner.store.bucket.asked
        factory.enter("production", seen)
        whole.append(time.perf_counter() - begun)
        entry.append(time.perf_counter() - signed)
        asked = runner.store.bucket.asked, runner.store.bucket.asked - before
    return Cost(min(whole), asked[0]), Cost(min(entry), asked[1])


class Plain:
    """The peer: a channel as one JSON document with its whole history, replaced at each promotion."""

    def __init__(self, path: Path, entries: Sequence[Entry]):
        self.path = path
        self._replace([dataclasses.asdict(entry) for entry in entries])

    def live(self) -> dict:
        """What status needs of it."""
        return json.loads(self.path.read_bytes())[-1]

    def append(self, entry: Entry) -> None:
        """A promotion, without any demand."""
        self._replace([*json.loads(self.path.read_bytes()), dataclasses.asdict(entry)])

    def _replace(self, history: Sequence[dict]) -> None:
        partial = self.path.with_name("partial")
        with partial.open("wb") as stream:
            stream.write(digest.canonical(history))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(self.path)


def layout_costs(factory: Factory, repeat: int) -> dict[str, Cost]:
    """Asking what is live and, in the plain layout, appending; without any policy."""
    entries = list(factory.evidence.store.channel("production").newest_first())[::-1]
    plain = Plain(factory.folder / "plain.json", entries)

    def least(work: Callable[[], Any]) -> Cost:
        taken = []
        for _ in range(repeat):
            begun = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begun)
        return Cost(min(taken))

    return {
        _LIVE: least(lambda: factory.evidence.store.channel("production").live),
        _PLAIN_LIVE: least(plain.live),
        _PLAIN_APPEND: least(lambda: plain.append(entries[-1])),
    }


def measure(sizes: Sequence[int], repeat: int, folder: Path) -> dict[str, dict[int, Cost]]:
    """What each command costs at each size."""
    costs: dict[str, dict[int, Cost]] = {}
    factory = Factory.founded(folder)
    for size in sizes:
        report.story(f"{size:,} versions …")
        factory.grow(size - PROMOTIONS)
        promoted, appended = promotion_costs(factory, PROMOTIONS)
        found = {look.name: look_cost(factory, look, repeat) for look in looks(factory)}
        found |= {"promote": promoted, **layout_costs(factory, repeat), _APPEND: appended}
        for name, cost in found.items():
            costs.setdefault(name, {})[size] = cost
    return costs


def growth(asked: Sequence[int]) -> str:
    """What growth the objects asked for at each size have, by the last two sizes, each ten times the one before."""
    step = asked[-1] / asked[-2]
    if step < 1.1:
        return "constant"
    return "logarithmic" if step < 1.5 else "linear" if step > 5 else "less than linear"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables: milliseconds and objects per command and size, and the plain layout beside ours."""
    parser = argparse.ArgumentParser(prog="python -m bench.store", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="versions (10 100 1000 10000)")
    parser.add_argument(
        "--repeat", type=int, default=20, help="calls of each command; the fastest counts (20)"
    )
    parser.add_argument("--folder", type=Path, help=f"where to work, with 4 GiB ({_MEMORY} if it has them)")
    options = parser.parse_args(argv)
    scrub()
    sizes = sorted(options.sizes)
    if sizes[0] < SIZES[0] or len(sizes) < 2:
        parser.error(f"--sizes: at least two, each of {SIZES[0]} versions or more")
    folder = options.folder or (_MEMORY if _has_room(_MEMORY) else None)
    machine = f"{report.machine()}; the store in {folder or tempfile.gettempdir()}"
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-store-") as room:
        costs = measure(sizes, options.repeat, Path(room))
    show(costs, sizes, options.repeat, machine)
    return 0


def _has_room(folder: Path) -> bool:
    return folder.is_dir() and shutil.disk_usage(folder).free >= _ROOM_BYTES


def show(costs: Mapping[str, Mapping[int, Cost]], sizes: Sequence[int], repeat: int, machine: str) -> None:
    """The tables (stdout)."""
    layouts = (_LIVE, _PLAIN_LIVE, _APPEND, _PLAIN_APPEND)
    commands = {name: found for name, found in costs.items() if name not in layouts}
    beside = {name: costs[name] for name in layouts}
    words = {name: growth([found[size].asked for size in sizes[-2:]]) for name, found in commands.items()}
    report.show(
        f"The store at scale: milliseconds by versions (fastest of {repeat}; promote of {PROMOTIONS})",
        _table(commands, sizes, lambda cost: cost.seconds * 1000, "{:,.1f}"),
        machine,
    )
    report.show(
        "Objects of the store asked for", _table(commands, sizes, lambda cost: cost.asked, "{:,.0f}", words)
    )
    report.show(
        "Milliseconds of the layouts alone: nothing is demanded, nothing verified",
        _table(beside, sizes, lambda cost: cost.seconds * 1000, "{:,.2f}"),
        _times(beside, sizes),
    )


def _table(
    costs: Mapping,
    sizes: Sequence[int],
    value: Callable[[Cost], float],
    form: str,
    words: Mapping | None = None,
) -> str:
    """A row for each command: the value at each size, the last as a ratio to the first and, in a word, its growth."""
    rows = [["", *(f"{size:,}" for size in sizes), "ratio", *(["growth"] if words else [])]]
    for name, found in costs.items():
        numbers = [value(found[size]) for size in sizes]
        row = [name, *(form.format(number) for number in numbers), f"{numbers[-1] / numbers[0]:,.1f}"]
        rows.append([*row, *([words[name]] if words else [])])
    return report.table(rows)


def _times(beside: Mapping, sizes: Sequence[int]) -> str:
    """The plain layout as a multiple of ours, at each size."""
    rows = [["plain / ours", *(f"{size:,}" for size in sizes)]]
    for name, ours, plain in (("what is live", _LIVE, _PLAIN_LIVE), ("append", _APPEND, _PLAIN_APPEND)):
        ratios = (beside[plain][size].seconds / beside[ours][size].seconds for size in sizes)
        rows.append([name, *(f"{ratio:.2f}" for ratio in ratios)])
    return report.table(rows)


if __name__ == "__main__":
    raise SystemExit(main())
