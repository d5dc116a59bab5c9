"""A bucket in S3, or in any server that speaks S3 and honours conditional writes.

Any number of processes and threads may use a bucket at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.bucket_file import disk_errors
from pipeline.buckets import Item
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError
from pipeline.s3_client import CONFLICT, EXISTS, Answer, Client, Limits
from pipeline.s3_upload import Uploads, must_be

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([A-Za-z0-9!_.*'()/-]*))?")
_proven: set[tuple[str, str]] = set()
_proving = threading.Lock()


class S3Bucket:
    """Objects below a prefix of an S3 bucket. Connects when it is first used."""

    def __init__(self, bucket: str, prefix: str = "", limits: Limits | None = None):
        self.bucket, self.prefix, self.limits = bucket, prefix, limits or Limits()
        self._client = Client(bucket, prefix, self.limits)

    @classmethod
    def at(cls, address: str, limits: Limits | None = None) -> S3Bucket:
        """The bucket at s3://BUCKET/PREFIX. Raises SettingsError for an address that cannot be one."""
        match = _ADDRESS.fullmatch(address)
        prefix = (match[2] or "").removesuffix("/") if match else ""
        if not match or (prefix and {"", ".", ".."} & set(prefix.split("/"))):
            raise SettingsError(
                f"store {address!r}: must be s3://BUCKET/PREFIX. A bucket has 3 to 63 of a-z, 0-9, - and .; "
                "a prefix, which may be left out, letters, digits and !_.*'()- between single slashes."
            )
        return cls(match[1], prefix, limits)

    def where(self, path: str) -> str:
        """The object's s3:// address."""
        return self._client.where(path)

    def read(self, path: str, at_most: int) -> bytes | None:
        """See Bucket. An object that says that it is larger is not even fetched."""
        data = bytearray()
        try:
            for piece in self._pieces(path, at_most):
                data += piece
        except Answer:
            return None
        return bytes(data)

    def write(self, path: str, data: bytes) -> None:
        """See Bucket."""
        self._client.put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """See Bucket. Raises ProgramFailed for a server that does not do conditional writes."""
        self._prove_conditions()
        return self._create(path, data)

    def size(self, path: str) -> int | None:
        """See Bucket."""
        return self._client.head(path).get("ContentLength")

    def upload(self, path: str, source: Path, sha256: str) -> None:
        """See Bucket. A multipart upload that was cut is taken up again: only what is missing travels."""
        try:
            with source.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                uploads = Uploads(self._client)
                send = uploads.send_whole if size <= self.limits.part_bytes else uploads.send_in_parts
                send(path, stream, size, sha256)
        except FileNotFoundError:
            raise IntegrityError(f"{source} is missing") from None

    def download(self, path: str, to: Path, sha256: str) -> bool:
        """See Bucket. Goes on where it was when the connection breaks."""
        partial = to.with_name(f".{to.name}.{uuid.uuid4().hex[:12]}")
        hasher = hashlib.sha256()
        try:
            with disk_errors(to), partial.open("wb") as stream:
                for piece in self._pieces(path):
                    hasher.update(piece)
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            must_be(sha256, hasher.hexdigest(), self._client.where(path))
            partial.replace(to)
        except Answer:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def items(self, prefix: str) -> Iterator[Item]:
        """See Bucket. Names that begin with a dot are not listed: the test of conditional writes makes one."""
        start = len(self._client.key(""))
        found = [
            Item(row["Key"][start:], row["Size"], row["LastModified"].timestamp())
            for page in self._client.pages("list_objects_v2", prefix, Prefix=self._client.key(prefix))
            for row in page.get("Contents", ())
        ]
        # S3 promises this order; SeaweedFS puts a/b before a-b.
        for item in sorted(found, key=lambda item: item.path):
            if not item.path.rpartition("/")[2].startswith("."):
                yield item

    def delete(self, path: str) -> None:
        """See Bucket."""
        with contextlib.suppress(Answer):
            self._client.ask("delete_object", path, expect=("NoSuchKey",))

    def sweep(self, before: float) -> int:
        """See Bucket. Parts of an upload that nobody ended are kept, and paid for, until it is aborted."""
        return Uploads(self._client).abort_old(before)

    # Reading

    def _pieces(self, path: str, at_most: int | None = None) -> Iterator[bytes]:
        """An object's bytes in order. Raises Answer if there is none, IntegrityError for more than `at_most`."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        at, broken = 0, 0
        rest: dict[str, str] = {}
        while True:
            begun, answer = at, self._client.ask("get_object", path, expect=("NoSuchKey",), **rest)
            self._must_fit(path, answer, at, at_most)
            try:
                with contextlib.closing(answer["Body"]) as body:
                    for piece in body.iter_chunks(CHUNK_BYTES):
                        at += len(piece)
                        yield piece
                return
            except (BotoCoreError, HTTPError, OSError):
                broken = 1 if at - begun >= self.limits.part_bytes else broken + 1
                if broken == self.limits.tries:
                    with self._client.told("get_object", path):
                        raise
            self.limits.wait(broken)
            # The same object, or nothing: its first half must not be followed by another's second.
            rest = {"Range": f"bytes={at}-", "IfMatch": answer["ETag"]} if at else {}

    def _must_fit(self, path: str, answer: Mapping, at: int, at_most: int | None) -> None:
        """Refuses an answer that goes on elsewhere than at byte `at`, or would bring more than `at_most`."""
        if at and answer["ResponseMetadata"]["HTTPStatusCode"] != http.HTTPStatus.PARTIAL_CONTENT:
            raise ProgramFailed(
                f"{self._client.where(path)} broke off at byte {at:,}, and the server cannot go on there"
            )
        # Without a length the body would end when the server likes; S3 always names it.
        size = at + answer.get("ContentLength", sys.maxsize)
        if at_most is not None and size > at_most:
            raise IntegrityError(
                f"{self._client.where(path)} has more than {at_most:,} bytes, which nothing here writes; it is not used"
            )

    # Creating

    def _create(self, path: str, data: bytes) -> bool:
        """Puts an object where there is none.

        A request whose answer was lost is sent again, and then finds what it has itself put there. So each call marks
        its object with a word of its own, which arrives together with the bytes: if we did send before, and what is
        there bears our word, it is ours, bytes and all. (Equal bytes alone could be another's; both would have won.)
        """
        word, resent = uuid.uuid4().hex, False
        for attempt in range(self.limits.tries):
            try:
                self._client.put(path, data, (EXISTS, CONFLICT), IfNoneMatch="*", Metadata={"word": word})
                return True
            except Answer as answer:
                resent = resent or answer.resent
                if answer.code == EXISTS:
                    return resent and self._client.head(path).get("Metadata", {}).get("word") == word
            resent = True
            self.limits.wait(attempt)
        raise ProgramFailed(
            f"{self._client.where(path)} could not be written: {CONFLICT}, {self.limits.tries} times in a row. "
            "Others write there at the same moment. Run again."
        )

    def _prove_conditions(self) -> None:
        """Some servers take If-None-Match and write all the same; there, two promotions would both win."""
        bucket = (self._client.server, self.bucket)
        with _proving:
            if bucket in _proven:
                return
            probe = f".probe-{uuid.uuid4().hex}"
            try:
                proven = self._create(probe, b"1") and not self._create(probe, b"2")
            finally:
                # Who may write and not delete can use the store; the probe stays then, and nobody lists it.
                with contextlib.suppress(ProgramFailed):
                    self.delete(probe)
            if not proven:
                raise ProgramFailed(
                    f"the server {self._client.server} of s3://{self.bucket} does not do conditional writes "
                    "(If-None-Match): asked to put an object only where there is none, it did otherwise. It must "
                    "not be used as a store, since of two promotions at the same moment both would succeed. Use AWS "
                    "S3, SeaweedFS or another server that does, or a store in `file:`."
                )
            _proven.add(bucket)
