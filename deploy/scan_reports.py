"""The verdict of a scan for the two platforms: SARIF for GitHub, a container-scanning report for GitLab. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from deploy.examination import Examination
from deploy.findings import MISCONFIGURATION, SECRET, VULNERABILITY
from deploy.verdict import IMAGE, Judged, Verdict, class_of
from deploy.vulnerabilities import moment

# What GitHub makes of a rule's severity: https://docs.github.com/en/code-security/code-scanning, "SARIF support".
_SECURITY_SEVERITY = {"CRITICAL": "9.5", "HIGH": "8.0", "MEDIUM": "5.5", "LOW": "2.0", "UNKNOWN": "8.0"}
_LEVELS = {"stops": "error", "tolerated": "warning", "accepted": "note"}
_GITLAB_SCHEMA = "15.0.7"
_TEXT_AT_MOST = 250


def sarif(verdict: Verdict, trivy: str) -> dict:
    """Every finding as SARIF 2.1.0: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html

    What is waived is there too, suppressed, with its reason. Findings in the image have its name as their file.
    """
    rules = {_rule_id(one): _rule(one) for one in verdict.judged}
    names = list(rules)
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "Trivy",
                        "version": trivy,
                        "informationUri": "https://trivy.dev",
                        "rules": [*rules.values()],
                    }
                },
                "results": [_result(one, names.index(_rule_id(one))) for one in verdict.judged],
                "columnKind": "utf16CodeUnits",
            }
        ],
    }


def _rule_id(one: Judged) -> str:
    return one.finding.id or one.finding.kind


def _rule(one: Judged) -> dict:
    finding = one.finding
    rule = {
        "id": _rule_id(one),
        "name": finding.kind,
        "shortDescription": {"text": finding.title or finding.id or finding.kind},
        "properties": {
            "security-severity": finding.score or _SECURITY_SEVERITY[finding.severity],
            "tags": ["security", finding.kind, finding.severity],
        },
    }
    return rule | ({"helpUri": finding.url} if finding.url.startswith("https://") else {})


def _result(one: Judged, rule: int) -> dict:
    finding = one.finding
    identity = "|".join((one.part, finding.kind, finding.id, finding.package or finding.what, _file(one)))
    result = {
        "ruleId": _rule_id(one),
        "ruleIndex": rule,
        "level": _LEVELS[one.says],
        "message": {"text": f"{one}. {_state(one)}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _file(one)},
                    "region": {"startLine": max(finding.line, 1)},
                }
            }
        ],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity.encode()).hexdigest()},
    }
    if one.waiver:
        until = f"{one.waiver.statement} (until {one.waiver.until})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": until}]
    return result


def _state(one: Judged) -> str:
    """What a person is to know of a finding beside what it is."""
    words = {
        "stops": "It stops the image.",
        "tolerated": "It is reported.",
        "accepted": "It is accepted for a while.",
    }
    kind = (
        f" ({class_of(one.finding, one.inherited).replace('_', ', ')})"
        if one.finding.kind == VULNERABILITY
        else ""
    )
    return words[one.says] + kind


def _file(one: Judged) -> str:
    """A file of the repository where the finding is in one, else a path that begins with the part's name."""
    finding = one.finding
    place = (finding.path or finding.where).lstrip("/")
    if finding.kind in (SECRET, MISCONFIGURATION):
        place = place.removesuffix(f":{finding.line}")
    place = place.replace(" ", "_") or finding.kind
    return place if one.part == "repository" else f"{one.part}/{place}"


def container_scanning(verdict: Verdict, examined: Examination, digest: str) -> dict:
    """The image's vulnerabilities that nobody waived, as GitLab's security report wants them.

    https://gitlab.com/gitlab-org/security-products/security-report-schemas, container-scanning-report-format.json.
    """
    trivy = {"id": "trivy", "name": "Trivy", "version": examined.trivy, "vendor": {"name": "Aqua Security"}}
    found = [
        one
        for one in verdict.judged
        if one.part == IMAGE and one.finding.kind == VULNERABILITY and one.says != "accepted"
    ]
    system = _system(examined.reports[IMAGE])
    return {
        "version": _GITLAB_SCHEMA,
        "scan": {
            "type": "container_scanning",
            "status": "success" if verdict.scanned else "failure",
            "start_time": _second(examined.started),
            "end_time": _second(examined.finished),
            "analyzer": {
                "id": "tidegate",
                "name": "Tidegate",
                "version": "1",
                "vendor": {"name": "Tidegate"},
            },
            "scanner": trivy,
        },
        "vulnerabilities": [_vulnerability(one, digest, system) for one in found],
        "remediations": [],
    }


def _vulnerability(one: Judged, digest: str, system: str) -> dict:
    finding = one.finding
    identity = f"{digest}|{finding.id}|{finding.package}|{finding.version}|{finding.where}"
    fixed = f"Upgrade {finding.package} to {finding.fixed_in}" if finding.fixed_in else "No fix is out yet"
    kind = "cve" if finding.id.startswith("CVE-") else "ghsa" if finding.id.startswith("GHSA-") else "trivy"
    identifier = {"type": kind, "name": finding.id or "unnamed", "value": finding.id or "unnamed"}
    if finding.url.startswith("https://"):
        identifier["url"] = finding.url
    return {
        "id": hashlib.sha256(identity.encode()).hexdigest(),
        "name": (finding.title or finding.id)[:_TEXT_AT_MOST],
        "description": f"{one}. {_state(one)}",
        "severity": finding.severity.capitalize(),
        "solution": fixed,
        "identifiers": [identifier],
        "location": {
            "dependency": {"package": {"name": finding.package}, "version": finding.version},
            "operating_system": system,
            "image": f"model@{digest}",
        },
    }


def _system(report: Mapping) -> str:
    system = (report.get("Metadata") or {}).get("OS") or {}
    return f"{system.get('Family', '')} {system.get('Name', '')}".strip() or "none"


def _second(text: str) -> str:
    return f"{moment(text):%Y-%m-%dT%H:%M:%S}"
