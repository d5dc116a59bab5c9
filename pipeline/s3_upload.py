"""Sending files to S3: in one request, or in parts that go on where a cut upload stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.s3_client import Answer, Client, base64_of, md5_of

_ENDED = ("NoSuchUpload", "InvalidPart")
_Parts = set[tuple[int, int, str]]  # number, size, MD5 of parts that are there


class Uploads:
    """Uploads to one bucket. Several processes may send the same file at once."""

    def __init__(self, client: Client):
        self._client, self._limits = client, client.limits

    def send_whole(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        """One request, with all bytes in memory."""
        data = stream.read(size + 1)
        must_be(sha256, hashlib.sha256(data).hexdigest(), stream.name)
        self._client.put(path, data, Metadata={"sha256": sha256})

    def send_in_parts(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        """Sends until an upload was completed, by us or by another process that sends the same file."""
        for attempt in range(self._limits.tries):
            try:
                return self._send_upload(path, stream, size, sha256)
            except Answer:
                # Another process ended the upload that we shared with it: completed it, or gave it up.
                head = self._client.head(path)
                if head.get("ContentLength") == size and head["Metadata"].get("sha256") == sha256:
                    return None
            self._limits.wait(attempt)
        raise ProgramFailed(
            f"{self._client.where(path)} could not be uploaded: its upload was ended by others {self._limits.tries} "
            "times in a row. Look who writes there, and run again."
        )

    def abort_old(self, before: float) -> int:
        """Ends uploads that were begun before a time (seconds since the epoch) and not completed; how many."""
        prefix = self._client.key("")
        pages = self._client.pages("list_multipart_uploads", "", Prefix=prefix)
        old = [
            row for page in pages for row in page.get("Uploads", ()) if row["Initiated"].timestamp() < before
        ]
        for row in old:
            path, upload = row["Key"].removeprefix(prefix), row["UploadId"]
            with contextlib.suppress(Answer):
                self._client.ask("abort_multipart_upload", path, expect=_ENDED, UploadId=upload)
        return len(old)

    def _send_upload(self, path: str, stream: io.BufferedReader, size: int, sha256: str) -> None:
        """One upload, new or found unfinished. Completed only when all that was read has the right sha256."""
        upload, kept = self._unfinished(path)
        if not upload:
            upload = self._client.ask("create_multipart_upload", path, Metadata={"sha256": sha256})[
                "UploadId"
            ]
        found, parts = self._send_parts(path, upload, kept, stream, size)
        if found != sha256:
            with contextlib.suppress(Answer, ProgramFailed):
                self._client.ask("abort_multipart_upload", path, expect=_ENDED, UploadId=upload)
        must_be(sha256, found, stream.name)
        whole = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        self._client.ask("complete_multipart_upload", path, expect=_ENDED, **whole)

    def _unfinished(self, path: str) -> tuple[str, _Parts]:
        """The oldest upload of this object that was begun and not ended, and the parts that it has."""
        key = self._client.key(path)
        pages = self._client.pages("list_multipart_uploads", path, Prefix=key)
        uploads = [row for page in pages for row in page.get("Uploads", ()) if row["Key"] == key]
        if not uploads:
            return "", set()
        upload = min(uploads, key=lambda row: (row["Initiated"], row["UploadId"]))["UploadId"]
        try:
            pages = self._client.pages("list_parts", path, expect=_ENDED, Key=key, UploadId=upload)
            rows = [row for page in pages for row in page.get("Parts", ())]
        except Answer:
            return "", set()
        return upload, {(row["PartNumber"], row["Size"], row["ETag"].strip('"')) for row in rows}

    def _send_parts(
        self, path: str, upload: str, kept: _Parts, stream: io.BufferedReader, size: int
    ) -> tuple[str, list[dict]]:
        """Sends the parts that are not there yet; the sha256 of all that was read, and the parts as S3 lists them."""
        part_bytes, at_once = self._limits.plan(size)
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
            part, md5 = {"UploadId": upload, "PartNumber": number}, md5_of(data)
            if (number, len(data), md5.hex()) in kept:
                return {"PartNumber": number, "ETag": f'"{md5.hex()}"'}
            part |= {"Body": data, "ContentMD5": base64_of(md5)}
            return {
                "PartNumber": number,
                "ETag": self._client.ask("upload_part", path, _ENDED, **part)["ETag"],
            }


def must_be(wanted: str, found: str, what: str) -> None:
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
