"""A proxy before a real registry that fails as a test asks: refuses, cuts connections, lies, demands tokens."""

import http.client
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_NOT_PASSED_ON = {"connection", "transfer-encoding", "keep-alive"}


@dataclass(frozen=True)
class Asked:
    """A request as it came. `nth` counts those with this method, from 1."""

    method: str
    path: str
    headers: Mapping[str, str]
    nth: int


@dataclass
class Fault:
    """What happens instead of an answer: this status, or a cut after so many bytes of the body.

    With `leak` the bytes until the cut reach the registry; with `lose` all of them do, and only the answer is cut.
    `changed` are headers that the registry's answer gets instead of its own.
    """

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int = -1
    leak: bool = False
    lose: bool = False
    changed: Mapping[str, str | None] | None = None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Nothing: a client that was killed is no error of the proxy."""


class FaultyProxy:
    """Stands on a port of its own before the registry on `port`. Counts what it was asked and the bytes that came."""

    def __init__(self, port: int, fault: Callable[[Asked], Fault | None] = lambda asked: None):
        self.fault = fault
        self.asked: list[Asked] = []
        self.received = Counter()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self, port))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def bytes_sent(self) -> int:
        """The bytes of all bodies that clients sent."""
        return sum(self.received.values())

    def note(self, method: str, path: str, headers) -> Asked:
        with self._lock:
            nth = sum(one.method == method for one in self.asked) + 1
            self.asked.append(Asked(method, path, dict(headers), nth))
            return self.asked[-1]

    def count(self, method: str, size: int) -> None:
        with self._lock:
            self.received[method] += size


def _handler(proxy: FaultyProxy, port: int):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self):
            asked = proxy.note(self.command, self.path, self.headers)
            size = int(self.headers.get("Content-Length") or 0)
            fault = proxy.fault(asked) or Fault()
            wanted = size if fault.cut_after < 0 else fault.cut_after
            body = self.rfile.read(wanted)
            proxy.count(self.command, len(body))
            if fault.cut_after >= 0:
                if fault.leak:
                    self.leak(body, size)
                self.close_connection = True
                return
            if fault.status:
                self.reply(
                    fault.status, {"Content-Length": str(len(fault.body)), **fault.headers}, fault.body
                )
                self.close_connection = "Content-Length" in fault.headers  # it promised more than it gave
                return
            if len(body) < size:  # the client is gone
                self.close_connection = True
                return
            status, headers, content = self.forward(body)
            if fault.lose:
                self.close_connection = True
                return
            headers = {**headers, **(fault.changed or {})}
            self.reply(status, {name: text for name, text in headers.items() if text is not None}, content)

        def forward(self, body: bytes):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            kept = {name: text for name, text in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            connection.request(self.command, self.path, body, kept)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            headers = {n: t for n, t in answer.getheaders() if n.lower() not in _NOT_PASSED_ON}
            if self.command != "HEAD":
                headers["Content-Length"] = str(len(content))
            return answer.status, headers, content

        def leak(self, body: bytes, size: int) -> None:
            """Half a request for the registry, as when a line breaks."""
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True)
            for name, text in self.headers.items():
                if name.lower() not in _NOT_PASSED_ON:
                    connection.putheader(name, text)
            connection.endheaders()
            connection.send(body)
            assert len(body) < size
            connection.close()

        def reply(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_):
            """Nothing: the test looks at what was asked."""

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer

    return Handler


class TokenService:
    """A fault that demands a token, and itself hands tokens out below /token; each is good for so many requests."""

    def __init__(self, good_for: int):
        self.good_for = good_for
        self.given: list[str] = []
        self.left: Counter = Counter()
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Fault | None:
        parts = urlsplit(asked.path)
        with self._lock:
            if parts.path == "/token":
                self.given.append(parts.query)
                token = f"token-{len(self.given)}"
                self.left[token] = self.good_for
                return Fault(200, body=b'{"token": "%s", "expires_in": 300}' % token.encode())
            token = asked.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.left[token] > 0:
                self.left[token] -= 1
                return None
        realm = (
            f'Bearer realm="http://{asked.headers["Host"]}/token",service="r",scope="repository:a:pull,push"'
        )
        return Fault(401, {"WWW-Authenticate": realm})
