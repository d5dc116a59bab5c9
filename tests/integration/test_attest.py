"""Attestations on images in a layout and in a real registry without a referrers API (Debian's docker-registry).

Whether cosign would accept them is judged by tests/support_cosign.py, which takes cosign's steps; cosign was not run.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from deploy import attest
from deploy.attest import attach, attach_bundle, attach_documents, fetch, fetch_bundles, fetch_documents
from deploy.oci import CONFIG, MANIFEST, Descriptor, Layout, encode, of_bytes
from deploy.publish import publish
from pipeline.errors import IntegrityError, LostRace, ProgramFailed
from tests.support import ROOT, context, tree
from tests.support_cosign import (
    HttpImages,
    LayoutImages,
    NotVerified,
    bundles_of,
    verify_attestation,
    verify_tag,
)
from tests.support_images import model_image
from tests.support_ports import port
from tests.support_registry import need_registry, serve

PORT, API_PORT = port(20601), port(20602)
SLSA, SCAN = "https://slsa.dev/provenance/v1", "https://tidegate.dev/scan/v1"
CI = CryptoSigner(ec.generate_private_key(ec.SECP256R1()))
STRANGER = CryptoSigner(ec.generate_private_key(ec.SECP256R1()))
LAPTOP = CryptoSigner(Ed25519PrivateKey.generate())

need_registry()


@pytest.fixture(autouse=True)
def _nobody_else_writes(monkeypatch):
    """No waiting for other writers, except where there are some: in processes of their own."""
    monkeypatch.setattr(attest, "_SETTLE_MS", (0, 1))


def public_pem(signer: CryptoSigner) -> bytes:
    return signer._private_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def envelope(image: str, number: int = 0, kind: str = SLSA, signer: CryptoSigner = CI) -> bytes:
    """A signed statement as the pipeline's records are: with other subjects too, and securesystemslib's key id."""
    subjects = [
        {"name": "train/model", "digest": {"sha256": "0" * 64}},
        {"name": "image", "digest": {"sha256": image.removeprefix("sha256:")}},
    ]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": kind,
        "predicate": {"number": number},
    }
    made = Envelope(json.dumps(statement).encode(), "application/vnd.in-toto+json", {})
    made.sign(signer)
    return json.dumps(made.to_dict(), sort_keys=True).encode()


@dataclass
class Published:
    """A published image, where it is, and how cosign would read there."""

    tmp: Path
    address: str
    image: str
    images: object
    layout: Path

    def publish_again(self) -> dict:
        (self.tmp / "out/published").exists() and shutil.rmtree(self.tmp / "out/published")
        made = context(
            self.tmp, {"image/layout": self.layout}, {"publish.registry": self.address}, commit="a" * 40
        )
        publish(made)
        return json.loads((made.out / "published/published.json").read_text())

    def bytes_on_disk(self) -> dict[str, bytes]:
        """All that the registry keeps, except the notes of uploads and locks."""
        folder = self.tmp / "registry"
        return {name: body for name, body in tree(folder).items() if name not in ("log", "registry.yml")}


@pytest.fixture(params=["layout", "registry"])
def there(request, tmp_path):
    """An image published to an OCI layout, or to a registry."""
    layout, image = model_image(tmp_path, 1)
    if request.param == "layout":
        folder = tmp_path / "registry"
        made = Published(tmp_path, f"oci:{folder}", image.digest, LayoutImages(folder), layout)
        made.publish_again()
        yield made
        return
    child = serve(tmp_path / "registry", PORT)
    try:
        address = f"127.0.0.1:{PORT}/team/digits"
        made = Published(tmp_path, address, image.digest, HttpImages(address), layout)
        made.publish_again()
        yield made
    finally:
        child.kill()
        child.wait()


def quiet(said: str) -> None:
    assert said


def test_what_was_attached_comes_back_byte_for_byte(there):
    made = [envelope(there.image, number) for number in range(3)]
    attached = attach(there.address, there.image, made, quiet)
    assert len(set(attached)) == 3
    assert sorted(fetch(there.address, there.image)) == sorted(made)


@pytest.mark.parametrize("signer", [CI, LAPTOP], ids=["ecdsa", "ed25519"])
@pytest.mark.parametrize("check", [verify_tag, verify_attestation])
def test_cosigns_steps_accept_what_the_key_signed(there, signer, check):
    made = [envelope(there.image, 1, SLSA, signer), envelope(there.image, 2, SCAN, signer)]
    attach(there.address, there.image, made, quiet)
    for kind, number in (("slsaprovenance1", 1), (SLSA, 1), (SCAN, 2)):
        [statement] = check(there.images, there.image, public_pem(signer), kind)
        assert statement["predicate"] == {"number": number}
    with pytest.raises(NotVerified, match=r"slsa.dev/provenance/v1, https://tidegate.dev/scan/v1"):
        check(there.images, there.image, public_pem(signer), "vuln")
    with pytest.raises(NotVerified):
        check(there.images, there.image, public_pem(STRANGER), SLSA)


@pytest.mark.parametrize("check", [verify_tag, verify_attestation])
def test_cosigns_steps_refuse_a_changed_statement(there, check):
    made = json.loads(envelope(there.image))
    payload = base64.b64decode(made["payload"]).replace(b'"number": 0', b'"number": 9')
    made["payload"] = base64.b64encode(payload).decode()
    attach(there.address, there.image, [json.dumps(made).encode()], quiet)
    with pytest.raises(NotVerified):
        check(there.images, there.image, public_pem(CI), SLSA)


def test_cosigns_steps_refuse_an_envelope_that_keeps_securesystemslibs_key_id(there):
    """Why what is attached carries no key id: as it was signed, it would not verify."""
    put_tag(there, envelope(there.image), {"predicateType": SLSA})
    with pytest.raises(NotVerified):
        verify_tag(there.images, there.image, public_pem(CI), SLSA)


def put_tag(there: Published, content: bytes, notes: dict[str, str]) -> Descriptor:
    """Writes cosign's tag with one layer, as another tool would; returns the layer."""
    notes = {"dev.cosignproject.cosign/signature": "", **notes}
    layer = Descriptor(attest.DSSE, of_bytes(content), len(content), notes)
    config = encode({"rootfs": {"type": "layers", "diff_ids": [layer.digest]}})
    tag = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor(CONFIG, of_bytes(config), len(config)).document(),
        "layers": [layer.document()],
        "annotations": {"made-by": "cosign"},
    }
    place = attest._place(there.address, Path())
    place.keep(content)
    place.keep(config)
    place.publish(encode(tag), MANIFEST, there.image.replace(":", "-") + ".att")
    return layer


def test_attaching_again_writes_nothing(there):
    made = [envelope(there.image, number) for number in range(3)]
    first = attach(there.address, there.image, made, quiet)
    before = there.bytes_on_disk()
    assert attach(there.address, there.image, made, quiet) == first
    assert attach(there.address, there.image, made[1:2], quiet) == first[1:2]
    assert there.bytes_on_disk() == before


def test_envelope_of_another_image_is_passed_over_and_said(there):
    said = []
    other, ours = envelope("sha256:" + "9" * 64, kind=SCAN), envelope(there.image)
    before = there.bytes_on_disk()
    assert attach(there.address, there.image, [other], said.append) == []
    assert there.bytes_on_disk() == before
    assert "envelope 1 (https://tidegate.dev/scan/v1) does not name" in said[0]
    assert len(attach(there.address, there.image, [other, ours], said.append)) == 1
    assert fetch(there.address, there.image) == [ours]


NOT_ENVELOPES = {
    "no JSON": b"signed",
    "a list": b"[]",
    "nested without end": b"[" * 100_000,
    "no payload": b'{"payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": "AA=="}]}',
    "two signatures": None,
    "no signature": None,
    "another type": None,
    "a key id with a quote": None,
    "a member that bundles have not": None,
    "a payload that is no base64": None,
}


def not_envelope(image: str, what: str) -> bytes:
    if NOT_ENVELOPES[what]:
        return NOT_ENVELOPES[what]
    document = json.loads(envelope(image))
    [signature] = document["signatures"]
    changes = {
        "two signatures": {"signatures": [signature, signature]},
        "no signature": {"signatures": []},
        "another type": {"payloadType": "text/plain"},
        "a key id with a quote": {"signatures": [{**signature, "keyid": 'a"b'}]},
        "a member that bundles have not": {"note": "x"},
        "a payload that is no base64": {"payload": "%%%"},
    }
    return json.dumps(document | changes[what]).encode()


@pytest.mark.parametrize("what", NOT_ENVELOPES)
def test_what_is_no_envelope_is_refused_before_anything_is_written(there, what):
    before = there.bytes_on_disk()
    bad = not_envelope(there.image, what)
    with pytest.raises(IntegrityError, match="envelope 2"):
        attach(there.address, there.image, [envelope(there.image), bad], quiet)
    assert there.bytes_on_disk() == before


def test_image_that_is_not_there_gets_nothing(there):
    absent = "sha256:" + "1" * 64
    before = there.bytes_on_disk()
    with pytest.raises(ProgramFailed, match=absent):
        attach(there.address, absent, [envelope(absent)], quiet)
    assert {name: body for name, body in there.bytes_on_disk().items() if "uploads" not in name} == before
    with pytest.raises(IntegrityError, match="not a sha256 digest"):
        fetch(there.address, "sha256:../../etc/passwd")


def test_image_keeps_its_digest_and_tags_when_it_is_published_again(there):
    before = there.publish_again()
    attach(there.address, there.image, [envelope(there.image)], quiet)
    after = there.publish_again()
    assert after == before
    assert after["version"] == 1
    assert verify_attestation(there.images, there.image, public_pem(CI), SLSA)


@pytest.mark.skipif(
    not shutil.which("skopeo"), reason="skopeo is not on this machine; apt-get install skopeo"
)
def test_skopeo_copies_the_image_and_cosigns_tag(there, tmp_path):
    attach(there.address, there.image, [envelope(there.image)], quiet)
    place = there.address if there.address.startswith("oci:") else f"docker://{there.address}"
    for tag in ("v1", there.image.replace(":", "-") + ".att"):
        target = tmp_path / f"copied-{tag[:6]}"
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--preserve-digests"]
        subprocess.run([*copy, f"{place}:{tag}", f"oci:{target}:x"], check=True, timeout=60)
        expected = there.image if tag == "v1" else of_bytes(there.images.manifest(tag))
        assert Layout(target).only() == expected


ATTACH = """
import sys
from pathlib import Path
from deploy import attest
address, image, folder = sys.argv[1:]
made = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
print("ready", flush=True)
sys.stdin.readline()
for each in made:
    attest.attach(address, image, [each], print)
"""


def test_two_who_attach_at_once_lose_nothing(there, tmp_path):
    folders, made = [], []
    for who in range(2):
        folders.append(tmp_path / f"of-{who}")
        folders[-1].mkdir()
        for number in range(5):
            made.append(envelope(there.image, 10 * who + number))
            (folders[-1] / str(number)).write_bytes(made[-1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ATTACH, there.address, there.image, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    assert [child.wait(100) for child in children] == [0, 0]
    assert sorted(fetch(there.address, there.image)) == sorted(made)
    numbers = sorted([*range(5), *range(10, 15)])
    for check in (verify_tag, verify_attestation):
        statements = check(there.images, there.image, public_pem(CI), SLSA)
        assert sorted(each["predicate"]["number"] for each in statements) == numbers


DIE = """
import os, signal, sys
from pathlib import Path
from deploy import attest
address, image, folder, last = sys.argv[1:]
done = 0
def counted(work):
    def instead(*args, **named):
        global done
        done += 1
        if done > int(last):
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **named)
    return instead
Path.replace = counted(Path.replace)
from deploy.registry import Client
Client._send = counted(Client._send)
attest._SETTLE_MS = (0, 1)
attest.attach(address, image, [path.read_bytes() for path in sorted(Path(folder).iterdir())], print)
"""


def test_who_was_killed_at_any_step_leaves_nothing_torn_and_a_second_run_finishes(there, tmp_path):
    kept = [envelope(there.image, 100), envelope(there.image, 101, SCAN)]
    attach(there.address, there.image, kept, quiet)
    folder = tmp_path / "envelopes"
    folder.mkdir()
    lived, last, made = False, 0, []
    while not lived:
        for number in range(2):
            made.append(envelope(there.image, 2 * last + number))
            (folder / str(number)).write_bytes(made[-1])
        argv = [sys.executable, "-c", DIE, there.address, there.image, str(folder), str(last)]
        child = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert child.returncode in (0, -9), child.stderr
        lived = child.returncode == 0
        assert set(kept) <= set(fetch(there.address, there.image)) <= {*kept, *made[-2:]}
        assert verify_tag(there.images, there.image, public_pem(CI), SCAN)
        assert verify_attestation(there.images, there.image, public_pem(CI), SCAN)
        attach(there.address, there.image, made[-2:], quiet)
        kept += made[-2:]
        assert set(fetch(there.address, there.image)) == set(kept)
        last += 1 if there.address.startswith("oci:") else 3
    assert last > 6


class Overwritten:
    """A place where another writer wins the race for a tag, some times."""

    def __init__(self, place, times: int):
        self._place = place
        self._times = times

    def __getattr__(self, name):
        return getattr(self._place, name)

    def publish(self, body: bytes, media_type: str, tag: str = "") -> None:
        before = self._place.tagged(tag) if tag else None
        self._place.publish(body, media_type, tag)
        if before and self._times:
            self._times -= 1
            self._place.publish(before, media_type, tag)


@pytest.mark.parametrize(("times", "ends_well"), [(3, True), (10**6, False)])
def test_what_another_writer_replaced_is_added_again_within_reason(there, monkeypatch, times, ends_well):
    attach(there.address, there.image, [envelope(there.image, 1)], quiet)
    real = attest._opened

    def overwritten(*args):
        return _wrapped(real(*args), times)

    monkeypatch.setattr(attest, "_opened", overwritten)
    if ends_well:
        attach(there.address, there.image, [envelope(there.image, 2)], quiet)
        assert len(verify_tag(there.images, there.image, public_pem(CI), SLSA)) == 2
        assert len(verify_attestation(there.images, there.image, public_pem(CI), SLSA)) == 2
    else:
        with pytest.raises(LostRace, match="run this again"):
            attach(there.address, there.image, [envelope(there.image, 2)], quiet)


class _wrapped:
    def __init__(self, opened, times: int):
        self._opened, self._times = opened, times

    def __enter__(self):
        return Overwritten(self._opened.__enter__(), self._times)

    def __exit__(self, *trouble):
        return self._opened.__exit__(*trouble)


def test_what_others_attached_stays(there):
    """A layer as cosign writes it, with its own annotations, and those of the manifest."""
    theirs = envelope(there.image, 7).replace(CI.public_key.keyid.encode(), b"")
    layer = put_tag(there, theirs, {"predicateType": SLSA, "dev.sigstore.cosign/bundle": "{}"})
    ours = envelope(there.image, 8)
    attach(there.address, there.image, [ours], quiet)
    now = json.loads(there.images.manifest(there.image.replace(":", "-") + ".att"))
    assert now["layers"][0] == layer.document()
    assert now["annotations"] == {"made-by": "cosign"}
    assert len(verify_tag(there.images, there.image, public_pem(CI), SLSA)) == 2
    assert set(fetch(there.address, there.image)) == {theirs, ours}


def hostile(there: Published, suffix: str, document: dict | bytes) -> None:
    """Puts a manifest, and no blobs, under a tag of the layout, as someone with write access could."""
    layout = Layout(Path(there.address.removeprefix("oci:")))
    body = document if isinstance(document, bytes) else encode(document)
    attest.FolderPlace(layout).publish(body, MANIFEST, there.image.replace(":", "-") + suffix)


LAYER = {"mediaType": attest.DSSE, "digest": "sha256:" + "5" * 64, "size": 10, "annotations": {}}
REFERRER = {"mediaType": MANIFEST, "digest": "sha256:" + "5" * 64, "size": 10, "artifactType": attest.BUNDLE}
HOSTILE = {
    "a layer that leaves the folder": (
        ".att",
        {"layers": [LAYER | {"digest": "sha256:../../../etc/passwd"}]},
    ),
    "a layer with a path as its algorithm": (".att", {"layers": [LAYER | {"digest": "/etc/passwd"}]}),
    "a layer of a terabyte": (".att", {"layers": [LAYER | {"size": 1 << 40}]}),
    "a layer of less than nothing": (".att", {"layers": [LAYER | {"size": -1}]}),
    "a layer with annotations that are none": (".att", {"layers": [LAYER | {"annotations": [1]}]}),
    "too many layers": (".att", {"layers": [LAYER] * 1001}),
    "layers that are no list": (".att", {"layers": {"a": 1}}),
    "a manifest of 5 MiB": (".att", b'{"layers": []}' + b" " * (5 << 20)),
    "a manifest nested without end": (".att", b'{"layers":' + b"[" * 100_000),
    "a manifest that is no JSON": (".att", b"\0\1"),
    "a referrer that leaves the folder": ("", {"manifests": [REFERRER | {"digest": "sha256:../../passwd"}]}),
    "a referrer of a terabyte": ("", {"manifests": [REFERRER | {"size": 1 << 40}]}),
    "too many referrers": ("", {"manifests": [REFERRER] * 1001}),
}


@pytest.mark.parametrize("there", ["layout"], indirect=True)
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_manifest_is_refused(there, what):
    hostile(there, *HOSTILE[what])
    with pytest.raises(IntegrityError):
        fetch(there.address, there.image)


@pytest.mark.parametrize("there", ["layout"], indirect=True)
def test_changed_blob_is_named_and_not_returned(there):
    attach(there.address, there.image, [envelope(there.image)], quiet)
    [layer] = json.loads(there.images.manifest(there.image.replace(":", "-") + ".att"))["layers"]
    path = Layout(Path(there.address.removeprefix("oci:"))).path(layer["digest"])
    path.write_bytes(path.read_bytes().replace(b"vnd.in-toto", b"vnd.in-torn"))
    with pytest.raises(IntegrityError, match=layer["digest"]):
        fetch(there.address, there.image)


@pytest.mark.parametrize("there", ["layout"], indirect=True)
def test_attaching_mends_a_blob_that_was_torn(there):
    made = envelope(there.image)
    [referrer] = attach(there.address, there.image, [made], quiet)
    layout = Layout(Path(there.address.removeprefix("oci:")))
    layout.write_index([entry for entry in layout.index() if "sha256-" not in str(entry.annotations)])
    layout.path(referrer).write_bytes(b"torn")
    assert attach(there.address, there.image, [made], quiet) == [referrer]
    assert fetch(there.address, there.image) == [made]


def test_model_signature_beside_attestations_hides_none_of_them(there, tmp_path):
    """cosign 3 reads bundles alone once there is any, so attestations must be bundles too."""
    from deploy import model_signature

    model = tmp_path / "model-1"
    private = CI._private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    signature = model_signature.sign(model, private)
    made = envelope(there.image)
    attach(there.address, there.image, [made], quiet)
    attached = model_signature.attach(there.address, there.image, signature, quiet)
    assert attach_bundle(there.address, there.image, signature, quiet) == attached
    assert len(bundles_of(there.images, there.image)) == 2
    assert len(verify_attestation(there.images, there.image, public_pem(CI), SLSA)) == 1
    assert fetch(there.address, there.image) == [made]
    assert fetch_bundles(there.address, there.image, model_signature.PREDICATE) == [signature]
    with pytest.raises(IntegrityError, match="not a Sigstore bundle"):
        attach_bundle(there.address, there.image, b"{}", quiet)


class WithReferrers(BaseHTTPRequestHandler):
    """A registry with the referrers API, in memory: what docker-registry 2.8 lacks."""

    protocol_version = "HTTP/1.1"
    store: dict

    def log_message(self, *args):
        pass

    def _answer(self, status: int, body: bytes = b"", **headers) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        what, _, name = self.path.removeprefix("/v2/a/").partition("/")
        if what == "referrers":
            return self._answer(200, encode({"schemaVersion": 2, "manifests": self._referring(name)}))
        if (what, name) not in self.store:
            return self._answer(404)
        return self._answer(200, self.store[what, name])

    do_HEAD = do_GET

    def do_POST(self):
        self._answer(202, Location="/v2/a/blobs/uploads/1")

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        what, _, name = self.path.removeprefix("/v2/a/").partition("/")
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        self.store[what, digest if what == "blobs" else name] = body
        self.store[what, digest] = body
        self._answer(201)

    def _referring(self, image: str) -> list[dict]:
        found = []
        for (what, name), body in self.store.items():
            document = json.loads(body) if what == "manifests" and name.startswith("sha256:") else {}
            if document.get("subject", {}).get("digest") == image:
                entry = {"mediaType": MANIFEST, "digest": name, "size": len(body)}
                found.append(
                    entry | {"artifactType": document["artifactType"], "annotations": document["annotations"]}
                )
        return found


@pytest.fixture
def with_referrers():
    store = {}
    server = ThreadingHTTPServer(("127.0.0.1", API_PORT), type("Handler", (WithReferrers,), {"store": store}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield store
    server.shutdown()
    server.server_close()
    thread.join()


def test_registry_with_the_referrers_api_keeps_its_own_list(with_referrers):
    address = f"127.0.0.1:{API_PORT}/a"
    body = encode({"schemaVersion": 2, "mediaType": MANIFEST, "layers": []})
    image = of_bytes(body)
    with_referrers["manifests", image] = body
    made = [envelope(image, number) for number in range(2)]
    attach(address, image, made, quiet)
    assert ("manifests", image.replace(":", "-")) not in with_referrers
    assert sorted(fetch(address, image)) == sorted(made)
    images = HttpImages(address)
    assert len(bundles_of(images, image)) == 2
    for check in (verify_tag, verify_attestation):
        assert len(check(images, image, public_pem(CI), SLSA)) == 2
    before = dict(with_referrers)
    attach(address, image, made, quiet)
    assert with_referrers == before


def test_sboms_are_listed_under_their_own_types_beside_attestations_and_written_once(there):
    cyclonedx, spdx = (
        ("a.json", "application/vnd.cyclonedx+json", b"{1}"),
        ("b.json", "application/spdx+json", b"{2}"),
    )
    made = envelope(there.image)
    attach(there.address, there.image, [made], quiet)
    attach_documents(there.address, there.image, [cyclonedx, spdx], quiet)
    for _, kind, content in (cyclonedx, spdx):
        assert fetch_documents(there.address, there.image, kind) == [content]
    assert fetch(there.address, there.image) == [made]
    before = there.bytes_on_disk()
    attach_documents(there.address, there.image, [cyclonedx, spdx], quiet)
    assert there.bytes_on_disk() == before


@pytest.mark.parametrize(
    "what", ["a layer that leaves the folder", "a manifest of 5 MiB", "a referrer of a terabyte"]
)
def test_hostile_answer_of_a_registry_is_refused(with_referrers, what):
    image = "sha256:" + "7" * 64
    suffix, document = HOSTILE[what]
    body = document if isinstance(document, bytes) else encode(document)
    if suffix:
        with_referrers["manifests", image.replace(":", "-") + suffix] = body
    else:
        entry = encode({"subject": {"digest": image}, "artifactType": attest.BUNDLE, "annotations": {}})
        with_referrers["manifests", "sha256:../../etc/passwd"] = entry
    with pytest.raises(IntegrityError):
        fetch(f"127.0.0.1:{API_PORT}/a", image)
