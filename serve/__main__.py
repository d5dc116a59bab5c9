"""The model server's command line: `python -m serve --help`."""

import os
import sys
import time
from importlib import metadata
from typing import NoReturn

from serve import log
from serve.flags import Flags, UsageError, parse, usage
from serve.status import ServingError

_REFUSED = 255


def main(arguments: list[str]) -> int:
    """Runs the server to its end and returns the exit status: 0, or 255 if it could not start."""
    began = time.monotonic()
    try:
        line = parse(arguments)
    except UsageError as error:
        print(f"{error}\n\n{usage()}", flush=True)
        return _REFUSED
    if line.flags.help:
        print(usage(), end="")
        return 0
    if line.flags.version:
        print(
            f"TensorFlow ModelServer: {metadata.version('tensorflow-serving-api')} (contract; python -m serve)"
        )
        print(f"TensorFlow Library: {_tensorflow_version()}")
        return 0
    if line.unknown:
        print("".join(f"unknown argument: {argument}\n" for argument in line.unknown) + usage(), flush=True)
    log.write_as(line.flags.log_format)
    for name in line.idle:
        log.warning("flag without effect here", flag=f"--{name}")
    return _serve(line.flags, began)


def _serve(flags: Flags, began: float) -> int:
    from serve.server import serve

    try:
        serve(flags, began)
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        return _REFUSED
    return 0


def _tensorflow_version() -> str:
    for name in ("tensorflow-cpu", "tensorflow"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def _leave(status: int) -> NoReturn:
    """Ends at once: threads that still run a model are not waited for, and cannot crash the interpreter's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
