"""What attestations look like beside an image: envelopes, Sigstore bundles, and the manifests that name them.

No network and no disk; `deploy/attest.py` puts these where they belong.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.oci import CONFIG, INDEX, MANIFEST, Descriptor, encode, of_bytes, parse_json
from pipeline.errors import IntegrityError
from pipeline.record import PAYLOAD

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG = b"{}"
KEY_ID_NOTE = "dev.tidegate.keyid"
# The most that a registry, which may be anyone's, can make us read.
MANIFEST_BYTES_AT_MOST = 4 << 20  # the distribution specification asks registries for as much
COUNT_AT_MOST = 1000  # cosign reads no more either
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_KEY_ID = re.compile(r"[A-Za-z0-9+/=:_.-]*")
_KEY_ID_MEMBER = re.compile(rb'("keyid"\s*:\s*)"' + _KEY_ID.pattern.encode() + b'"')
_BUNDLE_BEGINS = b'{"dsseEnvelope":'
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True)
class Attestation:
    """A signed statement: its envelope without the signature's key id, that key id, and what it says.

    cosign passes over a signature whose key id is not the one that it computes from the key itself
    (DSSE calls key ids unauthenticated hints), so the envelopes that it is shown carry none.
    """

    plain: bytes
    key_id: str
    signature: str
    statement: Mapping

    @property
    def predicate_type(self) -> str:
        return self.statement["predicateType"]

    @property
    def envelope(self) -> bytes:
        """The envelope as it was signed, byte for byte."""
        return _with_key_id(self.plain, self.key_id)

    def names(self, image: str) -> bool:
        """Whether the image is a subject of the statement."""
        subjects = self.statement.get("subject")
        digests = [raw.get("digest") for raw in subjects or () if isinstance(raw, Mapping)]
        wanted = image.removeprefix("sha256:")
        return any(isinstance(digest, Mapping) and digest.get("sha256") == wanted for digest in digests)

    def bundle(self) -> bytes:
        """As a Sigstore bundle, in which the key id is the hint."""
        material = {"publicKey": {"hint": self.key_id}, "tlogEntries": []}
        rest = encode({"mediaType": BUNDLE, "verificationMaterial": material})
        return _BUNDLE_BEGINS + self.plain + b"," + rest[1:]

    def layer(self) -> Descriptor:
        """As a layer of cosign's tag."""
        notes = {
            "dev.cosignproject.cosign/signature": "",
            "predicateType": self.predicate_type,
            KEY_ID_NOTE: self.key_id,
        }
        return Descriptor(DSSE, of_bytes(self.plain), len(self.plain), notes)


def in_envelope(envelope: bytes, where: str, key_id: str | None = None) -> Attestation:
    """The attestation in a DSSE envelope; `key_id` is what stood beside an envelope that carries none.

    No signature is verified. Raises IntegrityError, naming `where`, for anything but an in-toto
    statement with one signature, which is all that a Sigstore bundle can hold.
    """
    document = parse_json(envelope, where)
    try:
        payload = base64.b64decode(document["payload"], validate=True)
        [signature] = document["signatures"]
        regular = set(document) == {"payload", "payloadType", "signatures"} and {"sig", "keyid"} >= set(
            signature
        )
        named = signature.get("keyid", "")
        plain = _with_key_id(envelope, "")
        regular &= not json.loads(plain)["signatures"][0].get("keyid") and isinstance(signature["sig"], str)
        key_id = named if key_id is None or named else key_id
        regular &= _KEY_ID.fullmatch(key_id) is not None and (
            not named or _with_key_id(plain, named) == envelope
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"{where} is not a DSSE envelope with one signature: {error!r}") from error
    if not regular or document["payloadType"] != PAYLOAD:
        raise IntegrityError(f"{where} is not a DSSE envelope of an in-toto statement with one signature")
    statement = parse_json(payload, f"the statement in {where}")
    if not isinstance(statement.get("predicateType"), str) or not isinstance(statement.get("subject"), list):
        raise IntegrityError(f"{where} holds no in-toto statement: predicateType or subject is missing")
    return Attestation(plain, key_id, signature["sig"], statement)


def _with_key_id(envelope: bytes, key_id: str) -> bytes:
    return _KEY_ID_MEMBER.sub(lambda found: found[1] + b'"' + key_id.encode() + b'"', envelope, count=1)


def in_bundle(bundle: bytes, where: str) -> Attestation:
    """The attestation in a Sigstore bundle. Raises IntegrityError, naming `where`, if there is none."""
    document = parse_json(bundle, where)
    envelope, material = document.get("dsseEnvelope"), document.get("verificationMaterial")
    if not isinstance(envelope, Mapping) or not isinstance(material, Mapping):
        raise IntegrityError(f"{where} is not a Sigstore bundle with a DSSE envelope")
    if not bundle.startswith(_BUNDLE_BEGINS):
        return in_envelope(encode(envelope), where)
    text = bundle[len(_BUNDLE_BEGINS) :].decode()
    _, end = json.JSONDecoder().raw_decode(text)
    key = material.get("publicKey")
    return in_envelope(text[:end].encode(), where, key.get("hint") if isinstance(key, Mapping) else None)


def tag_of(image: str, suffix: str = "") -> str:
    """The tag under which tools look for what belongs to an image: `sha256-…`."""
    if not _DIGEST.fullmatch(image):
        raise IntegrityError(f"{image!r} is not a sha256 digest, so nothing can be attached to it")
    return image.replace(":", "-") + suffix


def referrer(subject: Descriptor, bundle: bytes, predicate_type: str) -> tuple[Descriptor, bytes]:
    """The manifest by which a Sigstore bundle refers to an image: how it is listed, and its bytes."""
    digest = of_bytes(bundle)
    title = {"org.opencontainers.image.title": f"{digest.replace(':', '-')}.sigstore.json"}
    notes = {
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": predicate_type,
    }
    body = encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": BUNDLE,
            "config": Descriptor(EMPTY, of_bytes(EMPTY_CONFIG), len(EMPTY_CONFIG)).document(),
            "layers": [Descriptor(BUNDLE, digest, len(bundle), title).document()],
            "subject": subject.document(),
            "annotations": notes,
        }
    )
    return Descriptor(MANIFEST, of_bytes(body), len(body), notes, BUNDLE), body


def with_referrers(body: bytes | None, made: Sequence[Descriptor]) -> tuple[bytes, list[bytes]] | None:
    """The index of a referrers tag with these manifests listed too, and no blobs; None if they are listed."""
    document: Mapping[str, Any] = (
        _document(body, "manifests") if body else {"schemaVersion": 2, "mediaType": INDEX}
    )
    entries = document.get("manifests") or []
    there = {Descriptor.parse(raw, "the referrers tag").digest for raw in entries}
    new = [each.document() for each in made if each.digest not in there]
    return (encode({**document, "manifests": [*entries, *new]}), []) if new else None


def with_layers(body: bytes | None, made: Sequence[Attestation]) -> tuple[bytes, list[bytes]] | None:
    """The manifest of cosign's tag with these attestations as layers too, and its new blobs; None if they are there."""
    document: Mapping[str, Any] = (
        _document(body, "layers") if body else {"schemaVersion": 2, "mediaType": MANIFEST}
    )
    entries = document.get("layers") or []
    digests = [Descriptor.parse(raw, "cosign's tag").digest for raw in entries]
    new = {of_bytes(each.plain): each for each in made if of_bytes(each.plain) not in digests}
    if not new:
        return None
    config = encode(_cosign_config([*digests, *new]))
    named = Descriptor(CONFIG, of_bytes(config), len(config)).document()
    layers = [*entries, *(each.layer().document() for each in new.values())]
    blobs = [config, *(each.plain for each in new.values())]
    return encode({**document, "config": named, "layers": layers}), blobs


def _cosign_config(diff_ids: Sequence[str]) -> dict:
    """The image configuration that cosign writes for layers that are no file systems."""
    return {
        "architecture": "",
        "os": "",
        "created": _NEVER,
        "config": {},
        "history": [{"created": _NEVER} for _ in diff_ids],
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def listed(body: bytes, members: str) -> list[Descriptor]:
    """The `manifests` or `layers` of a manifest. Raises IntegrityError for more than anyone writes."""
    raws = _document(body, members).get(members) or []
    return [Descriptor.parse(raw, f"the manifest {of_bytes(body)}") for raw in raws]


def _document(body: bytes, members: str) -> dict:
    if len(body) > MANIFEST_BYTES_AT_MOST:
        raise IntegrityError(
            f"the registry holds a manifest of more than {MANIFEST_BYTES_AT_MOST >> 20} MiB beside the image, which"
            " no tool writes. It was not used; look at who else pushes there."
        )
    document = parse_json(body, f"the manifest {of_bytes(body)}")
    entries = document.get(members) or []
    if not isinstance(entries, list) or len(entries) > COUNT_AT_MOST:
        raise IntegrityError(
            f"the manifest {of_bytes(body)} has no list of at most {COUNT_AT_MOST} {members}; it was not used."
            " Look at who else pushes there."
        )
    return document
