"""Fetch the data set that the settings name, and hold its bytes against their pinned sha256."""

import difflib
import hashlib
import http.client
import importlib.util
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline import digest
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError

FORMATS = (".csv", ".csv.gz", ".npz")
_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 20
_REPORT_BYTES = 256 << 20


def fetch(source: str, sha256: str, work: Path, root: Path, say: Callable[[str], None]) -> Path:
    """The data file, verified: copied to `work` if it is remote, left where it is if not.

    A remote file is written beside its name and renamed once its digest is right; a fetch
    that broke off starts over, one that was complete is used again. Raises SettingsError
    (no such source), ProgramFailed (it could not be fetched), IntegrityError (other bytes).
    """
    suffix = format_of(source)
    scheme = re.match(r"([a-z0-9+.-]+):", source)
    if scheme is None:
        path = root / source
        if not path.is_file():
            raise SettingsError(
                f"data.source names {source}, which is not a file here. Put it there, or change data.source."
            )
        _verify(source, _sha256(path), sha256)
        return path
    if scheme[1] == "sklearn":
        path = _bundled(source)
        _verify(source, _sha256(path), sha256)
        return path
    opener = _OPENERS.get(scheme[1])
    if opener is None:
        raise SettingsError(
            f"data.source is {source!r}; it must be sklearn:digits, a path, https://… or s3://bucket/key."
        )
    return _download(source, sha256, work / f"source{suffix}", opener, say)


def format_of(source: str) -> str:
    """The ending that says how to read the file. Raises SettingsError for one that is not known."""
    if source.startswith("sklearn:"):
        return ".csv.gz"
    name = PurePosixPath(urllib.parse.urlsplit(source).path if "://" in source else source).name
    for suffix in FORMATS:
        if name.endswith(suffix):
            return suffix
    raise SettingsError(
        f"data.source is {public_name(source)!r}; the formats that can be read are {', '.join(FORMATS)}."
    )


def public_name(source: str) -> str:
    """What a record says of the source: no credentials, no query, no folder of this machine."""
    if "://" in source:
        parts = urllib.parse.urlsplit(source)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}"
    return Path(source).name if source.startswith("/") else source


def _bundled(source: str) -> Path:
    """A data set that comes inside the scikit-learn package, found without importing it."""
    name = source.partition(":")[2]
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise ProgramFailed("scikit-learn is not installed. make setup installs the locked environment.")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    path = folder / f"{name}.csv.gz"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".csv.gz") for p in folder.glob("*.csv.gz"))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean sklearn:{near[0]}?" if near else f"It carries: {', '.join(known)}."
        raise SettingsError(f"data.source is {source!r}; scikit-learn carries no such rows. {hint}")
    return path


def _download(source: str, sha256: str, path: Path, opener: Any, say: Callable[[str], None]) -> Path:
    if path.is_file() and _sha256(path) == sha256:
        say(f"{public_name(source)} is here already, from a run that was stopped")
        return path
    partial = path.with_name(path.name + ".part")
    say(f"fetching {public_name(source)}")
    hasher = hashlib.sha256()
    try:
        with partial.open("wb") as sink:
            for chunk in _told(opener(source), say):
                hasher.update(chunk)
                sink.write(chunk)
        _verify(source, hasher.hexdigest(), sha256)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _told(chunks: Iterator[bytes], say: Callable[[str], None]) -> Iterator[bytes]:
    """The same chunks, with a word now and then on how much has come."""
    seen = told = 0
    for chunk in chunks:
        yield chunk
        seen += len(chunk)
        if seen - told >= _REPORT_BYTES:
            told = seen
            say(f"{seen / 1e6:,.0f} MB")


def _over_http(source: str) -> Iterator[bytes]:
    """The chunks of a file behind https:// (or http://: the pinned digest vouches for the bytes)."""
    try:
        with urllib.request.urlopen(source, timeout=_TIMEOUT_S) as answer:  # noqa: S310  http(s) alone gets here
            yield from iter(lambda: answer.read(_CHUNK_BYTES), b"")
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)
    except urllib.error.HTTPError as error:
        raise ProgramFailed(
            f"{public_name(source)} answered {error.code} {error.reason}. {_CHECK}."
        ) from error
    except urllib.error.URLError as error:
        raise ProgramFailed(
            f"{public_name(source)} could not be reached: {error.reason}. {_CHECK}."
        ) from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise ProgramFailed(
            f"{public_name(source)} broke off ({type(error).__name__}). Run again; it starts over."
        ) from error


_CHECK = "Check data.source, the network and the proxy, and run again"


def _from_s3(source: str) -> Iterator[bytes]:
    """The chunks of an object in S3; endpoint, region and credentials come from the usual AWS variables."""
    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise SettingsError(f"data.source is {source!r}; it must be s3://bucket/key.")
    import boto3  # takes a while, and most sources need none of it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        body = boto3.session.Session().client("s3").get_object(Bucket=bucket, Key=key)["Body"]
        yield from body.iter_chunks(_CHUNK_BYTES)
    except ClientError as error:
        told = error.response.get("Error", {})
        raise ProgramFailed(
            f"{source} could not be fetched: {told.get('Code')}: {told.get('Message')}. "
            "Check data.source, AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID …), and run again."
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise ProgramFailed(
            f"{source} could not be fetched: {error}. "
            "Check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION and AWS_ACCESS_KEY_ID …, and run again."
        ) from error


_OPENERS = {"https": _over_http, "http": _over_http, "s3": _from_s3}


def _sha256(path: Path) -> str:
    try:
        return digest.of_file(path)
    except OSError as error:
        raise SettingsError(f"{path.name}, the data source, cannot be read: {error.strerror}.") from error


def _verify(source: str, found: str, pinned: str) -> None:
    if found != pinned:
        raise IntegrityError(
            f"{public_name(source)} has the sha256\n  {found}, data.sha256 pins\n  {pinned}. "
            "These are not the bytes that the model was to be made from. Find out who changed them; if the "
            "change is wanted, set data.sha256 to the first digest."
        )
