"""Trivy's vulnerability database: fetched here, by code of ours, so that Trivy itself never needs the network.

The database is an OCI artifact of one layer, a tar of trivy.db and metadata.json; see
https://trivy.dev/docs/latest/configuration/db/. Its digest is verified, and recorded with each scan.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import re
import shutil
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from deploy.disk import locked
from deploy.oci import Descriptor, Layout, parse_json
from deploy.registry import Client
from deploy.verdict import Database
from pipeline.digest import CHUNK_BYTES
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.settings import Bound

# Where Trivy itself looks when no repository is named.
DEFAULTS = ("mirror.gcr.io/aquasec/trivy-db:2", "ghcr.io/aquasecurity/trivy-db:2")
_LAYER = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
_FILES = ("trivy.db", "metadata.json")
_BYTES_AT_MOST = 16 << 30
_REACH_TIMEOUT_S = 3.0


def find_database(cache: Path, repository: str, timeout_s: float, say: Callable[[str], None]) -> Database:
    """The database in `cache/db`, fetched if a newer one is due. How old it may be is judged by `judged_age`."""
    with locked(cache / "lock", say):
        refused = ""
        if _due(_metadata(cache)):
            refused = _renew(cache, (repository,) if repository else DEFAULTS, timeout_s, say)
        metadata = _metadata(cache)
    updated = moment(metadata.get("UpdatedAt"))
    if updated is None:
        return Database(trouble=refused or "there is no vulnerability database")
    note = (
        f"the vulnerability database of {updated.date()} could not be renewed: {refused}" if refused else ""
    )
    origin = _origin(cache)
    return Database(
        updated.isoformat(), note=note, source=origin.get("repository", ""), digest=origin.get("digest", "")
    )


def judged_age(database: Database, age_days: Bound, now: datetime.datetime) -> Database:
    """The database, with trouble if it is older than is asked, or says that it is of the future."""
    updated = moment(database.updated_at)
    if database.trouble or updated is None:
        return Database(trouble=database.trouble or "there is no vulnerability database")
    days = (now - updated).total_seconds() / 86_400
    if days < -1:
        trouble = f"the vulnerability database says that it is of {updated.date()}, which is to come"
    elif not age_days.holds(days):
        why = f"; {database.note}" if database.note else ""
        trouble = f"the vulnerability database is of {updated.date()}, {days:.0f} days old ({age_days} is asked){why}"
    else:
        return database
    return Database(database.updated_at, trouble, "", database.source, database.digest)


def _metadata(cache: Path) -> dict:
    """What the database says of itself; nothing if there is none."""
    metadata = _json(cache / "db/metadata.json")
    return metadata if (cache / "db/trivy.db").is_file() else {}


def _origin(cache: Path) -> dict:
    """Where the database came from, as `_renew` noted it."""
    return _json(cache / "db/origin.json")


def _json(path: Path) -> dict:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _due(metadata: Mapping) -> bool:
    following = moment(metadata.get("NextUpdate"))
    return following is None or following <= datetime.datetime.now(datetime.UTC)


def moment(text: str | None) -> datetime.datetime | None:
    """A time as Trivy writes it, with up to nine digits of a second; None for anything else."""
    try:
        found = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text or ""))
    except (ValueError, TypeError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _renew(cache: Path, repositories: Sequence[str], timeout_s: float, say: Callable[[str], None]) -> str:
    """Fetches the database from the first repository that has it; why it could not be had, or nothing."""
    hosts = [repository.partition("/")[0] for repository in repositories]
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"))
    if not proxied and not reachable(hosts):
        return f"{' and '.join(hosts)} cannot be reached"
    faults = []
    for repository in repositories:
        try:
            _fetch(cache, repository, time.monotonic() + timeout_s, say)
            return ""
        except (ProgramFailed, IntegrityError, tarfile.TarError, EOFError, OSError) as error:
            faults.append(f"the vulnerability database could not be fetched from {repository}: {error}")
    return "; ".join(faults)


def _fetch(cache: Path, repository: str, deadline: float, say: Callable[[str], None]) -> None:
    place, _, tag = repository.rpartition(":")
    if not place or "/" in tag:
        place, tag = repository, "2"
    client = Client(place)
    body = client.tagged(tag)
    if body is None:
        raise ProgramFailed("there is none under this name")
    layers = [Descriptor.parse(raw, repository) for raw in parse_json(body, repository).get("layers") or ()]
    found = [layer for layer in layers if layer.media_type == _LAYER]
    if len(found) != 1 or found[0].size > _BYTES_AT_MOST:
        raise IntegrityError("what lies there is no vulnerability database")
    if _origin(cache).get("digest") == found[0].digest and _metadata(cache):
        return  # the newest there is
    say(f"fetching the vulnerability database from {repository} ({found[0].size / 1e6:.0f} MB)")
    work = cache / "fetching"
    shutil.rmtree(work, ignore_errors=True)
    layout = Layout(work / "layout").create()
    with _Hurried(client.open(found[0]), deadline) as stream, layout.writing(found[0]) as copy:
        while chunk := stream.read(CHUNK_BYTES):
            copy.write(chunk)
    _unpack(layout.path(found[0].digest), work / "db")
    (work / "db/origin.json").write_text(json.dumps({"repository": repository, "digest": found[0].digest}))
    shutil.rmtree(cache / "db", ignore_errors=True)
    (work / "db").replace(cache / "db")
    shutil.rmtree(work)


class _Hurried(io.RawIOBase):
    """A stream that must have come before a time on the monotonic clock."""

    def __init__(self, stream: BinaryIO, deadline: float):
        self._stream, self._deadline = stream, deadline

    def read(self, size: int = -1) -> bytes:
        if time.monotonic() > self._deadline:
            raise ProgramFailed("it did not come in time; raise scan.timeout_s, or name a nearer mirror")
        return self._stream.read(size)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _unpack(archive: Path, into: Path) -> None:
    """The two files of a database out of its tar, whatever else is in it and whatever it calls itself."""
    into.mkdir(parents=True)
    left = _BYTES_AT_MOST
    with tarfile.open(archive, "r:gz") as packed:
        for member in packed:
            if member.name.removeprefix("./") not in _FILES or not member.isreg():
                continue
            left -= member.size
            if left < 0:
                raise IntegrityError("it is larger than any database")
            content = packed.extractfile(member)
            if content is not None:
                with (into / member.name.removeprefix("./")).open("wb") as copy:
                    shutil.copyfileobj(content, copy, CHUNK_BYTES)
    missing = [name for name in _FILES if not (into / name).is_file()]
    if missing:
        raise IntegrityError(f"what lies there has no {' and no '.join(missing)}")


def reachable(hosts: Sequence[str], timeout_s: float = _REACH_TIMEOUT_S) -> bool:
    """Whether one of these hosts (`NAME[:PORT]`, 443 by default) takes connections.

    Programs that try themselves wait for minutes where packets vanish. Asked on threads
    of their own, because looking up a name cannot be given a limit.
    """
    answers = threading.Event()
    threads = [
        threading.Thread(target=_knock, args=(host, timeout_s, answers), daemon=True) for host in hosts
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    while (
        not answers.is_set() and time.monotonic() < deadline and any(thread.is_alive() for thread in threads)
    ):
        answers.wait(0.02)
    return answers.is_set()


def _knock(host: str, timeout_s: float, answers: threading.Event) -> None:
    name, _, port = host.partition(":")
    with contextlib.suppress(OSError), socket.create_connection((name, int(port or 443)), timeout_s):
        answers.set()
