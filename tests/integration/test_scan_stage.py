"""The scan stage with the real Trivy: what it passes, what it stops, and what it does when it cannot know."""

import datetime
import json
import os
import time

import pytest

from deploy.scan import Trivy, outdated, scan
from pipeline.errors import ProgramFailed, SettingsError
from pipeline.stages import Outcome
from tests import support_trivy
from tests.support import context, tree
from tests.support_images import hand_image, model_image, tar

# A port of this machine where nobody listens: a database that cannot be had, without asking the network.
NOWHERE = "127.0.0.1:20299/none/trivy-db:2"
# Built from parts, so that this file is no finding itself.
ACCESS_KEY = "AKIA" + "IOSFODNN7QWERTYU"
PRIVATE_KEY = "-----{} RSA PRIVATE KEY-----\n{}\n-----{} RSA PRIVATE KEY-----\n".format(
    "BEGIN", "MIIEpAIBAAKCAQEA" * 20, "END"
)
REQUESTS = b"Metadata-Version: 2.1\nName: requests\nVersion: 2.19.1\nLicense: Apache 2.0\n"
AGPL = b"Metadata-Version: 2.1\nName: agplthing\nVersion: 1.0\nLicense: AGPL-3.0\n"


def site_package(name: str, metadata: bytes) -> dict[str, bytes]:
    return {f"usr/lib/python3/site-packages/{name}.dist-info/METADATA": metadata}


def given(
    tmp_path, layout, *, database=True, advisories=support_trivy.ADVISORIES, updated=None, ignore="", **facts
):
    """A context for scan, with a database of our own in Trivy's cache unless there is to be none."""
    ignore_file = tmp_path / "ignore.yaml"
    ignore_file.write_text(ignore)
    changes = {"scan.database": NOWHERE, "scan.ignore_file": str(ignore_file)}
    made = context(tmp_path, {"image/layout": layout}, changes, **facts)
    if database:
        support_trivy.write_database(Trivy.prepared(made).cache, advisories, updated)
    return made


def vulnerable_base(tmp_path) -> str:
    files = site_package("requests-2.19.1", REQUESTS)
    return f"oci:{tmp_path}/base@{hand_image(tmp_path / 'base', tar(files))}"


def accept(section: str, name: str, until: str) -> str:
    return f"{section}:\n  - id: {name}\n    statement: a test accepts it\n    expired_at: {until}\n"


def test_clean_model_image_passes_when_it_was_looked_at(tmp_path):
    made = given(tmp_path, model_image(tmp_path)[0], protected=True, vendor="gitlab")
    result = scan(made)
    assert result.outcome is Outcome.PASSED
    assert result.warnings == ()
    assert result.numbers["vulnerabilities_scanned"] == 1
    assert json.loads((made.out / "report/verdict.json").read_text())["vulnerabilities_scanned"] is True


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"vendor": "laptop", "protected": False}, Outcome.PASSED),
        ({"vendor": "laptop", "protected": True}, Outcome.NO_DATA),
        ({"vendor": "gitlab", "protected": False}, Outcome.NO_DATA),
        ({"vendor": "github", "protected": True}, Outcome.NO_DATA),
    ],
)
def test_image_without_database_passes_on_a_laptop_alone_and_says_so(tmp_path, facts, outcome):
    began = time.monotonic()
    result = scan(given(tmp_path, model_image(tmp_path)[0], database=False, **facts))
    assert result.outcome is outcome
    assert "vulnerabilities not scanned" in result.sentence
    assert "VULNERABILITIES NOT SCANNED" in result.warnings[0]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("content", [f"aws_access_key_id = {ACCESS_KEY}\n", PRIVATE_KEY])
def test_planted_secret_stops_the_image_and_is_not_repeated_in_the_report(tmp_path, content):
    content = "password: hunter2-neighbour-line\n" + content
    layout, _ = model_image(tmp_path, more={"assets/config.txt": content.encode()})
    made = given(tmp_path, layout)
    result = scan(made)
    assert result.outcome is Outcome.FAILED
    assert "secret" in result.sentence
    assert "assets/config.txt" in result.sentence
    for text in tree(made.out).values():
        assert ACCESS_KEY.encode() not in text
        assert b"MIIEpAIBAAKCAQEA" not in text
        assert b"hunter2" not in text


def test_vulnerable_package_of_the_base_stops_the_image(tmp_path):
    layout, _ = model_image(tmp_path, base=vulnerable_base(tmp_path))
    result = scan(given(tmp_path, layout))
    assert result.outcome is Outcome.FAILED
    assert "CVE-2018-18074 in requests 2.19.1, fixed in 2.20.0" in result.sentence
    assert result.decided.number == 1


def test_accepted_finding_passes_and_is_kept_with_its_reason(tmp_path):
    layout, _ = model_image(tmp_path, base=vulnerable_base(tmp_path))
    made = given(tmp_path, layout, ignore=accept("vulnerabilities", "CVE-2018-18074", "2099-01-01"))
    assert scan(made).outcome is Outcome.PASSED
    (kept,) = json.loads((made.out / "report/verdict.json").read_text())["accepted"]
    assert (kept["id"], kept["until"], kept["statement"]) == (
        "CVE-2018-18074",
        "2099-01-01",
        "a test accepts it",
    )


def test_expired_acceptance_counts_again_and_is_named(tmp_path):
    layout, _ = model_image(tmp_path, base=vulnerable_base(tmp_path))
    result = scan(given(tmp_path, layout, ignore=accept("vulnerabilities", "CVE-2018-18074", "2020-01-01")))
    assert result.outcome is Outcome.FAILED
    assert any("the acceptance of CVE-2018-18074 ended on 2020-01-01" in said for said in result.warnings)


def test_forbidden_licence_stops_the_image_and_a_common_one_does_not(tmp_path):
    base = hand_image(
        tmp_path / "base", tar(site_package("agplthing-1.0", AGPL) | site_package("fine-1", REQUESTS))
    )
    layout, _ = model_image(tmp_path, base=f"oci:{tmp_path}/base@{base}")
    result = scan(given(tmp_path, layout, advisories=support_trivy.ADVISORIES[:1], database=True))
    stopped = json.loads((tmp_path / "out/report/verdict.json").read_text())["stopped_by"]
    assert result.outcome is Outcome.FAILED
    assert [one["what"] for one in stopped if one["kind"] == "license"] == ["agplthing"]


def test_secret_in_the_environment_of_the_base_stops_the_image(tmp_path):
    base = hand_image(tmp_path / "base", tar({"etc/motd": b"hi"}), config={"Env": [f"KEY={ACCESS_KEY}"]})
    layout, _ = model_image(tmp_path, base=f"oci:{tmp_path}/base@{base}")
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
    (Trivy.prepared(made).cache / "db/trivy.db").write_bytes(b"nonsense" * 1000)
    assert scan(made).outcome is Outcome.NO_DATA


def test_database_of_two_days_ago_serves_when_a_newer_one_cannot_be_had_and_says_so(tmp_path):
    recent = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    result = scan(given(tmp_path, model_image(tmp_path)[0], updated=recent, protected=True))
    assert result.outcome is Outcome.PASSED
    assert "could not be renewed" in result.warnings[0]


def test_packages_of_an_unknown_system_are_not_taken_for_scanned(tmp_path):
    status = (
        b"Package: bash\nStatus: install ok installed\nVersion: 5.2\nArchitecture: amd64\nMaintainer: x\n\n"
    )
    base = hand_image(tmp_path / "base", tar({"var/lib/dpkg/status": status}))
    layout, _ = model_image(tmp_path, base=f"oci:{tmp_path}/base@{base}")
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
    assert sorted(reports[0]) == ["sbom.cdx.json", "trivy.json", "verdict.json"]
    assert reports[0] == reports[1]
    assert not [name for name, content in reports[0].items() if str(tmp_path).encode() in content]
    sbom = json.loads(reports[0]["sbom.cdx.json"])
    assert sbom["metadata"]["component"]["version"] == image.digest
    assert "pkg:pypi/requests@2.19.1" in {component.get("purl") for component in sbom["components"]}


def test_trivy_gets_no_secrets_of_our_environment(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    spy(tmp_path, monkeypatch, f"env > {seen}; exit 1")
    monkeypatch.setenv("CI_DEPLOY_PASSWORD", "hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(ProgramFailed):
        scan(given(tmp_path, model_image(tmp_path)[0]))
    assert "hunter2" not in seen.read_text()
    assert f"HOME={os.environ['HOME']}" in seen.read_text()


def spy(tmp_path, monkeypatch, script: str):
    """Puts a shell script in Trivy's place."""
    path = tmp_path / "bin/trivy"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr("deploy.scan.find", lambda name: str(path))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 1", "Trivy failed with exit status 1"),
        ("kill -SEGV $$", "Trivy failed with exit status"),
        ("exit 0", "is not JSON"),
        ('while [ $# -gt 0 ]; do [ "$1" = --output ] && echo "<html>" > "$2"; shift; done', "is not JSON"),
        (
            'while [ $# -gt 0 ]; do [ "$1" = --output ] && echo "{}" > "$2"; shift; done',
            "names no SchemaVersion",
        ),
        ("echo 'x\tFATAL\tFatal error\tdisk on fire' >&2; exit 1", "disk on fire"),
    ],
)
def test_trivy_that_fails_never_passes_an_image(tmp_path, monkeypatch, script, says):
    spy(tmp_path, monkeypatch, script)
    made = given(tmp_path, model_image(tmp_path)[0], database=False)
    with pytest.raises(ProgramFailed, match=says):
        scan(made)
    assert list(made.out.iterdir()) == []


def test_trivy_that_hangs_is_stopped_and_never_passes_an_image(tmp_path, monkeypatch):
    spy(tmp_path, monkeypatch, "sleep 60")
    changes = {"scan.database": NOWHERE, "scan.timeout_s": 1}
    made = context(tmp_path, {"image/layout": model_image(tmp_path)[0]}, changes)
    began = time.monotonic()
    with pytest.raises(ProgramFailed, match="did not end within 1 s"):
        scan(made)
    assert time.monotonic() - began < 15


def test_absent_trivy_is_named_with_the_remedy(tmp_path, monkeypatch):
    def absent(name):
        raise ProgramFailed(f"{name} is not on PATH. make setup installs what the pipeline needs.")

    monkeypatch.setattr("deploy.scan.find", absent)
    with pytest.raises(ProgramFailed, match=r"trivy is not on PATH\. make setup"):
        scan(context(tmp_path, {"image/layout": model_image(tmp_path)[0]}))


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
