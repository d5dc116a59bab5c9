"""The scan stage with the real Trivy, as a laptop runs it: what it passes, what it stops, and when it cannot know."""

import datetime
import json

import pytest

from deploy.scan import outdated, scan
from pipeline.errors import ProgramFailed, SettingsError
from pipeline.stages import Outcome
from tests.support import context, tree
from tests.support_images import hand_image, model_image, tar
from tests.support_trivy import REQUESTS, TENSORFLOW, cache_of, debian, given, site_package

# Built from parts, so that this file is no finding itself.
ACCESS_KEY = "AKIA" + "IOSFODNN7QWERTYU"
PRIVATE_KEY = "-----{} RSA PRIVATE KEY-----\n{}\n-----{} RSA PRIVATE KEY-----\n".format(
    "BEGIN", "MIIEpAIBAAKCAQEA" * 20, "END"
)


def base_of(tmp_path, files: dict[str, bytes], name: str = "base", **config) -> str:
    return f"oci:{tmp_path}/{name}@{hand_image(tmp_path / name, tar(files), **config)}"


def vulnerable_base(tmp_path) -> str:
    return base_of(tmp_path, site_package("requests", "2.19.1"))


def test_clean_model_image_passes_when_it_was_looked_at(tmp_path):
    made = given(tmp_path, model_image(tmp_path)[0])
    result = scan(made)
    assert result.outcome is Outcome.PASSED
    assert result.warnings == ()
    assert result.numbers["vulnerabilities_scanned"] == 1
    assert json.loads((made.out / "report/verdict.json").read_text())["vulnerabilities_scanned"] is True


@pytest.mark.parametrize(("protected", "outcome"), [(False, Outcome.PASSED), (True, Outcome.NO_DATA)])
def test_image_without_database_passes_where_nothing_is_protected_alone_and_says_so(
    tmp_path, protected, outcome
):
    result = scan(given(tmp_path, model_image(tmp_path)[0], database=False, protected=protected))
    assert result.outcome is outcome
    assert "vulnerabilities not scanned" in result.sentence
    assert "VULNERABILITIES NOT SCANNED" in result.warnings[0]


@pytest.mark.parametrize("content", [f"aws_access_key_id = {ACCESS_KEY}\n", PRIVATE_KEY])
def test_planted_secret_stops_the_image_and_is_not_repeated_in_the_report(tmp_path, content):
    content = "password: hunter2-neighbour-line\n" + content
    layout, _ = model_image(tmp_path, more={"assets/config.txt": content.encode()})
    made = given(tmp_path, layout)
    result = scan(made)
    assert result.outcome is Outcome.FAILED
    assert "secret" in result.sentence
    assert "assets/config.txt" in result.sentence
    for text in (*tree(made.out).values(), *tree(made.root / "build").values()):
        assert ACCESS_KEY.encode() not in text
        assert b"MIIEpAIBAAKCAQEA" not in text
        assert b"hunter2" not in text


def test_real_advisories_are_found_in_what_they_are_of_and_judged_by_severity(tmp_path):
    files = {
        **site_package("requests", "2.19.1"),
        **site_package("tensorflow", "2.4.2"),
        **site_package("fixturelib", "1.0"),
        **debian(zlib1g="1:1.2.13.dfsg-1"),
    }
    layout, _ = model_image(tmp_path, base=base_of(tmp_path, files))
    made = given(tmp_path, layout)
    result = scan(made)
    assert result.outcome is Outcome.FAILED
    kept = json.loads((made.out / "report/verdict.json").read_text())["stopped_by"]
    assert {(one["id"], one["severity"], one["what"], one.get("fixed_in", "")) for one in kept} == {
        ("CVE-2018-18074", "HIGH", "requests 2.19.1", "2.20.0"),
        ("CVE-2021-37678", "CRITICAL", "tensorflow 2.4.2", "2.3.4, 2.4.3, 2.5.1"),
        ("CVE-2023-45853", "CRITICAL", "zlib1g 1:1.2.13.dfsg-1", ""),
        ("CVE-9999-0001", "UNKNOWN", "fixturelib 1.0", ""),
    }
    assert (result.numbers["new_fixable"], result.numbers["new_unfixable"]) == (2, 2)


def test_fixed_version_is_no_finding(tmp_path):
    files = site_package("requests", "2.20.0") | site_package("tensorflow", "2.5.1")
    layout, _ = model_image(tmp_path, base=base_of(tmp_path, files))
    result = scan(given(tmp_path, layout, advisories=(REQUESTS, TENSORFLOW), protected=True))
    assert result.outcome is Outcome.PASSED
    assert result.numbers["new_fixable"] == 0


def test_forbidden_licence_stops_the_image_and_a_common_one_does_not(tmp_path):
    files = site_package("agplthing", "1.0", "AGPL-3.0") | site_package("fine", "1")
    layout, _ = model_image(tmp_path, base=base_of(tmp_path, files))
    result = scan(given(tmp_path, layout))
    stopped = json.loads((tmp_path / "out/report/verdict.json").read_text())["stopped_by"]
    assert result.outcome is Outcome.FAILED
    assert [one["what"] for one in stopped if one["kind"] == "license"] == ["agplthing"]


def test_secret_in_the_environment_of_the_base_stops_the_image(tmp_path):
    base = base_of(tmp_path, {"etc/motd": b"hi"}, config={"Env": [f"KEY={ACCESS_KEY}"]})
    layout, _ = model_image(tmp_path, base=base)
    assert scan(given(tmp_path, layout)).outcome is Outcome.FAILED


def test_empty_database_counts_as_none(tmp_path):
    result = scan(given(tmp_path, model_image(tmp_path)[0], advisories=(), protected=True))
    assert result.outcome is Outcome.NO_DATA
    assert "empty or foreign" in result.sentence


def test_old_database_counts_as_none(tmp_path):
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=30)
    result = scan(given(tmp_path, model_image(tmp_path)[0], updated=old, protected=True))
    assert result.outcome is Outcome.NO_DATA
    assert "30 days old (<= 7 is asked)" in result.sentence


def test_damaged_database_counts_as_none(tmp_path):
    made = given(tmp_path, model_image(tmp_path)[0], protected=True)
    (cache_of(made.state, made.settings.scan.database) / "db/trivy.db").write_bytes(b"nonsense" * 1000)
    assert scan(made).outcome is Outcome.NO_DATA


def test_database_of_another_schema_counts_as_none(tmp_path):
    result = scan(given(tmp_path, model_image(tmp_path)[0], schema=1, protected=True))
    assert result.outcome is Outcome.NO_DATA
    assert "the vulnerability database is not usable" in result.sentence


def test_database_of_two_days_ago_serves_when_a_newer_one_cannot_be_had_and_says_so(tmp_path):
    recent = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    result = scan(given(tmp_path, model_image(tmp_path)[0], updated=recent, protected=True))
    assert result.outcome is Outcome.PASSED
    assert "could not be renewed" in result.warnings[0]


def test_packages_of_an_unknown_system_are_not_taken_for_scanned(tmp_path):
    status = (
        b"Package: bash\nStatus: install ok installed\nVersion: 5.2\nArchitecture: amd64\nMaintainer: x\n\n"
    )
    layout, _ = model_image(tmp_path, base=base_of(tmp_path, {"var/lib/dpkg/status": status}))
    result = scan(given(tmp_path, layout, protected=True))
    assert result.outcome is Outcome.NO_DATA
    assert "operating system that Trivy does not recognise" in result.sentence


def test_reports_are_the_same_each_time_and_name_no_path_of_this_machine(tmp_path):
    base = vulnerable_base(tmp_path)
    reports = []
    for place in ("one", "two"):
        layout, image = model_image(tmp_path / place, base=base)
        made = given(tmp_path / place, layout)
        scan(made)
        reports.append(tree(made.out / "report"))
    assert not [name for name, content in reports[0].items() if str(tmp_path).encode() in content]
    timed = {"verdict.json", "gl-container-scanning.json"}
    lasting = [{name: content for name, content in report.items() if name not in timed} for report in reports]
    assert lasting[0] == lasting[1]
    assert sorted(lasting[0]) == [
        "parts/repository.json", "sbom.cdx.json", "sbom.spdx.json", "trivy.json", "trivy.sarif",
    ]  # fmt: skip
    cyclonedx, spdx = (json.loads(reports[0][name]) for name in ("sbom.cdx.json", "sbom.spdx.json"))
    assert cyclonedx["metadata"]["component"]["version"] == spdx["name"] == image.digest
    assert "pkg:pypi/requests@2.19.1" in {component.get("purl") for component in cyclonedx["components"]}
    named = [each["referenceLocator"] for one in spdx["packages"] for each in one.get("externalRefs", ())]
    assert "pkg:pypi/requests@2.19.1" in named


def test_what_is_scanned_beside_the_image_stops_it_too_and_is_reported_apart(tmp_path):
    layout, _ = model_image(tmp_path)
    made = given(tmp_path, layout, also=[vulnerable_base(tmp_path)])
    (made.root / "Dockerfile").write_text("FROM debian:12\nRUN sudo true\n")
    (made.root / "pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - {name: a, image: 'b:1', "
        "securityContext: {privileged: true}}\n"
    )
    (made.root / "settings.ini").write_text(f"key = {ACCESS_KEY}\n")
    assert scan(made).outcome is Outcome.FAILED
    stopped = json.loads((made.out / "report/verdict.json").read_text())["stopped_by"]
    found = {(one["part"], one["kind"], one["where"].partition(":")[0]) for one in stopped}
    assert found == {
        ("also-1", "vulnerability", "usr/lib/python3/site-packages/requests-2.19.1.dist-info/METADATA"),
        ("repository", "secret", "settings.ini"),
        ("repository", "misconfiguration", "Dockerfile"),
        ("repository", "misconfiguration", "pod.yaml"),
    }
    assert ACCESS_KEY.encode() not in b"".join(tree(made.out).values())


def test_image_to_be_scanned_beside_that_cannot_be_had_is_an_error(tmp_path):
    made = given(tmp_path, model_image(tmp_path)[0], also=[f"oci:{tmp_path}/none@sha256:{'0' * 64}"])
    with pytest.raises(ProgramFailed, match="cannot be read"):
        scan(made)


def test_missing_ignore_file_is_refused_by_name(tmp_path):
    made = context(tmp_path, {"image/layout": model_image(tmp_path)[0]}, {"scan.ignore_file": "no-such.yaml"})
    with pytest.raises(SettingsError, match=r"scan.ignore_file: no-such.yaml"):
        scan(made)


def test_verdict_is_outdated_once_an_acceptance_has_ended_or_where_it_was_not_scanned(tmp_path):
    report = tmp_path / "report"
    report.mkdir()
    verdict = {"accepted": [{"id": "CVE-1", "until": "2099-01-01"}], "vulnerabilities_scanned": True}
    cases = [
        (verdict, {}, None),
        (
            {**verdict, "accepted": [{"id": "CVE-1", "until": "2020-01-01"}]},
            {},
            "the acceptance of CVE-1 ended on 2020-01-01",
        ),
        ({**verdict, "vulnerabilities_scanned": False}, {}, None),
        (
            {**verdict, "vulnerabilities_scanned": False},
            {"protected": True},
            "it was not scanned for vulnerabilities",
        ),
    ]
    for kept, facts, says in cases:
        (report / "verdict.json").write_text(json.dumps(kept))
        said = outdated(context(tmp_path, {"scan/report": report}, **facts))
        assert said is None if says is None else said.startswith(says)
