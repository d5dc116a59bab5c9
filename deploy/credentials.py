"""Logins for registries, from where `docker login` keeps them: DOCKER_CONFIG or ~/.docker/config.json."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ProgramFailed
from pipeline.run import run

_HELPER_TIMEOUT_S = 30.0
_DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True)
class Login:
    """Who pushes. The password is never printed."""

    user: str
    password: str = field(repr=False)

    def basic(self) -> str:
        """The login as an Authorization header says it."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login_for(host: str, environ: Mapping[str, str] = os.environ) -> Login | None:
    """The login for a registry's host; None where there is none.

    Raises ProgramFailed if the configuration cannot be read or its credential helper fails.
    """
    folder = Path(environ["DOCKER_CONFIG"]) if environ.get("DOCKER_CONFIG") else Path.home() / ".docker"
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProgramFailed(
            f"{path} cannot be read: {error}. Mend it, or docker login {host} writes it anew."
        ) from error
    names = _names(host)
    for name, entry in (config.get("auths") or {}).items():
        if _host(name) in names and entry.get("auth"):
            return _decoded(entry["auth"], path, name)
    helper = next((config["credHelpers"][n] for n in names if n in (config.get("credHelpers") or {})), None)
    helper = helper or config.get("credsStore")
    return _from_helper(helper, _DOCKER_HUB if host == "docker.io" else host) if helper else None


def _names(host: str) -> tuple[str, ...]:
    return (host, "index.docker.io", "registry-1.docker.io") if host == "docker.io" else (host,)


def _host(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _decoded(auth: str, path: Path, name: str) -> Login:
    try:
        user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        colon = ""
    if not colon:
        raise ProgramFailed(
            f"{path}: the entry of {name} is not a login; docker login {_host(name)} writes it anew"
        )
    return Login(user, password)


def _from_helper(helper: str, server: str) -> Login | None:
    done = run(
        [f"docker-credential-{helper}", "get"],
        timeout_s=_HELPER_TIMEOUT_S,
        stdin=server,
        check=False,
        echo=False,
    )
    if done.returncode != 0:  # helpers have no other way to say that they know nothing of a server
        return None
    try:
        answer = json.loads(done.stdout)
        return Login(answer["Username"], answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProgramFailed(
            f"docker-credential-{helper} answered something that is not a login for {server}"
        ) from error
