"""Records: in-toto statements in DSSE envelopes. Made, signed, read; `pipeline/trust.py` verifies them.

A record says which stage ran, what it read, what it wrote, and how it ended. The statement's
subjects are the outputs; the predicate is the one that the stage's row names, and carries, beside
what its own specification asks for, a member `tidegate` with what the spine itself reads back.
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import IntegrityError

STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"
SLSA = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://tidegate.dev/stage/v1"


@dataclass(frozen=True)
class Record:
    """What one run of a stage left behind.

    `key_parts` is what the key was computed from. `outputs` maps names, as `train/model`, to tree
    digests. `needs` maps the stages before to the sha256 of their records. Times are UTC, ISO 8601. `enters` is
    what a record that feeds a channel says of its entry there (`Entry.claims`); `reason` a person's words;
    `reproducible` the class that a second execution reached ("" where there was none).
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
    enters: Mapping = field(default_factory=dict)
    reason: str = ""
    reproducible: str = ""
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
    """What the stage read, as in-toto resource descriptors: commit, outputs, files, environment, records before."""
    facts, parts = record.facts, record.key_parts
    found = []
    if facts.get("commit"):
        found.append({"uri": facts["source"] or "git", "digest": {"gitCommit": facts["commit"]}})
    for group in ("reads", "files"):
        members = parts.get(group, {})
        found += [{"name": name, "digest": {"sha256": digest}} for name, digest in members.items() if digest]
    environment = parts.get("environment", {})
    found += [
        {"name": name, "digest": {"sha256": value}} for name, value in environment.items() if len(value) == 64
    ]
    base = (parts.get("settings", {}).get("image") or {}).get("base", "")
    if "@sha256:" in base:
        name, _, sha256 = base.partition("@sha256:")
        found.append({"uri": f"oci://{name}", "digest": {"sha256": sha256}})
    found += [
        {"name": f"record/{name}", "digest": {"sha256": sha256}} for name, sha256 in record.needs.items()
    ]
    return found


def _provenance(record: Record) -> dict:
    """SLSA provenance v1: https://slsa.dev/spec/v1.0/provenance"""
    facts, parts = record.facts, record.key_parts
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "stage": record.stage,
                "ref": facts.get("ref", ""),
                "settings": parts.get("settings", {}),
            },
            "internalParameters": {
                "function": parts.get("function", ""),
                "hardware": parts.get("hardware", ""),
                "python": parts.get("environment", {}).get("python", ""),
                "machine": parts.get("environment", {}).get("machine", ""),
            },
            "resolvedDependencies": _dependencies(record),
        },
        "runDetails": {
            "builder": {"id": f"https://tidegate.dev/runner/{facts['vendor']}"},
            "metadata": {
                "invocationId": facts.get("invocation")
                or f"{record.stage}-{record.key[:16]}-{record.started}",
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


def sign(statement: dict, signer: Any) -> bytes:
    """A statement in a DSSE envelope, as JSON. `signer` is a securesystemslib signer."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(json.dumps(statement, sort_keys=True).encode(), PAYLOAD, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode()


def read(envelope: bytes) -> Record:
    """The record in an envelope; its signature is not looked at. Raises IntegrityError if it is none."""
    try:
        said = json.loads(envelope)
        if said["payloadType"] != PAYLOAD:
            raise ValueError(f"its payload is {said['payloadType']!r}, not {PAYLOAD}")
        # Strictly, so that this reads the very bytes whose signature is verified.
        payload = json.loads(base64.b64decode(said["payload"], validate=True))
        if payload["_type"] != STATEMENT:
            raise ValueError(f"it is {payload['_type']!r}, not {STATEMENT}")
        content = payload["predicate"]["tidegate"]
        content["warnings"] = tuple(content["warnings"])
        return Record(**content, sha256=hashlib.sha256(envelope).hexdigest())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"a record in the store is not readable: {error!r}") from error
