"""Whose signature counts, and for what: `trust/` in the repository, and a laptop's own key for itself."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import config, digest
from pipeline.errors import IntegrityError, SettingsError
from pipeline.keys import Signer
from pipeline.record import Record, read
from pipeline.settings import ROLES, TrustedKey, TrustFile

FOLDER = "trust"
OWN = "this machine"
_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Signed:
    """A record whose signature holds, and the key that made it."""

    record: Record
    key: TrustedKey


@dataclass(frozen=True)
class Trust:
    """The keys that are trusted. `own` is this machine's signer where its key counts, else None."""

    root: Path
    keys: tuple[TrustedKey, ...]
    own: Signer | None = None
    _public: dict = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, root: Path, own: Signer | None = None) -> Trust:
        """The trust of a repository. Raises SettingsError with each fault of trust/roles.yaml and its line."""
        path = root / FOLDER / "roles.yaml"
        if not path.exists():
            return cls(root, (), own)
        keys = config.read(TrustFile, path).keys
        names = [key.name for key in keys]
        for key in keys:
            if names.count(key.name) > 1 or key.name == OWN:
                raise SettingsError(
                    f"{FOLDER}/roles.yaml: the name {key.name!r} is taken; give each key its own"
                )
            if not key.revoked and not (root / FOLDER / key.file).is_file():
                raise SettingsError(f"{FOLDER}/roles.yaml: {key.name}: {FOLDER}/{key.file} does not exist")
        _refuse_twins(root, keys)
        return cls(root, keys, own)

    @property
    def digest(self) -> str:
        """What this trust is made of: equal digests trust the same signatures."""
        files = {
            key.name: (self.root / FOLDER / key.file).read_text() for key in self.keys if not key.revoked
        }
        own = digest.of_bytes(self.own.pem) if self.own and self.own.exists else ""
        return digest.of_json([[repr(key) for key in self.keys], files, own])

    def verify(self, envelope: bytes) -> Signed:
        """The record in an envelope, and who signed it.

        Raises IntegrityError unless one of the trusted keys signed it while it was valid, and it is not from the
        future by more than five minutes.
        """
        made = read(envelope)
        return self.judge(Signed(made, self._signer_of(envelope, _named(made))))

    def judge(self, signed: Signed) -> Signed:
        """A signature that holds, if it also counts: its key valid at its time, its time not in the future."""
        _refuse_untimely(signed.key, _named(signed.record), signed.record.finished)
        return signed

    def signer_of(self, envelope: bytes, named: str, at: str) -> TrustedKey:
        """The trusted key that signed an envelope that says it was made at a time; not only of a record.

        Raises IntegrityError, calling it `named`, as `verify` does.
        """
        key = self._signer_of(envelope, named)
        _refuse_untimely(key, named, at)
        return key

    def remembered(self, envelope_sha256: str, fetch: Callable[[], bytes], remember: Callable) -> Signed:
        """As `verify`, with the costly part, the signature, remembered by what was verified and what was trusted."""
        envelope = fetch()
        made = read(envelope)
        name = remember(
            f"signed:{envelope_sha256}:{self.digest}", lambda: self._signer_of(envelope, _named(made)).name
        )
        return self.judge(Signed(made, next(key for key in self._all() if key.name == name)))

    def key_of(self, signer: Signer) -> TrustedKey | None:
        """The trusted key that a signer signs with; None for a stranger's."""
        wanted = signer.crypto.public_key.keyid
        for key in self._all():
            with contextlib.suppress(ValueError):
                if self._public_key(key).keyid == wanted:
                    return key
        return None

    def has_role(self, role: str) -> bool:
        """Whether any key may act in this role today."""
        today = datetime.now(UTC).date().isoformat()
        return any(
            role in key.roles and not key.revoked and (not key.until or today <= key.until)
            for key in self._all()
        )

    def _all(self) -> tuple[TrustedKey, ...]:
        return (*self.keys, _OWN_KEY) if self.own and self.own.exists else self.keys

    def _signer_of(self, envelope: bytes, named: str) -> TrustedKey:
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import VerificationError

        try:
            signed = Envelope.from_dict(json.loads(envelope))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(f"{named} is no DSSE envelope: {error!r}") from error
        for key in self._all():
            try:
                signed.verify([self._public_key(key)], 1)
            except (VerificationError, ValueError):
                continue
            return key
        known = ", ".join(key.name for key in self._all()) or "nobody"
        raise IntegrityError(
            f"{named} is not signed by a key that is trusted here ({known}). {FOLDER}/roles.yaml says who is; "
            "the stage can be run again with a trusted key"
        )

    def _public_key(self, key: TrustedKey) -> Any:
        """securesystemslib's form of a public key; of a revoked one too, so that its signatures get their true name."""
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
        from securesystemslib.signer import SSlibKey

        if key.name not in self._public:
            if key is _OWN_KEY and self.own:
                public = self.own.crypto.public_key
            else:
                path = self.root / FOLDER / key.file
                try:
                    public = SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
                except FileNotFoundError:
                    raise ValueError("a revoked key whose file is gone verifies nothing") from None
                except (ValueError, TypeError) as error:
                    raise SettingsError(
                        f"{FOLDER}/{key.file} is not a public key in PEM form: {error}"
                    ) from error
            self._public[key.name] = public
        return self._public[key.name]


_OWN_KEY = TrustedKey(name=OWN, file="", roles=ROLES)


def _named(made: Record) -> str:
    return f"the record of {made.stage} ({made.sha256[:12]})"


def _refuse_untimely(key: TrustedKey, named: str, at: str) -> None:
    """Raises IntegrityError for a key that is revoked, or was not valid at that time, and for a time to come."""
    if key.revoked:
        raise IntegrityError(f"{named} is signed by {key.name}, whose key is revoked in {FOLDER}/roles.yaml")
    if key.until and at[:10] > key.until:
        raise IntegrityError(
            f"{named} is signed by {key.name} at {at}, and its key expired with {key.until} ({FOLDER}/roles.yaml)"
        )
    try:
        to_come = datetime.fromisoformat(at) > datetime.now(UTC) + _SKEW
    except (ValueError, TypeError) as error:
        raise IntegrityError(f"{named} says no time that can be read: {at!r}") from error
    if to_come:
        raise IntegrityError(
            f"{named} says that it was made at {at}, which is in the future: a clock is wrong"
        )


def _refuse_twins(root: Path, keys: tuple[TrustedKey, ...]) -> None:
    """Raises SettingsError where two rows have one key: revoking the one would leave the other."""
    seen: dict[str, str] = {}
    for key in keys:
        file = root / FOLDER / key.file
        text = "".join(file.read_text(errors="replace").split()) if file.is_file() else key.file
        if text in seen:
            raise SettingsError(
                f"{FOLDER}/roles.yaml: {key.name} and {seen[text]} are the same key; keep one row"
            )
        seen[text] = key.name
