"""For an auditor: the tree of evidence behind an image, a version or a channel, from the store alone.

Needs the repository (whose trust/ says which keys count, and whose settings what a channel demands) and the store;
no network otherwise, and nothing that runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.authority import Authority
from pipeline.errors import SettingsError
from pipeline.policy import Node, entry_faults
from pipeline.store import Entry

_IMAGE = re.compile(r"(?:\S*@)?(sha256:[0-9a-f]{64})")
_CHANNELS = ("production", "staging")


@dataclass(frozen=True)
class Audit:
    """What was asked about, the channel's entry, if one let it in, its evidence, and what is wrong with either."""

    subject: str
    entry: Entry | None
    tree: Node
    faults: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.faults and self.tree.holds

    def document(self) -> dict:
        """All of it as plain values; a record that others share is told once, in `records`."""
        return {
            "subject": self.subject,
            "holds": self.holds,
            "faults": list(self.faults),
            "root": self.tree.sha256,
            "records": {node.sha256: _plain(node) for node in self.tree.walk()},
        }


def audit(authority: Authority, subject: str) -> Audit:
    """Judges the evidence of a channel's live version, of a version (v3), or of an image ([NAME@]sha256:…).

    Raises SettingsError for a subject that is none of these, or that no channel ever had.
    """
    name, entry = _find(authority, subject)
    said = f"{name} v{entry.version} {entry.image}"
    tree = authority.policy.examine(entry.why, entry.evidence, entry.image)
    return Audit(said, entry, tree, tuple(entry_faults(name, entry, tree.record) if tree.record else ()))


def _find(authority: Authority, subject: str) -> tuple[str, Entry]:
    """The channel and the entry that a subject means; production is looked at first."""
    image = _IMAGE.fullmatch(subject)
    version = re.fullmatch(r"v?([0-9]+)", subject)
    if subject not in _CHANNELS and not image and not version:
        raise SettingsError(
            f"{subject} is no channel, version (v3) or image (NAME@sha256:…); nothing was verified."
        )
    for name in (subject,) if subject in _CHANNELS else _CHANNELS:
        channel = authority.heads.channel(name)
        if image:
            found = channel.of_image(image[1])
        else:
            found = channel.of_version(int(version[1])) if version else channel.live
        if found:
            return name, found
    raise SettingsError(
        f"{subject} never was in a channel, so nothing says that it may be. `make history` shows what was."
    )


def _plain(node: Node) -> dict:
    made = node.record
    return {
        "stage": node.stage,
        "holds": not node.faults,
        "faults": list(node.faults),
        "signed_by": node.key.name if node.key else "",
        "finished": made.finished if made else "",
        "sentence": made.sentence if made else "",
        "commit": made.facts.get("commit", "") if made else "",
        "outputs": dict(made.outputs) if made else {},
        "needs": {one.stage: one.sha256 for one in node.needs},
    }


def lines(found: Audit) -> Iterator[str]:
    """The tree for a person: a tick or a cross for each record, with who signed it, when, and what is wrong."""
    yield f"{_mark(not found.faults)} {found.subject}"
    yield from (f"    {fault}" for fault in found.faults)
    told: set[str] = set()

    def tell(node: Node, depth: int) -> Iterator[str]:
        before = "  " * depth
        if node.sha256 in told:
            yield f"{before}↑ {node.stage:<9} {node.sha256[:12]}, above"
            return
        told.add(node.sha256)
        made = node.record
        by = f"{made.finished}  by {node.signer}  {made.sentence}" if made else ""
        yield f"{before}{_mark(not node.faults)} {node.stage:<9} {node.sha256[:12]}  {by}".rstrip()
        yield from (f"{before}    {fault}" for fault in node.faults)
        for one in node.needs:
            yield from tell(one, depth + 1)

    yield from tell(found.tree, 1)
    yield from (f"  {what:<12} {value}" for what, value in _made_of(found.tree))


def _mark(holds: bool) -> str:
    return "✓" if holds else "✗"


def _made_of(tree: Node) -> Iterator[tuple[str, str]]:
    """What all this was made of: commit, data and environment, each with its digest."""
    records = {node.stage: node.record for node in tree.walk() if node.record}
    trained, data = records.get("train"), records.get("data")
    if trained:
        facts = trained.facts
        dirty = " with uncommitted changes" if facts.get("dirty") else ""
        yield "commit", f"{facts.get('commit') or 'none'}{dirty}"
        environment = trained.key_parts.get("environment", {})
        yield "environment", f"{environment.get('requirements.txt', '')} (requirements.txt)"
        yield "model", trained.outputs.get("train/model", "")
        if trained.reproducible:
            yield "training", trained.reproducible
    if data:
        yield "data", data.outputs.get("data/rows", "")


def mermaid(found: Audit) -> str:
    """The lineage as a Mermaid flowchart, from commit, data and environment to the channel."""
    nodes, arrows = [], []
    ids: dict[str, str] = {}
    for node in found.tree.walk():
        ids[node.sha256] = f"r{len(ids)}"
        made = node.record
        text = f"{node.stage}<br/>{node.sha256[:12]}" + (
            f"<br/>{made.finished[:16]} by {node.signer}" if made else ""
        )
        nodes.append(f'  {ids[node.sha256]}["{text}"]{"" if not node.faults else ":::bad"}')
    for node in found.tree.walk():
        arrows += [f"  {ids[one.sha256]} --> {ids[node.sha256]}" for one in node.needs]
    for what, value in _made_of(found.tree):
        if what in ("commit", "environment"):
            nodes.append(f'  {what}(["{what}<br/>{value[:12]}"])')
            arrows += [
                f"  {what} --> {ids[node.sha256]}" for node in found.tree.walk() if node.stage == "train"
            ]
    subject = found.subject.replace("sha256:", "")
    nodes.append(f'  channel(["{subject[:40]}"])')
    arrows.append(f"  {ids[found.tree.sha256]} --> channel")
    return "\n".join(
        ["flowchart TD", *nodes, *dict.fromkeys(arrows), "  classDef bad stroke:#c00,stroke-width:3px"]
    )
