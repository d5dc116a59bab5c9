"""How one blob gets into a repository: mounted from another one, in one request, or in chunks that can go on.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md, "Pushing blobs": monolithically, in chunks,
and mounting a blob from another repository.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from deploy.oci import Descriptor
from deploy.transport import Answer, Refused, Request, Unreachable, number, said, whole
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError

if TYPE_CHECKING:
    from deploy.registry import Client

PART_BYTES = (
    32 << 20
)  # what is sent in one request, and at most sent again after a cut where the registry resumes
_LEAST_PART_BYTES = 1 << 18
_OCTETS = "application/octet-stream"
# With these a registry (or what stands before it) says that it takes no parts.
_NO_PARTS = (400, 404, 405, 411, 415, 501)
# With these it says that it will not mount; whatever the reason, the blob can still be sent.
_NO_MOUNT = (400, 401, 403, 404, 405)


class Upload:
    """One blob on its way into a repository. Use it once.

    `passed` hears of every chunk of bytes that is handed to the network; what it raises ends the upload.
    """

    def __init__(
        self,
        client: Client,
        blob: Descriptor,
        open_blob: Callable[[], BinaryIO],
        *,
        passed: Callable[[int], None] | None = None,
        part_bytes: int = 0,
    ):
        self._client = client
        self._blob = blob
        self._open = open_blob
        self._passed = passed
        self._part = part_bytes or PART_BYTES
        self._parts = blob.size > self._part
        self._place = ""  # where the registry takes what comes next; empty: no upload is open
        self._at = 0  # bytes that the registry has
        self._unsure = False  # whether only the registry knows how many it has
        self._highest = 0  # the most that the registry ever had

    def mount(self, origin: str) -> bool:
        """Whether the registry took the blob from its other repository `origin`, so that nothing has to be sent."""
        query = urllib.parse.urlencode({"mount": self._blob.digest, "from": origin})
        request = Request("POST", f"{self._client.api}/blobs/uploads/?{query}", body=_nothing)
        try:
            answer = self._client.ask(request, (201, 202))
        except Refused as refusal:
            if refusal.status in _NO_MOUNT:
                return False
            raise
        if answer.status == 202:  # not mounted, but open for an upload
            self._note(answer)
            return False
        self._client.check_digest(answer, self._blob.digest)
        return self._client.lacks(self._blob) is None

    def run(self) -> None:
        """Sends the blob. After each trouble it goes on from what the registry has; without progress it gives up."""
        attempt = 0
        while True:
            before = self._highest
            try:
                return self._go_on()
            except Refused as refusal:
                if refusal.status != 413 or not self._divide():
                    raise
            except Unreachable as trouble:
                attempt = 0 if self._highest > before else attempt
                self._unsure = bool(self._place)
                self._client.pause(attempt, trouble)
                attempt += 1

    def _go_on(self) -> None:
        if self._unsure and self._settled():
            return
        if not self._place:
            self._begin()
        while self._parts and self._at < self._blob.size:
            self._send_part()
        if self._parts:
            self._finish(_nothing, 0)
        else:
            self._finish(lambda: self._bytes(0, self._blob.size), self._blob.size)

    def _begin(self) -> None:
        """Opens an upload."""
        self._at = 0
        self._note(
            self._client.once(Request("POST", f"{self._client.api}/blobs/uploads/", body=_nothing), (202,))
        )

    def _note(self, answer: Answer) -> None:
        """Remembers where the registry wants what comes next, and in parts of at least which size."""
        self._place = self._client.place(answer.headers.get("Location") or self._place)
        least = number(answer.headers.get("OCI-Chunk-Min-Length"))
        if least is not None and least > self._part:
            self._part = least
            self._parts = self._blob.size > self._part

    def _send_part(self) -> None:
        """The next part. What the registry then says it has is where the one after it begins."""
        start, end = self._at, min(self._at + self._part, self._blob.size)
        headers = {"Content-Type": _OCTETS, "Content-Range": f"{start}-{end - 1}"}
        request = Request("PATCH", self._place, headers, lambda: self._bytes(start, end), end - start)
        answer = self._client.once(request, (202, 416, *_NO_PARTS))
        if answer.status == 416:  # the registry has another count of bytes than we think
            raise Unreachable(f"it would not take the bytes from {start} on")
        if answer.status != 202:
            self._refused_part(answer)
            return
        self._note(answer)
        self._at = _offset(answer, end)
        if not start < self._at <= end:
            raise Unreachable(
                f"it says that it has {self._at} bytes after those from {start} to {end} were sent"
            )
        self._highest = max(self._highest, self._at)

    def _refused_part(self, answer: Answer) -> None:
        """A first part that is refused means: no parts here. A later one that is not found: the upload is gone."""
        if self._at == 0:
            self._parts = False
            self._begin()
            return
        if answer.status != 404:
            raise Refused(
                f"{self._client.host} took {self._at} of {self._blob.size} bytes of {self._blob.digest} and answered"
                f" {answer.status} to the next: {said(answer)}. Run this again.",
                answer.status,
            )
        self._place = ""
        raise Unreachable("it forgot an upload that was under way")

    def _divide(self) -> bool:
        """Takes smaller parts, as what stands before the registry asks for; whether there are any."""
        self._part = min(self._part, self._blob.size) // 4
        self._parts, self._place = True, ""
        return self._part >= _LEAST_PART_BYTES

    def _settled(self) -> bool:
        """Asks the registry how far the upload is; whether all of it is there already."""
        self._unsure = False
        at = self._asked() if self._parts else None
        if at is not None and at <= self._blob.size:
            self._at = at
            return False
        self._place = ""  # the upload is gone: finished, or lost
        return self._client.lacks(self._blob) is None

    def _asked(self) -> int | None:
        """How many bytes the registry says that it has; None if it does not know the upload any more."""
        try:
            answer = self._client.once(Request("GET", self._place), (204, 200))
        except Refused as refusal:
            if refusal.status in (400, 404, 405, 416):
                return None
            raise
        whole(answer)
        self._note(answer)
        return _offset(answer, 0)

    def _finish(self, body: Callable[[], Iterator[bytes]], size: int) -> None:
        """The last request of an upload, with which the registry checks the digest."""
        place = self._place + ("&" if "?" in self._place else "?")
        place += urllib.parse.urlencode({"digest": self._blob.digest})
        request = Request("PUT", place, {"Content-Type": _OCTETS}, body, size)
        try:
            self._client.check_digest(self._client.once(request, (201, 204)), self._blob.digest)
        except Refused as refusal:
            if refusal.status == 404:
                self._place = ""
                raise Unreachable("it forgot an upload that was under way") from refusal
            if "DIGEST_INVALID" not in str(refusal):
                raise
            raise IntegrityError(
                f"{self._client.host} got other bytes than {self._blob.digest}: the file was changed since the image"
                " was built, or the line damages what it carries. Run image again."
            ) from refusal

    def _bytes(self, start: int, end: int) -> Iterator[bytes]:
        """The blob's bytes from `start` to `end`, as they are read."""
        with self._open() as stream:
            if start:
                stream.seek(start)
            while start < end and (chunk := stream.read(min(CHUNK_BYTES, end - start))):
                if self._passed:
                    self._passed(len(chunk))
                start += len(chunk)
                yield chunk
        if start < end:
            raise IntegrityError(
                f"{self._blob.digest} ended {end - start} bytes early; run image again, and leave its files alone"
            )


def _nothing() -> Iterator[bytes]:
    return iter(())


def _offset(answer: Answer, otherwise: int) -> int:
    """How many bytes the registry says it has; `otherwise` if it does not say. `0-0` stands for none."""
    found = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", answer.headers.get("Range", "").strip())
    if not found:
        return otherwise
    return int(found[1]) + 1 if found[1] != "0" else 0
