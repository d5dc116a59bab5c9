"""A bucket in S3, or in any server that speaks S3 and honours conditional writes.

Endpoint, region and credentials come from where every AWS program takes them: AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID … or a profile. With an endpoint, boto3 puts the bucket's
name into the path. Any number of processes and threads may use a bucket at once.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http
import io
import mmap
import os
import random
import re
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.bucket_file import disk_errors
from pipeline.buckets import Item
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError

_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([A-Za-z0-9!_.*'()/-]*))?")
_MOST_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_EXISTS, _CONFLICT = "PreconditionFailed", "ConditionalRequestConflict"
_ENDED = ("NoSuchUpload", "InvalidPart")
_Parts = set[tuple[int, int, str]]  # number, size, MD5 of parts that are there
# HEAD has no body that could name the error.
_HEAD_CODES = {"400": "BadRequest", "403": "AccessDenied", "404": "NoSuchKey", "412": _EXISTS}
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too if they are temporary), or AWS_PROFILE"
_REMEDIES = {
    "NoSuchBucket": "There is no such bucket. Create it, or change `store` in the settings or AWS_ENDPOINT_URL",
    "AccessDenied": "The credentials do not allow it, or no longer. Check AWS_ACCESS_KEY_ID; its rights must cover "
    "s3:GetObject, PutObject, DeleteObject, ListBucket, ListBucketMultipartUploads, ListMultipartUploadParts and "
    "AbortMultipartUpload",
    "BadRequest": f"The credentials may have expired. Set fresh ones: {_KEYS}; or check AWS_REGION",
    "ExpiredToken": f"The credentials have expired. Set fresh ones: {_KEYS}",
    "InvalidToken": "The server refuses the session token. Check AWS_SESSION_TOKEN, or unset it",
    "InvalidAccessKeyId": "The server does not know this key. Check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "The key and its secret do not belong together. Check AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "The clock of this machine, or of the server, is wrong. Set it",
    "PermanentRedirect": "The bucket is in another region. Check AWS_REGION",
    "AuthorizationHeaderMalformed": "The bucket is in another region. Check AWS_REGION",
    "NotImplemented": "A store needs conditional writes and multipart uploads. Use a server that has them",
    _EXISTS: "The object was replaced while it was read. Run again",
}
_IN_TROUBLE = (
    "The server is in trouble: look at its log, and check that AWS_ENDPOINT_URL is a server of S3. "
    "Nothing half-written was kept; run again"
)
_UNREACHABLE = (
    "Check AWS_ENDPOINT_URL (and AWS_CA_BUNDLE for https), the network and that the server runs. "
    "Nothing half-written was kept; run again"
)
_proven: set[tuple[str, str]] = set()
_proving = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """How long to wait, how often to try, how much to hold in memory.

    A request is tried `tries` times: botocore's standard mode waits a random part of 0.05, 0.1, 0.2 … 3.2 s in
    between (6.4 s in all), of 1, 2, 4 … 20 s where the server says that it is too busy. An object whose
    connection breaks is asked for again from where it broke, `tries` times in a row without `part_bytes` more of it.
    A file of more than `part_bytes` travels in parts, `parts_at_once` of them in memory: 64 MiB, and up to
    4 MiB for each of their threads. Parts grow beyond 156 GiB, where 10,000 would not do; then fewer travel at once,
    and beyond 625 GiB a single part takes more than that.
    """

    connect_s: float = 5
    read_s: float = 60
    tries: int = 8
    part_bytes: int = 16 << 20
    parts_at_once: int = 4

    def plan(self, size: int) -> tuple[int, int]:
        """For a file of `size` bytes: the bytes of a part, and how many parts to hold at once."""
        least = -(-size // _MOST_PARTS)
        part = max(self.part_bytes, -(-least // CHUNK_BYTES) * CHUNK_BYTES)
        return part, max(1, self.part_bytes * self.parts_at_once // part)

    def wait(self, attempt: int) -> None:
        """Sleeps before the next try: a random part of 0.1, 0.2, 0.4 … 3.2 s."""
        time.sleep(random.random() * min(0.1 * 2**attempt, 3.2))  # noqa: S311  jitter, no secret


class _Answer(Exception):
    """An error answer that the caller asked to see. `resent`: this was not the first time that the request went."""

    def __init__(self, code: str, resent: bool):
        super().__init__(code)
        self.code, self.resent = code, resent


class S3Bucket:
    """Objects below a prefix of an S3 bucket. Connects when it is first used."""

    def __init__(self, bucket: str, prefix: str = "", limits: Limits | None = None):
        self.bucket, self.prefix, self.limits = bucket, prefix, limits or Limits()

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
        return f"s3://{self.bucket}/{self._key(path)}"

    def read(self, path: str, at_most: int) -> bytes | None:
        """See Bucket. An object that says that it is larger is not even fetched."""
        data = bytearray()
        try:
            for piece in self._pieces(path, at_most):
                data += piece
        except _Answer:
            return None
        return bytes(data)

    def write(self, path: str, data: bytes) -> None:
        """See Bucket."""
        self._put(path, data)

    def create(self, path: str, data: bytes) -> bool:
        """See Bucket. Raises ProgramFailed for a server that does not do conditional writes."""
        self._prove_conditions()
        return self._create(path, data)

    def size(self, path: str) -> int | None:
        """See Bucket."""
        return self._head(path).get("ContentLength")

    def upload(self, path: str, source: Path, sha256: str) -> None:
        """See Bucket. A multipart upload that was cut is taken up again: only what is missing travels."""
        try:
            with source.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                send = self._send_whole if size <= self.limits.part_bytes else self._send_in_parts
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
            _must_be(sha256, hasher.hexdigest(), self.where(path))
            partial.replace(to)
        except _Answer:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def items(self, prefix: str) -> Iterator[Item]:
        """See Bucket. Names that begin with a dot are not listed: the test of conditional writes makes one."""
        start = len(self._key(""))
        found = [
            Item(row["Key"][start:], row["Size"], row["LastModified"].timestamp())
            for page in self._pages("list_objects_v2", prefix, Prefix=self._key(prefix))
            for row in page.get("Contents", ())
        ]
        # S3 promises this order; SeaweedFS puts a/b before a-b.
        for item in sorted(found, key=lambda item: item.path):
            if not item.path.rpartition("/")[2].startswith("."):
                yield item

    def delete(self, path: str) -> None:
        """See Bucket."""
        with contextlib.suppress(_Answer):
            self._ask("delete_object", path, expect=("NoSuchKey",))

    def _key(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise IntegrityError(f"the store names {path!r}, which lies outside of it; it is not used")
        return f"{self.prefix}/{path}" if self.prefix else path

    def _put(self, path: str, data: bytes, expect: tuple[str, ...] = (), **more: Any) -> None:
        self._ask("put_object", path, expect, Body=data, ContentMD5=_base64(_md5(data)), **more)

    def _head(self, path: str) -> dict:
        """An object's headers; empty if there is none."""
        try:
            return self._ask("head_object", path, expect=("NoSuchKey",))
        except _Answer:
            self._bucket_is_there  # noqa: B018  raises if it is not: HEAD says 404 for both
            return {}

    @functools.cached_property
    def _bucket_is_there(self) -> bool:
        one = {"MaxItems": 1, "PageSize": 1}
        return any(self._pages("list_objects_v2", "", Prefix=self._key(""), PaginationConfig=one))

    # Reading

    def _pieces(self, path: str, at_most: int | None = None) -> Iterator[bytes]:
        """An object's bytes in order. Raises _Answer if there is none, IntegrityError for more than `at_most`."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        at, broken = 0, 0
        rest: dict[str, str] = {}
        while True:
            begun, answer = at, self._ask("get_object", path, expect=("NoSuchKey",), **rest)
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
                    with self._told("get_object", path):
                        raise
            self.limits.wait(broken)
            # The same object, or nothing: its first half must not be followed by another's second.
            rest = {"Range": f"bytes={at}-", "IfMatch": answer["ETag"]} if at else {}

    def _must_fit(self, path: str, answer: Mapping, at: int, at_most: int | None) -> None:
        """Refuses an answer that goes on elsewhere than at byte `at`, or would bring more than `at_most`."""
        if at and answer["ResponseMetadata"]["HTTPStatusCode"] != http.HTTPStatus.PARTIAL_CONTENT:
            raise ProgramFailed(
                f"{self.where(path)} broke off at byte {at:,}, and the server cannot go on there"
            )
        # Without a length the body would end when the server likes; S3 always names it.
        size = at + answer.get("ContentLength", sys.maxsize)
        if at_most is not None and size > at_most:
            raise IntegrityError(
                f"{self.where(path)} has more than {at_most:,} bytes, which nothing here writes; it is not used"
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
                self._put(path, data, (_EXISTS, _CONFLICT), IfNoneMatch="*", Metadata={"word": word})
                return True
            except _Answer as answer:
                resent = resent or answer.resent
                if answer.code == _EXISTS:
                    return resent and self._head(path).get("Metadata", {}).get("word") == word
            resent = True
            self.limits.wait(attempt)
        raise ProgramFailed(
            f"{self.where(path)} could not be written: {_CONFLICT}, {self.limits.tries} times in a row. "
            "Others write there at the same moment. Run again."
        )

    def _prove_conditions(self) -> None:
        """Some servers take If-None-Match and write all the same; there, two promotions would both win."""
        bucket = (self._server, self.bucket)
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
                    f"the server {self._server} of s3://{self.bucket} does not do conditional writes (If-None-Match): "
                    "asked to put an object only where there is none, it did otherwise. It must not be used as a "
                    "store, since of two promotions at the same moment both would succeed. Use AWS S3, SeaweedFS or "
                    "another server that does, or a store in `file:`."
                )
            _proven.add(bucket)

    # Uploading

    def _send_whole(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        data = stream.read(size + 1)
        _must_be(sha256, hashlib.sha256(data).hexdigest(), stream.name)
        self._put(path, data, Metadata={"sha256": sha256})

    def _send_in_parts(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        """Sends until an upload was completed, by us or by another process that sends the same file."""
        for attempt in range(self.limits.tries):
            try:
                return self._send_upload(path, stream, size, sha256)
            except _Answer:
                # Another process ended the upload that we shared with it: completed it, or gave it up.
                head = self._head(path)
                if head.get("ContentLength") == size and head["Metadata"].get("sha256") == sha256:
                    return None
            self.limits.wait(attempt)
        raise ProgramFailed(
            f"{self.where(path)} could not be uploaded: its upload was ended by others {self.limits.tries} times "
            "in a row. Look who writes there, and run again."
        )

    def _send_upload(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        """One upload, new or found unfinished. Completed only when all that was read has the right sha256."""
        upload, kept = self._unfinished(path)
        if not upload:
            upload = self._ask("create_multipart_upload", path, Metadata={"sha256": sha256})["UploadId"]
        found, parts = self._send_parts(path, upload, kept, stream, size)
        if found != sha256:
            with contextlib.suppress(_Answer, ProgramFailed):
                self._ask("abort_multipart_upload", path, expect=_ENDED, UploadId=upload)
        _must_be(sha256, found, stream.name)
        whole = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        self._ask("complete_multipart_upload", path, expect=_ENDED, **whole)

    def _unfinished(self, path: str) -> tuple[str, _Parts]:
        """The oldest upload of this object that was begun and not ended, and the parts that it has."""
        key = self._key(path)
        pages = self._pages("list_multipart_uploads", path, Prefix=key)
        uploads = [row for page in pages for row in page.get("Uploads", ()) if row["Key"] == key]
        if not uploads:
            return "", set()
        upload = min(uploads, key=lambda row: (row["Initiated"], row["UploadId"]))["UploadId"]
        try:
            pages = self._pages("list_parts", path, expect=_ENDED, Key=key, UploadId=upload)
            rows = [row for page in pages for row in page.get("Parts", ())]
        except _Answer:
            return "", set()
        return upload, {(row["PartNumber"], row["Size"], row["ETag"].strip('"')) for row in rows}

    def _send_parts(
        self, path: str, upload: str, kept: _Parts, stream: io.BufferedReader, size: int
    ) -> tuple[str, list[dict]]:
        """Sends the parts that are not there yet; the sha256 of all that was read, and the parts as S3 lists them."""
        part_bytes, at_once = self.limits.plan(size)
        hasher, done, under_way = hashlib.sha256(), [], deque[Future]()
        stream.seek(0)
        with ThreadPoolExecutor(at_once) as threads:
            for number in range(1, -(-size // part_bytes) + 1):
                if len(under_way) == at_once:
                    done.append(under_way.popleft().result())
                data = _read(stream, min(part_bytes, size - (number - 1) * part_bytes))
                hasher.update(data)
                under_way.append(threads.submit(self._send_part, path, upload, kept, number, data))
            done += [part.result() for part in under_way]
        hasher.update(stream.read(1))  # a file that has grown is another
        return hasher.hexdigest(), done

    def _send_part(self, path: str, upload: str, kept: _Parts, number: int, data: mmap.mmap) -> dict:
        """Sends a part, unless one with this number, size and MD5 is there (where ETags are no MD5, none is)."""
        with data:
            part, md5 = {"UploadId": upload, "PartNumber": number}, _md5(data)
            if (number, len(data), md5.hex()) in kept:
                return {"PartNumber": number, "ETag": f'"{md5.hex()}"'}
            part |= {"Body": data, "ContentMD5": _base64(md5)}
            return {"PartNumber": number, "ETag": self._ask("upload_part", path, _ENDED, **part)["ETag"]}

    # Asking

    @functools.cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=self.limits.connect_s,
            read_timeout=self.limits.read_s,
            retries={"mode": "standard", "total_max_attempts": self.limits.tries},
            # Content-MD5 guards what is sent, sha256 what is read; not every server knows the newer checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # boto3 reads AWS_DEFAULT_REGION only; every other AWS program reads AWS_REGION first.
        region = os.environ.get("AWS_REGION") or None
        try:
            return boto3.session.Session(region_name=region).client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise SettingsError(
                f"store s3://{self.bucket}: no connection can be made ({type(error).__name__}). "
                "Check AWS_ENDPOINT_URL (http(s)://HOST:PORT), AWS_REGION, that AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY are both set or neither, AWS_PROFILE, and the files in ~/.aws."
            ) from error

    @property
    def _server(self) -> str:
        """The endpoint, without any credentials that stand in it."""
        parts = urlsplit(self._client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def _ask(self, operation: str, path: str, expect: tuple[str, ...] = (), **more: Any) -> dict:
        """One request about one object. Raises _Answer for errors named in `expect`, ProgramFailed for others."""
        with self._told(operation, path, expect):
            return getattr(self._client, operation)(Bucket=self.bucket, Key=self._key(path), **more)

    def _pages(self, operation: str, path: str, expect: tuple[str, ...] = (), **more: Any) -> Iterator[dict]:
        """The pages of a list."""
        with self._told(operation, path, expect):
            yield from self._client.get_paginator(operation).paginate(Bucket=self.bucket, **more)

    @contextlib.contextmanager
    def _told(self, operation: str, path: str, expect: tuple[str, ...] = ()) -> Iterator[None]:
        """Turns botocore's errors into ours: address, operation, cause, remedy; never a value of the environment."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        what = f"{self.where(path)}: {operation} at {self._server} failed"
        try:
            yield
        except ClientError as error:
            about = error.response.get("ResponseMetadata", {})
            code, tries = _code(error), about.get("RetryAttempts", 0) + 1
            if code in expect:
                raise _Answer(code, resent=tries > 1) from None
            often = f", {tries} times in a row" if tries > 1 else ""
            remedy = _REMEDIES.get(code, _IN_TROUBLE)
            raise ProgramFailed(
                f"{what}: it answered {about.get('HTTPStatusCode')} {code}{often}. {remedy}."
            ) from error
        except (BotoCoreError, ResponseParserError, HTTPError, OSError) as error:
            cause = type(error).__name__
            remedy = f"Set {_KEYS}" if re.search("Credential|Token", cause) else _UNREACHABLE
            raise ProgramFailed(f"{what}, in the end with {cause}. {remedy}.") from error


def _code(error: Any) -> str:
    """The code of an error answer, fit for a terminal: it comes from the network."""
    code = re.sub(r"[^A-Za-z0-9.]", "", error.response.get("Error", {}).get("Code", ""))[:60]
    return _HEAD_CODES.get(code, code)


def _must_be(wanted: str, found: str, what: str) -> None:
    if found != wanted:
        raise IntegrityError(f"{what} has sha256 {found}, not {wanted}; it is not used")


def _read(stream: io.BufferedReader, size: int) -> mmap.mmap:
    """The next bytes of a file, zeros where it ends too early.

    In memory that goes back to the system when it is closed: bytes live as long as anyone refers to them, and the
    allocator keeps a part or two more. And a map is sent as a stream; bytes would be copied behind the headers.
    """
    data = mmap.mmap(-1, size)
    stream.readinto(data)
    return data


def _md5(data: bytes | mmap.mmap) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(md5: bytes) -> str:
    """As in Content-MD5, by which the server refuses what was damaged on its way."""
    return base64.b64encode(md5).decode()
