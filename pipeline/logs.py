"""Run reports and TensorBoard logs in the store, under plain names that people and their programs can browse.

    logs/COMMIT/TIME/report/index.html
    logs/COMMIT/TIME/train/log/events.out.tfevents…

These are copies for reading. Evidence are the outputs that records name; nothing reads the copies back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline import ci
from pipeline.digest import Digests
from pipeline.errors import TidegateError
from pipeline.execution import now
from pipeline.runner import Runner
from pipeline.stages import Outcome
from pipeline.store import Store

_STOPPED = "stopped"
_RESULTS = (Outcome.PASSED, Outcome.FAILED, Outcome.NO_DATA)


def collect(store: Store, digests: Digests, place: str, folders: Mapping[str, Path]) -> int:
    """Copies the files below each folder to `logs/PLACE/NAME/…`; returns how many.

    Raises ProgramFailed where the store cannot be written.
    """
    count = 0
    for name, folder in folders.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                to = f"logs/{place}/{name}/{path.relative_to(folder).as_posix()}"
                store.bucket.upload(to, path, digests.file(path))
                count += 1
    return count


def after(runner: Runner) -> None:
    """Collects what a run left to read, if it did anything, on a protected ref or a laptop.

    A failure is a warning: the run came to what it came to.
    """
    ran = [row for row in runner.rows if not row.cached]
    if not ran or ran[-1].outcome == _STOPPED:
        return
    if ci.vendor() != ci.LAPTOP and not ci.is_protected():
        return
    folders = {"report": runner.paths.build / "report"}
    if any(row.stage == "train" and row.outcome in _RESULTS for row in ran):
        folders["train/log"] = runner.paths.build / "train" / "log"
    try:
        collect(runner.store, runner.digests, _place(runner), folders)
    except (TidegateError, OSError) as error:
        print(
            f"! the report was not copied to logs/ in the store; it lies in {folders['report']}. {error}",
            file=sys.stderr,
            flush=True,
        )


def _place(runner: Runner) -> str:
    """COMMIT/TIME. Of files that no commit has, the name says so."""
    facts = runner.facts
    commit = facts.commit[:12] or "no-commit"
    moment = now().replace(":", "").replace("-", "")
    return f"{commit}{'-changed' if facts.dirty else ''}/{moment}"
