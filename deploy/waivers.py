"""Waivers: findings that a person accepts for a while, with a reason and an end (scan.ignore_file). Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.findings import KINDS, Finding
from pipeline import yaml_text
from pipeline.errors import SettingsError

# What Trivy's ignore file calls them (https://trivy.dev/docs/latest/configuration/filtering/).
_SECTIONS = dict(zip(("vulnerabilities", "secrets", "misconfigurations", "licenses"), KINDS, strict=True))
_ENTRY_OPTIONS = ("id", "paths", "purls", "expired_at", "statement")


@dataclass(frozen=True)
class Waiver:
    """An entry of the ignore file: findings of this kind and id are accepted until a day (exclusive), for a reason.

    `paths` and `purls` narrow it down to files (`*` within a folder, `**` across) and to packages, with a version or
    without.
    """

    kind: str
    id: str
    until: datetime.date
    statement: str
    paths: tuple[str, ...] = ()
    purls: tuple[str, ...] = ()

    def holds(self, today: datetime.date) -> bool:
        """Whether it has not ended yet."""
        return today < self.until

    def covers(self, finding: Finding) -> bool:
        """Whether it is about this finding, ended or not."""
        if (finding.kind, finding.id) != (self.kind, self.id):
            return False
        place = finding.path or finding.where.removesuffix(f":{finding.line}")
        if self.paths and not any(_matches(path, place.lstrip("/")) for path in self.paths):
            return False
        return not self.purls or any(_same_package(purl, finding.purl) for purl in self.purls)


def _matches(pattern: str, path: str) -> bool:
    """Whether a path is what a pattern means, in one pass over the path for each part of the pattern.

    A regular expression of the same meaning takes a time that doubles with each `**/`.
    """
    places = {0}
    for part in re.split(r"(\*\*/?|\*|\?)", pattern.lstrip("/")):
        places = set(_after(part, places, path))
    return len(path) in places


def _after(part: str, places: set[int], path: str) -> Iterator[int]:
    """Where in the path one can be after a part of a pattern, being at one of these places before."""
    if part not in ("**/", "**", "*", "?"):
        yield from (place + len(part) for place in places if path.startswith(part, place))
    elif part == "?":
        yield from (place + 1 for place in places if path[place : place + 1] not in ("", "/"))
    elif part == "*":
        inside = False
        for place in range(len(path) + 1):
            inside = place in places or (inside and path[place - 1] != "/")
            if inside:
                yield place
    elif places:
        first = min(places)
        yield from places
        rest = range(first + 1, len(path) + 1)
        yield from rest if part == "**" else (place for place in rest if path[place - 1] == "/")


def _same_package(wanted: str, found: str) -> bool:
    """Whether two package URLs name one package; a version or a qualifier counts where the first one has it."""
    (base, version, more), (other, its_version, its_more) = _purl(wanted), _purl(found)
    return base == other and (not version or version == its_version) and more <= its_more


def _purl(text: str) -> tuple[str, str, frozenset[str]]:
    text, _, more = text.partition("#")[0].partition("?")
    base, found, version = text.rpartition("@")
    if not found or "/" in version:  # an @ of the name's own, or none
        base, version = text, ""
    return base, version, frozenset(filter(None, more.split("&")))


def read_waivers(text: str, name: str) -> list[Waiver]:
    """The entries of an ignore file. Raises SettingsError naming every entry without a reason or an end."""
    document = yaml_text.load(text, name) or {}
    if not isinstance(document, dict) or not set(document) <= set(_SECTIONS):
        raise SettingsError(f"{name} must hold lists named {', '.join(_SECTIONS)}, and nothing else")
    faults = [
        f"{name}: {section} must be a list of entries, each with id, statement and expired_at"
        for section, entries in document.items()
        if not isinstance(entries, list | None)
    ]
    found = [
        _waiver(entry, kind, f"{name}: {section}[{position}]", faults)
        for section, kind in _SECTIONS.items()
        for position, entry in enumerate(_entries(document.get(section)))
    ]
    if faults:
        raise SettingsError("\n".join(faults))
    return [waiver for waiver in found if waiver]


def _entries(section: Any) -> list:
    return section if isinstance(section, list) else []


def _waiver(entry: Any, kind: str, where: str, faults: list[str]) -> Waiver | None:
    if not isinstance(entry, dict) or not _is_name(entry.get("id")):
        faults.append(f"{where} has no id; name the finding that it accepts, as id: CVE-2024-12345")
        return None
    where += f" ({entry['id']})"
    before = len(faults)
    unknown = [str(name) for name in entry if name not in _ENTRY_OPTIONS]
    if unknown:
        faults.append(
            f"{where}: {', '.join(unknown)} is not an option; allowed are {', '.join(_ENTRY_OPTIONS)}"
        )
    if not str(entry.get("statement") or "").strip():
        faults.append(f"{where} has no statement; write down who accepts it and why, as statement: …")
    until = entry.get("expired_at")
    until = until.date() if isinstance(until, datetime.datetime) else until
    if not isinstance(until, datetime.date):
        faults.append(f"{where} has no end; add the day on which it counts again, as expired_at: 2030-01-31")
    narrowed = {name: entry.get(name) or [] for name in ("paths", "purls")}
    faults += [
        f"{where}: {name} must be a list of texts"
        for name, value in narrowed.items()
        if not _are_texts(value)
    ]
    if len(faults) > before or not isinstance(until, datetime.date):
        return None
    statement = str(entry["statement"]).strip()
    return Waiver(
        kind, str(entry["id"]), until, statement, tuple(narrowed["paths"]), tuple(narrowed["purls"])
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and bool(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def covering(finding: Finding, waivers: Sequence[Waiver], today: datetime.date) -> Waiver | None:
    """The waiver that accepts a finding today; None if none does."""
    return next((one for one in waivers if one.holds(today) and one.covers(finding)), None)
