"""Records: in-toto statements in DSSE envelopes. Made, signed, verified.

A record says which stage ran, what it read, what it wrote, and how it ended. The statement's
subjects are the outputs; the predicate is the one that the stage's row names, and carries, beside
what its own specification asks for, a member `tidegate` with what the spine itself reads back.
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import IntegrityError, SettingsError

STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"
SLSA = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://tidegate.dev/stage/v1"
KEY_VARIABLE = "TIDEGATE_SIGNING_KEY"


@dataclass(frozen=True)
class Record:
    """What one run of a stage left behind.

    `key_parts` is what the key was computed from. `outputs` maps names, as `train/model`, to tree
    digests. `needs` maps the stages before to the sha256 of their records. Times are UTC, ISO 8601.
    """

    stage: str
    key: str
    key_parts: Mapping
    outcome: str
    sentence: str
    outputs: Mapping[str, str]
    needs: Mapping[str, str]
    numbers: Mapping[str, float]
    decided: Mapping | None
    digest: str
    warnings: tuple[str, ...]
    seconds: float
    started: str
    finished: str
    facts: Mapping
    sha256: str = field(default="", compare=False)


def statement(record: Record, predicate_type: str) -> dict:
    """The in-toto statement of a record."""
    content = asdict(record)
    del content["sha256"]
    subjects = [{"name": name, "digest": {"sha256": digest}} for name, digest in record.outputs.items()]
    if record.digest:
        subjects.append({"name": "image", "digest": {"sha256": record.digest.removeprefix("sha256:")}})
    predicate = _provenance(record) if predicate_type == SLSA else _verdict(record)
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": predicate_type,
        "predicate": {**predicate, "tidegate": content},
    }


def _dependencies(record: Record) -> list[dict]:
    """What the stage read, as in-toto resource descriptors; files of the repository and outputs of its needs."""
    found = []
    if record.facts.get("commit"):
        found.append({"uri": record.facts["source"], "digest": {"gitCommit": record.facts["commit"]}})
    for group in ("reads", "files"):
        members = record.key_parts.get(group, {})
        found += [{"name": name, "digest": {"sha256": digest}} for name, digest in members.items() if digest]
    return found


def _provenance(record: Record) -> dict:
    """SLSA provenance v1: https://slsa.dev/spec/v1.0/provenance"""
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"stage": record.stage, "settings": record.key_parts.get("settings", {})},
            "internalParameters": {},
            "resolvedDependencies": _dependencies(record),
        },
        "runDetails": {
            "builder": {"id": f"https://tidegate.dev/runner/{record.facts['vendor']}"},
            "metadata": {
                "invocationId": f"{record.stage}-{record.key[:16]}-{record.started}",
                "startedOn": record.started,
                "finishedOn": record.finished,
            },
        },
    }


def _verdict(record: Record) -> dict:
    """The members of in-toto's test-result predicate, which our own predicates share."""
    return {
        "result": "PASSED" if record.outcome == "passed" else "FAILED",
        "configuration": _dependencies(record),
        "numbers": dict(record.numbers),
        "decided": record.decided,
        "digest": record.digest,
        "finishedOn": record.finished,
    }


class Keys:
    """The key that signs on this machine. Loaded, or made on a laptop's first use, only when it is needed."""

    def __init__(self, state: Path):
        self._path = state / "keys" / "laptop.pem"
        self._signer = None

    def sign(self, statement: dict) -> bytes:
        """A statement in a signed DSSE envelope, as JSON."""
        from securesystemslib.dsse import Envelope

        envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD, {})
        envelope.sign(self.signer)
        return json.dumps(envelope.to_dict(), sort_keys=True).encode()

    def verify(self, envelope: bytes) -> Record:
        """The record in an envelope that this machine's key signed. Raises IntegrityError for any other."""
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError

        record = read(envelope)
        try:
            Envelope.from_dict(json.loads(envelope)).verify([self.signer.public_key], 1)
        except (VerificationError, ValueError, KeyError) as error:
            raise IntegrityError(
                f"the record of {record.stage} ({record.sha256[:12]}) is not signed by a key "
                f"that this machine trusts: {error}"
            ) from error
        return record

    @property
    def signer(self):
        if self._signer is None:
            from securesystemslib.signer import CryptoSigner

            self._signer = CryptoSigner(self._private_key())
        return self._signer

    def _private_key(self):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        given = os.environ.get(KEY_VARIABLE, "")
        if given:
            text = given.encode() if given.startswith("-----BEGIN") else Path(given).read_bytes()
        else:
            if not self._path.exists():
                self._keep(
                    Ed25519PrivateKey.generate().private_bytes(
                        serialization.Encoding.PEM,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    )
                )
            text = self._path.read_bytes()
        try:
            return serialization.load_pem_private_key(text, password=None)
        except ValueError as error:
            where = KEY_VARIABLE if given else self._path
            raise SettingsError(f"{where} is not a private key in PEM form: {error}") from error

    def _keep(self, text: bytes) -> None:
        """Writes a new key so that no other user can ever read it, and that two makers at once agree on one."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self._path.with_name(f".{os.getpid()}.pem")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(text)
        with contextlib.suppress(FileExistsError):
            os.link(partial, self._path)
        partial.unlink()


def read(envelope: bytes) -> Record:
    """The record in an envelope; its signature is not looked at. Raises IntegrityError if it is none."""
    try:
        payload = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        content = payload["predicate"]["tidegate"]
        content["warnings"] = tuple(content["warnings"])
        return Record(**content, sha256=hashlib.sha256(envelope).hexdigest())
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"a record in the store is not readable: {error!r}") from error
