"""What runs a version or a router: a process, or a container. Both are told alive or not, stopped, and written down."""

from collections.abc import Mapping

from deploy.engine import Container
from pipeline.run import Process

Handle = Process | Container
"""Has `alive()` and `stop(grace_s)`; as a text, what people call it. Never names another one later."""


def document(handle: Handle) -> dict:
    """A handle as JSON writes it."""
    if isinstance(handle, Container):
        return {"container": handle.id, "name": handle.name, "setup": handle.setup}
    return {"pid": handle.pid, "born": handle.born}


def read(said: Mapping) -> Handle:
    """The handle among the members of a document. Raises KeyError, TypeError or ValueError where there is none."""
    if "container" in said:
        return Container(str(said["container"]), str(said["name"]), str(said["setup"]))
    return Process(int(said["pid"]), int(said["born"]))


def tag(handle: Handle) -> str:
    """A short name without dots, which no other handle shares while this one lives."""
    return handle.id[:12] if isinstance(handle, Container) else str(handle.pid)
