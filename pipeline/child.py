"""The process that a stage runs in: `python -m pipeline.child TASK.json`.

A process of its own keeps one stage's TensorFlow, settings of the environment and memory away from the
next, and lets Ctrl-C end a stage without ending the run. It reads a task, calls the stage's function,
and writes what came of it beside the task, as `….result.json`.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pipeline import config
from pipeline.bucket_file import disk_errors
from pipeline.errors import TidegateError
from pipeline.stages import Context, Facts, Inputs

_PR_SET_PDEATHSIG = 1
_AGAIN_S = 0.02


def main(task_path: Path) -> int:
    """Runs one stage. Exit status 0 if its function returned a result, else that of its error."""
    task = json.loads(task_path.read_text())
    _end_with(task["parent"])
    try:
        context = _context(task)
        with disk_errors(context.out):
            result = function(task["function"])(context)
        answer: dict[str, Any] = {"result": dataclasses.asdict(result)}
        status = 0
    except TidegateError as error:
        answer = {"error": type(error).__name__, "text": str(error), "exit_code": error.exit_code}
        status = error.exit_code
    partial = task_path.with_suffix(".partial")
    partial.write_text(json.dumps(answer))
    partial.replace(result_path(task_path))
    return status


def result_path(task_path: Path) -> Path:
    """Where the child answers."""
    return task_path.with_suffix(".result.json")


def function(dotted: str) -> Callable:
    """The function behind a dotted name, as `train.fit.train`."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _context(task: dict) -> Context:
    settings = config.load(Path(task["settings"]))
    if task["smoke"]:
        settings = config.smoke(settings)
    return Context(
        settings=settings,
        facts=Facts(**task["facts"]),
        inputs=cast("Inputs", {name: Path(path) if path else None for name, path in task["inputs"].items()}),
        out=Path(task["out"]),
        work=Path(task["work"]),
        state=Path(task["state"]),
        root=Path(task["root"]),
    )


def _end_with(parent: int) -> None:
    """Ends this process when process `parent` dies (Linux), and turns SIGTERM into SystemExit."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    def lost(what: "sys.UnraisableHookArgs") -> None:
        # The signal came where Python lets no exception out (a finalizer): a moment later it comes somewhere else.
        if isinstance(what.exc_value, SystemExit):
            again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = lost
    signal.signal(signal.SIGTERM, leave)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        leave()


if __name__ == "__main__":
    exit_status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; taking TensorFlow down in good order would cost one to two seconds a stage.
    os._exit(exit_status)
