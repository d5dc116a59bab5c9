"""Outputs out of the store, by what they led to: a channel, a version, an image."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from pipeline import audit, trees
from pipeline.bucket_file import disk_errors
from pipeline.errors import GateRefused, IntegrityError, SettingsError
from pipeline.record import Record
from pipeline.runner import Runner
from pipeline.stages import ALL, Outcome

OUTPUTS = tuple(f"{stage.name}/{name}" for stage in ALL.values() for name in stage.outputs)


def fetch(runner: Runner, output: str, folder: Path, subject: str | None = None) -> str:
    """Makes `folder` an output of the records behind a subject (as for `audit.audit`); returns one sentence.

    Without a subject it is what production serves or, before anything is served, the newest that passed. Raises
    SettingsError where `folder` holds anything else, IntegrityError where record or output is not what was signed.
    """
    if output not in OUTPUTS:
        raise SettingsError(f"{output} is no output. {_near(output)}")
    made, of = _record(runner, output, subject)
    tree = made.outputs[output]
    folder = folder.resolve()
    try:
        _must_be_free(runner, folder, tree)
        with disk_errors(folder):
            trees.place(tree, folder, runner.store, runner.digests)
    except IntegrityError as error:
        raise IntegrityError(
            f"{output} of {of} cannot be fetched; garbage collection keeps the outputs of older versions for "
            f"retention.versions and retention.days only. {error}"
        ) from error
    except OSError as error:
        raise SettingsError(f"--to {folder}: cannot be made or written there: {error.strerror}.") from error
    return f"{output} of {of} ({made.finished}, record {made.sha256[:12]}) is in {folder}"


def _record(runner: Runner, output: str, subject: str | None) -> tuple[Record, str]:
    """The verified record that has the output, and what it is of."""
    if subject is None and runner.authority.heads.channel("production").live is None:
        return _newest(runner, output), "the newest run that passed"
    found = audit.audit(runner.authority, subject or "production")
    stage = output.split("/")[0]
    node = next((node for node in found.tree.walk() if node.stage == stage), None)
    if node is None:
        faults = "\n".join(f"  {node.stage}: {fault}" for node in found.tree.walk() for fault in node.faults)
        raise IntegrityError(f"no record of {stage} is known behind {found.subject}\n{faults}".strip())
    if node.faults or node.record is None or output not in node.record.outputs:
        said = "; ".join(node.faults) or f"names no {output}"
        raise IntegrityError(
            f"the record of {stage} behind {found.subject} does not hold: {said}. Nothing was fetched."
        )
    if not found.holds:
        print(
            f"! not all evidence of {found.subject} holds; see `python -m pipeline verify`", file=sys.stderr
        )
    return node.record, found.subject


def _newest(runner: Runner, output: str) -> Record:
    """The newest record that has this output, passed, and is signed by a key that is trusted here."""
    stage = output.split("/")[0]
    items = runner.store.bucket.items(f"records/{stage}/")
    faults = ""
    for name in sorted((item.path.rpartition("/")[2] for item in items), reverse=True):
        sha256 = name.rpartition("-")[2]
        if len(sha256) != 64:  # the hint
            continue
        try:
            made = runner.authority.trust.verify(runner.store.fetch_bytes(sha256)).record
        except IntegrityError as error:
            faults = faults or f" The newest record does not count: {error}"
            continue
        if made.stage == stage and made.outcome == Outcome.PASSED and output in made.outputs:
            return made
    raise GateRefused(
        f"{stage} never passed here, and nothing is in production; there is no {output} to fetch. "
        f"Run it first: python -m pipeline run {stage}.{faults}"
    )


def _must_be_free(runner: Runner, folder: Path, tree: str) -> None:
    """Refuses a folder in which anything would be lost."""
    if not folder.exists():
        return
    if folder.is_dir() and folder != Path.cwd():
        if not any(folder.iterdir()):
            return
        try:
            if runner.digests.tree(folder).digest == tree:
                return
        except IntegrityError:  # links and the like: not what we put there
            pass
    raise SettingsError(f"--to {folder}: holds something else already; name a folder that is new or empty.")


def _near(output: str) -> str:
    near = difflib.get_close_matches(output, OUTPUTS, n=1)
    return f"Did you mean {near[0]}?" if near else f"Outputs: {', '.join(OUTPUTS)}."
