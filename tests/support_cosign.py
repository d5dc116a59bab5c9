"""What `cosign verify-attestation --key` does, step by step, without cosign and without a line of deploy/.

cosign is not on the machines that run these tests, so this follows its source: cmd/cosign/cli/verify/
verify_attestation.go, pkg/cosign/verify.go and verifiers.go, pkg/oci/remote/signatures.go, pkg/policy/attestation.go,
go-securesystemslib's dsse/verify.go (which passes over signatures with another key id) and sigstore-go's
pkg/verify/signature.go. The transparency log is left out, as by --insecure-ignore-tlog.
"""

import base64
import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD = "application/vnd.in-toto+json"
BUNDLE = "application/vnd.dev.sigstore.bundle"
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
TYPES = {
    "custom": "https://cosign.sigstore.dev/attestation/v1",
    "slsaprovenance": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance02": "https://slsa.dev/provenance/v0.2",
    "slsaprovenance1": "https://slsa.dev/provenance/v1",
    "spdx": "https://spdx.dev/Document",
    "cyclonedx": "https://cyclonedx.org/bom",
    "link": "https://in-toto.io/Link/v1",
    "vuln": "https://cosign.sigstore.dev/attestation/vuln/v1",
}


class NotVerified(Exception):
    """What makes cosign exit with an error."""


class HttpImages:
    """`HOST/NAME` of a registry on this machine."""

    def __init__(self, repository: str):
        host, _, name = repository.partition("/")
        self._api = f"http://{host}/v2/{name}"

    def manifest(self, reference: str) -> bytes | None:
        return self._get(f"manifests/{reference}")

    def blob(self, digest: str) -> bytes:
        return self._get(f"blobs/{digest}")

    def referrers(self, digest: str) -> bytes | None:
        return self._get(f"referrers/{digest}")

    def _get(self, what: str) -> bytes | None:
        asked = urllib.request.Request(f"{self._api}/{what}", headers={"Accept": MANIFESTS})
        try:
            return urllib.request.urlopen(asked, timeout=10).read()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


class LayoutImages:
    """An OCI layout, read as files."""

    def __init__(self, root: Path):
        self._root = root

    def manifest(self, reference: str) -> bytes | None:
        if reference.startswith("sha256:"):
            return self.blob(reference)
        for entry in json.loads((self._root / "index.json").read_bytes())["manifests"]:
            if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == reference:
                return self.blob(entry["digest"])
        return None

    def blob(self, digest: str) -> bytes:
        return (self._root / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()

    def referrers(self, digest: str) -> None:
        return None


def verify_attestation(images, image: str, public_pem: bytes, kind: str) -> list[dict]:
    """The statements of a type that cosign would print: from bundles if there is any, else from the tag.

    This is cosign 3; `verify_tag` alone is what cosign 2 does.
    """
    bundles = bundles_of(images, image)
    if not bundles:
        return verify_tag(images, image, public_pem, kind)
    key = serialization.load_pem_public_key(public_pem)
    verified = [each for each in (_checked(_from_bundle(raw), key, image) for raw in bundles) if each]
    return _of_type(verified, kind)


def verify_tag(images, image: str, public_pem: bytes, kind: str) -> list[dict]:
    """The statements of a type in the layers of the tag `sha256-….att`."""
    body = images.manifest(image.replace(":", "-") + ".att")
    if body is None:
        raise NotVerified("no matching attestations")
    manifest = json.loads(body)
    assert len(manifest["layers"]) <= 1000
    config = json.loads(_blob(images, manifest["config"]))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    key = serialization.load_pem_public_key(public_pem)
    verified = []
    for layer in manifest["layers"]:
        assert layer["mediaType"] == "application/vnd.dsse.envelope.v1+json"
        assert layer["annotations"]["dev.cosignproject.cosign/signature"] == ""
        verified.append(_checked(json.loads(_blob(images, layer)), key, image))
    return _of_type([each for each in verified if each], kind)


def bundles_of(images, image: str) -> list[bytes]:
    """The Sigstore bundles that refer to an image: from the referrers API, else from the referrers tag."""
    body = images.referrers(image) or images.manifest(image.replace(":", "-"))
    found = []
    for entry in json.loads(body)["manifests"] if body else ():
        if entry.get("artifactType", "").startswith(BUNDLE):
            manifest = json.loads(_manifest(images, entry))
            assert manifest["subject"]["digest"] == image
            [layer] = manifest["layers"]
            assert layer["mediaType"].startswith(BUNDLE)
            found.append(_blob(images, layer))
    return found


def _manifest(images, entry: dict) -> bytes:
    body = images.manifest(entry["digest"])
    assert (f"sha256:{hashlib.sha256(body).hexdigest()}", len(body)) == (entry["digest"], entry["size"])
    return body


def _blob(images, entry: dict) -> bytes:
    content = images.blob(entry["digest"])
    assert (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)) == (entry["digest"], entry["size"])
    return content


def _from_bundle(raw: bytes) -> dict:
    """The envelope in a bundle: read by Sigstore's own model of it, and by protobuf's rule of no unknown names."""
    from sigstore_models.bundle.v1 import Bundle

    Bundle.from_json(raw)
    document = json.loads(raw)
    assert set(document) <= {"mediaType", "verificationMaterial", "dsseEnvelope"}
    assert document["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert set(document["verificationMaterial"]) <= {"publicKey", "tlogEntries"}
    assert "hint" in document["verificationMaterial"]["publicKey"]
    assert set(document["dsseEnvelope"]) == {"payload", "payloadType", "signatures"}
    assert len(document["dsseEnvelope"]["signatures"]) == 1
    return document["dsseEnvelope"]


def _checked(envelope: dict, key, image: str) -> dict | None:
    """The statement, if the key signed it and it names the image; None where cosign passes over it."""
    if envelope["payloadType"] != PAYLOAD:
        return None
    payload = base64.b64decode(envelope["payload"], validate=True)
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    if not any(_holds(signature, signed, key) for signature in envelope["signatures"]):
        return None
    statement = json.loads(payload)
    digests = [subject["digest"].get("sha256") for subject in statement["subject"]]
    return statement if image.removeprefix("sha256:") in digests else None


def _holds(signature: dict, signed: bytes, key) -> bool:
    if signature.get("keyid") not in (None, "", _ssh_fingerprint(key)):
        return False
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(base64.b64decode(signature["sig"]), signed)
        else:
            key.verify(base64.b64decode(signature["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _ssh_fingerprint(key) -> str:
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _of_type(verified: list[dict], kind: str) -> list[dict]:
    wanted = TYPES.get(kind, kind)
    matching = [statement for statement in verified if statement["predicateType"] == wanted]
    if not matching:
        found = ", ".join(statement["predicateType"] for statement in verified)
        raise NotVerified(f"none of the attestations matched the predicate type: {kind}, found: {found}")
    return matching
