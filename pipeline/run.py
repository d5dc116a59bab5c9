"""The one door to other programs.

Argument lists, never strings; echoed first; always a timeout; both pipes read together.
Never put a secret in an argument: pass it by `env` or `stdin`.
"""

import contextlib
import os
import select
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from pipeline.errors import ProgramFailed

_REMEDY = "make setup installs what the pipeline needs; make doctor lists what this machine lacks"
_QUIT_GRACE_S = 5.0
_PIPE_BYTES = 1 << 16


class TimedOut(ProgramFailed):
    """A program did not end in its time, and was stopped."""


class Flooded(ProgramFailed):
    """A program wrote more than memory should hold, and was stopped."""


@dataclass(frozen=True)
class Done:
    """A finished program: its exit status and all that it wrote."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def find(program: str) -> str:
    """The path of `program`: beside this Python first (the locked environment), then on PATH.

    Raises ProgramFailed naming what to install when it is nowhere.
    """
    if os.sep in program:
        return program
    beside = Path(sys.executable).parent / program
    if beside.is_file() and os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which(program)
    if found is None:
        raise ProgramFailed(f"{program} is not on PATH. {_REMEDY}.")
    return found


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str | None = None,
    check: bool = True,
    echo: bool = True,
    bytes_at_most: int = 256 << 20,
) -> Done:
    """Runs a program to its end and returns what it wrote.

    `env` is added to this process's environment; None takes a variable out. With `check`, a nonzero exit raises
    ProgramFailed with the end of its stderr; a timeout raises always, and kills the
    program together with its children; so does output of more than `bytes_at_most`.
    """
    argv = [find(argv[0]), *argv[1:]]
    if echo:
        show(argv)
    child = _spawn(
        argv, cwd, env, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL, pipes=True
    )
    try:
        stdout, stderr = _converse(child, Path(argv[0]).name, stdin, timeout_s, bytes_at_most)
    except subprocess.TimeoutExpired:
        stop(child)
        raise TimedOut(
            f"{Path(argv[0]).name} did not end within {timeout_s:g} s and was stopped: {shlex.join(argv)}"
        ) from None
    except BaseException:
        stop(child)
        raise
    done = Done(tuple(argv), child.returncode, stdout, stderr)
    if check and done.returncode != 0:
        raise ProgramFailed(_failure(done))
    return done


def _converse(
    child: subprocess.Popen, name: str, stdin: str | None, timeout_s: float, bytes_at_most: int
) -> tuple[str, str]:
    """What a program writes, both pipes read together while it is given its input; not more than memory should hold."""
    deadline, given = time.monotonic() + timeout_s, memoryview((stdin or "").encode())
    outputs = [pipe for pipe in (child.stdout, child.stderr) if pipe is not None]
    written: dict[IO[bytes], bytearray] = {pipe: bytearray() for pipe in outputs}
    with selectors.DefaultSelector() as ready:
        for pipe in written:
            ready.register(pipe, selectors.EVENT_READ)
        if child.stdin is not None:
            ready.register(child.stdin, selectors.EVENT_WRITE)
        while ready.get_map():
            events = ready.select(max(deadline - time.monotonic(), 0))
            if not events and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(child.args, timeout_s)
            for pipe in (cast("IO[bytes]", key.fileobj) for key, _ in events):
                if pipe is child.stdin:
                    given = _feed(pipe, given)
                    ended = not given
                else:
                    data = os.read(pipe.fileno(), _PIPE_BYTES)
                    written[pipe] += data
                    ended = not data
                if ended:
                    ready.unregister(pipe)
                    pipe.close()
            if sum(map(len, written.values())) > bytes_at_most:
                raise Flooded(f"{name} wrote more than {bytes_at_most >> 20} MiB and was stopped.")
    child.wait(max(deadline - time.monotonic(), 0))
    stdout, stderr = (data.decode(errors="replace").replace("\r\n", "\n") for data in written.values())
    return stdout, stderr


def _feed(pipe: IO[bytes], given: memoryview) -> memoryview:
    """Writes what the pipe takes without waiting; returns what is left. A program may end without having read all."""
    try:
        return given[os.write(pipe.fileno(), given[: select.PIPE_BUF]) :]
    except BrokenPipeError:
        return given[:0]


def attend(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    grace_s: float | None = None,
    late: str = "",
) -> int:
    """Runs a program whose output belongs on this terminal; returns its exit status.

    The program gets a process group of its own, so that Ctrl-C reaches it once, from
    here, and nothing that it started is left behind: it has `grace_s` seconds (5) to
    end after SIGTERM. stdout is sent to stderr: it is the story, not the result.
    `late` is what ProgramFailed says of one that is out of time.
    """
    child = _spawn([find(argv[0]), *argv[1:]], cwd, env, stdin=subprocess.DEVNULL, pipes=False)
    try:
        return child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimedOut(
            late or f"{Path(argv[0]).name} did not end within {timeout_s:g} s and was stopped."
        ) from None
    finally:
        stop(child, grace_s)


@dataclass(frozen=True)
class Process:
    """A process that outlives the command that started it: its id, and when it was born.

    Process ids are used again; an id together with its birth (clock ticks since boot) is not.
    """

    pid: int
    born: int

    def __str__(self) -> str:
        return f"process {self.pid}"

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.born != 0 and _born(self.pid) == self.born

    def stop(self, grace_s: float) -> None:
        """Asks it to end (SIGTERM), and ends it after `grace_s` seconds. No error if it is gone."""
        for sign, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _QUIT_GRACE_S)):
            if not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sign)
            deadline = time.monotonic() + patience_s
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.02)


def start(argv: Sequence[str], *, log: Path, env: Mapping[str, str | None] | None = None) -> Process:
    """Starts a server that outlives this command; its output is appended to `log`.

    A launcher (`pipeline/detach.py`) hands the server to init before it begins, because
    some servers stop when the process that started them ends.
    """
    argv = [find(argv[0]), *map(str, argv[1:])]
    show(argv)
    log.parent.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, "-S", str(Path(__file__).with_name("detach.py")), str(log), *argv]
    done = run(launcher, timeout_s=30, env=env, echo=False)
    pid = int(done.stdout)
    return Process(pid, _born(pid))


def _born(pid: int) -> int:
    """When process `pid` started, in clock ticks since boot (proc(5), field 22); 0 if it is no more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    is_zombie = fields[0] == "Z" and int(fields[17]) <= 1  # else its other threads still hold its ports
    return 0 if is_zombie else int(fields[19])


def show(argv: Sequence[str]) -> None:
    """Echoes a command line to stderr."""
    print(f"  $ {shlex.join([Path(argv[0]).name, *map(str, argv[1:])])}", file=sys.stderr, flush=True)


def stop(child: subprocess.Popen, grace_s: float | None = None) -> None:
    """Ends a child and all that it started: SIGTERM first, SIGKILL after a grace."""
    grace_s = _QUIT_GRACE_S if grace_s is None else grace_s
    for sign, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _QUIT_GRACE_S)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    child.poll()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def _spawn(
    argv: Sequence[str], cwd: Path | None, env: Mapping[str, str | None] | None, *, stdin: int, pipes: bool
) -> subprocess.Popen:
    try:
        return subprocess.Popen(
            argv,
            cwd=cwd,
            env={name: text for name, text in {**os.environ, **(env or {})}.items() if text is not None},
            stdin=stdin,
            stdout=subprocess.PIPE if pipes else sys.stderr.fileno(),
            stderr=subprocess.PIPE if pipes else None,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramFailed(f"{argv[0]} could not be started: {error.strerror}. {_REMEDY}.") from error


def _failure(done: Done) -> str:
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return f"{Path(done.argv[0]).name} failed with exit status {done.returncode}: " + "\n".join(said[-15:])
