"""Which findings stop an image: by severity, new or inherited, fixable or not, waived or not."""

import datetime

import pytest

from deploy.verdict import IMAGE, Policy, document, judge
from deploy.waivers import Waiver
from pipeline.stages import Outcome
from tests.support_findings import (
    GOOD,
    LENIENT,
    NONE,
    STRICT,
    license_of,
    misconfiguration,
    package,
    report,
    secret,
    vulnerability,
)

TODAY = datetime.date(2026, 1, 15)


def verdict_on(seen: dict, policy=STRICT, waivers=(), database=GOOD, live=None):
    return judge({IMAGE: seen}, {IMAGE: live} if live else {}, policy, waivers, database, TODAY)


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
    assert verdict_on(report(result)).outcome is outcome


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
    verdict = verdict_on(report(), policy, database=database)
    assert verdict.outcome is outcome
    assert verdict.scanned is (database is GOOD)
    assert any("NOT SCANNED: nobody answers" in said for said in verdict.warnings) is (database is NONE)


def test_finding_fails_an_image_even_where_vulnerabilities_were_not_scanned():
    for policy in (STRICT, LENIENT):
        assert verdict_on(report(secret()), policy, database=NONE).outcome is Outcome.FAILED


def test_packages_of_an_unknown_system_count_as_not_scanned():
    seen = report(OS={"Family": "none", "Name": ""})
    assert verdict_on(seen).outcome is Outcome.NO_DATA


def test_system_without_updates_is_warned_of():
    seen = report(OS={"Family": "debian", "Name": "9", "EOSL": True})
    assert "debian 9 in the image gets no security updates" in verdict_on(seen).warnings[0]


def test_sentence_names_the_worst_findings_their_fix_and_how_many_more():
    results = [vulnerability("HIGH", f"CVE-{n}", FixedVersion="2.0") for n in range(5)]
    verdict = verdict_on(report(*results, vulnerability("CRITICAL", "CVE-9")))
    assert verdict.sentence.startswith(
        "CRITICAL vulnerability CVE-9 in lib 1.0; HIGH vulnerability CVE-0 in lib 1.0, fixed in 2.0"
    )
    assert "and 3 more" in verdict.sentence


def test_numbers_count_all_findings_by_severity():
    numbers = (
        verdict_on(report(vulnerability("HIGH"), vulnerability("LOW"), secret())).result("d", {}).numbers
    )
    assert (numbers["findings_high"], numbers["findings_low"], numbers["findings_critical"]) == (1, 1, 1)


def waiver(kind: str, name: str, until: datetime.date = datetime.date(2027, 1, 1), **more) -> Waiver:
    return Waiver(kind, name, until, "why", **more)


def test_acceptance_that_ended_is_named_and_says_whether_it_stops_the_image():
    ended = [waiver("vulnerability", name, TODAY) for name in ("CVE-1", "CVE-2")]
    verdict = verdict_on(report(vulnerability("HIGH")), waivers=ended)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.warnings[0].startswith(
        "the acceptance of CVE-1 ended on 2026-01-15: it counts again and stops this image"
    )
    assert verdict.warnings[1].startswith("the acceptance of CVE-2 ended on 2026-01-15: it holds no longer")


def test_accepted_finding_stops_nothing_and_is_documented_with_its_reason_and_end():
    verdict = verdict_on(report(secret()), waivers=[waiver("secret", "aws-key")])
    assert verdict.outcome is Outcome.PASSED
    (kept,) = document(verdict, GOOD, {"image": "sha256:0"})["accepted"]
    assert (kept["id"], kept["until"], kept["statement"]) == ("aws-key", "2027-01-01", "why")


# A vulnerability of lib 1.0, with a fix or without, and what the live image has.
SAME_PACKAGE = report(package("pkg:pypi/lib@1.0"))
OLDER_WITH_IT = report(vulnerability("LOW", PkgIdentifier={"PURL": "pkg:pypi/lib@0.9"}))
OTHER = report(package("pkg:pypi/lib@0.9"), vulnerability("HIGH", "CVE-2"))


@pytest.mark.parametrize(
    ("severity", "fixed", "live", "outcome"),
    [
        ("HIGH", "2.0", None, Outcome.FAILED),
        ("HIGH", "", None, Outcome.FAILED),
        ("CRITICAL", "", OTHER, Outcome.FAILED),
        ("UNKNOWN", "2.0", OTHER, Outcome.FAILED),
        ("UNKNOWN", "", OTHER, Outcome.FAILED),
        ("HIGH", "2.0", SAME_PACKAGE, Outcome.FAILED),
        ("HIGH", "2.0", OLDER_WITH_IT, Outcome.FAILED),
        ("CRITICAL", "", SAME_PACKAGE, Outcome.PASSED),
        ("UNKNOWN", "", SAME_PACKAGE, Outcome.PASSED),
        ("HIGH", "", OLDER_WITH_IT, Outcome.PASSED),
        ("MEDIUM", "2.0", None, Outcome.PASSED),
    ],
)
def test_what_is_new_or_can_be_fixed_stops_and_what_is_inherited_and_cannot_is_reported(
    severity, fixed, live, outcome
):
    verdict = verdict_on(report(vulnerability(severity, FixedVersion=fixed)), live=live)
    assert verdict.outcome is outcome
    assert len(verdict.judged) == 1
    assert verdict.judged[0].inherited is (live in (SAME_PACKAGE, OLDER_WITH_IT))


@pytest.mark.parametrize("name", ["new_unfixable", "inherited_fixable", "inherited_unfixable"])
def test_settings_say_what_becomes_of_all_but_the_new_and_fixable(name):
    age, _, fix = name.partition("_")
    seen = report(vulnerability("CRITICAL", FixedVersion="2.0" if fix == "fixable" else ""))
    live = SAME_PACKAGE if age == "inherited" else None
    for tolerated, outcome in ((frozenset({name}), Outcome.PASSED), (frozenset(), Outcome.FAILED)):
        policy = Policy(("CRITICAL",), (), False, tolerated)
        assert verdict_on(seen, policy, live=live).outcome is outcome


def test_secret_or_misconfiguration_of_the_live_image_stops_all_the_same():
    for result in (secret(), misconfiguration("HIGH")):
        assert verdict_on(report(result), live=report(result)).outcome is Outcome.FAILED


def test_each_part_is_compared_with_the_same_part_of_what_is_live():
    seen = report(vulnerability("HIGH"))
    for live, outcome in (
        ({IMAGE: SAME_PACKAGE}, Outcome.FAILED),
        ({"also-1": SAME_PACKAGE}, Outcome.PASSED),
    ):
        verdict = judge({IMAGE: report(), "also-1": seen}, live, STRICT, (), GOOD, TODAY)
        assert verdict.outcome is outcome
        assert [one.part for one in verdict.judged] == ["also-1"]


def test_part_beside_the_image_stops_it_and_is_named():
    verdict = judge({IMAGE: report(), "repository": report(secret())}, {}, STRICT, (), GOOD, TODAY)
    assert verdict.outcome is Outcome.FAILED
    assert "/etc/config:7 (repository)" in verdict.sentence


def test_numbers_count_what_is_new_and_what_is_inherited():
    seen = report(vulnerability("HIGH", "CVE-1"), vulnerability("LOW", "CVE-2", FixedVersion="2.0"))
    numbers = verdict_on(seen, live=SAME_PACKAGE).result("d", {}).numbers
    assert (numbers["inherited_unfixable"], numbers["inherited_fixable"], numbers["new_fixable"]) == (1, 1, 0)
