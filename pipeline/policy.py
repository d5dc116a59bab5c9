"""Which records a channel demands; the verdict, with the reason for each.

Nothing enters a channel because someone says so: the records of all stages before it must be in the
store, signed by a key that this machine trusts, passed, and name one another's outputs by digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.digest import Tree
from pipeline.errors import GateRefused, IntegrityError
from pipeline.record import Keys, Record
from pipeline.stages import BY_NAME, CHAMPION, STAGES, Outcome, Stage
from pipeline.store import FileStore


@dataclass(frozen=True)
class Verdict:
    """What the policy says of one stage's record; `fault` is empty for one that holds."""

    stage: str
    fault: str = ""


def demanded(stage: Stage) -> list[str]:
    """The stages whose records must hold before this one may feed its channel, in the table's order."""
    found: set[str] = set()
    waiting = list(stage.needs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += BY_NAME[name].needs
    return [row.name for row in STAGES if row.name in found]


def demand(stage: Stage, done: Mapping[str, Record], store: FileStore, keys: Keys) -> None:
    """Raises GateRefused, with the reason for each, unless all demanded records hold."""
    faults = [v for v in verdicts(stage, done, store, keys) if v.fault]
    if faults:
        reasons = "\n".join(f"  {v.stage}: {v.fault}" for v in faults)
        raise GateRefused(f"the {stage.channel} channel does not let this version in:\n{reasons}")


def verdicts(stage: Stage, done: Mapping[str, Record], store: FileStore, keys: Keys) -> list[Verdict]:
    """A verdict for each demanded record, in the table's order."""
    return [Verdict(name, _fault(name, done, store, keys)) for name in demanded(stage)]


def _fault(name: str, done: Mapping[str, Record], store: FileStore, keys: Keys) -> str:
    if name not in done:
        return "has no record"
    try:
        found = keys.verify(store.fetch_bytes(done[name].sha256))
    except IntegrityError as error:
        return str(error)
    if found.stage != name or found.outcome != Outcome.PASSED:
        return f"the record is of {found.stage}, which ended as {found.outcome}"
    fault = _chain_fault(found, done)
    if name == "approve" and not fault:
        fault = _approval_fault(found, done["publish"], store)
    return fault


def _chain_fault(found: Record, done: Mapping[str, Record]) -> str:
    """Whether what the stage read is what the stages before it wrote."""
    for output, tree in found.key_parts["reads"].items():
        if f"?{output}" == CHAMPION:
            continue
        producer = done.get(output.split("/")[0])
        if producer is None or producer.outputs.get(output) != tree:
            return f"it read another {output} than the one recorded"
    return ""


def _approval_fault(approval: Record, publish: Record, store: FileStore) -> str:
    """Whether the approval names the very image that was published."""
    approved = document(approval.outputs["approve/approval"], "approval.json", store)["digest"]
    published = document(publish.outputs["publish/published"], "published.json", store)["digest"]
    return "" if approved == published else f"approves {approved}, not {published}"


def document(tree_digest: str, name: str, store: FileStore) -> dict:
    """A JSON document of an output, from the store, verified. Raises IntegrityError if it is not there."""
    for leaf in Tree.parse(store.fetch_bytes(tree_digest)).leaves:
        if leaf.path == name:
            return json.loads(store.fetch_bytes(leaf.sha256))
    raise IntegrityError(f"the output {tree_digest} has no {name}")
