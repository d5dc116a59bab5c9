"""The key that signs on this machine: the one that CI or a person gives, else a laptop's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.bucket_file import disk_errors
from pipeline.errors import SettingsError

KEY_VARIABLE = "TIDEGATE_SIGNING_KEY"
APPROVAL_VARIABLE = "TIDEGATE_APPROVAL_KEY"


class Signer:
    """Loads the private key, or makes a laptop's own on first use, only when it is needed."""

    def __init__(
        self,
        state: Path,
        may_use_own: bool = True,
        environ: Mapping[str, str] = os.environ,
        approving: bool = False,
    ):
        self._own = state / "keys" / "laptop.pem"
        self._may_use_own = may_use_own
        # A job cannot give an approver's key under the usual name where GitLab has CI's own there: a project's variable
        # wins over a job's.
        names = (APPROVAL_VARIABLE, KEY_VARIABLE) if approving else (KEY_VARIABLE,)
        self._variable = next((name for name in names if environ.get(name)), KEY_VARIABLE)
        self._given = environ.get(self._variable, "")

    @property
    def is_own(self) -> bool:
        """Whether this is the machine's own key, which nobody else knows."""
        return not self._given

    @property
    def exists(self) -> bool:
        """Whether there is a key, without making one."""
        return bool(self._given) or self._own.exists()

    @cached_property
    def pem(self) -> bytes:
        """The private key in PEM form. Raises SettingsError where there is none, or it cannot be read."""
        if self._given.startswith("-----BEGIN"):
            return self._given.encode()
        if self._given:
            try:
                return Path(self._given).read_bytes()
            except OSError as error:
                raise SettingsError(f"{self._variable} names a file that cannot be read: {error}") from error
        if not self._may_use_own:
            raise SettingsError(
                f"{KEY_VARIABLE} is not set, and what a protected ref records must be signed with CI's key. Set it to "
                "the private key (PEM, or the path of its file) whose public half is in trust/ (docs/security.md)."
            )
        if not self._own.exists():
            keep(self._own, new_private_key())
        try:
            return self._own.read_bytes()
        except OSError as error:
            raise SettingsError(f"this machine's own key cannot be read: {error}") from error

    @cached_property
    def crypto(self) -> Any:
        """The key as securesystemslib's signer."""
        from cryptography.hazmat.primitives import serialization
        from securesystemslib.signer import CryptoSigner

        where = self._variable if self._given else self._own
        try:
            return CryptoSigner(serialization.load_pem_private_key(self.pem, password=None))
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"{where} is not a private key in PEM form without a password (ed25519 or ECDSA): {error}"
            ) from error

    def public_pem(self) -> bytes:
        """The public half, in PEM form."""
        return public_of(self.pem)


def new_private_key() -> bytes:
    """A new ECDSA P-256 key in PEM form: the kind that cosign and OpenSSF model-signing read, too."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_of(private_pem: bytes) -> bytes:
    """The public half of a private key, both in PEM form."""
    from cryptography.hazmat.primitives import serialization

    public = serialization.load_pem_private_key(private_pem, password=None).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def keep(path: Path, private_pem: bytes) -> None:
    """Writes a new key so that no other user can ever read it, and that two makers at once agree on one.

    Raises ProgramFailed where the disk is full or read-only.
    """
    partial = path.with_name(f".{os.getpid()}.pem")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(private_pem)
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
