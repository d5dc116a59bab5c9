"""What a scanner's report means, from canned reports: findings, and the report without what changes."""

import json

import pytest

from deploy.findings import checked, findings, packages, tidy, tidy_cyclonedx, tidy_spdx, version
from pipeline.errors import ProgramFailed
from tests.support_findings import package, report, secret, vulnerability


def test_severity_that_trivy_may_invent_one_day_counts_as_unknown():
    assert findings(report(vulnerability("APOCALYPTIC")))[0].severity == "UNKNOWN"


@pytest.mark.parametrize(
    "results",
    [
        7,
        [7],
        ["x"],
        [{"Vulnerabilities": 7}],
        [{"Vulnerabilities": ["x"]}],
        [{"Secrets": [{"StartLine": "x"}]}],
    ],
)
def test_report_of_another_shape_is_an_error_that_says_so(results):
    with pytest.raises(ProgramFailed, match="another shape"):
        findings({**report(), "Results": results})


def test_text_of_a_report_cannot_move_a_cursor_or_start_a_line():
    found = findings(report(vulnerability("HIGH", "CVE-1\x1b[2J\n::set-output", PkgName="a\u202eb" * 9000)))[
        0
    ]
    assert found.id == "CVE-1 [2J ::set-output"
    assert found.what.isprintable()
    assert len(found.what) < 2100


def test_highest_known_score_is_the_one():
    cvss = {"nvd": {"V2Score": 5.0, "V3Score": 7.5}, "ghsa": {"V3Score": 9.81}, "odd": {"V3Score": "x"}}
    assert findings(report(vulnerability("HIGH", CVSS=cvss)))[0].score == "9.8"
    assert findings(report(vulnerability("HIGH")))[0].score == ""


def test_installed_packages_are_those_with_a_name_for_the_world():
    assert packages(report(package("pkg:pypi/a@1"), package(""))) == {"pkg:pypi/a@1"}


def test_version_is_what_the_report_says_and_empty_where_it_says_none():
    assert version({"Trivy": {"Version": "0.76.0"}}) == "0.76.0"
    assert version({"Trivy": "0.76.0"}) == version({}) == ""


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


def test_lines_around_a_secret_are_not_kept():
    kept = json.dumps(tidy(report(secret())))
    assert "near" not in kept
    assert "aws-key" in kept


def test_report_is_kept_without_time_and_number():
    assert not {"CreatedAt", "ReportID"} & set(tidy(report() | {"CreatedAt": "now", "ReportID": "1"}))


def test_cyclonedx_sbom_is_the_same_whatever_numbers_trivy_drew():
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
    assert tidy_cyclonedx(one, "sha256:0") == tidy_cyclonedx(other, "sha256:0")
    assert tidy_cyclonedx(one, "sha256:0") != tidy_cyclonedx(one, "sha256:1")


def test_spdx_sbom_is_the_same_whatever_numbers_trivy_drew_and_names_the_image():
    def drawn(number: str, order: int) -> dict:
        packages = [{"SPDXID": "SPDXRef-a"}, {"SPDXID": "SPDXRef-b"}]
        return {
            "documentNamespace": f"http://aquasecurity.github.io/trivy/container_image/digits-{number}",
            "name": "digits",
            "creationInfo": {"created": number, "creators": ["Tool: trivy-0.76.0"]},
            "packages": packages[::order],
        }

    one = tidy_spdx(drawn("1a685907-9f78-4f54-b3fb-46490c1e6f99", 1), "sha256:0")
    other = tidy_spdx(drawn("5f151544-57f8-4db8-9ce7-82c24b66bf0c", -1), "sha256:0")
    assert one == other
    assert one["name"] == "sha256:0"
    assert one != tidy_spdx(drawn("1a685907-9f78-4f54-b3fb-46490c1e6f99", 1), "sha256:1")
