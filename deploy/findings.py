"""What a scanner's report means: findings, which of them are accepted for a while, and the verdict. Pure."""

from __future__ import annotations

import datetime
import json
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from pipeline.errors import ProgramFailed, SettingsError
from pipeline.settings import SEVERITIES, Bound
from pipeline.stages import Decided, Outcome, Result

KINDS = ("vulnerability", "secret", "misconfiguration", "license")
# Where Trivy's report keeps findings of each kind.
_LISTS = dict(zip(KINDS, ("Vulnerabilities", "Secrets", "Misconfigurations", "Licenses"), strict=True))
# What Trivy's ignore file calls them (https://trivy.dev/docs/latest/configuration/filtering/).
_SECTIONS = dict(zip(("vulnerabilities", "secrets", "misconfigurations", "licenses"), KINDS, strict=True))
_ENTRY_OPTIONS = ("id", "paths", "purls", "expired_at", "statement")
_RANDOM_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Finding:
    """Something that the scanner found. `what` is the package or rule, `where` the file or layer."""

    kind: str
    id: str
    severity: str
    what: str
    where: str
    fixed_in: str = ""

    def __str__(self) -> str:
        remedy = f", fixed in {self.fixed_in}" if self.fixed_in else ""
        return f"{self.severity} {self.kind} {self.id} in {self.what or self.where}{remedy}"


@dataclass(frozen=True)
class Acceptance:
    """An entry of the ignore file: findings of this kind and id are accepted until a day (exclusive), for a reason."""

    kind: str
    id: str
    until: datetime.date
    statement: str
    raw: Mapping = field(repr=False, compare=False)


@dataclass(frozen=True)
class Policy:
    """Which findings stop an image, and whether it may pass without being looked at for vulnerabilities."""

    fail_on: Sequence[str]
    fail_on_licenses: Sequence[str]
    lenient: bool


@dataclass(frozen=True)
class Database:
    """The vulnerability database of a scan: how old, or why there is none that can be trusted."""

    updated_at: str = ""
    trouble: str = ""
    note: str = ""


def read_acceptances(text: str, name: str) -> list[Acceptance]:
    """The entries of an ignore file. Raises SettingsError naming every entry without a reason or an end."""
    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise SettingsError(f"{name} is not YAML: {error}") from error
    if not isinstance(document, dict) or not set(document) <= set(_SECTIONS):
        raise SettingsError(f"{name} must hold lists named {', '.join(_SECTIONS)}, and nothing else")
    faults = [
        f"{name}: {section} must be a list of entries, each with id, statement and expired_at"
        for section, entries in document.items()
        if not isinstance(entries, list | None)
    ]
    found = [
        _acceptance(entry, kind, f"{name}: {section}[{position}]", faults)
        for section, kind in _SECTIONS.items()
        for position, entry in enumerate(_entries(document.get(section)))
    ]
    if faults:
        raise SettingsError("\n".join(faults))
    return [acceptance for acceptance in found if acceptance]


def _entries(section: Any) -> list:
    return section if isinstance(section, list) else []


def _acceptance(entry: Any, kind: str, where: str, faults: list[str]) -> Acceptance | None:
    if not isinstance(entry, dict) or not entry.get("id"):
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
    if len(faults) > before or not isinstance(until, datetime.date):
        return None
    return Acceptance(kind, str(entry["id"]), until, str(entry["statement"]).strip(), entry)


def live(acceptances: Sequence[Acceptance], today: datetime.date) -> dict:
    """The entries that still hold, as Trivy's ignore file has them."""
    sections = {kind: section for section, kind in _SECTIONS.items()}
    document: dict[str, list] = {}
    for acceptance in acceptances:
        if today < acceptance.until:
            document.setdefault(sections[acceptance.kind], []).append(dict(acceptance.raw))
    return document


def findings(report: Mapping) -> list[Finding]:
    """What the report found and nobody accepted, the most severe first."""
    found = [
        _finding(kind, raw, result.get("Target", ""))
        for result in report.get("Results") or ()
        for kind, name in _LISTS.items()
        for raw in result.get(name) or ()
        if raw.get("Status") != "PASS"
    ]
    return sorted(
        found, key=lambda one: (-SEVERITIES.index(one.severity), one.kind, one.id, one.what, one.where)
    )


def accepted(report: Mapping) -> list[Finding]:
    """What the report found and an entry of the ignore file accepts."""
    return [
        _finding(changed["Type"], changed["Finding"], result.get("Target", ""))
        for result in report.get("Results") or ()
        for changed in result.get("ExperimentalModifiedFindings") or ()
        if changed.get("Status") == "ignored" and changed.get("Type") in KINDS
    ]


def _finding(kind: str, raw: Mapping, target: str) -> Finding:
    said = raw.get("Severity")
    severity = said if isinstance(said, str) and said in SEVERITIES else "UNKNOWN"
    if kind == "vulnerability":
        package = f"{raw.get('PkgName', '')} {raw.get('InstalledVersion', '')}".strip()
        where = raw.get("PkgPath") or target
        return Finding(
            kind, raw.get("VulnerabilityID", ""), severity, package, where, raw.get("FixedVersion", "")
        )
    if kind == "license":
        return Finding(
            kind, raw.get("Name", ""), severity, raw.get("PkgName", ""), raw.get("FilePath") or target
        )
    if kind == "secret":
        return Finding(kind, raw.get("RuleID", ""), severity, "", f"{target}:{raw.get('StartLine', 0)}")
    return Finding(kind, raw.get("ID", ""), severity, raw.get("Title", ""), target)


def unchecked(report: Mapping) -> str:
    """Why the vulnerabilities of some packages could not be looked up although there is a database; empty if none."""
    system = (report.get("Metadata") or {}).get("OS") or {}
    if system.get("Family") == "none":
        return "the base image has packages of an operating system that Trivy does not recognise"
    return ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of an image, and everything that it rests on."""

    outcome: Outcome
    sentence: str
    stopped_by: tuple[Finding, ...]
    tolerated: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    expired: tuple[Acceptance, ...]
    scanned: bool
    warnings: tuple[str, ...]

    def result(self, digest: str) -> Result:
        """The verdict as the result of a stage."""
        every = Counter(one.severity for one in (*self.stopped_by, *self.tolerated))
        numbers = {f"findings_{severity.lower()}": every[severity] for severity in SEVERITIES}
        numbers |= {"accepted": len(self.accepted), "vulnerabilities_scanned": int(self.scanned)}
        decided = Decided("findings that stop", len(self.stopped_by), Bound(at_most=0))
        return Result(self.outcome, self.sentence, numbers, decided, digest, self.warnings)


def judge(
    report: Mapping,
    policy: Policy,
    acceptances: Sequence[Acceptance],
    database: Database,
    today: datetime.date,
) -> Verdict:
    """The verdict on a report. Without vulnerabilities looked up, only a lenient policy lets an image pass."""
    found, held = findings(report), accepted(report)
    stops = [one for one in found if one.severity in _bar(one, policy)]
    expired = [one for one in acceptances if one.until <= today]
    trouble = database.trouble or unchecked(report)
    outcome, sentence = _words(stops, len(found), trouble, policy)
    warnings = _warnings(stops, expired, trouble, database, report)
    passing = [one for one in found if one not in stops]
    return Verdict(
        outcome,
        sentence,
        tuple(stops),
        tuple(passing),
        tuple(held),
        tuple(expired),
        not trouble,
        tuple(warnings),
    )


def _bar(finding: Finding, policy: Policy) -> Sequence[str]:
    return policy.fail_on_licenses if finding.kind == "license" else policy.fail_on


def _words(stops: Sequence[Finding], count: int, trouble: str, policy: Policy) -> tuple[Outcome, str]:
    if stops:
        named = "; ".join(map(str, stops[:_NAMED_AT_MOST]))
        more = f"; and {len(stops) - _NAMED_AT_MOST} more" if len(stops) > _NAMED_AT_MOST else ""
        return Outcome.FAILED, (
            f"{named}{more}. Remove what was found, or accept it in the ignore file, with a reason and an end"
        )
    if not trouble:
        return Outcome.PASSED, f"nothing found that stops an image ({count} lesser findings)"
    if policy.lenient:
        return (
            Outcome.PASSED,
            "vulnerabilities not scanned; no secret, misconfiguration or licence stops the image",
        )
    return Outcome.NO_DATA, f"vulnerabilities not scanned: {trouble}"


def _warnings(stops: Any, expired: Any, trouble: str, database: Database, report: Mapping) -> list[str]:
    said = []
    if trouble:
        said.append(
            f"VULNERABILITIES NOT SCANNED: {trouble}. Only a laptop may go on; a protected ref refuses this image."
        )
    if database.note:
        said.append(database.note)
    counting = {(one.kind, one.id) for one in stops}
    for entry in expired:
        effect = (
            "counts again and stops this image" if (entry.kind, entry.id) in counting else "holds no longer"
        )
        said.append(f"the acceptance of {entry.id} ended on {entry.until}: it {effect} ({entry.statement})")
    system = (report.get("Metadata") or {}).get("OS") or {}
    if system.get("EOSL"):
        said.append(
            f"{system.get('Family')} {system.get('Name')} of the base image gets no security updates any more"
        )
    return said


def document(
    verdict: Verdict, database: Database, acceptances: Sequence[Acceptance], image: str, trivy: str
) -> dict:
    """The verdict as `verdict.json` keeps it."""
    ends = {(one.kind, one.id): one for one in acceptances}
    return {
        "image": image,
        "scanner": {"name": "trivy", "version": trivy},
        "outcome": verdict.outcome.value,
        "sentence": verdict.sentence,
        "vulnerabilities_scanned": verdict.scanned,
        "database": asdict(database),
        "stopped_by": [asdict(one) for one in verdict.stopped_by],
        "tolerated": [asdict(one) for one in verdict.tolerated],
        "accepted": [
            {
                **asdict(one),
                "until": str(ends[one.kind, one.id].until) if (one.kind, one.id) in ends else "",
                "statement": ends[one.kind, one.id].statement if (one.kind, one.id) in ends else "",
            }
            for one in verdict.accepted
        ],
        "warnings": list(verdict.warnings),
    }


def checked(report: Any, exit_code: int, expected_code: int) -> Mapping:
    """A report that is what a scan leaves. Raises ProgramFailed if it is not, or contradicts the exit status."""
    if not isinstance(report, dict) or "SchemaVersion" not in report or "ArtifactName" not in report:
        raise ProgramFailed(
            "Trivy's report is not one: it names no SchemaVersion. Nothing is known of this image."
        )
    if bool(findings(report)) != (exit_code == expected_code):
        raise ProgramFailed(
            f"Trivy ended with {exit_code} and its report holds {len(findings(report))} findings: one of the two is"
            " wrong, so nothing is known of this image. Run scan again."
        )
    return report


def tidy(report: Mapping) -> dict:
    """The report without what changes from run to run, and without the lines around a secret, which may hold others."""
    kept = {name: value for name, value in report.items() if name not in ("ReportID", "CreatedAt")}
    kept["Results"] = [_tidy_result(result) for result in report.get("Results") or ()]
    return kept


def _tidy_result(result: Mapping) -> dict:
    kept = dict(result)
    if "Secrets" in kept:
        kept["Secrets"] = [_without_text(secret) for secret in kept["Secrets"]]
    if "ExperimentalModifiedFindings" in kept:
        kept["ExperimentalModifiedFindings"] = [
            {**changed, "Finding": _without_text(changed["Finding"])}
            if changed.get("Type") == "secret"
            else changed
            for changed in kept["ExperimentalModifiedFindings"]
        ]
    return kept


def _without_text(secret: Mapping) -> dict:
    return {name: value for name, value in secret.items() if name not in ("Code", "Match")}


def tidy_sbom(sbom: Mapping, image: str) -> dict:
    """The SBOM of an image with names in place of random numbers, sorted and without the time: the same each time."""
    kept = dict(sbom)
    kept["metadata"] = {name: value for name, value in sbom["metadata"].items() if name != "timestamp"}
    kept["metadata"]["component"] = {**kept["metadata"]["component"], "version": image}
    kept["components"] = sorted(sbom.get("components") or (), key=_component)
    names: dict[str, str] = {}

    def name(match: re.Match) -> str:
        return names.setdefault(match[0], str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image}#{len(names)}")))

    ordered = {key: kept[key] for key in ("serialNumber", "metadata", "components")} | kept
    kept = json.loads(_RANDOM_UUID.sub(name, json.dumps(ordered)))
    dependencies = [
        {**one, "dependsOn": sorted(one.get("dependsOn") or ())} for one in kept.get("dependencies") or ()
    ]
    return {**kept, "dependencies": sorted(dependencies, key=lambda one: one["ref"])}


def _component(component: Mapping) -> tuple[str, ...]:
    return tuple(str(component.get(name, "")) for name in ("type", "name", "version", "purl", "properties"))
