"""Asks a real server what nobody should, over REST and gRPC, and looks at each answer: `python -m bench.serve.fuzz`.

Request number N of a seed is the same each time; `--only N` sends it alone, and prints its bytes. Requests whose
answers are known are among them. A fault is an answer that is malformed, late, of an unforeseen status, or that shows a
traceback; a bug that the server logs; its end; memory that grows.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report
from bench.serve import fuzz_answers, fuzz_grpc, fuzz_rest, process
from bench.serve.fuzz_answers import Fault
from pipeline import run
from pipeline.errors import ProgramFailed, TidegateError

_ANSWER_S = 20
_RELOAD_S = 1.0
_START_S = 60
_CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}
_BROKEN_MESSAGE = "Exception deserializing request!"  # grpcio's word for bytes that are no such message
_GOOD_EVERY = 20
_RELOAD_EVERY = 500
_GROWTH_MIB = 96
_SHOWN_FAULTS = 20


@dataclass
class Tally:
    """What came of it. To be used by several threads."""

    asked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    slowest_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, seconds: float) -> None:
        with self.lock:
            self.asked += 1
            self.kinds[kind] += 1
            self.slowest_s = max(self.slowest_s, seconds)

    def fault(self, text: str) -> None:
        with self.lock:
            self.faults.append(text)
        if len(self.faults) <= _SHOWN_FAULTS:
            report.story(f"FAULT {text}")


@dataclass(frozen=True)
class Server:
    """A server process to be fuzzed, and the folder of its models."""

    child: subprocess.Popen
    grpc: int
    rest: int
    folder: Path
    log: Path

    @property
    def memory_mib(self) -> float:
        """Pages without a file, in MiB."""
        return process.memory_of([self.child.pid]).anonymous


def entries(folder: Path) -> str:
    """The models as a ModelConfigList in text format."""
    every = "model_version_policy { all {} }"
    return "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" {every} }}\n'
        for name in ("half", "kinds")
    )


def make_models(folder: Path, versions: int = 2) -> None:
    """Writes the models below `folder`: that many versions of `half`, and `kinds`."""
    made = [sys.executable, "-m", "bench.serve.fuzz_models", str(folder), str(versions)]
    run.run(made, timeout_s=_START_S * 3, echo=False, env={"TF_CPP_MIN_LOG_LEVEL": "2"})


@contextlib.contextmanager
def server(folder: Path, configured: str, flags: Sequence[str] = ()) -> Iterator[Server]:
    """`python -m serve` of a ModelConfigList, until it is ready; killed at the end."""
    config, log = folder / "models.config", folder / "server.log"
    config.write_text(f"model_config_list {{ {configured} }}")
    grpc, rest = process.free_ports(2)
    ports = (f"--port={grpc}", f"--rest_api_port={rest}")
    # A load that fails is not tried for five minutes, in which no other would begin.
    given = (f"--model_config_file={config}", *ports, "--max_num_load_retries=0", *flags)
    with log.open("wb") as stream:
        child = subprocess.Popen([sys.executable, "-m", "serve", *given], stdout=stream, stderr=stream)
        try:
            made_server = Server(child, grpc, rest, folder, log)
            _await(made_server)
            yield made_server
        finally:
            child.kill()
            child.wait()


def _await(server: Server) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.child.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.rest), 1).close()
            return
        time.sleep(0.05)
    raise ProgramFailed(f"the server did not start: {server.log.read_text()[-500:]}")


class Client:
    """One client of the server: a REST connection and a gRPC channel that go on as far as they can."""

    def __init__(self, server: Server, channel: Any):
        self._server = server
        self._channel = channel
        self._connection: socket.socket | None = None
        self._file: Any = None

    def rest(self, case: fuzz_rest.Case) -> str:
        """Sends a case, looks at its answers, and says what they were. Raises Fault."""
        if case.end == fuzz_rest.STAY:
            return self._stay(case)
        with socket.create_connection(("127.0.0.1", self._server.rest), _ANSWER_S) as connection:
            sent = fuzz_answers.send(connection, case.parts)
            if case.end == fuzz_rest.CUT:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "rest cut off"
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            got, rest = fuzz_answers.all_of(
                fuzz_answers.to_the_end(connection), b"HEAD " in b"".join(case.parts)
            )
        if case.answers is not None and sent and len(got) != case.answers:
            raise Fault(f"{len(got)} answers to {case.answers} requests; the last: {got[-1:]}")
        if rest:
            raise Fault(f"no answer at the end: {rest[:200]!r}")
        return f"rest {got[-1] if got else 'closed'}"

    def _stay(self, case: fuzz_rest.Case) -> str:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._server.rest), _ANSWER_S)
            self._file = self._connection.makefile("rb")
        try:
            for part in case.parts:
                self._connection.sendall(part)
            answer = fuzz_answers.one(self._file)
        except OSError as error:
            self.close()
            raise Fault(f"connection: {error!r}") from error
        except BaseException:
            self.close()
            raise
        if answer is None or answer.closes:
            self.close()
        if answer is None:
            raise Fault("closed without an answer")
        return f"rest {answer.status}"

    def ask_good(self, value: float) -> str:
        """Asks both ports what has a known answer. Raises Fault where it is another one."""
        asked = http.client.HTTPConnection("127.0.0.1", self._server.rest, timeout=_ANSWER_S)
        with contextlib.closing(asked):
            asked.request("POST", "/v1/models/half:predict", json.dumps({"instances": [value]}))
            answer = asked.getresponse()
            text = answer.read()
        if answer.status != 200 or json.loads(text) != {"predictions": [value / 2 + 2]}:
            raise Fault(f"a good request to REST got {answer.status} {text!r}")
        code, message = self._call(fuzz_grpc.good(value), _ANSWER_S)
        if code != "OK" or fuzz_grpc.answer_of(message) != [value / 2 + 2]:
            raise Fault(f"a good request to gRPC got {code} {message!r}")
        return "good"

    def grpc(self, case: fuzz_grpc.Case) -> str:
        """Calls a method, looks at its answer, and says what it was. Raises Fault."""
        code, told = self._call(case, _ANSWER_S)
        fuzz_answers.no_leak(told)
        if code not in _CODES and not (code == "INTERNAL" and told == _BROKEN_MESSAGE.encode()):
            raise Fault(f"{code} {told[:500]!r}")
        return f"grpc {'broken message' if code == 'INTERNAL' else code}"

    def reload(self, case: fuzz_grpc.Case) -> str:
        """Changes the configuration, and changes it back. Raises Fault."""
        code, told = self._call(case, _RELOAD_S)
        fuzz_answers.no_leak(told)
        # A model that is never there is waited for, as long as the client does.
        if code not in _CODES | {"DEADLINE_EXCEEDED", "UNKNOWN", "ABORTED"}:
            raise Fault(f"reload: {code} {told[:500]!r}")
        back, told = self._call(fuzz_grpc.restored(entries(self._server.folder)), _ANSWER_S)
        if back != "OK":
            raise Fault(f"the first configuration was not taken back: {back} {told!r}")
        return f"reload {code}"

    def _call(self, case: fuzz_grpc.Case, timeout_s: float) -> tuple[str, bytes]:
        import grpc

        try:
            return "OK", self._channel.unary_unary(case.method)(case.message, timeout=timeout_s)
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "").encode("utf-8", "surrogateescape")

    def close(self) -> None:
        """Ends the connection; the next request opens another."""
        if self._connection is not None:
            self._file.close()
            self._connection.close()
            self._connection = None


# --- many requests ---


class Fuzz:
    """Sends the requests of a seed by several clients."""

    def __init__(self, server: Server, seed: int):
        self._server = server
        self._seed = seed
        self.tally = Tally()
        self._reloading = threading.Lock()

    def all(self, count: int, clients: int) -> Tally:
        """Sends `count` requests; stops when the server has ended or faults are many."""
        fuzz_grpc.ready()
        share = [range(first, count, clients) for first in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._some, share))
        self._look_at_server()
        return self.tally

    def one(self, number: int) -> Tally:
        """Sends one request alone, and prints it."""
        print(repr(self._made(number)))
        self._some([number])
        self._look_at_server()
        return self.tally

    def _some(self, numbers: Sequence[int]) -> None:
        import grpc

        # A channel of its own: one broken connection is not everybody's.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0),
                   ("grpc.max_receive_message_length", -1)]  # fmt: skip
        with grpc.insecure_channel(f"127.0.0.1:{self._server.grpc}", options=options) as channel:
            client = Client(self._server, channel)
            for number in numbers:
                if self._server.child.poll() is not None or len(self.tally.faults) >= _SHOWN_FAULTS:
                    break
                self._step(client, number)
                if number % 1000 == 0:
                    self._sample(number)
            client.close()

    def _made(self, number: int) -> fuzz_rest.Case | fuzz_grpc.Case | None:
        """A request by its number; None is one whose answer is known."""
        rng = random.Random(f"{self._seed}:{number}")
        if number % _GOOD_EVERY == _GOOD_EVERY - 1:
            return None
        if number % _RELOAD_EVERY == _RELOAD_EVERY // 2:
            return fuzz_grpc.reload(rng, entries(self._server.folder))
        return fuzz_rest.case(rng) if rng.random() < 0.6 else fuzz_grpc.case(rng)

    def _step(self, client: Client, number: int) -> None:
        case, begun = self._made(number), time.monotonic()
        try:
            kind = self._sent(client, case, number)
        except (Fault, OSError) as error:
            kind = "fault"
            shown = repr(case)
            self.tally.fault(
                f"{error} (--seed {self._seed} --only {number}; after {time.monotonic() - begun:.1f} s): "
                f"{shown[:3000]}{'…' if len(shown) > 3000 else ''}"
            )
        self.tally.add(kind, time.monotonic() - begun)

    def _sent(self, client: Client, case: fuzz_rest.Case | fuzz_grpc.Case | None, number: int) -> str:
        if case is None:
            return client.ask_good(float(number % 1000))
        if isinstance(case, fuzz_rest.Case):
            return client.rest(case)
        if case.method == fuzz_grpc.RELOAD:
            with self._reloading:
                return client.reload(case)
        return client.grpc(case)

    def _sample(self, number: int) -> None:
        memory = self._server.memory_mib
        self.tally.memory_mib.append(memory)
        if number % 10_000 == 0:
            report.story(f"{number} requests, {memory:.0f} MiB, {len(self.tally.faults)} faults")

    def _look_at_server(self) -> None:
        tally, server = self.tally, self._server
        if server.child.poll() is not None:
            tally.fault(
                f"the server ended: {server.child.returncode}: {server.log.read_text(errors='replace')[-2000:]}"
            )
        else:
            tally.memory_mib.append(server.memory_mib)
        for line in server.log.read_text(errors="replace").splitlines():
            if " E bug " in line or line.startswith("Traceback"):
                tally.fault(f"the server logged: {line[:1500]}")
        # The first fifth fills caches, pools and the allocator's arenas.
        settled = tally.memory_mib[len(tally.memory_mib) // 5 :]
        if settled and settled[-1] - settled[0] > _GROWTH_MIB:
            tally.fault(f"memory grew from {settled[0]:.0f} to {settled[-1]:.0f} MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzzes a server; 0 if nothing was wrong."""
    options = _options(argv)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-fuzz-")))
        begun = time.monotonic()
        try:
            make_models(folder)
            target = stack.enter_context(server(folder, entries(folder), options.flags))
        except TidegateError as error:
            print(f"bench fuzz: {error}", file=sys.stderr)
            return error.exit_code
        fuzz = Fuzz(target, options.seed)
        tally = (
            fuzz.one(options.only)
            if options.only is not None
            else fuzz.all(options.requests, options.clients)
        )
    rows = [["answer", "requests"], *([kind, str(count)] for kind, count in sorted(tally.kinds.items()))]
    print(report.table(rows))
    memory = tally.memory_mib
    seconds = time.monotonic() - begun
    print(f"seed {options.seed}: {tally.asked} requests in {seconds:.0f} s, slowest {tally.slowest_s:.1f} s, "
          f"memory {memory[len(memory) // 5]:.0f} MiB after warm-up, {memory[-1]:.0f} MiB at the end, "
          f"{len(tally.faults)} faults")  # fmt: skip
    return 1 if tally.faults else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (%(default)s)")
    parser.add_argument("--clients", type=int, default=4, help="threads that send (%(default)s)")
    parser.add_argument(
        "--only", type=int, metavar="N", help="send request N of the seed alone, and print it"
    )
    parser.add_argument("flags", nargs="*", help="further flags of the server, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
