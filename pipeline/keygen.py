"""Makes a key for CI or a person, and writes its public half into trust/."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline import config, keys
from pipeline.bucket_file import disk_errors
from pipeline.errors import SettingsError
from pipeline.execution import Paths
from pipeline.settings import ROLES, TrustedKey, TrustFile
from pipeline.trust import FOLDER, OWN

(_NAME,) = (field.metadata for field in dataclasses.fields(TrustedKey) if field.name == "name")


def make(paths: Paths, name: str, roles: Sequence[str], identities: Sequence[str]) -> str:
    """Makes a key pair; returns what to do next.

    The private half goes to `keys/NAME.pem` in the state folder, readable by its owner alone and never in git; the
    public half to `trust/NAME.pem`, with a row in trust/roles.yaml to be reviewed. Raises SettingsError for a name
    that is taken, an unknown role, or a row that trust/roles.yaml would not take.
    """
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise SettingsError(f"--role {unknown[0]} is not a role. Roles: {', '.join(ROLES)}.")
    if not re.fullmatch(_NAME["pattern"], name):
        raise SettingsError(f"{name!r} cannot name a key. Allowed: {_NAME['says']}.")
    private = paths.state / "keys" / f"{name}.pem"
    public = paths.root / FOLDER / f"{name}.pem"
    file = paths.root / FOLDER / "roles.yaml"
    if name == OWN or private.exists() or public.exists():
        raise SettingsError(
            f"{name} has a key already ({private if private.exists() else public}); nothing was changed."
        )
    before = file.read_text()
    row = f"  - {{name: {name}, file: {name}.pem, roles: [{', '.join(roles)}]"
    row += (f", identities: {json.dumps(list(identities))}" if identities else "") + "}\n"
    fresh = file.with_name(f".roles.{os.getpid()}.yaml")
    with disk_errors(file):
        try:
            fresh.write_text(_with_row(before, row))
            config.read(TrustFile, fresh, called=file.name)
            keys.keep(private, keys.new_private_key())
            public.write_bytes(keys.public_of(private.read_bytes()))
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
    return (
        f"The private key is {_shown(private)}: put it into CI as TIDEGATE_SIGNING_KEY (protected), or hand it to "
        f"{name}, and keep no copy here.\nCommit {FOLDER}/ and have it reviewed: from then on {name} counts as "
        f"{', '.join(roles)}."
    )


def _with_row(text: str, row: str) -> str:
    """roles.yaml with one more key; its comments stay."""
    if text.rstrip().endswith("keys: []"):
        return text.rstrip().removesuffix("[]").rstrip() + "\n" + row
    return text.rstrip() + "\n" + row


def _shown(path: Path) -> str:
    return os.path.relpath(path)
