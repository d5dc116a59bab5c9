"""Logins for registries, from where `docker login` keeps them: DOCKER_CONFIG or ~/.docker/config.json.

As Docker has it: the helper that `credHelpers` names for the host, else the one of `credsStore`, else `auths`. A
whole config.json may also stand in DOCKER_AUTH_CONFIG, as GitLab's runners take it; that is asked first.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.transport import is_token
from pipeline.errors import ProgramFailed
from pipeline.run import run

_HELPER_TIMEOUT_S = 30.0
_DOCKER_HUB = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[\w.-]+")  # what follows docker-credential- in a program's name
_MEMBERS = ("username", "password", "auth", "identitytoken", "registrytoken")
# What a helper says, on stdout, of a server that it knows nothing of (docker-credential-helpers, credentials/error.go).
_UNKNOWN = ("credentials not found", "no credentials server url")
# The user name with which a helper hands out an identity token instead of a password.
_TOKEN_USER = "<token>"  # noqa: S105


@dataclass(frozen=True)
class Login:
    """Who pushes: a user with a password, an identity token to get tokens with, or a registry's own token.

    None of the secrets is ever printed.
    """

    user: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The login as an Authorization header says it."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def login_for(host: str, environ: Mapping[str, str] = os.environ) -> Login | None:
    """The login for a registry's host; None where there is none.

    Raises ProgramFailed if a configuration cannot be read or its credential helper fails.
    """
    named = environ.get("DOCKER_AUTH_CONFIG")
    if named and (found := _in(_parsed(named, "DOCKER_AUTH_CONFIG", host), host, "DOCKER_AUTH_CONFIG")):
        return found
    folder = Path(environ["DOCKER_CONFIG"]) if environ.get("DOCKER_CONFIG") else Path.home() / ".docker"
    path = folder / "config.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProgramFailed(_unreadable(str(path), error, host)) from error
    return _in(_parsed(content, str(path), host), host, str(path))


def _parsed(content: str | bytes, where: str, host: str) -> dict:
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProgramFailed(
            _unreadable(where, error, host)
        ) from None  # the cause would quote the configuration
    named = {"it": config}
    if isinstance(config, dict):
        named = {name: config.get(name) or {} for name in ("auths", "credHelpers")}
    for name, value in named.items():
        if not isinstance(value, dict):
            raise ProgramFailed(
                _unreadable(where, f"{name} is a {type(value).__name__}, not an object", host)
            )
    return config


def _unreadable(where: str, error: object, host: str) -> str:
    return f"{where} cannot be read: {error}. Mend it, or docker login {host} writes it anew."


def _in(config: Mapping, host: str, where: str) -> Login | None:
    """The login that one configuration has for a host."""
    names = _names(host)
    helpers = config.get("credHelpers") or {}
    helper = next((helpers[name] for name in names if name in helpers), None) or config.get("credsStore")
    if helper:
        if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
            raise ProgramFailed(_unreadable(where, "what it names as a credential helper is none", host))
        found = _from_helper(helper, _DOCKER_HUB if host == "docker.io" else host)
        if found:
            return found
    for name, entry in (config.get("auths") or {}).items():
        if _host(name) in names and (found := _from_entry(entry, where, name)):
            return found
    return None


def _names(host: str) -> tuple[str, ...]:
    if host == "docker.io":
        return (host, "index.docker.io", "registry-1.docker.io", _DOCKER_HUB)
    return (host, f"https://{host}")


def _host(name: str) -> str:
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _from_entry(entry: object, where: str, name: str) -> Login | None:
    """What `auths` holds for a server; None for the empty entry that docker leaves where a helper has the login."""
    try:
        user, password, auth, identity, token = _members(entry or {})
        if auth:
            user, password = _decoded(auth)
    except (ValueError, TypeError):
        # Without its cause, which would quote it.
        raise ProgramFailed(
            f"{where}: the entry of {name} is not a login; docker login {_host(name)} writes it anew"
        ) from None
    return Login(user, password, identity, token) if user or identity or token else None


def _members(entry: object) -> list[str]:
    """The members of an entry as text, "" for one that is not there. Raises ValueError or TypeError for others."""
    if not isinstance(entry, Mapping):
        raise TypeError("no object")
    found = [entry.get(name) or "" for name in _MEMBERS]
    if not all(isinstance(text, str) for text in found):
        raise TypeError("no text")
    _travels(*found)
    if found[-1] and not is_token(found[-1]):
        raise ValueError("a token that no header can hold")
    return found


def _travels(*texts: str) -> None:
    """Raises ValueError for a text that cannot be sent: JSON may hold halves of characters."""
    for text in texts:
        text.encode()


def _decoded(auth: str) -> tuple[str, str]:
    """User and password. Raises ValueError for what is no login."""
    user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    if not colon:
        raise ValueError("no colon")
    return user, password.strip("\0")


def _from_helper(helper: str, server: str) -> Login | None:
    program = f"docker-credential-{helper}"
    done = run([program, "get"], timeout_s=_HELPER_TIMEOUT_S, stdin=server, check=False, echo=False)
    if done.returncode != 0:
        text = (done.stdout.strip() or done.stderr.strip()).splitlines()
        if text and any(unknown in text[0].lower() for unknown in _UNKNOWN):
            return None
        raise ProgramFailed(
            f"{program} failed for {server} with exit status {done.returncode}: {text[0][:200] if text else 'no word'}."
            f" Log in again as its documentation says, then `echo {server} | {program} get` shows that it works."
        )
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
        _travels(user, secret)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProgramFailed(f"{program} answered something that is not a login for {server}") from None
    return Login("", identity_token=secret) if user == _TOKEN_USER else Login(user, secret)
