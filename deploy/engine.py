"""The Docker engine of this machine, asked over its socket: what a container does, and its end.

Those who only look (`make status`, what stands) come through here and load nothing heavy; containers are made
through the SDK (deploy/targets/docker.py). Engine API: https://docs.docker.com/reference/api/engine/version/v1.41/
"""

import json
import os
import socket
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ProgramFailed

_API = "/v1.40"  # Docker 19.03, and whatever came after it
_ASK_S = 10.0
_GONE_S = 10.0
_POLL_S = 0.02
_SOCKET = "unix:///var/run/docker.sock"


class EngineSilent(ProgramFailed):
    """The engine does not answer, so nothing is known of its containers."""


def address() -> str:
    """Where the engine listens, as Docker writes it (`unix://PATH`). Raises ProgramFailed for another machine's."""
    named = os.environ.get("DOCKER_HOST") or _SOCKET
    if not named.startswith("unix://"):
        raise ProgramFailed(
            f"DOCKER_HOST is {named}: the docker target mounts models from this machine and publishes ports on it, "
            "so it needs this machine's own engine. Unset DOCKER_HOST, or let it name a socket (unix://PATH)."
        )
    return named


def silent(why: object) -> EngineSilent:
    """The error for an engine that does not answer."""
    return EngineSilent(
        f"the Docker engine does not answer at {address()}: {why}. Start it (systemctl start docker), let this user "
        "into the group docker, or set target.kind to local."
    )


def ask(method: str, path: str, timeout_s: float = _ASK_S) -> tuple[int, Any]:
    """The status and the document of an answer; {} for one without. Raises EngineSilent where none comes."""
    import http.client  # takes 20 ms to import; where no container runs it is not needed

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(address().removeprefix("unix://"))

    connection = Connection("localhost", timeout=timeout_s)
    try:
        connection.request(method, _API + path)
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body.strip() else {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise silent(error) from error
    finally:
        connection.close()


@dataclass(frozen=True)
class Container:
    """A container: its id, what `docker ps` calls it, and a digest of the options that it was made with.

    An id is never used again. A container that the engine has restarted is the same one.
    """

    id: str
    name: str
    setup: str = ""

    def __str__(self) -> str:
        return f"container {self.name}"

    def look(self) -> Mapping | None:
        """All that the engine says of it (`docker inspect`); None if it is no more."""
        status, said = ask("GET", f"/containers/{self.id}/json")
        if status == 404:
            return None
        if status != 200:
            raise silent(f"it answered {status} when asked for {self}: {said}")
        return said

    def alive(self) -> bool:
        """Whether it runs, or is being restarted."""
        seen = self.look()
        return seen is not None and bool(seen["State"]["Running"] or seen["State"]["Restarting"])

    def stop(self, grace_s: float) -> None:
        """Asks it to end (SIGTERM), ends it after `grace_s` seconds, and removes it. No error if it is gone."""
        ask("POST", f"/containers/{self.id}/stop?t={max(round(grace_s), 0)}", timeout_s=grace_s + _ASK_S)
        self._remove()

    def kill(self) -> None:
        """Ends and removes it at once."""
        self._remove()

    def _remove(self) -> None:
        deadline = time.monotonic() + _GONE_S
        while True:
            status, said = ask("DELETE", f"/containers/{self.id}?force=1&v=1", timeout_s=_ASK_S + _GONE_S)
            if status in (204, 404):
                return
            if time.monotonic() > deadline:
                raise ProgramFailed(
                    f"the Docker engine does not remove {self}: {said}. Run docker rm -f {self.name}."
                )
            time.sleep(_POLL_S)  # 409: somebody else removes it already


def labelled(labels: Mapping[str, str]) -> list[Container]:
    """All containers that have these labels, also those that have ended."""
    wanted = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
    status, said = ask("GET", f"/containers/json?all=1&filters={urllib.parse.quote(wanted)}")
    if status != 200:
        raise silent(f"it answered {status} when asked for its containers: {said}")
    return [Container(one["Id"], one["Names"][0].removeprefix("/")) for one in said if one.get("Names")]
