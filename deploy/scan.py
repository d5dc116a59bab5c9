"""Stage scan: judges what Trivy found in the image and beside it, and keeps what it said.

Trivy itself runs in `deploy/examine.py`, in a job without secrets; here it is never started but on a laptop, confined.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path

from deploy.disk import disk_trouble
from deploy.examination import Examination, read_examination, unconfined
from deploy.examine import CYCLONEDX, SPDX, Places, examine
from deploy.findings import VULNERABILITY
from deploy.oci import Layout, load
from deploy.scan_reports import container_scanning, sarif
from deploy.trivy import PACKAGE, read_json
from deploy.verdict import IMAGE, Policy, Verdict, document, judge
from deploy.vulnerabilities import DEFAULTS
from deploy.waivers import Waiver, read_waivers
from pipeline.errors import SettingsError
from pipeline.settings import Scan
from pipeline.stages import Context, Result

LIVE = "champion/report"


def scan(context: Context) -> Result:
    """Judges the vulnerabilities, secrets, misconfiguration and licences of the image and of what is scanned beside it.

    Writes into `report/`: `trivy.json` and `parts/NAME.json` (Trivy's reports), `sbom.cdx.json` and `sbom.spdx.json`,
    `verdict.json`, `trivy.sarif` and `gl-container-scanning.json`. Raises SettingsError for an ignore file with entries
    that lack a reason or an end, NoData where no examination counts, and ProgramFailed if Trivy is absent, hangs,
    crashes or answers nonsense.
    """
    options = context.settings.scan
    waivers = _waivers(context.root / options.ignore_file, options.ignore_file)
    places = Places(context.root, context.state, context.inputs["image/layout"])
    layout = Layout(places.layout)
    image = load(layout, layout.only())
    if context.facts.vendor == "laptop":
        examine(context.settings, places, context.say)
    now = datetime.datetime.now(datetime.UTC)
    examined = read_examination(places, image, options, now)
    verdict = judge(
        examined.reports, _live(context), _policy(context), waivers, examined.database, now.date()
    )
    for warning in unconfined(examined):
        context.say(f"! {warning}")
    with disk_trouble(str(context.out)):
        _write_all(context.out / "report", verdict, examined, image.digest)
    return verdict.result(image.digest, predicate(verdict, examined, options, context.facts.invocation))


def outdated(context: Context) -> str | None:
    """Why a verdict that passed holds no longer; None if it does."""
    verdict = json.loads((context.inputs["scan/report"] / "verdict.json").read_bytes())
    today = str(datetime.datetime.now(datetime.UTC).date())
    for finding in verdict["accepted"]:
        if finding["until"] <= today:
            return f"the acceptance of {finding['id']} ended on {finding['until']}"
    if not verdict["vulnerabilities_scanned"] and (
        context.facts.protected or context.facts.vendor != "laptop"
    ):
        return "it was not scanned for vulnerabilities, and only a laptop may go on without"
    return None


def _policy(context: Context) -> Policy:
    options = context.settings.scan
    tolerated = {
        name
        for name in ("new_unfixable", "inherited_fixable", "inherited_unfixable")
        if getattr(options, name) == "report"
    }
    lenient = context.facts.vendor == "laptop" and not context.facts.protected
    return Policy(options.fail_on, options.fail_on_licenses, lenient, frozenset(tolerated))


def _waivers(path: Path, name: str) -> list[Waiver]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"scan.ignore_file: {name} cannot be read ({error}). Correct the name, or make the file; it may be empty."
        ) from error
    return read_waivers(text, name)


def _live(context: Context) -> dict[str, Mapping]:
    """The reports on the image that production serves, by part; none where nothing is in production."""
    folder = context.inputs.get(LIVE)
    if folder is None:
        context.say("nothing is in production yet: every finding counts as new")
        return {}
    parts = {path.stem: read_json(path) for path in sorted((folder / "parts").glob("*.json"))}
    return {IMAGE: read_json(folder / "trivy.json"), **parts}


def _write_all(folder: Path, verdict: Verdict, examined: Examination, digest: str) -> None:
    (folder / "parts").mkdir(parents=True)
    scanner = {"name": "trivy", "version": examined.trivy, "confined": dict(examined.confined)}
    about = {"image": digest, "scanner": scanner, "started": examined.started, "finished": examined.finished}
    _write(folder / "trivy.json", examined.reports[IMAGE])
    for name, report in examined.reports.items():
        if name != IMAGE:
            _write(folder / "parts" / f"{name}.json", report)
    _write(folder / CYCLONEDX, examined.cyclonedx)
    _write(folder / SPDX, examined.spdx)
    _write(folder / "verdict.json", document(verdict, examined.database, about))
    _write(folder / "trivy.sarif", sarif(verdict, examined.trivy))
    _write(folder / "gl-container-scanning.json", container_scanning(verdict, examined, digest))


def _write(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def predicate(verdict: Verdict, examined: Examination, options: Scan, invocation: str) -> dict:
    """What in-toto's vulnerability predicate says of a scan, of the image alone.

    https://github.com/in-toto/attestation/blob/main/spec/predicates/vulns_02.md; `invocation` is of cosign's older
    predicate, of which this one is made.
    """
    database = examined.database
    found = [one for one in verdict.judged if one.part == IMAGE and one.finding.kind == VULNERABILITY]
    return {
        "invocation": {
            "uri": invocation,
            "parameters": {"fail_on": list(options.fail_on), "confined": dict(examined.confined)},
        },
        "scanner": {
            "uri": f"pkg:pypi/{PACKAGE}",
            "version": examined.trivy,
            "db": {
                "uri": f"oci://{database.source or options.database or DEFAULTS[0]}",
                "version": database.digest,
                "lastUpdate": database.updated_at,
            },
            "result": [
                {
                    "id": one.finding.id,
                    "severity": [
                        {"method": "trivy", "score": one.finding.severity},
                        *(
                            [{"method": "cvss_score", "score": one.finding.score}]
                            if one.finding.score
                            else []
                        ),
                    ],
                    "annotations": [
                        {"package": one.finding.purl or one.finding.what},
                        {"fixedIn": one.finding.fixed_in},
                        {"verdict": one.says},
                        {"inherited": str(one.inherited).lower()},
                    ],
                }
                for one in found
            ],
        },
        "metadata": {"scanStartedOn": examined.started, "scanFinishedOn": examined.finished},
    }
