"""What a scanner's report means, from canned reports."""

import datetime
import json

import pytest

from deploy.findings import (
    Acceptance,
    Database,
    Policy,
    accepted,
    checked,
    document,
    findings,
    judge,
    live,
    read_acceptances,
    tidy,
    tidy_sbom,
)
from pipeline.errors import ProgramFailed, SettingsError
from pipeline.stages import Outcome

TODAY = datetime.date(2026, 1, 15)
STRICT = Policy(("HIGH", "CRITICAL", "UNKNOWN"), ("CRITICAL",), lenient=False)
LENIENT = Policy(("HIGH", "CRITICAL", "UNKNOWN"), ("CRITICAL",), lenient=True)
GOOD = Database("2026-01-14")
NONE = Database(trouble="nobody answers")


def vulnerability(severity: str, name: str = "CVE-1", **more) -> dict:
    found = {
        "VulnerabilityID": name,
        "PkgName": "lib",
        "InstalledVersion": "1.0",
        "Severity": severity,
        **more,
    }
    return {"Target": "Python", "Class": "lang-pkgs", "Vulnerabilities": [found]}


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


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (vulnerability("CRITICAL"), Outcome.FAILED),
        (vulnerability("HIGH"), Outcome.FAILED),
        (vulnerability("MEDIUM"), Outcome.PASSED),
        (vulnerability("UNKNOWN"), Outcome.FAILED),
        (vulnerability("NEGLIGIBLE"), Outcome.FAILED),
        (secret("HIGH"), Outcome.FAILED),
        (secret("LOW"), Outcome.PASSED),
        (license_of("CRITICAL"), Outcome.FAILED),
        (license_of("HIGH"), Outcome.PASSED),
        (license_of("UNKNOWN"), Outcome.PASSED),
        (misconfiguration("HIGH"), Outcome.FAILED),
        (misconfiguration("HIGH", status="PASS"), Outcome.PASSED),
        ({"Target": "x", "Class": "os-pkgs"}, Outcome.PASSED),
    ],
)
def test_findings_of_the_named_severities_stop_an_image(result, outcome):
    assert judge(report(result), STRICT, (), GOOD, TODAY).outcome is outcome


def test_severity_that_trivy_may_invent_one_day_counts_as_unknown():
    assert findings(report(vulnerability("APOCALYPTIC")))[0].severity == "UNKNOWN"


@pytest.mark.parametrize(
    ("policy", "database", "outcome"),
    [
        (STRICT, GOOD, Outcome.PASSED),
        (LENIENT, GOOD, Outcome.PASSED),
        (STRICT, NONE, Outcome.NO_DATA),
        (LENIENT, NONE, Outcome.PASSED),
    ],
)
def test_image_that_was_not_scanned_for_vulnerabilities_passes_only_where_that_is_tolerated(
    policy, database, outcome
):
    verdict = judge(report(), policy, (), database, TODAY)
    assert verdict.outcome is outcome
    assert verdict.scanned is (database is GOOD)
    assert any("NOT SCANNED: nobody answers" in said for said in verdict.warnings) is (database is NONE)


def test_finding_fails_an_image_even_where_vulnerabilities_were_not_scanned():
    for policy in (STRICT, LENIENT):
        assert judge(report(secret()), policy, (), NONE, TODAY).outcome is Outcome.FAILED


def test_packages_of_an_unknown_system_count_as_not_scanned():
    seen = report(OS={"Family": "none", "Name": ""})
    assert judge(seen, STRICT, (), GOOD, TODAY).outcome is Outcome.NO_DATA


def test_system_without_updates_is_warned_of():
    seen = report(OS={"Family": "debian", "Name": "9", "EOSL": True})
    assert (
        "debian 9 of the base image gets no security updates"
        in judge(seen, STRICT, (), GOOD, TODAY).warnings[0]
    )


def test_sentence_names_the_worst_findings_their_fix_and_how_many_more():
    results = [vulnerability("HIGH", f"CVE-{n}", FixedVersion="2.0") for n in range(5)]
    verdict = judge(report(*results, vulnerability("CRITICAL", "CVE-9")), STRICT, (), GOOD, TODAY)
    assert verdict.sentence.startswith(
        "CRITICAL vulnerability CVE-9 in lib 1.0; HIGH vulnerability CVE-0 in lib 1.0, fixed in 2.0"
    )
    assert "and 3 more" in verdict.sentence


def test_numbers_count_all_findings_by_severity():
    numbers = (
        judge(report(vulnerability("HIGH"), vulnerability("LOW"), secret()), STRICT, (), GOOD, TODAY)
        .result("d")
        .numbers
    )
    assert (numbers["findings_high"], numbers["findings_low"], numbers["findings_critical"]) == (1, 1, 1)


def test_acceptance_that_ended_is_named_and_says_whether_it_stops_the_image():
    ended = [
        Acceptance("vulnerability", name, datetime.date(2026, 1, 15), "why", {})
        for name in ("CVE-1", "CVE-2")
    ]
    said = judge(report(vulnerability("HIGH")), STRICT, ended, GOOD, TODAY).warnings
    assert said[0].startswith(
        "the acceptance of CVE-1 ended on 2026-01-15: it counts again and stops this image"
    )
    assert said[1].startswith("the acceptance of CVE-2 ended on 2026-01-15: it holds no longer")


def entry(until: str) -> str:
    return f"vulnerabilities:\n- {{id: CVE-1, statement: because, expired_at: {until}, purls: ['pkg:pypi/a@1']}}\n"


@pytest.mark.parametrize(
    ("until", "holds"), [("2026-01-14", False), ("2026-01-15", False), ("2026-01-16", True)]
)
def test_acceptance_holds_until_the_day_it_expires_on(until, holds):
    assert bool(live(read_acceptances(entry(until), "f"), TODAY)) is holds


def test_acceptance_reaches_trivy_with_all_that_narrows_it_down():
    kept = live(read_acceptances(entry("2026-02-01"), "f"), TODAY)
    assert kept["vulnerabilities"][0]["purls"] == ["pkg:pypi/a@1"]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "vulnerabilities:\n", "vulnerabilities: []\n"])
def test_ignore_file_without_entries_accepts_nothing(text):
    assert read_acceptances(text, "f") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "vulnerabilities:\n- {id: CVE-1, expired_at: 2030-01-01}\n",
            "f: vulnerabilities[0] (CVE-1) has no statement",
        ),
        ("vulnerabilities:\n- {id: CVE-1, statement: ' ', expired_at: 2030-01-01}\n", "has no statement"),
        ("secrets:\n- {id: key, statement: why}\n", "f: secrets[0] (key) has no end"),
        ("licenses:\n- {id: GPL, statement: why, expired_at: soon}\n", "has no end"),
        ("vulnerabilities:\n- {statement: why, expired_at: 2030-01-01}\n", "vulnerabilities[0] has no id"),
        ("vulnerabilities:\n- CVE-1\n", "vulnerabilities[0] has no id"),
        (
            "vulnerabilities:\n- {id: C, statement: w, expired_at: 2030-01-01, purl: x}\n",
            "purl is not an option",
        ),
        ("vulnerabilites:\n- {id: C}\n", "must hold lists named"),
        ("- CVE-1\n", "must hold lists named"),
        ("a: [b\n", "is not YAML"),
        ("vulnerabilities: CVE-1\n", "vulnerabilities must be a list"),
    ],
)
def test_ignore_file_with_a_fault_is_refused_by_entry(text, says):
    with pytest.raises(SettingsError) as caught:
        read_acceptances(text, "f")
    assert says in str(caught.value)


def test_all_faults_of_an_ignore_file_come_at_once():
    with pytest.raises(SettingsError) as caught:
        read_acceptances("secrets:\n- {id: a}\n- {id: b}\n", "f")
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize(
    ("seen", "exit_code", "says"),
    [
        ([], 0, "names no SchemaVersion"),
        ({"Results": []}, 0, "names no SchemaVersion"),
        (report(), 42, "one of the two is wrong"),
        (report(secret()), 0, "one of the two is wrong"),
    ],
)
def test_report_that_contradicts_the_exit_status_is_no_report(seen, exit_code, says):
    with pytest.raises(ProgramFailed, match=says):
        checked(seen, exit_code, 42)


def test_report_that_agrees_with_the_exit_status_is_taken():
    assert checked(report(secret()), 42, 42)
    assert checked({"SchemaVersion": 2, "ArtifactName": "digits"}, 0, 42)


def suppressed() -> dict:
    changed = {"Type": "secret", "Status": "ignored", "Finding": secret()["Secrets"][0]}
    return {"Target": "/etc/config", "Class": "secret", "ExperimentalModifiedFindings": [changed]}


def test_lines_around_a_secret_are_not_kept():
    kept = json.dumps(tidy(report(secret(), suppressed())))
    assert "near" not in kept
    assert "aws-key" in kept


def test_report_is_kept_without_time_and_number():
    assert not {"CreatedAt", "ReportID"} & set(tidy(report() | {"CreatedAt": "now", "ReportID": "1"}))


def test_accepted_finding_is_documented_with_its_reason_and_end():
    acceptance = Acceptance("secret", "aws-key", datetime.date(2027, 1, 1), "a fixture", {})
    assert [one.id for one in accepted(report(suppressed()))] == ["aws-key"]
    verdict = judge(report(suppressed()), STRICT, [acceptance], GOOD, TODAY)
    (kept,) = document(verdict, GOOD, [acceptance], "sha256:0", "0.76.0")["accepted"]
    assert (kept["until"], kept["statement"]) == ("2027-01-01", "a fixture")


def test_sbom_is_the_same_whatever_numbers_trivy_drew():
    def drawn(first: str, second: str, order: int) -> dict:
        components = [
            {"bom-ref": second, "type": "os", "name": "debian"},
            {"bom-ref": "pkg:a", "type": "lib", "name": "a"},
        ]
        dependencies = [{"ref": first, "dependsOn": ["pkg:a", second][::order]}, {"ref": second}]
        component = {"bom-ref": first, "type": "container", "name": "digits"}
        return {
            "serialNumber": f"urn:uuid:{second[:-1]}0",
            "metadata": {"timestamp": first, "component": component},
            "components": components[::order],
            "dependencies": dependencies[::order],
        }

    one = drawn("1a685907-9f78-4f54-b3fb-46490c1e6f99", "9e3750fa-d0e7-48f1-a55b-748ee54d28ef", 1)
    other = drawn("5f151544-57f8-4db8-9ce7-82c24b66bf0c", "0e3750fa-d0e7-48f1-a55b-748ee54d28ef", -1)
    assert tidy_sbom(one, "sha256:0") == tidy_sbom(other, "sha256:0")
    assert tidy_sbom(one, "sha256:0") != tidy_sbom(one, "sha256:1")


def test_every_entry_of_the_repositorys_ignore_file_has_a_reason_and_an_end(root):
    read_acceptances((root / ".trivyignore.yaml").read_text(), ".trivyignore.yaml")
