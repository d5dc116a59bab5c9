"""A server as a process: its start timed to the first answer, its memory, its end with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.serve.peers.base import Exchange, Launch
from pipeline import run
from pipeline.errors import ProgramFailed

_MARK = "BENCH_SERVE_MARK"
_START_TIMEOUT_S = 180
# What a server answers while it has not loaded its model yet.
_NOT_YET = (404, 500, 502, 503)
_ANSWER_TIMEOUT_S = 30
_GRACE_S = 8
_POLL_S = 0.02


@dataclass(frozen=True)
class Memory:
    """Pages in MiB: those without a file of all processes, and those of files of the one that has most of them.

    Processes share the pages of one library; a sum of resident sizes would count it once for each.
    """

    anonymous: float
    files: float

    @property
    def total(self) -> float:
        return self.anonymous + self.files


class Refused(ProgramFailed):
    """The server answered by another status than 200."""

    def __init__(self, status: int, body: bytes):
        super().__init__(f"status {status}: {body[:300].decode(errors='replace')}")
        self.status = status


class Running:
    """A server that runs, and answers."""

    def __init__(self, port: int, mark: str):
        self.port = port
        self._mark = mark

    def memory(self) -> Memory:
        """What all of its processes hold now."""
        return memory_of(marked(self._mark))


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)


def post(port: int, exchange: Exchange) -> bytes:
    """One request on a connection of its own. Raises ProgramFailed unless it is answered by 200."""
    url = f"http://127.0.0.1:{port}{exchange.path}"
    request = urllib.request.Request(url, exchange.body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read()) from error
    except OSError as error:
        raise ProgramFailed(f"no answer: {error}") from error


@contextlib.contextmanager
def running(
    launch: Launch, port: int, first: Exchange, log: Path, env: Mapping[str, str]
) -> Iterator[tuple[Running, float]]:
    """The server, and the seconds from its start to its first answer. Raises ProgramFailed if there is none."""
    mark = uuid.uuid4().hex
    env = {**env, **launch.env, _MARK: mark}
    for argv in launch.before:
        run.run(argv, timeout_s=_START_TIMEOUT_S, echo=False, env=env)
    with log.open("wb") as stream:
        begun = time.monotonic()
        child = subprocess.Popen(
            launch.argv, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            _await(child, port, first, log)
            yield Running(port, mark), time.monotonic() - begun
        finally:
            end(child, mark)


def _await(child: subprocess.Popen, port: int, first: Exchange, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            post(port, first)
            return
        except ProgramFailed as error:
            final = isinstance(error, Refused) and error.status not in _NOT_YET
            if child.poll() is None and time.monotonic() < deadline and not final:
                time.sleep(_POLL_S)
                continue
            last = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ProgramFailed(
                f"it did not start to answer ({error}); it said last: {' / '.join(last)}"
            ) from error


def end(child: subprocess.Popen, mark: str) -> None:
    """Ends a server and all that it started, also what has left its process group."""
    child.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_GRACE_S)
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


def marked(mark: str) -> list[int]:
    """The processes whose environment has the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{_MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def memory_of(pids: Sequence[int]) -> Memory:
    """The memory of processes together; what is no more counts nothing."""
    texts = []
    for pid in pids:
        with contextlib.suppress(OSError):
            texts.append(Path(f"/proc/{pid}/status").read_text())
    return joined([resident(text) for text in texts])


def resident(status: str) -> Memory:
    """A process's pages, from its /proc/PID/status."""
    found = {name: int(size) / 1024 for name, size in re.findall(r"Rss(\w+):\s*(\d+) kB", status)}
    return Memory(found.get("Anon", 0.0) + found.get("Shmem", 0.0), found.get("File", 0.0))


def joined(parts: Sequence[Memory]) -> Memory:
    """The memory of several processes that share their files' pages."""
    return Memory(sum(part.anonymous for part in parts), max((part.files for part in parts), default=0.0))
