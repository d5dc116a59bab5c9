"""The Docker SDK, whose failures become ours. It is imported when a container is made, and not before."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from deploy import engine
from pipeline.errors import ProgramFailed

_ASK_S = 60


class Refused(ProgramFailed):
    """The engine answered, and said no; `why` is what it said."""

    def __init__(self, doing: str, why: str):
        super().__init__(f"the Docker engine could not {doing}: {why}")
        self.why = why


@contextlib.contextmanager
def speaking(doing: str, timeout_s: float | None = _ASK_S) -> Iterator[Any]:
    """A client of this machine's engine (docker.DockerClient), for doing what `doing` says.

    Raises Refused with the engine's own words, or EngineSilent where there is no answer.
    """
    import requests

    # Not by an import: type checkers take the repository's folder docker/ for it.
    docker = importlib.import_module("docker")

    client = None
    try:
        client = docker.DockerClient(base_url=engine.address(), timeout=timeout_s)
        yield client
    except docker.errors.APIError as error:
        raise Refused(doing, str(error.explanation or error).strip()) from error
    except (docker.errors.DockerException, requests.RequestException, OSError) as error:
        raise engine.silent(error) from error
    finally:
        if client is not None:
            client.close()
