"""HTTP to servers on this machine: one question, or many over one connection."""

import json
from types import TracebackType


class Session:
    """A connection that is kept between questions, and made again after a failure.

    `address` is HOST:PORT. Raises OSError where no answer comes within `timeout_s`.
    """

    def __init__(self, address: str, timeout_s: float):
        import http.client  # takes 20 ms to import; commands that ask nothing do without

        host, _, port = address.rpartition(":")
        self._failure = http.client.HTTPException
        self._connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except self._failure as error:
            self._connection.close()
            raise OSError(f"no HTTP answer: {error!r}") from error
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()


def ask(address: str, method: str, path: str, *, timeout_s: float) -> tuple[int, bytes]:
    """One question over a connection of its own: the status and the body of the answer."""
    with Session(address, timeout_s) as session:
        return session.ask(method, path)


def get_json(address: str, path: str, *, timeout_s: float) -> dict:
    """The answer to a GET, read as JSON; OSError if it is not a 200 with JSON."""
    status, body = ask(address, "GET", path, timeout_s=timeout_s)
    if status != 200:
        raise OSError(f"{path} answered {status}")
    try:
        return json.loads(body)
    except ValueError as error:
        raise OSError(f"{path} answered no JSON: {error}") from error
