"""Reports of Trivy, made by hand, for tests of what they mean."""

from deploy.verdict import Database, Policy

STRICT = Policy(("HIGH", "CRITICAL", "UNKNOWN"), ("CRITICAL",), lenient=False)
LENIENT = Policy(("HIGH", "CRITICAL", "UNKNOWN"), ("CRITICAL",), lenient=True)
GOOD = Database("2026-01-14")
NONE = Database(trouble="nobody answers")


def vulnerability(severity: str, name: str = "CVE-1", **more) -> dict:
    found = {
        "VulnerabilityID": name,
        "PkgName": "lib",
        "InstalledVersion": "1.0",
        "PkgIdentifier": {"PURL": "pkg:pypi/lib@1.0"},
        "Severity": severity,
        **more,
    }
    return {"Target": "Python", "Class": "lang-pkgs", "Vulnerabilities": [found]}


def package(purl: str) -> dict:
    """A package that is installed, and has no vulnerability that the report knows."""
    return {
        "Target": "Python",
        "Class": "lang-pkgs",
        "Packages": [{"Name": "x", "Identifier": {"PURL": purl}}],
    }


def secret(severity: str = "CRITICAL") -> dict:
    found = {
        "RuleID": "aws-key",
        "Severity": severity,
        "StartLine": 7,
        "Match": "k=***",
        "Code": {"Lines": ["near"]},
    }
    return {"Target": "/etc/config", "Class": "secret", "Secrets": [found]}


def license_of(severity: str) -> dict:
    return {
        "Target": "Python",
        "Class": "license",
        "Licenses": [{"Name": "L", "PkgName": "lib", "Severity": severity}],
    }


def misconfiguration(severity: str, status: str = "FAIL") -> dict:
    found = {"ID": "DS-0002", "Title": "runs as root", "Severity": severity, "Status": status}
    return {"Target": "Dockerfile", "Class": "config", "Misconfigurations": [found]}


def report(*results: dict, **metadata) -> dict:
    return {"SchemaVersion": 2, "ArtifactName": "digits", "Metadata": metadata, "Results": list(results)}
