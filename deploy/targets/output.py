"""What staging and production wrote: of processes from their files, of containers from the engine."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deploy.engine import Container
from deploy.handles import Handle
from pipeline.errors import ProgramFailed

_POLL_S = 0.2
_AT_MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class Writer:
    """Who writes: a name for people, the process or container (None: it is no more), and the file beside it."""

    name: str
    handle: Handle | None
    file: Path

    def lines(self, tail: int, follow: bool) -> Iterator[str]:
        """Its last `tail` lines and, if asked, those that it writes from now on, until it ends."""
        if isinstance(self.handle, Container):
            return _split(_of_container(self.handle, self.file, tail, follow))
        return _of_file(self, tail, follow)


def writers(state: Path, name: str) -> list[Writer]:
    """The versions and the router of an environment; where nothing runs, those whose files are left."""
    from deploy import environment

    logs, now = state / "logs", environment.read(state, name)
    running = [
        Writer(f"v{one.version.number}", one.version.process, logs / f"{name}-v{one.version.number}.log")
        for one in now.placed
    ]
    if now.router:
        running.append(Writer("router", now.router.process, logs / f"envoy-{name}.log"))
    left = sorted(logs.glob(f"{name}-v*.log"), key=lambda file: file.stat().st_mtime)
    return running or [Writer(file.stem.removeprefix(f"{name}-"), None, file) for file in left[-1:]]


def merged(found: Iterable[Writer], tail: int, follow: bool) -> Iterator[str]:
    """Lines of all writers, each behind its writer's name: one after another or, following, as they come.

    One that cannot be read hides no other; ProgramFailed names it at the end.
    """
    failed: list[str] = []
    yield from _as_they_come(found, tail, failed) if follow else _in_turn(found, tail, failed)
    if failed:
        raise ProgramFailed("\n".join(failed))


def _in_turn(found: Iterable[Writer], tail: int, failed: list[str]) -> Iterator[str]:
    for writer in found:
        try:
            yield from (f"{writer.name} | {line}" for line in writer.lines(tail, follow=False))
        except ProgramFailed as error:
            failed.append(f"{writer.name}: {error}")


def _as_they_come(found: Iterable[Writer], tail: int, failed: list[str]) -> Iterator[str]:
    lines: queue.SimpleQueue = queue.SimpleQueue()
    threads = [threading.Thread(target=_feed, args=(one, tail, lines, failed), daemon=True) for one in found]
    for thread in threads:
        thread.start()
    for _ in threads:  # each says None once, as it ends
        while (line := lines.get()) is not None:
            yield line


def _feed(writer: Writer, tail: int, lines: queue.SimpleQueue, failed: list[str]) -> None:
    try:
        for line in writer.lines(tail, follow=True):
            lines.put(f"{writer.name} | {line}")
    except ProgramFailed as error:
        failed.append(f"{writer.name}: {error}")
    finally:
        lines.put(None)


def _of_container(handle: Container, file: Path, tail: int, follow: bool) -> Iterator[bytes]:
    from deploy.targets.sdk import Refused, speaking

    try:
        # Without a limit of time while following: a version that is asked nothing writes nothing.
        with speaking(f"read the log of {handle}", None if follow else 60) as client:
            said = client.api.logs(handle.id, stream=follow, follow=follow, tail=tail)
            yield from said if follow else [said]
    except Refused:
        if handle.look() is not None:
            raise
        kept = f" {file} has what earlier ones wrote." if file.exists() else ""
        raise ProgramFailed(
            f"{handle} is gone: somebody removed it, and what it wrote with it; `make ci-local` starts it again.{kept}"
        ) from None


def _of_file(writer: Writer, tail: int, follow: bool) -> Iterator[str]:
    if not writer.file.exists():
        return
    with writer.file.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _AT_MOST_BYTES))
        written = file.read().decode(errors="replace").splitlines()
        yield from written[max(0, len(written) - tail) :]
        if follow:
            yield from _split(_more(writer, file))


def _more(writer: Writer, file: BinaryIO) -> Iterator[bytes]:
    while True:
        lives = writer.handle is not None and writer.handle.alive()
        chunk = file.read()
        if chunk:
            yield chunk
        elif not lives:
            return
        else:
            time.sleep(_POLL_S)


def _split(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines of a stream; the last one also where it has no end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")
