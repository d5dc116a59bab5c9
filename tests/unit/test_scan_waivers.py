"""Waivers: which entries count, what they cover, and which are refused."""

import datetime

import pytest

from deploy.findings import Finding
from deploy.waivers import _matches, read_waivers
from pipeline.errors import SettingsError

TODAY = datetime.date(2026, 1, 15)


def entry(until: str) -> str:
    return f"vulnerabilities:\n- {{id: CVE-1, statement: because, expired_at: {until}, purls: ['pkg:pypi/a@1']}}\n"


@pytest.mark.parametrize(
    ("until", "holds"), [("2026-01-14", False), ("2026-01-15", False), ("2026-01-16", True)]
)
def test_acceptance_holds_until_the_day_it_expires_on(until, holds):
    assert read_waivers(entry(until), "f")[0].holds(TODAY) is holds


def found(**more) -> Finding:
    return Finding(
        "vulnerability",
        "CVE-1",
        "HIGH",
        "lib 1.0",
        "Python",
        purl="pkg:deb/debian/lib@1.0?arch=amd64",
        **more,
    )


@pytest.mark.parametrize(
    ("narrowed", "covers"),
    [
        ("", True),
        ("purls: ['pkg:deb/debian/lib@1.0']", True),
        ("purls: ['pkg:deb/debian/lib']", True),
        ("purls: ['pkg:deb/debian/lib@1.0?arch=amd64']", True),
        ("purls: ['pkg:deb/debian/lib@1.0?arch=arm64']", False),
        ("purls: ['pkg:deb/debian/lib@1.1']", False),
        ("purls: ['pkg:deb/debian/libother@1.0', 'pkg:deb/debian/lib']", True),
        ("purls: ['pkg:pypi/lib@1.0']", False),
        ("paths: ['opt/app/lib.jar']", True),
        ("paths: ['/opt/app/lib.jar']", True),
        ("paths: ['opt/*/lib.jar']", True),
        ("paths: ['opt/*']", False),
        ("paths: ['opt/**']", True),
        ("paths: ['**/lib.jar']", True),
        ("paths: ['opt/app/lib?jar', 'else']", True),
        ("paths: ['lib.jar']", False),
        ("paths: ['opt/**'], purls: ['pkg:pypi/other']", False),
    ],
)
def test_waiver_covers_what_it_is_narrowed_down_to_and_nothing_else(narrowed, covers):
    text = f"vulnerabilities:\n- {{id: CVE-1, statement: s, expired_at: 2030-01-01, {narrowed}}}\n"
    (waiver,) = read_waivers(text, "f")
    assert waiver.covers(found(path="opt/app/lib.jar")) is covers


def test_waiver_covers_no_other_id_and_no_other_kind():
    (waiver,) = read_waivers(entry("2030-01-01").replace(", purls: ['pkg:pypi/a@1']", ""), "f")
    assert waiver.covers(found())
    assert not waiver.covers(Finding("vulnerability", "CVE-10", "HIGH", "lib", "Python"))
    assert not waiver.covers(Finding("secret", "CVE-1", "HIGH", "lib", "Python"))


def test_path_of_a_secret_is_its_file_without_the_line():
    text = "secrets:\n- {id: key, statement: s, expired_at: 2030-01-01, paths: [tests/data.txt]}\n"
    (waiver,) = read_waivers(text, "f")
    assert waiver.covers(Finding("secret", "key", "HIGH", "", "tests/data.txt:7", line=7))
    assert not waiver.covers(Finding("secret", "key", "HIGH", "", "tests/other.txt:7", line=7))


@pytest.mark.parametrize("text", ["", "# only a comment\n", "vulnerabilities:\n", "vulnerabilities: []\n"])
def test_ignore_file_without_entries_accepts_nothing(text):
    assert read_waivers(text, "f") == []


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
        (
            "secrets:\n- {id: C, statement: w, expired_at: 2030-01-01, paths: a}\n",
            "paths must be a list of texts",
        ),
    ],
)
def test_ignore_file_with_a_fault_is_refused_by_entry(text, says):
    with pytest.raises(SettingsError) as caught:
        read_waivers(text, "f")
    assert says in str(caught.value)


def test_all_faults_of_an_ignore_file_come_at_once():
    with pytest.raises(SettingsError) as caught:
        read_waivers("secrets:\n- {id: a}\n- {id: b}\n", "f")
    assert str(caught.value).count("\n") == 3


def test_every_entry_of_the_repositorys_ignore_file_has_a_reason_and_an_end(root):
    read_waivers((root / ".trivyignore.yaml").read_text(), ".trivyignore.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (entry("2027-02-30"), "f:2: is not YAML: 2027-02-30 is no value that can be: day is out of range"),
        (entry("2027-13-01"), "month must be in 1..12"),
        (entry("2027-02-01 99:00:00"), "hour must be in 0..23"),
        (entry("9" * 5000), "f:2: is not YAML: 999"),
        ("[" * 3000, "f:1: is nested more than 50 deep"),
        ("secrets: []\n" + entry("2030-01-01") + "secrets: []\n", "f:4: is not YAML: secrets is given twice"),
        (entry("2030-01-01, expired_at: 2040-01-01"), "f:2: is not YAML: expired_at is given twice"),
        ("secrets:\n- {id: [a, b], statement: s, expired_at: 2030-01-01}", "secrets[0] has no id"),
        ("secrets: \0", "f:1: is not YAML: a character"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(text, says):
    with pytest.raises(SettingsError) as caught:
        read_waivers(text, "f")
    assert says in str(caught.value)


@pytest.mark.parametrize(("place", "covers"), [("a/" * 200 + "end", True), ("a/" * 200 + "else", False)])
def test_a_pattern_of_many_folders_is_compared_without_trying_every_way(place, covers):
    pattern = "**/a/" * 25 + "**/" * 25 + "**end"
    text = f"secrets:\n- {{id: x, statement: s, expired_at: 2030-01-01, paths: ['{pattern}']}}\n"
    finding = Finding("secret", "x", "HIGH", "key", "file", path=place)
    assert read_waivers(text, "f")[0].covers(finding) is covers


@pytest.mark.parametrize(
    ("pattern", "place", "matches"),
    [
        ("**", "a/b", True),
        ("**/b", "b", True),
        ("**/b", "ab", False),
        ("a/**", "a", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a**b", "a/x/b", True),
        ("*b", "aab", True),
        ("*b", "a/b", False),
        ("a*", "a", True),
        ("?", "", False),
        ("?", "/", False),
        ("a.c", "abc", False),
        ("", "", True),
        ("a", "ab", False),
    ],
)
def test_a_star_stays_within_a_folder_and_two_cross_them(pattern, place, matches):
    assert _matches(pattern, place) is matches
