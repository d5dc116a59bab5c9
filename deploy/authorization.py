"""What a registry's 401 asks for: a login (Basic) or a token for some rights (Bearer), and when it must be renewed.

Tokens: https://distribution.github.io/distribution/spec/auth/token/ (GET, with a login) and
https://distribution.github.io/distribution/spec/auth/oauth/ (POST, with an identity token).
"""

from __future__ import annotations

import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping

from deploy.credentials import Login, login_for
from deploy.oci import parse_json
from deploy.transport import (
    Answer,
    Refused,
    Request,
    Transport,
    Unreachable,
    is_safe,
    is_token,
    retry_after_s,
    whole,
)
from pipeline.errors import ProgramFailed

_LIFE_S = 60.0  # of a token whose answer does not say: the specification's default
_USED_UP = 0.9  # the share of its life after which a token is renewed before it is refused
_CLIENT = "tidegate"


class Authorization:
    """The rights of one client at one registry. Any number of threads may use it; a token is fetched once."""

    def __init__(
        self,
        host: str,
        name: str,
        transport: Transport,
        *,
        login: Callable[[str], Login | None] = login_for,
        now: Callable[[], float] = time.monotonic,
    ):
        self._host = host
        self._name = name
        self._transport = transport
        self._ask_login = login
        self._now = now
        self._lock = threading.Lock()
        self._header = ""
        self._challenge: Mapping[str, str] = {}
        self._until = float("inf")

    def header(self) -> str:
        """What to send with a request; empty until a registry has asked for anything."""
        with self._lock:
            if self._header and self._now() >= self._until:
                self._header = self._token(self._challenge)
            return self._header

    def renew(self, refused: Answer, sent: str) -> tuple[str, bool]:
        """What to send instead of `sent`, which was answered with this 401; and whether it was got for this very 401.

        What another thread got meanwhile may be for other rights, or used up already, so it may be refused in its
        turn. Raises Refused if there is no login, or if it was refused.
        """
        challenge = refused.headers.get("WWW-Authenticate", "")
        scheme, _, rest = challenge.partition(" ")
        with self._lock:
            if sent != self._header:  # another thread was told the same a moment ago
                return self._header, False
            if scheme.lower() == "basic":
                self._header = self._basic(sent)
            elif scheme.lower() == "bearer":
                self._header = self._token(dict(re.findall(r'(\w+)="([^"]*)"', rest)))
            else:
                raise ProgramFailed(
                    f"{self._host} asks for a login of a kind that is not known here: {challenge or 'none named'}"
                )
            return self._header, True

    def refused(self) -> str:
        """The text for a person whose login does not open the registry."""
        return self._no_entry(self._ask_login(self._host))

    def _basic(self, sent: str) -> str:
        login = self._ask_login(self._host)
        if login is None or not login.user or sent:
            raise Refused(self._no_entry(login), 401)
        return login.basic()

    def _token(self, challenge: Mapping[str, str]) -> str:
        """A Bearer header with the rights that the challenge names."""
        login = self._ask_login(self._host)
        if login and login.registry_token:
            return f"Bearer {login.registry_token}"
        realm = challenge.get("realm", "")
        if not is_safe(realm):
            raise ProgramFailed(
                f"{self._host} sends to {realm!r}, which is not https; nothing was sent there"
            )
        asks = _with_identity if login and login.identity_token else _plain
        answer = self._transport(asks(challenge, login))
        if answer.status >= 500 or answer.status == 429:
            raise Unreachable(f"the token service said {answer.status}", retry_after_s(answer))
        if answer.status != 200:
            raise Refused(self._no_entry(login), 401)
        given = parse_json(whole(answer), f"the token from {realm}")
        token = given.get("token") or given.get("access_token")
        if not isinstance(token, str) or not is_token(token):
            raise ProgramFailed(
                f"the token service {realm} answered without a token; {self._host} is set up wrongly"
            )
        life = given.get("expires_in")
        life_s = float(life) if isinstance(life, int | float) and life > 0 else _LIFE_S
        self._challenge, self._until = challenge, self._now() + life_s * _USED_UP
        return f"Bearer {token}"

    def _no_entry(self, login: Login | None) -> str:
        if login is None:
            return f"{self._host} asks for a login, and the Docker configuration has none: docker login {self._host}"
        who = login.user or "the token of the Docker configuration"
        return f"{self._host} did not let {who} into {self._name}: docker login {self._host}, then run this again"


def _plain(challenge: Mapping[str, str], login: Login | None) -> Request:
    """A token for a user and password, or for nobody in particular."""
    realm = challenge["realm"]
    query = urllib.parse.urlencode(_wanted(challenge))
    headers = {"Authorization": login.basic()} if login and login.user else {}
    return Request("GET", f"{realm}{'&' if '?' in realm else '?'}{query}", headers)


def _with_identity(challenge: Mapping[str, str], login: Login | None) -> Request:
    """A token for an identity token, which is never sent in a URL."""
    form = [
        ("grant_type", "refresh_token"),
        ("client_id", _CLIENT),
        ("refresh_token", login.identity_token if login else ""),
        *((name, " ".join(v for n, v in _wanted(challenge) if n == name)) for name in ("service", "scope")),
    ]
    body = urllib.parse.urlencode(form).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Request("POST", challenge["realm"], headers, lambda: iter((body,)), len(body))


def _wanted(challenge: Mapping[str, str]) -> list[tuple[str, str]]:
    """What to ask for; several scopes in one challenge, as a mount has, become several parameters."""
    service = [("service", challenge["service"])] if "service" in challenge else []
    return service + [("scope", scope) for scope in challenge.get("scope", "").split()]
