"""What GitHub and GitLab are shown of a scan."""

import datetime
import re

import pytest

from deploy.examination import Examination
from deploy.scan import predicate
from deploy.scan_reports import container_scanning, sarif
from deploy.verdict import IMAGE, Database, judge
from deploy.waivers import Waiver
from tests.support import settings
from tests.support_findings import GOOD, NONE, STRICT, misconfiguration, report, secret, vulnerability

TODAY = datetime.date(2026, 1, 15)
DIGEST = "sha256:" + "1" * 64
SEEN = {
    IMAGE: report(
        vulnerability("UNKNOWN", "CVE-1", FixedVersion="2.0", PrimaryURL="https://example.org/CVE-1"),
        vulnerability("LOW", "GHSA-2", Title="t" * 900),
        vulnerability("HIGH", "CVE-3", CVSS={"ghsa": {"V3Score": 7.5}}, PrimaryURL="javascript:x"),
        secret(),
        OS={"Family": "debian", "Name": "12"},
    ),
    "repository": report(misconfiguration("HIGH")),
}
WAIVED = [Waiver("vulnerability", "CVE-3", datetime.date(2027, 1, 1), "we never call it")]


def examined(database=GOOD) -> Examination:
    times = ("2026-01-15T10:00:00.123+00:00", "2026-01-15T10:01:00+00:00")
    return Examination(SEEN, {}, {}, database, "0.76.0", *times)


def verdict(database=GOOD):
    return judge(SEEN, {}, STRICT, WAIVED, database, TODAY)


def members(document: dict, *names: str) -> dict:
    """The document, which has all of these members, none of them empty."""
    assert [name for name in names if document.get(name) in (None, "")] == []
    return document


def test_gitlab_report_has_every_member_that_its_schema_requires():
    made = members(container_scanning(verdict(), examined(), DIGEST), "version", "scan", "vulnerabilities")
    assert re.fullmatch(r"15\.[0-9]+\.[0-9]+", made["version"])
    scan = members(made["scan"], "analyzer", "scanner", "start_time", "end_time", "status", "type")
    assert (scan["type"], scan["status"]) == ("container_scanning", "success")
    for name in ("start_time", "end_time"):
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}", scan[name])
    for name in ("analyzer", "scanner"):
        assert members(scan[name], "id", "name", "version", "vendor")["vendor"]["name"]
    assert len(made["vulnerabilities"]) == 2
    for one in made["vulnerabilities"]:
        members(one, "id", "identifiers", "location")
        assert one["severity"] in ("Info", "Unknown", "Low", "Medium", "High", "Critical")
        assert len(one["name"]) <= 255
        members(one["identifiers"][0], "type", "name", "value")
        location = members(one["location"], "dependency", "operating_system", "image")
        assert members(location["dependency"], "package", "version")["package"]["name"] == "lib"
        assert (location["operating_system"], location["image"]) == ("debian 12", f"model@{DIGEST}")


def test_gitlab_shows_the_images_vulnerabilities_that_nobody_waived_each_under_one_id():
    made = container_scanning(verdict(), examined(), DIGEST)["vulnerabilities"]
    assert {one["identifiers"][0]["value"] for one in made} == {"CVE-1", "GHSA-2"}
    assert {one["severity"] for one in made} == {"Unknown", "Low"}
    assert len({one["id"] for one in made}) == 2
    assert made == container_scanning(verdict(), examined(), DIGEST)["vulnerabilities"]


def test_gitlab_is_told_of_a_scan_without_a_database_as_a_failure():
    made = container_scanning(verdict(NONE), examined(NONE), DIGEST)
    assert made["scan"]["status"] == "failure"


def test_sarif_has_every_member_that_github_requires():
    made = members(sarif(verdict(), "0.76.0"), "$schema", "version", "runs")
    assert made["version"] == "2.1.0"
    (run,) = made["runs"]
    driver = members(run["tool"]["driver"], "name", "version", "rules")
    for rule in driver["rules"]:
        assert 0 <= float(rule["properties"]["security-severity"]) <= 10
        assert members(rule, "id", "shortDescription")["shortDescription"]["text"]
        assert rule.get("helpUri", "https://").startswith("https://")
    assert len(run["results"]) == 5
    for result in run["results"]:
        members(result, "ruleId", "level", "message", "locations", "partialFingerprints")
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        place = result["locations"][0]["physicalLocation"]
        assert not place["artifactLocation"]["uri"].startswith("/")
        assert " " not in place["artifactLocation"]["uri"]
        assert place["region"]["startLine"] >= 1


def test_sarif_says_what_stops_what_is_reported_and_what_is_waived_and_why():
    results = {one["ruleId"]: one for one in sarif(verdict(), "0.76.0")["runs"][0]["results"]}
    levels = {name: one["level"] for name, one in results.items()}
    assert levels == {
        "CVE-1": "error",
        "GHSA-2": "warning",
        "CVE-3": "note",
        "aws-key": "error",
        "DS-0002": "error",
    }
    assert results["CVE-3"]["suppressions"][0]["justification"].startswith("we never call it")
    assert "suppressions" not in results["CVE-1"]
    assert uri(results["DS-0002"]) == "Dockerfile"
    assert uri(results["aws-key"]) == "image/etc/config"


def uri(result: dict) -> str:
    return result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


@pytest.mark.parametrize("source", ["", "mirror.example/trivy-db:2"])
def test_predicate_has_every_member_that_its_specification_requires(source):
    database = Database("2026-01-14T00:00:00Z", source=source, digest="sha256:" + "2" * 64)
    made = predicate(verdict(), examined(database), settings().scan, "https://ci.example/job/1")
    assert made["invocation"]["uri"] == "https://ci.example/job/1"
    scanner = members(made["scanner"], "uri", "version", "db", "result")
    assert members(scanner["db"], "uri", "version", "lastUpdate")["lastUpdate"] == "2026-01-14T00:00:00Z"
    assert scanner["db"]["uri"] == f"oci://{source or 'mirror.gcr.io/aquasec/trivy-db:2'}"
    assert members(made["metadata"], "scanStartedOn", "scanFinishedOn")
    found = {one["id"]: one["severity"] for one in scanner["result"]}
    assert set(found) == {"CVE-1", "GHSA-2", "CVE-3"}
    assert found["CVE-3"] == [{"method": "trivy", "score": "HIGH"}, {"method": "cvss_score", "score": "7.5"}]
