"""What a scanner's report means, as findings; and a report without what changes from run to run. Pure.

A report is written by a program that is not trusted, in a job without secrets: nothing of it is believed to have a
certain shape, and no text of it reaches a terminal with what could move its cursor.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ProgramFailed
from pipeline.settings import SEVERITIES

VULNERABILITY, SECRET, MISCONFIGURATION, LICENSE = KINDS = (
    "vulnerability",
    "secret",
    "misconfiguration",
    "license",
)
# Where Trivy's report keeps findings of each kind.
_LISTS = dict(zip(KINDS, ("Vulnerabilities", "Secrets", "Misconfigurations", "Licenses"), strict=True))
_RANDOM_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NEVER = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Finding:
    """Something that the scanner found. `what` is the package or rule, `where` the file or layer.

    `purl` names a package and its version (https://github.com/package-url/purl-spec); `score` is the highest CVSS
    score that is known, "" without one; `line` is that of a secret or a misconfiguration, 0 if it is none.
    """

    kind: str
    id: str
    severity: str
    what: str
    where: str
    fixed_in: str = ""
    package: str = ""
    version: str = ""
    purl: str = ""
    path: str = ""
    title: str = ""
    url: str = ""
    score: str = ""
    line: int = 0

    def __str__(self) -> str:
        remedy = f", fixed in {self.fixed_in}" if self.fixed_in else ""
        return f"{self.severity} {self.kind} {self.id} in {self.what or self.where}{remedy}"


def findings(report: Mapping) -> list[Finding]:
    """All that a report found, the most severe first. Raises ProgramFailed for one of another shape."""
    try:
        found = list(_each(report))
    except (TypeError, AttributeError, ValueError, KeyError) as error:
        raise ProgramFailed(
            f"Trivy's report has another shape than its version writes ({error}); nothing is known of what it scanned."
        ) from error
    return sorted(
        found, key=lambda one: (-SEVERITIES.index(one.severity), one.kind, one.id, one.what, one.where)
    )


def _each(report: Mapping) -> Iterator[Finding]:
    for result in report.get("Results") or ():
        for kind, name in _LISTS.items():
            for raw in result.get(name) or ():
                if kind != MISCONFIGURATION or raw.get("Status") != "PASS":
                    yield _finding(kind, raw, _text(result.get("Target")))


def _finding(kind: str, raw: Mapping, target: str) -> Finding:
    severity = str(raw.get("Severity")) if raw.get("Severity") in SEVERITIES else "UNKNOWN"
    said = {name: _text(value) for name, value in raw.items() if isinstance(value, str)}
    title, url = said.get("Title", ""), said.get("PrimaryURL", "")
    if kind == VULNERABILITY:
        package, version = said.get("PkgName", ""), said.get("InstalledVersion", "")
        return Finding(
            kind,
            said.get("VulnerabilityID", ""),
            severity,
            f"{package} {version}".strip(),
            said.get("PkgPath") or target,
            said.get("FixedVersion", ""),
            package,
            version,
            _text((raw.get("PkgIdentifier") or {}).get("PURL")),
            said.get("PkgPath", ""),
            score=_score(raw.get("CVSS") or {}),
            title=title,
            url=url,
        )
    if kind == LICENSE:
        where = said.get("FilePath") or target
        return Finding(
            kind,
            said.get("Name", ""),
            severity,
            said.get("PkgName", ""),
            where,
            path=said.get("FilePath", ""),
        )
    if kind == SECRET:
        line = int(raw.get("StartLine") or 0)
        return Finding(
            kind, said.get("RuleID", ""), severity, "", f"{target}:{line}", line=line, title=title, url=url
        )
    line = int((raw.get("CauseMetadata") or {}).get("StartLine") or 0)
    return Finding(
        kind, said.get("ID", ""), severity, said.get("Title", ""), target, line=line, title=title, url=url
    )


def _text(value: Any) -> str:
    """A text in one line, of bounded length, without control characters."""
    kept = "".join(letter if letter.isprintable() else " " for letter in str(value or "")[:2000])
    return " ".join(kept.split())


def _score(cvss: Mapping) -> str:
    scores = [said.get(name) for said in cvss.values() for name in ("V3Score", "V40Score", "V2Score")]
    numbers = [float(score) for score in scores if isinstance(score, int | float) and score]
    return f"{max(numbers):.1f}" if numbers else ""


def packages(report: Mapping) -> frozenset[str]:
    """The package URLs of all that a report says is installed."""
    return frozenset(
        _text((package.get("Identifier") or {}).get("PURL"))
        for result in report.get("Results") or ()
        for package in result.get("Packages") or ()
    ) - {""}


def unchecked(report: Mapping) -> str:
    """Why the vulnerabilities of some packages could not be looked up although there is a database; empty if none."""
    if _system(report).get("Family") == "none":
        return "the base image has packages of an operating system that Trivy does not recognise"
    return ""


def ended(report: Mapping) -> str:
    """The operating system that gets no security updates any more; empty if it does, or there is none."""
    system = _system(report)
    return f"{_text(system.get('Family'))} {_text(system.get('Name'))}" if system.get("EOSL") else ""


def _system(report: Mapping) -> Mapping:
    return (report.get("Metadata") or {}).get("OS") or {}


def version(report: Mapping) -> str:
    """The version of Trivy that says that it wrote the report."""
    trivy = report.get("Trivy")
    return _text(trivy.get("Version")) if isinstance(trivy, Mapping) else ""


def checked(report: Any, exit_code: int, expected_code: int) -> Mapping:
    """A report that is what a scan leaves. Raises ProgramFailed if it is not, or contradicts the exit status."""
    if not isinstance(report, dict) or "SchemaVersion" not in report or "ArtifactName" not in report:
        raise ProgramFailed(
            "Trivy's report is not one: it names no SchemaVersion. Nothing is known of what it scanned."
        )
    count = len(findings(report))
    if bool(count) != (exit_code == expected_code):
        raise ProgramFailed(
            f"Trivy ended with {exit_code} and its report holds {count} findings: one of the two is"
            " wrong, so nothing is known of what it scanned. Run it again."
        )
    return report


def tidy(report: Mapping) -> dict:
    """The report without what changes from run to run, and without the lines around a secret, which may hold others."""
    kept = {name: value for name, value in report.items() if name not in ("ReportID", "CreatedAt")}
    kept["Results"] = [_tidy_result(result) for result in report.get("Results") or ()]
    return kept


def _tidy_result(result: Mapping) -> dict:
    kept = dict(result)
    if kept.get("Secrets"):
        kept["Secrets"] = [
            {name: value for name, value in secret.items() if name not in ("Code", "Match")}
            for secret in kept["Secrets"]
        ]
    return kept


def tidy_cyclonedx(sbom: Mapping, image: str) -> dict:
    """A CycloneDX SBOM with names in place of random numbers, sorted and without the time: the same each time."""
    kept = dict(sbom)
    kept["metadata"] = {name: value for name, value in sbom["metadata"].items() if name != "timestamp"}
    kept["metadata"]["component"] = {**kept["metadata"]["component"], "version": image}
    kept["components"] = sorted(sbom.get("components") or (), key=_component)
    ordered = {key: kept[key] for key in ("serialNumber", "metadata", "components") if key in kept} | kept
    kept = _named(ordered, image)
    dependencies = [
        {**one, "dependsOn": sorted(one.get("dependsOn") or ())} for one in kept.get("dependencies") or ()
    ]
    return {**kept, "dependencies": sorted(dependencies, key=lambda one: one["ref"])}


def tidy_spdx(sbom: Mapping, image: str) -> dict:
    """An SPDX SBOM that names the image by digest, without random numbers and times, and sorted: the same each time."""
    kept = {**_untimed(sbom), "name": image}
    kept["creationInfo"] = {**kept["creationInfo"], "created": _NEVER}
    for name in ("packages", "files", "relationships"):
        if name in kept:
            kept[name] = sorted(kept[name], key=lambda one: json.dumps(one, sort_keys=True))
    return _named(kept, image)


def _untimed(value: Any) -> Any:
    """A part of an SPDX document; its times, which SPDX demands, say that there is none, as SOURCE_DATE_EPOCH=0."""
    if isinstance(value, Mapping):
        return {name: _NEVER if name == "annotationDate" else _untimed(part) for name, part in value.items()}
    return [_untimed(part) for part in value] if isinstance(value, list) else value


def _named(document: Mapping, image: str) -> dict:
    """A document whose random numbers are replaced by ones that follow from the image, in the order they come in."""
    names: dict[str, str] = {}

    def name(match: re.Match) -> str:
        return names.setdefault(match[0], str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image}#{len(names)}")))

    return json.loads(_RANDOM_UUID.sub(name, json.dumps(document)))


def _component(component: Mapping) -> tuple[str, ...]:
    return tuple(str(component.get(name, "")) for name in ("type", "name", "version", "purl", "properties"))
