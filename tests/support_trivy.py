"""A small vulnerability database of our own for Trivy, so that tests need no download.

Trivy keeps its database in a bbolt file: https://github.com/etcd-io/bbolt (page.go, bucket.go, meta.go). Buckets
of one leaf page each are enough here: a leaf may run over as many 4096-byte pages as it needs.
"""

import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

PAGE = 4096
LEAF, META, FREELIST = 0x02, 0x04, 0x10
IS_BUCKET = 1
SEVERITIES = {"LOW": 1, "MEDIUM": 2, "HIGH": 3, "CRITICAL": 4}
PIP = "pip::GitHub Security Advisory Pip"
GHSA = {"ID": "ghsa", "Name": "GitHub Security Advisory Pip", "URL": "https://github.com/advisories"}
# The first is real, and is what the canary looks for; the second is invented for these tests.
ADVISORIES = (
    ("CVE-2018-18074", "requests", "HIGH", "<=2.19.1", "2.20.0"),
    ("CVE-9999-0001", "fixturelib", "CRITICAL", "<=1.0", ""),
)


def write_database(cache: Path, advisories=ADVISORIES, updated: datetime | None = None) -> None:
    """Writes `db/trivy.db` and `db/metadata.json` below Trivy's cache folder; by default updated just now."""
    updated = updated or datetime.now(UTC)
    tree: dict = {"data-source": {PIP: _json(GHSA)}, "vulnerability": {}, PIP: {}}
    for name, package, severity, vulnerable, fixed in advisories:
        versions = {"VulnerableVersions": [vulnerable], **({"PatchedVersions": [fixed]} if fixed else {})}
        tree[PIP].setdefault(package, {})[name] = _json(versions)
        tree["vulnerability"][name] = _json(
            {
                "Title": f"{package}: for tests",
                "Severity": severity,
                "VendorSeverity": {"ghsa": SEVERITIES[severity]},
            }
        )
    (cache / "db").mkdir(parents=True, exist_ok=True)
    (cache / "db/trivy.db").write_bytes(bolt(tree))
    metadata = {
        "Version": 2,
        "UpdatedAt": updated.isoformat(),
        "NextUpdate": (updated + timedelta(days=1)).isoformat(),
        "DownloadedAt": updated.isoformat(),
    }
    (cache / "db/metadata.json").write_bytes(_json(metadata))


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
