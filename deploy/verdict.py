"""Judges what a scanner found: which findings stop an image, which are reported, which are waived. Pure.

A vulnerability is *inherited* if the live image has it too, and *fixable* if a fixed version is out. To know whether
the live image has it, nothing is scanned again: which vulnerabilities a package has follows from its name and version
alone, so a package that the live image has in the same version has today the same ones there.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from deploy.findings import LICENSE, VULNERABILITY, Finding, ended, findings, packages, unchecked
from deploy.waivers import Waiver, covering
from pipeline.settings import SEVERITIES, Bound
from pipeline.stages import Decided, Outcome, Result

IMAGE = "image"
_NAMED_AT_MOST = 3
_CLASSES = ("new_fixable", "new_unfixable", "inherited_fixable", "inherited_unfixable")


@dataclass(frozen=True)
class Policy:
    """Which findings stop an image, and whether it may pass without being looked at for vulnerabilities.

    `tolerated` are the classes of vulnerabilities, as `inherited_unfixable`, that are reported whatever their severity.
    """

    fail_on: Sequence[str]
    fail_on_licenses: Sequence[str]
    lenient: bool
    tolerated: frozenset[str] = frozenset({"inherited_unfixable"})

    def stops(self, finding: Finding, inherited: bool) -> bool:
        """Whether a finding that nobody waived stops an image."""
        if finding.kind == LICENSE:
            return finding.severity in self.fail_on_licenses
        if finding.severity not in self.fail_on:
            return False
        return finding.kind != VULNERABILITY or class_of(finding, inherited) not in self.tolerated


@dataclass(frozen=True)
class Database:
    """The vulnerability database of a scan: where from, which, how old; or why there is none that can be trusted."""

    updated_at: str = ""
    trouble: str = ""
    note: str = ""
    source: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Judged:
    """A finding of one part (the image, or what is scanned beside it) and what becomes of it.

    `says` is stops, tolerated or accepted; an accepted one has its waiver.
    """

    part: str
    finding: Finding
    says: str
    inherited: bool
    waiver: Waiver | None = None

    def document(self) -> dict:
        """As `verdict.json` keeps it."""
        kept = {name: value for name, value in asdict(self.finding).items() if value}
        kept |= {"part": self.part, "inherited": self.inherited}
        if self.waiver:
            kept |= {"until": str(self.waiver.until), "statement": self.waiver.statement}
        return kept

    def __str__(self) -> str:
        return str(self.finding) + ("" if self.part == IMAGE else f" ({self.part})")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of an image, and everything that it rests on."""

    outcome: Outcome
    sentence: str
    judged: tuple[Judged, ...]
    expired: tuple[Waiver, ...]
    scanned: bool
    warnings: tuple[str, ...] = field(default=())

    def said(self, what: str) -> tuple[Judged, ...]:
        """The findings that stop, are tolerated or accepted."""
        return tuple(one for one in self.judged if one.says == what)

    def result(self, digest: str, predicate: Mapping) -> Result:
        """The verdict as the result of a stage."""
        stops, accepted = self.said("stops"), self.said("accepted")
        every = Counter(one.finding.severity for one in (*stops, *self.said("tolerated")))
        numbers = {f"findings_{severity.lower()}": every[severity] for severity in SEVERITIES}
        classes = Counter(
            class_of(one.finding, one.inherited) for one in self.judged if one.finding.kind == VULNERABILITY
        )
        numbers |= {name: classes[name] for name in _CLASSES}
        numbers |= {"accepted": len(accepted), "vulnerabilities_scanned": int(self.scanned)}
        decided = Decided("findings that stop", len(stops), Bound(at_most=0))
        return Result(
            self.outcome, self.sentence, numbers, decided, digest, self.warnings, predicate=predicate
        )


def class_of(finding: Finding, inherited: bool) -> str:
    """One of the four: new or inherited, fixable or not."""
    return f"{'inherited' if inherited else 'new'}_{'fixable' if finding.fixed_in else 'unfixable'}"


def judge(
    reports: Mapping[str, Mapping],
    live: Mapping[str, Mapping],
    policy: Policy,
    waivers: Sequence[Waiver],
    database: Database,
    today: datetime.date,
) -> Verdict:
    """The verdict on the reports of an image and of what is scanned beside it, by part.

    `live` holds the reports of the image that production serves, of as many parts as there are. Without
    vulnerabilities looked up, only a lenient policy lets an image pass.
    """
    judged = tuple(
        one
        for part, report in reports.items()
        for one in _judged(part, report, live.get(part, {}), policy, waivers, today)
    )
    expired = tuple(one for one in waivers if not one.holds(today))
    trouble = database.trouble or next(filter(None, map(unchecked, reports.values())), "")
    stops = [one for one in judged if one.says == "stops"]
    outcome, sentence = _words(stops, judged, trouble, policy)
    warnings = (
        *_trouble_warnings(trouble, database),
        *_waiver_warnings(stops, expired),
        *(f"{system} in the {part} gets no security updates any more" for part, system in _ended(reports)),
    )
    return Verdict(outcome, sentence, judged, expired, not trouble, warnings)


def _judged(
    part: str, report: Mapping, live: Mapping, policy: Policy, waivers: Sequence[Waiver], today: datetime.date
) -> Iterable[Judged]:
    there = packages(live)
    known = {(one.id, one.package) for one in findings(live) if one.kind == VULNERABILITY}
    for finding in findings(report):
        inherited = finding.kind == VULNERABILITY and (
            finding.purl in there or (finding.id, finding.package) in known
        )
        waiver = covering(finding, waivers, today)
        says = "accepted" if waiver else "stops" if policy.stops(finding, inherited) else "tolerated"
        yield Judged(part, finding, says, inherited, waiver)


def _ended(reports: Mapping[str, Mapping]) -> Iterable[tuple[str, str]]:
    return ((part, ended(report)) for part, report in reports.items() if ended(report))


def _words(
    stops: Sequence[Judged], judged: Sequence[Judged], trouble: str, policy: Policy
) -> tuple[Outcome, str]:
    if stops:
        worst = sorted(stops, key=lambda one: -SEVERITIES.index(one.finding.severity))
        named = "; ".join(map(str, worst[:_NAMED_AT_MOST]))
        more = f"; and {len(stops) - _NAMED_AT_MOST} more" if len(stops) > _NAMED_AT_MOST else ""
        return Outcome.FAILED, (
            f"{named}{more}. Remove what was found, or accept it in the ignore file, with a reason and an end"
        )
    if not trouble:
        lesser = sum(one.says == "tolerated" for one in judged)
        old = sum(one.says == "tolerated" and one.inherited for one in judged)
        words = f", {old} of them in the live image too" if old else ""
        return Outcome.PASSED, f"nothing found that stops an image ({lesser} tolerated findings{words})"
    if policy.lenient:
        return (
            Outcome.PASSED,
            "vulnerabilities not scanned; no secret, misconfiguration or licence stops the image",
        )
    return Outcome.NO_DATA, f"vulnerabilities not scanned: {trouble}"


def _trouble_warnings(trouble: str, database: Database) -> Iterable[str]:
    if trouble:
        yield f"VULNERABILITIES NOT SCANNED: {trouble}. Only a laptop may go on; a protected ref refuses this image."
    if database.note:
        yield database.note


def _waiver_warnings(stops: Sequence[Judged], expired: Sequence[Waiver]) -> Iterable[str]:
    for waiver in expired:
        counts = any(waiver.covers(one.finding) for one in stops)
        effect = "counts again and stops this image" if counts else "holds no longer"
        yield f"the acceptance of {waiver.id} ended on {waiver.until}: it {effect} ({waiver.statement})"


def document(verdict: Verdict, database: Database, examined: Mapping) -> dict:
    """The verdict as `verdict.json` keeps it; `examined` is what is known of the image and of how it was scanned."""
    return {
        **examined,
        "outcome": verdict.outcome.value,
        "sentence": verdict.sentence,
        "vulnerabilities_scanned": verdict.scanned,
        "database": asdict(database),
        "stopped_by": [one.document() for one in verdict.said("stops")],
        "tolerated": [one.document() for one in verdict.said("tolerated")],
        "accepted": [one.document() for one in verdict.said("accepted")],
        "warnings": list(verdict.warnings),
    }
