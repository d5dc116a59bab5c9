"""Keeps a real server at work for an hour while its versions come and go: `python -m bench.serve.soak`.

Its capacity is measured first, then `--load` of it is asked over REST and gRPC, at a rate of its own whatever the
server does. Each minute has a new version and the end of an old one, a label that moves, and a configuration that
changes and changes back. Zero failed requests, no wrong answer and flat memory, or exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report
from bench.serve import fuzz, fuzz_grpc, load
from pipeline.errors import ProgramFailed, TidegateError

_ANSWER_S = 10
_CAPACITY_S = 5
_KEPT_VERSIONS = 2
_CONNECTIONS = 8
_GROWTH_MIB = 64
# A server, or this program on a busy machine, that is so far behind will not come back while all is asked on time.
_UNDER_WAY_AT_MOST = 2000
_FAILURES_TOLD = 20
_MODEL_SERVICE = "/tensorflow.serving.ModelService/"


@dataclass
class Minute:
    """What was asked in one minute."""

    asked: int = 0
    failed: int = 0
    wrong: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    memory_mib: float = 0.0
    note: str = ""

    def row(self, number: int) -> list[str]:
        """A row of the table."""
        p50, p99 = (load.percentile(self.latencies_ms, percent) for percent in (50, 99))
        return [str(number), str(self.asked), str(self.failed), str(self.wrong), f"{p50:.1f}", f"{p99:.1f}",
                f"{max(self.latencies_ms, default=0.0):.0f}", f"{self.memory_mib:.0f}", self.note]  # fmt: skip


_HEADING = [
    "minute",
    "requests",
    "failed",
    "wrong",
    "p50 ms",
    "p99 ms",
    "max ms",
    "memory MiB",
    "what happened",
]


class Asker:
    """Asks the model `soak` over both ports and checks what it answers."""

    def __init__(self, server: fuzz.Server):
        self._server = server
        self._random = random.Random(1)
        self._idle: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()
        self._channel: Any = None
        self._under_way = 0
        self._told = 0
        self.labelled = False

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Asker]:
        """With a gRPC channel and REST connections that rest between requests."""
        import grpc.aio

        target = f"127.0.0.1:{self._server.grpc}"
        async with grpc.aio.insecure_channel(
            target, options=[("grpc.enable_http_proxy", 0)]
        ) as self._channel:
            yield self
            while not self._idle.empty():
                self._idle.get_nowait()[1].close()

    async def ask(self, minute: Minute, scheduled: float) -> None:
        """One request, counted; latency counts from when it was due, so that a stall shows in all it held up."""
        x = float(self._random.randrange(1000))
        minute.asked += 1
        self._under_way += 1
        try:
            if self._under_way > _UNDER_WAY_AT_MOST:
                raise ProgramFailed(f"not asked: {_UNDER_WAY_AT_MOST} requests wait for their answers")
            over = self._rest if minute.asked % 2 else self._grpc
            right = await asyncio.wait_for(over(x), _ANSWER_S)
            minute.wrong += not right
        except Exception as error:  # noqa: BLE001 (whatever kept the answer away is a failed request)
            minute.failed += 1
            self._told += 1
            if self._told <= _FAILURES_TOLD:
                report.story(f"failed: {error!r}"[:500])
        finally:
            self._under_way -= 1
        minute.latencies_ms.append((time.monotonic() - scheduled) * 1000)

    async def _rest(self, x: float) -> bool:
        body = json.dumps({"instances": [x]}).encode()
        by_label = self.labelled and self._random.random() < 0.2
        path = b"/v1/models/soak" + (b"/labels/stable" if by_label else b"") + b":predict"
        status, text = await self._exchange(b"POST", path, body)
        if status != 200:
            raise ProgramFailed(f"REST {status}: {text[:200]!r}")
        return _is_right(json.loads(text)["predictions"], x)

    async def _grpc(self, x: float) -> bool:
        message = fuzz_grpc.good(x, model="soak", version=None).message
        answer = await self._channel.unary_unary(load.PREDICT)(message, timeout=_ANSWER_S)
        return _is_right(fuzz_grpc.answer_of(answer), x)

    async def _exchange(self, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes]:
        """A request on a connection that rests, or on a new one."""
        try:
            reader, writer = self._idle.get_nowait()
        except asyncio.QueueEmpty:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._server.rest)
        try:
            writer.write(
                b"%b %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (method, path, len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            size = next(
                int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
            )
            text = await reader.readexactly(size)
        except BaseException:  # no answer, or not in time
            writer.close()
            raise
        self._idle.put_nowait((reader, writer))
        return int(head.split()[1]), text

    async def reload(self, labels: Sequence[int], more: bool) -> None:
        """Gives the server its configuration: `soak` with the label stable, and maybe one more model."""
        text = _entries(self._server.folder, labels, more)
        await self._channel.unary_unary(fuzz_grpc.RELOAD)(fuzz_grpc.restored(text).message, timeout=60)
        self.labelled = bool(labels)

    async def versions(self) -> dict[int, str]:
        """The states of the model's versions."""
        _, text = await self._exchange(b"GET", b"/v1/models/soak", b"")
        return {int(each["version"]): each["state"] for each in json.loads(text)["model_version_status"]}


def _is_right(values: Sequence[float], x: float) -> bool:
    """Whether this is x / 2 and a version's number: some version that there has been."""
    number = values[0] - x / 2
    return len(values) == 1 and number >= 1 and number == int(number)


def _entries(folder: Path, labels: Sequence[int], more: bool) -> str:
    policy = f"model_version_policy {{ latest {{ num_versions: {_KEPT_VERSIONS} }} }}"
    label = "".join(f' version_labels {{ key: "stable" value: {version} }}' for version in labels)
    text = f'config {{ name: "soak" base_path: "{folder / "soak"}" model_platform: "tensorflow" {policy}{label} }}\n'
    if more:
        text += f'config {{ name: "guest" base_path: "{folder / "kinds"}" model_platform: "tensorflow" }}\n'
    return text


class Soak:
    """The hour: load, what happens meanwhile, and its table."""

    def __init__(self, server: fuzz.Server, per_second: float):
        self._server = server
        self._per_second = per_second
        self.minutes: list[Minute] = []
        self.troubles: list[str] = []

    async def run(self, count: int) -> None:
        """All minutes."""
        async with Asker(self._server).open() as asker:
            await asker.reload([1], more=False)
            for number in range(1, count + 1):
                minute = Minute()
                self.minutes.append(minute)
                changes = asyncio.create_task(self._changes(asker, minute, number + 1))
                await self._minute(asker, minute)
                try:
                    await asyncio.wait_for(changes, 60)
                except Exception as error:  # noqa: BLE001 (it is one of the results)
                    self.troubles.append(f"minute {number}: {error!r}")
                minute.memory_mib = self._server.memory_mib
                report.story(" ".join(minute.row(number)))

    async def _minute(self, asker: Asker, minute: Minute) -> None:
        """Requests at even distances, each begun at its time whether or not those before it are answered."""
        begun, tasks = time.monotonic(), set()
        for number in itertools.count():
            scheduled = begun + number / self._per_second
            if scheduled >= begun + 60:
                break
            if (ahead := scheduled - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(asker.ask(minute, scheduled))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def _changes(self, asker: Asker, minute: Minute, new: int) -> None:
        """A new version, the label moved to it, an old one's end, a model that comes and goes."""
        copy_version(self._server.folder, new)
        begun = time.monotonic()
        await _until(asker, {new: "AVAILABLE"})
        minute.note = f"version {new} in {time.monotonic() - begun:.1f} s"
        await asyncio.sleep(5)
        await asker.reload([new], more=True)
        await asyncio.sleep(5)
        await asker.reload([new], more=False)
        await _until(asker, dict.fromkeys(range(1, new - _KEPT_VERSIONS + 1), "END"))
        old = self._server.folder / "soak" / str(new - _KEPT_VERSIONS)
        if old.exists():
            shutil.rmtree(old)
            minute.note += f", {old.name} deleted"

    def verdict(self) -> list[str]:
        """What was not as it should be."""
        found = list(self.troubles)
        if failed := sum(minute.failed for minute in self.minutes):
            found.append(f"{failed} requests failed")
        if wrong := sum(minute.wrong for minute in self.minutes):
            found.append(f"{wrong} answers were wrong")
        settled = self.minutes[max(1, len(self.minutes) // 6) :] or self.minutes
        growth = settled[-1].memory_mib - settled[0].memory_mib
        if growth > _GROWTH_MIB:
            found.append(f"memory grew by {growth:.0f} MiB")
        if self._server.child.poll() is not None:
            found.append(f"the server ended: {self._server.child.returncode}")
        return found


async def _until(asker: Asker, states: dict[int, str]) -> None:
    while not states.items() <= (await asker.versions()).items():
        await asyncio.sleep(0.2)


def copy_version(folder: Path, number: int) -> None:
    """Puts a version below the base path at once, whole: x / 2 + number."""
    part = folder / f"part-{number}"
    shutil.copytree(folder / "versions" / str(number), part)
    part.rename(folder / "soak" / str(number))


async def capacity(server: fuzz.Server) -> float:
    """Requests a second that a few clients get answered, each asking again at once; half REST, half gRPC."""
    minute = Minute()
    end = time.monotonic() + _CAPACITY_S

    async def client(asker: Asker) -> None:
        while time.monotonic() < end:
            await asker.ask(minute, time.monotonic())

    async with Asker(server).open() as asker:
        await asyncio.gather(*(client(asker) for _ in range(_CONNECTIONS)))
    if minute.failed or minute.wrong:
        raise ProgramFailed(
            f"{minute.failed} requests failed and {minute.wrong} were wrong before anything had happened"
        )
    return minute.asked / _CAPACITY_S


def main(argv: Sequence[str] | None = None) -> int:
    """Soaks a server; 0 if all was well."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve.soak", description=__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="how long (%(default)s)")
    parser.add_argument(
        "--load", type=float, default=0.7, help="part of the capacity that is asked (%(default)s)"
    )
    parser.add_argument("flags", nargs="*", help="further flags of the server, after --")
    options = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    fuzz_grpc.ready()
    gc.collect()
    gc.freeze()  # TensorFlow's objects, else collected for a quarter of a second at a time, in which nothing is asked
    try:
        with tempfile.TemporaryDirectory(prefix="bench-soak-") as folder:
            return _soak(Path(folder), options)
    except TidegateError as error:
        print(f"bench soak: {error}", file=sys.stderr)
        return error.exit_code


def _soak(folder: Path, options: argparse.Namespace) -> int:
    fuzz.make_models(folder, versions=options.minutes + 1)
    (folder / "versions").mkdir()
    (folder / "soak").mkdir()
    for number in range(1, options.minutes + 2):
        (folder / "half" / str(number)).rename(folder / "versions" / str(number))
    copy_version(folder, 1)
    with fuzz.server(folder, _entries(folder, [], more=False), options.flags) as server:
        most = asyncio.run(capacity(server))
        report.story(f"capacity {most:.0f} requests a second; asking {most * options.load:.0f}")
        soak = Soak(server, most * options.load)
        asyncio.run(soak.run(options.minutes))
        troubles = soak.verdict()
    print(report.table([_HEADING, *(minute.row(number) for number, minute in enumerate(soak.minutes, 1))]))
    asked = sum(minute.asked for minute in soak.minutes)
    print(f"{report.machine()}; {asked} requests, {most * options.load:.0f} a second")
    print(
        "Failed: " + "; ".join(troubles)
        if troubles
        else "Passed: no failed request, no wrong answer, flat memory"
    )
    return 1 if troubles else 0


if __name__ == "__main__":
    raise SystemExit(main())
