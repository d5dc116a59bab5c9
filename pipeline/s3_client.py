"""Asking a server of S3: one connection, its retries, and its errors turned into ours.

Endpoint, region and credentials come from where every AWS program takes them: AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID … or a profile. With an endpoint, boto3 puts the bucket's
name into the path.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import mmap
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError

_MOST_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
EXISTS, CONFLICT = "PreconditionFailed", "ConditionalRequestConflict"
# HEAD has no body that could name the error.
_HEAD_CODES = {"400": "BadRequest", "403": "AccessDenied", "404": "NoSuchKey", "412": EXISTS}
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
    EXISTS: "The object was replaced while it was read. Run again",
}
_IN_TROUBLE = (
    "The server is in trouble: look at its log, and check that AWS_ENDPOINT_URL is a server of S3. "
    "Nothing half-written was kept; run again"
)
_UNREACHABLE = (
    "Check AWS_ENDPOINT_URL (and AWS_CA_BUNDLE for https), the network and that the server runs. "
    "Nothing half-written was kept; run again"
)


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


class Answer(Exception):
    """An error answer that the caller asked to see. `resent`: this was not the first time that the request went."""

    def __init__(self, code: str, resent: bool):
        super().__init__(code)
        self.code, self.resent = code, resent


class Client:
    """What is asked of one bucket, about objects below a prefix. Connects when it is first used."""

    def __init__(self, bucket: str, prefix: str, limits: Limits):
        self.bucket, self.prefix, self.limits = bucket, prefix, limits

    def where(self, path: str) -> str:
        """The object's s3:// address."""
        return f"s3://{self.bucket}/{self.key(path)}"

    def key(self, path: str) -> str:
        """The object's key. Raises IntegrityError for a path that leaves the prefix."""
        if path.startswith("/") or ".." in path.split("/"):
            raise IntegrityError(f"the store names {path!r}, which lies outside of it; it is not used")
        return f"{self.prefix}/{path}" if self.prefix else path

    def put(self, path: str, data: bytes, expect: tuple[str, ...] = (), **more: Any) -> None:
        """Puts an object there, guarded by its MD5 on the way. See `ask`."""
        self.ask("put_object", path, expect, Body=data, ContentMD5=base64_of(md5_of(data)), **more)

    def head(self, path: str) -> dict:
        """An object's headers; empty if there is none."""
        try:
            return self.ask("head_object", path, expect=("NoSuchKey",))
        except Answer:
            self._bucket_is_there  # noqa: B018  raises if it is not: HEAD says 404 for both
            return {}

    @functools.cached_property
    def _bucket_is_there(self) -> bool:
        one = {"MaxItems": 1, "PageSize": 1}
        return any(self.pages("list_objects_v2", "", Prefix=self.key(""), PaginationConfig=one))

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
    def server(self) -> str:
        """The endpoint, without any credentials that stand in it."""
        parts = urlsplit(self._client.meta.endpoint_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def ask(self, operation: str, path: str, expect: tuple[str, ...] = (), **more: Any) -> dict:
        """One request about one object. Raises Answer for errors named in `expect`, ProgramFailed for others."""
        with self.told(operation, path, expect):
            return getattr(self._client, operation)(Bucket=self.bucket, Key=self.key(path), **more)

    def pages(self, operation: str, path: str, expect: tuple[str, ...] = (), **more: Any) -> Iterator[dict]:
        """The pages of a list."""
        with self.told(operation, path, expect):
            yield from self._client.get_paginator(operation).paginate(Bucket=self.bucket, **more)

    @contextlib.contextmanager
    def told(self, operation: str, path: str, expect: tuple[str, ...] = ()) -> Iterator[None]:
        """Turns botocore's errors into ours: address, operation, cause, remedy; never a value of the environment."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from urllib3.exceptions import HTTPError

        what = f"{self.where(path)}: {operation} at {self.server} failed"
        try:
            yield
        except ClientError as error:
            about = error.response.get("ResponseMetadata", {})
            code, tries = _code(error), about.get("RetryAttempts", 0) + 1
            if code in expect:
                raise Answer(code, resent=tries > 1) from None
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


def md5_of(data: bytes | mmap.mmap) -> bytes:
    """As ETags of S3 have it; no secret hangs on it."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def base64_of(md5: bytes) -> str:
    """As in Content-MD5, by which the server refuses what was damaged on its way."""
    return base64.b64encode(md5).decode()
