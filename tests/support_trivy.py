"""A small vulnerability database of our own for Trivy, so that tests need no download.

Trivy keeps its database in a bbolt file: https://github.com/etcd-io/bbolt (page.go, bucket.go, meta.go). Buckets
of one leaf page each are enough here: a leaf may run over as many 4096-byte pages as it needs.
"""

import dataclasses
import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deploy.oci import MANIFEST, Layout, encode
from pipeline.stages import Context
from tests.support import context

PAGE = 4096
LEAF, META, FREELIST = 0x02, 0x04, 0x10
IS_BUCKET = 1
SEVERITIES = {"UNKNOWN": 0, "LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}
PIP = "pip::GitHub Security Advisory Pip"
DEBIAN = "debian 12"
SOURCES = {
    PIP: {"ID": "ghsa", "Name": "GitHub Security Advisory Pip", "URL": "https://github.com/advisories"},
    DEBIAN: {"ID": "debian", "Name": "Debian Security Tracker", "URL": "https://security-tracker.debian.org"},
}
WILL_NOT_FIX = 5


@dataclass(frozen=True)
class Advisory:
    """What a database knows of one vulnerability in one package. Without `fixed` there is no fix."""

    id: str
    package: str
    severity: str
    vulnerable: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    source: str = PIP
    score: float = 0.0
    title: str = ""

    def entry(self) -> dict:
        """As Trivy's database keeps it."""
        if self.source == DEBIAN:
            return {"FixedVersion": self.fixed[0]} if self.fixed else {"Status": WILL_NOT_FIX}
        versions = {"VulnerableVersions": list(self.vulnerable)}
        return versions | ({"PatchedVersions": list(self.fixed)} if self.fixed else {})


# Real ones, as GitHub's advisory database and Debian's security tracker have them: GHSA-x84v-xcm2-53pg (what the canary
# looks for), GHSA-r6jx-9g48-2r5r, and zlib in bookworm, which Debian does not fix.
REQUESTS = Advisory(
    "CVE-2018-18074", "requests", "HIGH", ("<=2.19.1",), ("2.20.0",), score=7.5,
    title="Insufficiently Protected Credentials in Requests",
)  # fmt: skip
TENSORFLOW = Advisory(
    "CVE-2021-37678", "tensorflow", "CRITICAL", ("<2.3.4", ">=2.4.0, <2.4.3", ">=2.5.0, <2.5.1"),
    ("2.3.4", "2.4.3", "2.5.1"), title="Arbitrary code execution due to YAML deserialization",
)  # fmt: skip
ZLIB = Advisory(
    "CVE-2023-45853", "zlib", "CRITICAL", source=DEBIAN, score=9.8,
    title="zlib: integer overflow and resultant heap-based buffer overflow in zipOpenNewFileInZip4_64",
)  # fmt: skip
# Invented for these tests: one whose severity nobody has said.
UNRATED = Advisory("CVE-9999-0001", "fixturelib", "UNKNOWN", ("<=1.0",))
ADVISORIES = (REQUESTS, TENSORFLOW, ZLIB, UNRATED)


def write_database(
    cache: Path,
    advisories: Sequence[Advisory] = ADVISORIES,
    updated: datetime | None = None,
    schema: int = 2,
) -> None:
    """Writes `db/trivy.db` and `db/metadata.json` below Trivy's cache folder; by default updated just now."""
    updated = updated or datetime.now(UTC)
    tree: dict = {"data-source": {name: _json(said) for name, said in SOURCES.items()}, "vulnerability": {}}
    for one in advisories:
        tree.setdefault(one.source, {}).setdefault(one.package, {})[one.id] = _json(one.entry())
        said = {"Title": one.title or f"{one.package}: for tests"}
        if one.severity != "UNKNOWN":
            said |= {"Severity": one.severity, "VendorSeverity": {"ghsa": SEVERITIES[one.severity]}}
        tree["vulnerability"][one.id] = _json(
            said | ({"CVSS": {"ghsa": {"V3Score": one.score}}} if one.score else {})
        )
    (cache / "db").mkdir(parents=True, exist_ok=True)
    content = bolt(tree)
    (cache / "db/trivy.db").write_bytes(content)
    metadata = {
        "Version": schema,
        "UpdatedAt": updated.isoformat(),
        "NextUpdate": (updated + timedelta(days=1)).isoformat(),
        "DownloadedAt": updated.isoformat(),
    }
    (cache / "db/metadata.json").write_bytes(_json(metadata))
    origin = {"repository": "for tests", "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    (cache / "db/origin.json").write_bytes(_json(origin))


# A port of this machine where nobody listens: a database that cannot be had, without asking the network.
NOWHERE = "127.0.0.1:20299/none/trivy-db:2"


def given(
    tmp_path: Path, layout: Path, *, database: bool = True, ignore: str = "", also=(), live=None, **more
) -> Context:
    """A context for the scan of a layout, in a small repository of its own, with a database unless there is to be none.

    `more` are arguments of `write_database`, and facts.
    """
    root = tmp_path / "repository"
    root.mkdir(exist_ok=True)
    (root / "ignore.yaml").write_text(ignore)
    (root / "model.py").write_text("units = 64\n")
    written = {name: more.pop(name) for name in ("advisories", "updated", "schema") if name in more}
    changes = {"scan.database": NOWHERE, "scan.ignore_file": "ignore.yaml", "scan.also": tuple(also)}
    made = context(tmp_path, {"image/layout": layout, "champion/report": live}, changes, **more)
    if database:
        write_database(cache_of(made.state, NOWHERE), **written)
    return dataclasses.replace(made, root=root)


def spy(tmp_path: Path, monkeypatch, script: str) -> Path:
    """Puts a shell script in Trivy's place; returns its path."""
    path = tmp_path / "bin/trivy"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr("deploy.trivy.find", lambda name: str(path))
    return path


def cache_of(state: Path, repository: str) -> Path:
    """Where the scan keeps the database of a repository."""
    return state / "trivy" / hashlib.sha256(repository.encode()).hexdigest()[:12]


def artifact(layout: Layout, cache: Path) -> str:
    """A database as the artifact that a mirror offers, in a layout; returns its digest."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("trivy.db", "metadata.json"):
            archive.add(cache / "db" / name, arcname=name)
    layer = layout.add(packed.getvalue(), "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip").document()
    layer["annotations"] = {"org.opencontainers.image.title": "db.tar.gz"}
    config = layout.add(b"{}", "application/vnd.aquasec.trivy.config.v1+json").document()
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    return layout.add(encode(body), MANIFEST).digest


def site_package(name: str, version: str, license_name: str = "Apache 2.0") -> dict[str, bytes]:
    """The files of a Python package as an image has it, by path."""
    said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: {license_name}\n"
    return {f"usr/lib/python3/site-packages/{name}-{version}.dist-info/METADATA": said.encode()}


def debian(**versions: str) -> dict[str, bytes]:
    """The files of a Debian 12 that has these packages, by path."""
    status = "".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n"
        f"Maintainer: x\nSource: {name.removesuffix('1g')}\n\n"
        for name, version in versions.items()
    )
    release = 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    return {
        "var/lib/dpkg/status": status.encode(),
        "etc/os-release": release.encode(),
        "etc/debian_version": b"12.5\n",
    }


def bolt(tree: dict) -> bytes:
    """A bbolt file of nested buckets (dictionaries) and values (bytes)."""
    pages = [b"", b"", _page(2, FREELIST, 0, b"")]
    root = _bucket(tree, pages)
    for number in (0, 1):
        meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, PAGE, 0, root, 0, 2, len(pages), number)
        pages[number] = _page(number, META, 0, meta + struct.pack("<Q", _fnv1a(meta)))
    return b"".join(pages)


def _bucket(tree: dict, pages: list[bytes]) -> int:
    """Appends the pages of a bucket, after those of the buckets in it; returns the number of its first."""
    heads, data = [], b""
    names = sorted(name.encode() for name in tree)
    for position, name in enumerate(names):
        value = tree[name.decode()]
        inner = struct.pack("<QQ", _bucket(value, pages), 0) if isinstance(value, dict) else value
        offset = (len(names) - position) * 16 + len(data)
        heads.append(struct.pack("<IIII", IS_BUCKET * isinstance(value, dict), offset, len(name), len(inner)))
        data += name + inner
    page = _page(len(pages), LEAF, len(names), b"".join(heads) + data)
    number = len(pages)
    pages += [page[at : at + PAGE] for at in range(0, len(page), PAGE)]
    return number


def _page(number: int, flags: int, count: int, body: bytes) -> bytes:
    more = (16 + len(body) - 1) // PAGE
    return (struct.pack("<QHHI", number, flags, count, more) + body).ljust((more + 1) * PAGE, b"\0")


def _fnv1a(data: bytes) -> int:
    """The 64-bit FNV-1a hash, which guards a meta page."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def _json(value) -> bytes:
    return json.dumps(value).encode()
