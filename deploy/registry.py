"""A client of container registries: manifests, tags and blobs of one repository.

Protocol: https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. How requests travel stands in
transport.py, logins in authorization.py, how a blob is sent in uploads.py. Plain http is spoken to this machine only.
"""

from __future__ import annotations

import io
import re
import sys
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, BinaryIO

from deploy.authorization import Authorization
from deploy.credentials import Login, login_for
from deploy.oci import (
    DOCKER_TYPES,
    INDEX,
    MANIFEST,
    REPUBLISH,
    Descriptor,
    is_manifest,
    of_bytes,
    parse_json,
)
from deploy.transport import (
    Answer,
    Network,
    Refused,
    Request,
    Transport,
    Unreachable,
    following,
    is_loopback,
    number,
    read,
    retry_after_s,
    said,
    whole,
)
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed

ATTEMPTS = 5
_BACKOFF_S = 0.25
_LOGINS = 4  # as many as there are uploads side by side, whose tokens may be for other rights
_PATIENCE_S = 60.0  # the most that one Retry-After is waited for
_PAGES_AT_MOST = 10_000
_ACCEPT = ", ".join(
    (MANIFEST, INDEX, *(old for old, new in DOCKER_TYPES.items() if new in (MANIFEST, INDEX)))
)


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


class Client:
    """One repository of one registry, `HOST[:PORT]/NAME`. Any number of threads may use it.

    Connection errors, 429 and 5xx are tried again with growing pauses; other refusals
    raise ProgramFailed saying what the registry said and what to do.
    """

    def __init__(
        self,
        repository: str,
        *,
        transport: Transport | None = None,
        login: Callable[[str], Login | None] = login_for,
        sleep: Callable[[float], None] = time.sleep,
        say: Callable[[str], None] = _say,
    ):
        self.repository = repository
        self.host, _, self.name = repository.partition("/")
        self.api = f"{_endpoint(self.host)}/v2/{self.name}"
        self._transport = transport or Network()
        self._authorization = Authorization(self.host, self.name, self._transport, login=login)
        self._sleep = sleep
        self._tell = say

    def manifest(self, digest: str) -> bytes:
        """The manifest of this digest, verified."""
        answer, body = self._read(f"{self.api}/manifests/{digest}")
        if answer.status == 404:
            raise Refused(
                f"{digest} is not in {self.repository}. Publish it again, or name another registry.", 404
            )
        if of_bytes(body) != digest:
            raise IntegrityError(
                f"{self.repository} answered {of_bytes(body)} when asked for manifest {digest}. {self.mending(digest)}"
            )
        return body

    def mending(self, digest: str) -> str:
        """What to do about a blob or manifest that is damaged in the registry: publishing looks at sizes alone."""
        return (
            f"{self.repository} keeps it damaged, and may take no other in its place: delete {digest} there, then "
            f"{REPUBLISH}. Where nothing can be deleted, name another repository (publish.registry)."
        )

    def resolve(self, reference: str) -> str | None:
        """The digest that a tag (or digest) names; None if it names nothing.

        Raises IntegrityError if the registry names another digest than the one it was asked for.
        """
        answer = self.ask(
            Request("HEAD", f"{self.api}/manifests/{reference}", {"Accept": _ACCEPT}), (200, 404)
        )
        if answer.status == 404:
            return None
        # Optional in the specification.
        named = answer.headers.get("Docker-Content-Digest") or self._computed(reference)
        if reference.startswith("sha256:") and named != reference:
            raise IntegrityError(f"{self.repository} answered {named} when asked for {reference}")
        return named

    def _computed(self, reference: str) -> str:
        """The digest of what is there. Raises ProgramFailed where that is no manifest, as of a plain web server."""
        body = self._read(f"{self.api}/manifests/{reference}")[1]
        if not is_manifest(body):
            raise ProgramFailed(
                f"{self.host} answered with no manifest when asked for {reference} of {self.repository}: it is no "
                "container registry, or something that answers everything stands before it. Correct the address."
            )
        return of_bytes(body)

    def tagged(self, tag: str) -> bytes | None:
        """The manifest that a tag names now; None if it names nothing."""
        answer, body = self._read(f"{self.api}/manifests/{tag}")
        return None if answer.status == 404 else body

    def tags(self) -> list[str]:
        """All tags of the repository; none if it does not exist yet."""
        pages = self._pages("tags/list", "the list of tags")
        return [tag for page in pages for tag in page.get("tags") or []]

    def referrers(self, digest: str) -> list[dict] | None:
        """Descriptors of the manifests that refer to this one; None where the registry keeps no such list."""
        pages = self._pages(f"referrers/{digest}", "the list of referrers")
        return [raw for page in pages for raw in page.get("manifests") or []] if pages else None

    def _pages(self, what: str, name: str) -> list[dict]:
        """The documents of a list that comes in pages; none if there is no such list."""
        pages: list[dict] = []
        url: str | None = f"{self.api}/{what}"
        while url and len(pages) < _PAGES_AT_MOST:
            answer, body = self._read(url)
            if answer.status == 404:
                return pages
            pages.append(parse_json(body, f"{name} of {self.repository}"))
            another = re.search(r'<([^>]+)>\s*;\s*rel="?next', answer.headers.get("Link", ""))
            url = self.place(another[1], url) if another else None
        return pages

    def lacks(self, blob: Descriptor) -> str | None:
        """Why a blob is not in the registry; None if it is."""
        answer = self.ask(Request("HEAD", f"{self.api}/blobs/{blob.digest}"), (200, 404))
        if answer.status == 404:
            return f"{blob.digest} is not in {self.repository}"
        size = number(answer.headers.get("Content-Length"))
        if size is not None and size != blob.size:
            return f"{blob.digest} in {self.repository} has {size} bytes instead of {blob.size}"
        return None

    def push(self, blob: Descriptor, open_blob: Callable[[], BinaryIO]) -> None:
        """Sends a blob; the registry checks its digest."""
        from deploy.uploads import Upload  # not needed to read

        Upload(self, blob, open_blob).run()

    def put_manifest(self, body: bytes, reference: str, media_type: str = MANIFEST) -> None:
        """Writes a manifest under its digest or a tag. Raises IntegrityError if the registry took other bytes."""
        request = Request(
            "PUT",
            f"{self.api}/manifests/{reference}",
            {"Content-Type": media_type},
            lambda: iter((body,)),
            len(body),
        )
        self.check_digest(self.ask(request, (201,)), of_bytes(body))

    def check_digest(self, answer: Answer, digest: str) -> None:
        """Raises IntegrityError if the registry says that what it took has another digest."""
        named = answer.headers.get("Docker-Content-Digest", digest)
        if named.startswith("sha256:") and named != digest:
            raise IntegrityError(
                f"{self.repository} says that it took {named}, and {digest} was sent; do not trust this registry"
            )

    def open(self, blob: Descriptor) -> BinaryIO:
        """The bytes of a blob; goes on where it was when the connection breaks."""
        return io.BufferedReader(_Download(self, blob), CHUNK_BYTES)

    def fetch(self, blob: Descriptor, start: int) -> BinaryIO:
        """The bytes of a blob from `start` on. Raises IntegrityError if the registry has another size of it."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        answer = self.ask(Request("GET", f"{self.api}/blobs/{blob.digest}", headers), (200, 206))
        partial = start and answer.status == 206
        size = number(answer.headers.get("Content-Length"))
        expected = blob.size - start if partial else blob.size
        if size is not None and size != expected:
            answer.body.close()
            raise IntegrityError(
                f"{self.repository} sends {size} bytes of {blob.digest} where {expected} of its {blob.size} belong."
                f" {self.mending(blob.digest)}"
            )
        while start and not partial:  # this registry knows no ranges
            skipped = read(answer.body, min(start, CHUNK_BYTES))
            if not skipped:
                raise Unreachable(f"the connection ended {start} bytes before what was asked for")
            start -= len(skipped)
        return answer.body

    def place(self, location: str, base: str = "") -> str:
        """The address that the registry names for what comes next. Raises ProgramFailed if it is not safe."""
        return following(self.host, base or f"{self.api}/", location)

    def pause(self, attempt: int, trouble: Unreachable) -> None:
        """Says what went wrong, and waits before the next try. Raises ProgramFailed when there have been enough."""
        if attempt + 1 >= ATTEMPTS:
            raise ProgramFailed(
                f"{self.host} failed {ATTEMPTS} times: {trouble}. Check that it runs and that this machine"
                " reaches it, then run this again."
            ) from trouble
        wait_s = _BACKOFF_S * 2**attempt if trouble.wait_s is None else min(trouble.wait_s, _PATIENCE_S)
        self._tell(f"{self.host}: {trouble}; try {attempt + 2} of {ATTEMPTS} follows in {wait_s:g} s")
        self._sleep(wait_s)

    def ask(self, request: Request, expected: tuple[int, ...]) -> Answer:
        """An answer with one of the expected statuses, after as many tries as are worth it."""
        return self._retrying(lambda: self.once(request, expected))

    def once(self, request: Request, expected: tuple[int, ...]) -> Answer:
        """One try, with a login if the registry asks for it. Raises Unreachable or Refused.

        A refusal of what was got for this very request is a no; of what another thread got, it is worth another try.
        """
        header, ours = self._authorization.header(), False
        answer, sent = self._send(request, header)
        for _ in range(_LOGINS):
            if answer.status != 401 or ours or sent != header:  # no login goes to another host
                break
            header, ours = self._authorization.renew(answer, sent)
            answer, sent = self._send(request, header)
        if answer.status in expected:
            return answer
        if answer.status == 429 or answer.status >= 500:
            raise Unreachable(f"{said(answer)} ({answer.status})", retry_after_s(answer))
        raise Refused(self._refusal(request, answer), answer.status)

    def _read(self, url: str) -> tuple[Answer, bytes]:
        """A small document, whole; or the 404 that came instead."""

        def work() -> tuple[Answer, bytes]:
            answer = self.once(Request("GET", url, {"Accept": _ACCEPT}), (200, 404))
            return answer, whole(answer)

        return self._retrying(work)

    def _retrying(self, work: Callable) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                return work()
            except Unreachable as trouble:
                self.pause(attempt, trouble)
        raise AssertionError("pause raises on the last attempt")

    def _send(self, request: Request, header: str) -> tuple[Answer, str]:
        """The answer, and the Authorization that went with the request (to the registry's own host only)."""
        if urllib.parse.urlsplit(request.url).netloc != urllib.parse.urlsplit(self.api).netloc:
            return self._transport(request), ""
        return self._transport(request.with_header("Authorization", header) if header else request), header

    def _refusal(self, request: Request, answer: Answer) -> str:
        if answer.status == 401:
            return self._authorization.refused()
        does = f"{request.method} {urllib.parse.urlsplit(request.url).path}"
        what = f"{self.host} answered {answer.status} to {does}: {said(answer)}"
        moves = {
            403: "The login is known but has no right to this; ask for the right to push to it.",
            404: (
                f"{self.repository} has it not (any more)."
                if request.method == "GET"
                else f"Create the repository {self.name} there, or correct publish.registry."
            ),
            405: "The registry is read-only; publish when it is not.",
            413: "A proxy before the registry refuses bodies of this size; raise its limit.",
        }
        return f"{what}. {moves.get(answer.status, 'The registry does not take this image as it is.')}"


class _Download(io.RawIOBase):
    """A blob as a stream that survives broken connections."""

    def __init__(self, client: Client, blob: Descriptor):
        self._client = client
        self._blob = blob
        self._at = 0
        self._body: Any = None
        self._broken = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._drop()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                count = self._read(buffer)
            except Unreachable as trouble:
                self._drop()
                self._client.pause(self._broken, trouble)
                self._broken += 1
            else:
                self._broken = 0 if count else self._broken
                return count

    def _read(self, buffer: memoryview) -> int:
        left = self._blob.size - self._at
        if left <= 0:
            return 0
        if self._body is None:
            self._body = self._client.fetch(self._blob, self._at)
        chunk = read(self._body, min(left, len(buffer)))
        if not chunk:
            raise Unreachable(f"the connection ended after {self._at} of {self._blob.size} bytes")
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

    def _drop(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()


def _endpoint(host: str) -> str:
    if is_loopback(re.sub(r":\d+$", "", host)):
        return f"http://{host}"
    return "https://registry-1.docker.io" if host == "docker.io" else f"https://{host}"
