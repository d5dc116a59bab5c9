"""Asks a REST API with a token: bounded in time and size, never talking to another host. Only `send` changes things.

What the caller must judge (403, 404) comes back as a value; what leaves nothing to judge raises NoData.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import NoData

TIMEOUT_S = 10.0
RETRIES = 2
_BACKOFF_S = 0.5
_BYTES_AT_MOST = 8 << 20
_PAGES_AT_MOST = 100
_PER_PAGE = 100
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
_NEXT = re.compile(r'<([^<>]+)>\s*;[^,<]*\brel="?next"?')
_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Refused:
    """The API answered 403 or 404. `said` is its own short text, safe to print."""

    status: int
    said: str

    def __str__(self) -> str:
        return f"{self.status}{self.said and ', ' + self.said}"


@dataclass(frozen=True)
class Api:
    """One API under `base`, asked with `token` from the variable `token_from`.

    `header` and `scheme` say how the token travels, as `Authorization: Bearer TOKEN`.
    """

    base: str
    token: str = field(repr=False)
    token_from: str
    header: str
    scheme: str = ""
    accept: str = "application/json"

    def __post_init__(self) -> None:
        parts = _split(self.base)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
            raise NoData(
                f"the API {_printable(self.base)} is not https: the token would travel in the clear. Nothing was asked."
            )
        if not _TOKEN.fullmatch(self.token):
            raise NoData(
                f"{self.token_from} holds characters that no token has, a space or a line break perhaps. Set it again."
            )

    @property
    def host(self) -> str:
        """Who is asked: the host, and the port where one is named."""
        return _split(self.base).netloc.rpartition("@")[2]

    def get(self, path: str) -> Any:
        """The JSON document at `path` (which begins with /), or Refused.

        Raises NoData if there is no answer to judge: no network, too slow, the token is not accepted, a rate limit,
        a server's trouble (after two more tries), a redirect to another host, no JSON.
        """
        return self._fetch(self.base + path)[0]

    def send(self, method: str, path: str, document: Mapping[str, Any]) -> Any:
        """Sends a JSON document to `path`; returns the answer's, or Refused. Never tried again: it may have been heard.

        Raises NoData as `get` does.
        """
        status, headers, body = self._speak(self.base + path, method, json.dumps(document).encode())
        if status not in (200, 201):
            return self._judge(status, headers, body, _named(path))
        return self._document(body, _named(path))

    def pages(self, path: str, key: str = "") -> Any:
        """All items of the list at `path`, following its pages, or Refused.

        With `key`, each page is an object that holds the items under that name, and their `total_count`.
        Raises NoData as `get` does, and for anything that is no such list.
        """
        url = f"{self.base}{path}{'&' if '?' in path else '?'}per_page={_PER_PAGE}"
        items: list = []
        for _ in range(_PAGES_AT_MOST):
            page, url = self._fetch(url)
            if isinstance(page, Refused):
                return page
            found = page.get(key) if key and isinstance(page, dict) else page
            if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
                raise NoData(
                    f"{self.host} answered {_named(path)} with something that is not a list of objects."
                )
            items += found
            if not url:
                if key and page.get("total_count", len(items)) != len(items):
                    raise NoData(
                        f"{self.host} listed {len(items)} of {_named(path)} and says that there are more."
                    )
                return items
        raise NoData(
            f"{self.host} has more than {_PAGES_AT_MOST} pages of {_named(path)}; not all were looked at."
        )

    def _fetch(self, url: str) -> tuple[Any, str]:
        """The document and the address of the next page ("" for none), trying a server's trouble again."""
        path = _named(_split(url).path)
        for attempt in range(RETRIES + 1):
            status, headers, body = self._speak(url)
            if status < 500:
                break
            if attempt < RETRIES:
                time.sleep(_BACKOFF_S * 2**attempt)
        else:
            raise NoData(f"{self.host} answered {path} with {status}, {RETRIES + 1} times. Ask again later.")
        if status != 200:
            return self._judge(status, headers, body, path), ""
        return self._document(body, path), self._next(url, headers)

    def _document(self, body: bytes, path: str) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise NoData(
                f"{self.host} answered {path} with something that is not JSON. Is {self.base} its API?"
            ) from None

    def _judge(self, status: int, headers: Mapping[str, str], body: bytes, path: str) -> Refused:
        """What a status other than 200 means."""
        said = self._said(body)
        if status == 429 or (status == 403 and _exhausted(headers)):
            raise NoData(f"{self.host} answers no more for now (rate limit, {status}). Ask again later.")
        if status == 401:
            raise NoData(
                f"{self.host} does not accept the token in {self.token_from} (401{said and ', ' + said}). "
                "It may have expired, or be another host's."
            )
        if status in (403, 404):
            return Refused(status, said)
        raise NoData(f"{self.host} answered {path} with {status}{said and ', ' + said}.")

    def _speak(
        self, url: str, method: str = "GET", sent: bytes | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {
            "Accept": self.accept,
            "User-Agent": "tidegate",
            self.header: f"{self.scheme} {self.token}".strip(),
            **({"Content-Type": "application/json"} if sent else {}),
        }

        request = urllib.request.Request(url, sent, headers, method=method)  # noqa: S310
        try:
            with _opened(request) as answer:
                return answer.status, answer.headers, self._read(answer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            what = f"did not answer within {TIMEOUT_S:g} s"
            if not isinstance(reason, TimeoutError):
                what = f"could not be asked: {self._safe(str(reason)) or type(reason).__name__}"
            raise NoData(f"{self.host} {what}.") from None

    def _read(self, answer: Any) -> bytes:
        """The body, if it is not too large and comes in time; a socket's timeout alone would let it trickle forever."""
        deadline, body = time.monotonic() + TIMEOUT_S, bytearray()
        while chunk := answer.read1(1 << 16):
            body += chunk
            if len(body) > _BYTES_AT_MOST:
                raise NoData(f"{self.host} sent more than {_BYTES_AT_MOST >> 20} MiB for one answer.")
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(body)

    def _next(self, url: str, headers: Mapping[str, str]) -> str:
        """The address of the next page (RFC 8288), if it is on the same host."""
        found = _NEXT.search(headers.get("Link") or "")
        if not found:
            return ""
        address = urllib.parse.urljoin(url, found[1])
        _stay(url, address)
        return address

    def _said(self, body: bytes) -> str:
        """The API's own words for a refusal, if it has some."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return ""
        words = document.get("message") or document.get("error") if isinstance(document, dict) else None
        return self._safe(words) if isinstance(words, str) else ""

    def _safe(self, text: str) -> str:
        """A text from elsewhere: one short line, and never the token, which some servers echo."""
        return _printable(text.replace(self.token, "***"))


def _opened(request: urllib.request.Request) -> Any:
    """The answer, whatever its status. This machine itself is never asked through a proxy."""
    no_proxy = [urllib.request.ProxyHandler({})] if _is_loopback(_split(request.full_url).hostname) else []
    try:
        return urllib.request.build_opener(_SameOrigin, *no_proxy).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as refusal:
        return refusal


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects on the same scheme, host and port alone: the token goes nowhere else."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:
        if req.get_method() != "GET":
            raise NoData(
                f"{_split(req.full_url).hostname} sends us on; what is to be written would be lost. Name that address."
            )
        _stay(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stay(here: str, there: str) -> None:
    if _origin(here) != _origin(there):
        raise NoData(
            f"{_split(here).hostname} sends us on to {_printable('://'.join(map(str, _origin(there)[:2])))}, another "
            "host or scheme. The token was not sent there; if that is the right address, name it."
        )


def _origin(url: str) -> tuple:
    parts = _split(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018 (raises ValueError if it is none)
    except ValueError:
        raise NoData(f"{_printable(url)} is not an address.") from None
    return parts


def _is_loopback(host: str | None) -> bool:
    return bool(_LOOPBACK.fullmatch(host or ""))


def _exhausted(headers: Mapping[str, str]) -> bool:
    """Whether a 403 is a rate limit: GitHub's primary limit counts down, its secondary one says Retry-After."""
    return "Retry-After" in headers or "0" in (
        headers.get("X-RateLimit-Remaining"),
        headers.get("RateLimit-Remaining"),
    )


def _named(path: str) -> str:
    return _printable(path.partition("?")[0])


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200].strip()
