"""What stands: whether an environment still serves a published digest. Takes a few milliseconds."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path

from deploy import handles
from pipeline.errors import ProgramFailed
from pipeline.stages import Context

_PATIENCE_S = 1.0
_TRIES = 3


def state_file(state: Path, name: str) -> Path:
    """Where an environment's state is kept, below the state folder."""
    return state / "run" / f"{name}.json"


def not_in_staging(context: Context) -> str | None:
    """Why staging does not serve the published digest; None if it does."""
    published = context.inputs.get("publish/published")
    return why_not(context.state, "staging", published) or silent(context, "staging")


def not_in_production(context: Context) -> str | None:
    """Why production does not serve the published digest; None if it does."""
    published = context.inputs.get("publish/published")
    return why_not(context.state, "production", published) or silent(context, "production")


def why_not(state: Path, name: str, published: Path | None) -> str | None:
    """Why an environment does not give all its traffic to this published digest and number; None if it does."""
    try:
        said = json.loads((published / "published.json").read_text()) if published else {}
        digest, number = said["digest"], said["version"]
    except (OSError, ValueError, KeyError):
        return "nothing is published"
    try:
        now = json.loads(state_file(state, name).read_text())
        return _why_not(now, name, digest, number)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name} is not running"


def answers(address: str, port: int, model: str) -> bool:
    """Whether a model's status is answered over REST, and is good."""
    return b" 200 " in _first_words(address, port, model)


def hangs(address: str, port: int, model: str) -> bool:
    """Whether nothing at all is answered, in several tries: a process can run and hang, and one try be unlucky."""
    return not any(_first_words(address, port, model) for _ in range(_TRIES))


def _first_words(address: str, port: int, model: str) -> bytes:
    """The beginning of the answer to a question for a model's status; nothing where none comes within a second."""
    question = f"GET /v1/models/{model} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((address, port), timeout=_PATIENCE_S) as connection:
            connection.settimeout(_PATIENCE_S)
            connection.sendall(question.encode())
            return connection.recv(64)
    except OSError:
        return b""


def silent(context: Context, name: str) -> str | None:
    """Why an environment's public port gives no answer; None if it does."""
    settings = context.settings
    port = getattr(settings, name).rest_port
    if answers(settings.target.address, port, settings.model):
        return None
    return f"{name} does not answer on port {port}"


def _why_not(now: Mapping, name: str, digest: str, wanted: int) -> str | None:
    router = now["router"]
    stable = next((one for one in now["versions"] if one["role"] == "stable"), None)
    if router is None or stable is None:
        return f"{name} is not running"
    number = stable["version"]
    if (stable["digest"], number) != (digest, wanted):
        return f"{name} serves version {number} ({stable['digest'][:19]}…)"
    for what, said in ((f"{name}'s router", router), (f"{name}'s version {number}", stable)):
        ended = _ended(handles.read(said))
        if ended:
            return f"{what} {ended}"
    if now["changing"]:
        return f"{name} was left in the middle of a change"
    if stable["weight"] != 100:
        return f"{name}'s version {number} has {stable['weight']} % of the traffic"
    return None


def _ended(handle: handles.Handle) -> str:
    """That a process or container has ended, or why nobody can say; nothing if it runs."""
    try:
        return "" if handle.alive() else f"({handle}) has ended"
    except ProgramFailed as error:
        return f"({handle}) cannot be looked at: {error}"
