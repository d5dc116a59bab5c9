"""A real S3 server on the loopback for tests (SeaweedFS), and a proxy that makes trouble on the way to it.

Test modules take the fixtures by `pytest_plugins`, so that all share one server. PYTEST_DONT_REWRITE
"""

import contextlib
import ctypes
import functools
import http.client
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BUCKET = "tidegate-tests"
ACCESS_KEY, SECRET_KEY = "ACCESSKEY12345678", "SECRETKEY12345678"
_READY_S = 40
_PORTS = ("master", "volume", "filer", "s3")
_DIE_WITH_PARENT = 1  # prctl(2), PR_SET_PDEATHSIG
_HOP_BY_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}


def need_weed() -> str:
    """The path of `weed`. Skips where there is none; where CI is set, that is a failure."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found:
        return found
    remedy = "weed (SeaweedFS) is not installed; make setup installs the locked environment"
    if os.environ.get("CI"):
        pytest.fail(remedy)
    return pytest.skip(remedy)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, between those of `support_ports` and those that the system hands out."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = random.randrange(24_000, 32_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


class Weed:
    """A SeaweedFS server with its data in `folder`. It ends when this process does, however that ends."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._child: subprocess.Popen | None = None
        ports = free_ports(2 * len(_PORTS))
        self._ports = dict(zip(_PORTS, ports[: len(_PORTS)], strict=True))
        self._grpc = dict(zip(_PORTS, ports[len(_PORTS) :], strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"

    def start(self) -> None:
        """Starts the server, waits until it answers, and makes the bucket."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("w") as log:
            self._child = subprocess.Popen(
                self._argv(), stdout=log, stderr=log, preexec_fn=_die_with_parent, start_new_session=True
            )
        deadline = time.monotonic() + _READY_S
        while not self._make_bucket():
            log_text = (self.folder / "log").read_text()
            assert self._child.poll() is None, f"weed ended:\n{log_text[-3000:]}"
            assert time.monotonic() < deadline, f"weed was not ready in {_READY_S} s:\n{log_text[-3000:]}"
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends the server for good, and waits until it has. Its data goes with it, so it need not tidy up."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        for name, port in self._grpc.items():  # no flag moves these
            Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)

    def _argv(self) -> list[str]:
        identity = {
            "name": "ci",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (self.folder / "data").mkdir(exist_ok=True)
        ports = [f"-{name}.port={port}" for name, port in self._ports.items()]
        grpc = [f"-{name}.port.grpc={port}" for name, port in self._grpc.items()]
        return [
            *(need_weed(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder / 'data'}"),
            *("-filer", "-s3", f"-s3.config={self.folder / 's3.json'}", *ports, *grpc),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"),
            *("-master.volumeSizeLimitMB=256", "-volume.max=0", "-master.telemetry=false"),
            *(
                f"-filer.localSocket={self.folder / 'filer.sock'}",
                f"-s3.localSocket={self.folder / 's3.sock'}",
            ),
        ]

    def _make_bucket(self) -> bool:
        """Whether the bucket is there and objects can be written (the volumes come up after the door)."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client = plain_client(self.endpoint)
            with contextlib.suppress(client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except (BotoCoreError, ClientError):
            return False
        return True


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@functools.cache
def plain_client(endpoint: str):
    """boto3 without any of our own code, for looking behind its back."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(connect_timeout=2, read_timeout=20, retries={"total_max_attempts": 1}),
    )


def environment(endpoint: str) -> dict[str, str]:
    """The variables that lead boto3 to `endpoint`, whatever this machine's own settings are."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


FOREIGN = ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")


@pytest.fixture(scope="session")
def weed(tmp_path_factory) -> Iterator[Weed]:
    """The one server of the session."""
    server = Weed(tmp_path_factory.mktemp("weed"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def aws(monkeypatch, weed) -> Callable[[str], None]:
    """Points this test and its children at an endpoint; at the server itself to begin with."""

    def point(endpoint: str) -> None:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)

    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    point(weed.endpoint)
    return point


@pytest.fixture
def proxy(weed, aws) -> Iterator["Proxy"]:
    """A proxy in front of the server, which the environment names as the endpoint."""
    with Proxy(weed.endpoint) as between:
        aws(between.endpoint)
        yield between


@dataclass(frozen=True)
class Request:
    """A request as the proxy saw it. `query` holds the names and values behind the question mark."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass
class Fault:
    """What happens to the next `times` requests of a method that `matching` is true of, after `after` of them.

    `kind` is the name of a method of _Handler: answer, slow, hang, cut_request, cut_answer, lose_answer,
    forget_condition.
    """

    kind: str
    method: str
    times: int = 1
    after: int = 0
    matching: Callable[[Request], bool] = lambda request: True
    status: int = 500
    code: str = "InternalError"
    seconds: float = 0.0
    met: int = field(default=0, init=False)

    def strikes(self, request: Request) -> bool:
        """Whether this request is one of them."""
        if request.method != self.method or not self.matching(request):
            return False
        self.met += 1
        return self.after < self.met <= self.after + self.times


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that hung up, or was killed, is what these tests are about; all else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Proxy:
    """An HTTP proxy between boto3 and the server. Counts what passes, and does as `faults` say."""

    def __init__(self, behind: str):
        self.behind = urllib.parse.urlsplit(behind).netloc
        self.faults: list[Fault] = []
        self.seen: list[Request] = []
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def meet(self, request: Request) -> Fault | None:
        """Notes a request; the fault that strikes it, if one does."""
        with self._lock:
            self.seen.append(request)
            return next((fault for fault in self.faults if fault.strikes(request)), None)

    def count(self, method: str, *names: str) -> int:
        """How many requests of a method came that carry these names in the query."""
        with self._lock:
            return sum(r.method == method and set(names) <= set(r.query) for r in self.seen)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Passes one request after the other of a connection on, or spoils it."""

    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        path = urllib.parse.unquote(parts.path)
        request = Request(self.command, path, query, {k.lower(): v for k, v in self.headers.items()})
        fault = self.server.proxy.meet(request)
        if fault is None:
            self._pass_on(self._body())
        else:
            getattr(self, fault.kind)(fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def answer(self, fault: Fault) -> None:
        """Answers as a server in trouble would, without asking the one behind."""
        self._body()
        text = f"<Error><Code>{fault.code}</Code><Message>as the test asked</Message></Error>".encode()
        self._answer(fault.status, {"Content-Type": "application/xml"}, text)

    def slow(self, fault: Fault) -> None:
        """Passes the request on late."""
        body = self._body()
        time.sleep(fault.seconds)
        self._pass_on(body)

    def hang(self, fault: Fault) -> None:
        """Takes the request and says nothing, until the test is over."""
        self._body()
        self.server.proxy.over.wait(60)
        self._hang_up()

    def cut_request(self, fault: Fault) -> None:
        """Closes when half of the request has come."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        self._hang_up()

    def cut_answer(self, fault: Fault) -> None:
        """Closes when half of the answer has gone."""
        status, headers, data = self._ask(self._body())
        self._answer(status, headers, data, send=len(data) // 2)
        self._hang_up()

    def lose_answer(self, fault: Fault) -> None:
        """Passes the request on, and closes without a word of what came of it."""
        self._ask(self._body())
        self._hang_up()

    def forget_condition(self, fault: Fault) -> None:
        """Does what servers do that do not know conditional writes: writes. (By boto3: the condition is signed.)"""
        bucket, _, key = urllib.parse.unquote(self.path)[1:].partition("/")
        client = plain_client(f"http://{self.server.proxy.behind}")
        client.put_object(Bucket=bucket, Key=key, Body=self._body())
        self._answer(200, {"ETag": '"0"'}, b"")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _pass_on(self, body: bytes) -> None:
        self._answer(*self._ask(body))

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the server behind answers. Host stays as it came, because the signature covers it."""
        connection = http.client.HTTPConnection(self.server.proxy.behind, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
            told = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            told["Content-Length"] = str(len(data))
            if self.command == "HEAD" and answer.getheader("Content-Length"):
                told["Content-Length"] = answer.getheader("Content-Length")
            return answer.status, told, data

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes, send: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:send])

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args) -> None:
        """Tests look at `seen`."""
