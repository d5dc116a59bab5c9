"""OpenSSF model signatures, judged by the library's own command line as well as by ours."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy import model_signature
from deploy.model_signature import sign, verify
from pipeline.errors import IntegrityError, SettingsError
from tests.support import tree
from tests.support_images import savedmodel


def private_pem(key, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
WEIGHTS = "variables/variables.data-00000-of-00001"


@pytest.fixture
def model(tmp_path) -> Path:
    return savedmodel(tmp_path / "savedmodel")


def librarys_verdict(model: Path, signature: bytes, public: bytes) -> int:
    """The exit status of `model_signing verify key`."""
    (model.parent / "model.sig").write_bytes(signature)
    (model.parent / "key.pub").write_bytes(public)
    program = Path(sys.executable).with_name("model_signing")
    argv = [program, "verify", "key", model, "--signature", model.parent / "model.sig"]
    done = subprocess.run(
        [*argv, "--public_key", model.parent / "key.pub"], capture_output=True, text=True, timeout=60
    )
    assert ("succeeded" in done.stdout) == (done.returncode == 0), done.stdout + done.stderr
    return done.returncode


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_signature_holds_for_us_and_for_the_librarys_own_program(model, curve):
    key = ec.generate_private_key(curve())
    signature = sign(model, private_pem(key))
    verify(model, signature, public_pem(key))
    assert librarys_verdict(model, signature, public_pem(key)) == 0


def flip_one_bit(model: Path) -> str:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[60_000] ^= 1
    (model / WEIGHTS).write_bytes(content)
    return f"changed: {WEIGHTS}"


def add_a_file(model: Path) -> str:
    (model / "assets.extra/more").write_text("x")
    return "added: assets.extra/more"


def remove_a_file(model: Path) -> str:
    (model / "fingerprint.pb").unlink()
    return "removed: fingerprint.pb"


def swap_two_files(model: Path) -> str:
    (model / "fingerprint.pb").rename(model / "x")
    (model / "variables/variables.index").rename(model / "fingerprint.pb")
    (model / "x").rename(model / "variables/variables.index")
    return "changed: fingerprint.pb, variables/variables.index"


def change_several(model: Path) -> str:
    return "; ".join((flip_one_bit(model), add_a_file(model), remove_a_file(model)))


@pytest.mark.parametrize("change", [flip_one_bit, add_a_file, remove_a_file, swap_two_files, change_several])
def test_each_file_that_differs_is_named(model, change):
    signature = sign(model, private_pem(KEY))
    named = change(model)
    with pytest.raises(IntegrityError) as caught:
        verify(model, signature, public_pem(KEY))
    assert named in str(caught.value)
    assert librarys_verdict(model, signature, public_pem(KEY)) != 0


@pytest.mark.parametrize("name", [".gitignore", ".gitattributes", ".git/hooks/run", ".github/x"])
def test_file_with_a_name_of_gits_is_no_exception(model, name):
    """The library leaves these out unless it is told not to, so anyone could add them."""
    signature = sign(model, private_pem(KEY))
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("x")
    with pytest.raises(IntegrityError, match=f"added: {name}"):
        verify(model, signature, public_pem(KEY))


def test_signature_of_another_key_is_refused(model):
    signature = sign(model, private_pem(OTHER))
    with pytest.raises(IntegrityError, match="does not hold for this key"):
        verify(model, signature, public_pem(KEY))
    assert librarys_verdict(model, signature, public_pem(KEY)) != 0


def test_signature_that_claims_to_be_of_this_key_is_refused(model):
    """The hint in a bundle, which says which key to take, is not signed."""
    hint = sign(model, private_pem(KEY)).partition(b'"hint":"')[2][:64]
    forged = sign(model, private_pem(OTHER))
    forged = forged.replace(forged.partition(b'"hint":"')[2][:64], hint)
    with pytest.raises(IntegrityError, match="InvalidSignature"):
        verify(model, forged, public_pem(KEY))


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_changed_signature_never_holds(model, at):
    signature = bytearray(sign(model, private_pem(KEY)))
    signature[int(len(signature) * at)] ^= 1
    with pytest.raises(IntegrityError):
        verify(model, bytes(signature), public_pem(KEY))


@pytest.mark.parametrize(
    "signature",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b" " * (17 << 20)],
    ids=["nothing", "object", "list", "null", "no text", "nested without end", "17 MiB"],
)
def test_what_is_no_signature_is_refused(model, signature):
    with pytest.raises(IntegrityError, match="signature"):
        verify(model, signature, public_pem(KEY))


def test_folder_with_a_link_is_not_signed_and_does_not_verify(model):
    signature = sign(model, private_pem(KEY))
    (model / "assets").symlink_to("/etc")
    with pytest.raises(IntegrityError, match="assets"):
        sign(model, private_pem(KEY))
    with pytest.raises(IntegrityError, match="assets"):
        verify(model, signature, public_pem(KEY))


WRONG_KEYS = {
    "ed25519": private_pem(Ed25519PrivateKey.generate()),
    "rsa": private_pem(rsa.generate_private_key(65537, 2048)),
    "secp256k1": private_pem(ec.generate_private_key(ec.SECP256K1())),
    "with a password": private_pem(KEY, b"secret"),
    "no key": b"hunter2",
    "public": public_pem(KEY),
}


@pytest.mark.parametrize("kind", WRONG_KEYS)
def test_key_that_cannot_sign_models_is_refused_with_what_to_do(model, kind):
    with pytest.raises(SettingsError, match="openssl ecparam") as caught:
        sign(model, WRONG_KEYS[kind])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("key", [Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)])
def test_public_key_of_another_kind_is_refused(model, key):
    signature = sign(model, private_pem(KEY))
    with pytest.raises(SettingsError, match="ECDSA"):
        verify(model, signature, public_pem(key))
    with pytest.raises(SettingsError, match="not a public key"):
        verify(model, signature, private_pem(KEY))


def test_private_key_is_on_no_disk_while_it_signs(model, tmp_path, monkeypatch):
    """Every file that there is while the library signs is looked into; the folder of temporary files is ours."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    secret = private_pem(KEY).splitlines()[1]
    seen = []

    import model_signing

    real = model_signing.signing.Config.use_elliptic_key_signer

    def looking(self, *, private_key, password=None):
        seen.append(private_key)
        assert Path(private_key).is_fifo()
        made = real(self, private_key=private_key, password=password)
        assert not any(secret in body for body in tree(tmp_path).values())
        return made

    monkeypatch.setattr(model_signing.signing.Config, "use_elliptic_key_signer", looking)
    before = set(Path("/proc/self/fd").iterdir())
    signature = sign(model, private_pem(KEY))
    assert seen
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert tree(scratch) == {}
    assert secret not in signature


def test_importing_the_module_does_not_import_the_library():
    """It takes most of a second; `status` must not wait for it."""
    code = "import sys, deploy.model_signature; sys.exit('model_signing' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert model_signature.PREDICATE == "https://model_signing/signature/v1.0"
