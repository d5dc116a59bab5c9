"""Signed records of whole walks, made without running any stage."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline import digest, record
from pipeline.digest import Digests
from pipeline.keys import Signer, keep, new_private_key, public_of
from pipeline.policy import Policy
from pipeline.record import Record
from pipeline.settings import Settings
from pipeline.stages import ALL, OF_CHAMPION, STAGES, Facts, Outcome, Stage
from pipeline.store import Entry, Store
from pipeline.trees import keep as keep_tree
from pipeline.trust import Trust

IMAGE = "sha256:" + "1" * 64
LOCK = "d" * 64


def ago(days: float) -> str:
    """A moment before now, as records write theirs."""
    then = datetime.now(UTC) - timedelta(days=days)
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make(stage: str = "train", outputs=None, reads=None, **changes) -> Record:
    """A record that passed a minute ago; its key is that of its parts unless `changes` say otherwise."""
    parts = {
        "reads": reads or {},
        "files": {"train/fit.py": "f" * 64},
        "settings": {"model": "digits", "train": {"epochs": 1}},
        "environment": {"requirements.txt": LOCK, "python": "3.11", "machine": "x86_64"},
    }
    values = {
        "stage": stage,
        "key": "",
        "key_parts": parts,
        "outcome": str(Outcome.PASSED),
        "sentence": "it did",
        "outputs": outputs or {},
        "needs": {},
        "numbers": {"loss": 0.5},
        "decided": None,
        "digest": "",
        "warnings": (),
        "seconds": 1.0,
        "started": ago(0.002),
        "finished": ago(0.001),
        "facts": dataclasses.asdict(
            Facts(commit="c" * 40, source="https://git.example/m", actor="ann", author="bob@example.org")
        ),
    }
    made = Record(**{**values, **changes})
    return made if made.key else dataclasses.replace(made, key=digest.of_json(made.key_parts))


def add_key(root: Path, name: str, roles: str, more: str = "") -> Signer:
    """Makes a key, trusts it in `root/trust`, and returns what signs with it."""
    folder = root / "trust"
    folder.mkdir(parents=True, exist_ok=True)
    private = root / "private" / f"{name}.pem"
    keep(private, new_private_key())
    (folder / f"{name}.pem").write_bytes(public_of(private.read_bytes()))
    file = folder / "roles.yaml"
    rows = file.read_text() if file.exists() else "keys:\n"
    file.write_text(rows + f"  - {{name: {name}, file: {name}.pem, roles: [{roles}]{more}}}\n")
    return Signer(root, environ={"TIDEGATE_SIGNING_KEY": str(private)})


@dataclass
class Evidence:
    """A store with records, who signs which of them, and who is trusted."""

    root: Path
    settings: Settings
    store: Store
    signers: Mapping[str, Signer]
    records: dict[str, Record] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        """A judge who has seen nothing yet."""
        return Policy(self.settings, self.store, Trust.load(self.root))

    @property
    def needs(self) -> dict[str, str]:
        """The sha256 of each record."""
        return {name: made.sha256 for name, made in self.records.items()}

    def add(self, made: Record, signer: Signer | None = None) -> Record:
        """Signs a record and keeps it, as the one of its stage."""
        signer = signer or self.signers.get(made.stage) or self.signers["ci"]
        envelope = record.sign(record.statement(made, ALL[made.stage].predicate), signer.crypto)
        name = made.finished.replace(":", "").replace("-", "")
        made = dataclasses.replace(made, sha256=self.store.add_record(made.stage, made.key, name, envelope))
        self.records[made.stage] = made
        return made

    def change(self, stage: str, signer: Signer | None = None, **changes) -> Record:
        """Replaces a record by one that differs so, and those that came after it by ones that name it."""
        self.add(dataclasses.replace(self.records[stage], **changes), signer)
        later = [row for row in STAGES if row.name in self.records]
        for row in later[[row.name for row in later].index(stage) + 1 :]:
            self.add(dataclasses.replace(self.records[row.name], needs=self._before(row)))
        return self.records[stage]

    def walk(self, image: str = IMAGE, until: str = "promote") -> None:
        """Adds a record of each stage before `until`, each naming what the ones before wrote."""
        said = {"publish/published": "published.json", "approve/approval": "approval.json"}
        outputs: dict[str, str | None] = {name.lstrip("?"): None for name in OF_CHAMPION}
        for row in STAGES:
            if row.name == until:
                return
            mine = {
                f"{row.name}/{name}": self._tree(f"{row.name}/{name}", said, image) for name in row.outputs
            }
            reads = {name.lstrip("?"): outputs[name.lstrip("?")] for name in row.reads}
            named = (
                image
                if row.name in ("image", "scan", "publish", "staging", "approve", "canary", "promote")
                else ""
            )
            self.add(make(row.name, mine, reads, digest=named, needs=self._before(row)))
            outputs |= mine

    def promote(self, version: int = 1, image: str = IMAGE) -> Entry:
        """Lets the walked version into production, as the runner does; returns the channel's entry."""
        channel = self.store.channel("production")
        row = ALL["promote"]
        reads = {name: self.records[name.split("/")[0]].outputs[name] for name in row.reads}
        entry = channel.following(
            Entry(
                image, version, self._output("train/model"), self._output("export/savedmodel"),
                self._output("publish/published"), "ann", "", "promote", "", channel.live.image if channel.live else "",
            )
        )  # fmt: skip
        made = self.add(
            make(
                "promote",
                {"promote/evidence": "e" * 64},
                reads,
                digest=image,
                needs=self._before(row),
                enters=entry.claims("production"),
            )
        )
        entry = dataclasses.replace(entry, at=made.finished, evidence=made.sha256)
        return self.store.append(channel, entry).live

    def _output(self, name: str) -> str:
        return self.records[name.split("/")[0]].outputs[name]

    def _before(self, row: Stage) -> dict[str, str]:
        return {name: self.records[name].sha256 for name in self.policy.needed(row) if name in self.records}

    def _tree(self, output: str, said: Mapping[str, str], image: str) -> str:
        if output not in said:
            return digest.of_bytes(output.encode())
        return self.document(said[output], {"digest": image, "version": 1})

    def document(self, name: str, content: Mapping) -> str:
        """Keeps a folder with one JSON document; returns its tree digest."""
        folder = self.root / "made" / digest.of_json([name, content])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
        return keep_tree(folder, self.store, Digests(self.root / "memory.json"))
