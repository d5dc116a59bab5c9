"""OpenSSF model signatures: the SavedModel folder itself signed, so that it can be checked without image or store.

What `sign` returns is what `model_signing verify key FOLDER --signature FILE --public_key PEM` accepts:
https://github.com/sigstore/model-transparency. Every file counts, those with git's names too.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import IntegrityError, SettingsError

PREDICATE = "https://model_signing/signature/v1.0"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_SIGNATURE_BYTES_AT_MOST = 16 << 20
_DIFFERENCES = {
    "changed": r"^Hash mismatch for '(.*?)': Expected",
    "added": r"^Extra files found in model '.*?': (.*)",
    "removed": r"^Missing files in model '.*?': (.*)",
}
_REMEDY = (
    "OpenSSF model signing knows ECDSA keys alone. Make one with"
    " `openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out model.pem`."
)


def sign(folder: Path, key_pem: bytes) -> bytes:
    """Signs every file below a folder with a private ECDSA key (PEM, no password): a Sigstore bundle, as JSON.

    ECDSA signatures are made with chance: two of the same folder differ. Raises SettingsError for a
    key of another kind, IntegrityError for a folder with links or special files.
    """
    import model_signing

    key = _private(key_pem)
    config = model_signing.signing.Config().set_hashing_config(_every_file())
    with _piped(key) as path:
        config.use_elliptic_key_signer(private_key=path)
    with tempfile.TemporaryDirectory(prefix="tidegate-") as scratch:
        signature = Path(scratch, "model.sig")
        try:
            config.sign(folder, signature)
        except ValueError as error:
            raise IntegrityError(f"{folder} cannot be signed: {error} Run export again.") from error
        return signature.read_bytes()


def verify(folder: Path, signature: bytes, public_pem: bytes) -> None:
    """Checks that a folder holds exactly the files that were signed with the private half of a key.

    Raises IntegrityError naming each file that was changed, added or removed, or saying that the
    signature is another key's or none; SettingsError for a public key that is no ECDSA key.
    """
    import model_signing
    from cryptography.exceptions import InvalidSignature

    not_signed = (InvalidSignature, ValueError, LookupError, TypeError, AttributeError, RecursionError)
    public = _public(public_pem)
    if len(signature) > _SIGNATURE_BYTES_AT_MOST:
        raise IntegrityError(
            f"the signature of {folder} has {len(signature)} bytes, more than one can have; it was not read"
        )
    with tempfile.TemporaryDirectory(prefix="tidegate-") as scratch, contextlib.redirect_stdout(sys.stderr):
        written, key = Path(scratch, "model.sig"), Path(scratch, "key.pub")
        written.write_bytes(signature)
        key.write_bytes(public)
        config = model_signing.verifying.Config().set_hashing_config(_every_file())
        try:
            config.use_elliptic_key_verifier(public_key=key).verify(folder, written)
        except not_signed as error:
            raise IntegrityError(_complaint(folder, error)) from error


def attach(
    registry: str,
    image: str,
    signature: bytes,
    say: Callable[[str], None],
    *,
    root: Path = Path(),
    state: Path | None = None,
) -> str:
    """Lets a signature refer to the image that holds the model; the digest of the manifest that does."""
    from deploy.attest import attach_bundle

    return attach_bundle(registry, image, signature, say, root=root, state=state)


def _complaint(folder: Path, error: Exception) -> str:
    """What the library found, in fewer words: it lists the differences, and digests in them, as Python objects."""
    kind, _, said = str(error).partition(": ")
    if kind != "Signature mismatch":
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"the signature of {folder} does not hold for this key: {said}"
    found: dict[str, list[str]] = {"changed": [], "added": [], "removed": []}
    for difference in ast.literal_eval(said):
        for how, pattern in _DIFFERENCES.items():
            found[how] += re.findall(pattern, difference)
    files = "; ".join(f"{how}: {', '.join(names)}" for how, names in found.items() if names)
    return f"{folder} is not what was signed: {files}. Restore it, or export and sign it again."


def _every_file() -> Any:
    """How the library is to hash: sha256 of every file; by itself it would leave out .git* and follow the signature."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)


def _private(pem: bytes) -> bytes:
    """The private key, written anew in the plainest form. Raises SettingsError unless it is an ECDSA key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise SettingsError(
            f"the key is not a private key in PEM form without a password. {_REMEDY}"
        ) from error
    _check(key, ec.EllipticCurvePrivateKey)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError) as error:
        raise SettingsError(f"the key is not a public key in PEM form: {error}") from error
    _check(key, ec.EllipticCurvePublicKey)
    return pem


def _check(key: Any, kind: type) -> None:
    is_curve = isinstance(key, kind)
    name = key.curve.name if is_curve else type(key).__name__.replace("Private", "").strip("_")
    if name not in _CURVES:
        raise SettingsError(f"a model cannot be signed with a key of the kind {name}. {_REMEDY}")


@contextlib.contextmanager
def _piped(content: bytes) -> Iterator[str]:
    """A path from which a few bytes can be read once. They are on no disk: it is the end of a pipe."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as stream:
            stream.write(content)  # a PEM key is far smaller than what a pipe holds
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
