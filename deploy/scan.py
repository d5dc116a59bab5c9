"""Stage scan: asks Trivy what is wrong with the image, keeps what it said, and judges it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy.disk import disk_trouble, locked
from deploy.findings import (
    Acceptance,
    Database,
    Policy,
    checked,
    document,
    findings,
    judge,
    live,
    read_acceptances,
    tidy,
    tidy_sbom,
)
from deploy.oci import Layout, load, parse_json
from pipeline.digest import of_bytes
from pipeline.errors import ProgramFailed, SettingsError
from pipeline.run import Done, find, run, show
from pipeline.settings import Bound
from pipeline.stages import Context, Result

# Trivy's exit status for "something was found". 1 would also mean that Trivy itself failed.
FOUND = 42
# A version with a known hole. A database that does not know it is empty, foreign or broken.
CANARY_REQUIREMENT, CANARY_ANSWER = "requests==2.19.1", "CVE-2018-18074"
_CANARY_TIMEOUT_S = 30.0
_REACH_TIMEOUT_S = 3.0
# Where Trivy looks when no repository is named; of interest only to see whether anything of it can be reached.
_DEFAULT_HOSTS = ("mirror.gcr.io", "ghcr.io")
# Everything else of the environment, and with it every secret of a CI job, is kept from Trivy. DOCKER_CONFIG and
# HOME tell where the login for a private database repository is.
_ENVIRONMENT = re.compile(
    r"PATH|HOME|DOCKER_CONFIG|TMPDIR|LANG|LC_\w+|TZ|SSL_CERT_(FILE|DIR)|(HTTPS?|NO|ALL)_PROXY", re.IGNORECASE
)
_QUIET = ("--skip-version-check", "--disable-telemetry", "--no-progress")


def scan(context: Context) -> Result:
    """Scans the image for vulnerabilities, secrets, misconfiguration and licences, and keeps its SBOM.

    Writes `report/trivy.json`, `report/sbom.cdx.json` (CycloneDX) and `report/verdict.json`.
    Raises SettingsError for an ignore file with entries that lack a reason or an end, and
    ProgramFailed if Trivy is absent, hangs, crashes or answers nonsense.
    """
    options = context.settings.scan
    acceptances = _acceptances(context.root / options.ignore_file, options.ignore_file)
    layout = Layout(context.inputs["image/layout"])
    image = load(layout, layout.only())
    today = datetime.datetime.now(datetime.UTC).date()
    lenient = context.facts.vendor == "laptop" and not context.facts.protected
    with disk_trouble(str(context.work)):
        trivy = Trivy.prepared(context)
        database = find_database(trivy, options.database, options.database_age_days, context)
        name = (
            parse_json(image.body, image.digest)
            .get("annotations", {})
            .get("org.opencontainers.image.title", "image")
        )
        report = trivy.scan(
            layout.root, re.sub(r"[^a-z0-9.-]", "-", name), database, live(acceptances, today)
        )
        sbom = trivy.sbom(report)
    policy = Policy(options.fail_on, options.fail_on_licenses, lenient)
    verdict = judge(report, policy, acceptances, database, today)
    with disk_trouble(str(context.out)):
        folder = context.out / "report"
        folder.mkdir()
        _write(folder / "trivy.json", report)
        _write(folder / "sbom.cdx.json", tidy_sbom(sbom, image.digest))
        _write(
            folder / "verdict.json", document(verdict, database, acceptances, image.digest, _version(report))
        )
    return verdict.result(image.digest)


def outdated(context: Context) -> str | None:
    """Why a verdict that passed holds no longer; None if it does."""
    path = context.inputs["scan/report"] / "verdict.json"
    verdict = json.loads(path.read_bytes())
    today = str(datetime.datetime.now(datetime.UTC).date())
    for finding in verdict["accepted"]:
        if finding["until"] <= today:
            return f"the acceptance of {finding['id']} ended on {finding['until']}"
    if not verdict["vulnerabilities_scanned"] and (
        context.facts.protected or context.facts.vendor != "laptop"
    ):
        return "it was not scanned for vulnerabilities, and only a laptop may go on without"
    return None


def _write(path: Path, value: Mapping) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _version(report: Mapping) -> str:
    return (report.get("Trivy") or {}).get("Version", "")


def _acceptances(path: Path, name: str) -> list[Acceptance]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"scan.ignore_file: {name} cannot be read ({error}). Correct the name, or make the file; it may be empty."
        ) from error
    return read_acceptances(text, name)


@dataclass(frozen=True)
class Trivy:
    """The program, with a cache and a working folder of its own, and without our environment."""

    program: str
    cache: Path
    work: Path
    timeout_s: float

    @classmethod
    def prepared(cls, context: Context) -> Trivy:
        """Trivy as this run uses it. Each database repository has a cache of its own: they do not mix."""
        program = find("trivy")
        source = context.settings.scan.database
        cache = (
            context.state / "trivy" / (of_bytes(source.encode())[:12] if source else "default")
        ).absolute()
        work = (context.work / "trivy").absolute()
        shutil.rmtree(work, ignore_errors=True)
        for folder in (cache, work):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(program, cache, work, context.settings.scan.timeout_s)

    def call(self, *arguments: str, timeout_s: float | None = None) -> Done:
        """Runs Trivy in its working folder, where no configuration file of anybody lies."""
        show(["trivy", *arguments])
        kept_away = [
            part for name in sorted(os.environ) if not _ENVIRONMENT.fullmatch(name) for part in ("-u", name)
        ]
        timeout_s = timeout_s or self.timeout_s
        try:
            return run(
                ["env", *kept_away, self.program, *arguments, "--cache-dir", str(self.cache)],
                timeout_s=timeout_s,
                cwd=self.work,
                check=False,
                echo=False,
            )
        except ProgramFailed as error:
            raise ProgramFailed(
                f"Trivy did not end within {timeout_s:g} s and was stopped; nothing is known of this image."
                " Run scan again, or raise scan.timeout_s."
            ) from error

    def scan(self, layout: Path, name: str, database: Database, ignored: Mapping) -> Mapping:
        """The report on an image layout, without what changes from run to run."""
        (self.work / name).symlink_to(
            layout.absolute()
        )  # the report calls the image by the path that it was given
        (self.work / "_ignore.yaml").write_text(yaml.safe_dump(dict(ignored)))
        scanners = "secret,misconfig,license" + ("" if database.trouble else ",vuln")
        ignore = ("--ignorefile", "_ignore.yaml") if ignored else ("--ignorefile", "")
        # The memory cache lets several scans run at once; Trivy locks the other kind.
        done = self.call(
            "image", "--input", name, "--scanners", scanners, "--image-config-scanners", "misconfig,secret",
            "--format", "json", "--output", "_report.json", "--exit-code", str(FOUND), *ignore, "--show-suppressed",
            "--offline-scan", "--skip-db-update", "--skip-java-db-update", "--skip-check-update",
            "--cache-backend", "memory", *_QUIET, "--timeout", f"{self.timeout_s:g}s",
        )  # fmt: skip
        if done.returncode not in (0, FOUND):
            raise ProgramFailed(f"Trivy failed with exit status {done.returncode}: {self.said(done)}")
        return tidy(checked(self._read("_report.json"), done.returncode, FOUND))

    def sbom(self, report: Mapping) -> Mapping:
        """The CycloneDX SBOM of a report; nothing is scanned again."""
        (self.work / "_tidy.json").write_text(json.dumps(report))
        done = self.call("convert", "--format", "cyclonedx", "--output", "_sbom.json", "_tidy.json")
        if done.returncode != 0:
            raise ProgramFailed(
                f"Trivy could not write the SBOM, exit status {done.returncode}: {self.said(done)}"
            )
        sbom = self._read("_sbom.json")
        if sbom.get("bomFormat") != "CycloneDX" or "component" not in sbom.get("metadata", {}):
            raise ProgramFailed("Trivy wrote an SBOM that is not CycloneDX; nothing is known of this image.")
        return sbom

    def finds_canary(self) -> str:
        """Why the database does not know a hole that it must know; empty if it does."""
        folder = self.work / "_canary"
        folder.mkdir(exist_ok=True)
        (folder / "requirements.txt").write_text(CANARY_REQUIREMENT + "\n")
        done = self.call(
            "fs", "_canary", "--scanners", "vuln", "--format", "json", "--output", "_canary.json", "--offline-scan",
            "--skip-db-update", "--cache-backend", "memory", "--ignorefile", "", *_QUIET,
            timeout_s=min(_CANARY_TIMEOUT_S, self.timeout_s),
        )  # fmt: skip
        if done.returncode != 0:
            return f"the vulnerability database is not usable: {self.said(done)}"
        if CANARY_ANSWER not in {finding.id for finding in findings(self._read("_canary.json"))}:
            known = f"{CANARY_ANSWER} of {CANARY_REQUIREMENT}"
            return f"the vulnerability database is empty or foreign: it does not know {known}"
        return ""

    def said(self, done: Done) -> str:
        """The last thing that Trivy said, in one line, without its time and the paths of this machine."""
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        fatal = [line for line in lines if "\tFATAL\t" in line]
        last = re.sub(r"^\S+Z\s+FATAL\s+(Fatal error\s+)?", "", (fatal or lines or ["it said nothing"])[-1])
        last = last.replace(str(self.cache), "its cache").replace(str(self.work), "its folder")
        return " ".join(last.split())[:600]

    def _read(self, name: str) -> dict:
        try:
            report = json.loads((self.work / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ProgramFailed(
                f"Trivy's {name[1:]} is not JSON ({error}); nothing is known of this image."
            ) from error
        return report if isinstance(report, dict) else {}


def find_database(trivy: Trivy, repository: str, age_days: Bound, context: Context) -> Database:
    """The vulnerability database, fetched if a newer one is due, and tried before it is trusted."""
    with locked(trivy.cache / "lock", context.say):
        metadata = _metadata(trivy.cache)
        refused = ""
        if _due(metadata):
            refused = _download(trivy, repository)
            metadata = _metadata(trivy.cache)
    return _tried(trivy, metadata, refused, age_days)


def _tried(trivy: Trivy, metadata: Mapping, refused: str, age_days: Bound) -> Database:
    updated = _time(metadata.get("UpdatedAt"))
    if updated is None:
        return Database(trouble=refused or "there is no vulnerability database")
    days = (datetime.datetime.now(datetime.UTC) - updated).total_seconds() / 86_400
    since = updated.date().isoformat()
    if not age_days.holds(days):
        why = f"; a newer one cannot be had: {refused}" if refused else ""
        return Database(
            since, f"the vulnerability database is of {since}, {days:.0f} days old ({age_days} is asked){why}"
        )
    trouble = trivy.finds_canary()
    note = (
        f"the vulnerability database of {since} could not be renewed: {refused}"
        if refused and not trouble
        else ""
    )
    return Database(since, trouble, note)


def _metadata(cache: Path) -> dict:
    """What the database says of itself; nothing if there is none."""
    try:
        metadata = json.loads((cache / "db/metadata.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) and (cache / "db/trivy.db").is_file() else {}


def _due(metadata: Mapping) -> bool:
    following = _time(metadata.get("NextUpdate"))
    return following is None or following <= datetime.datetime.now(datetime.UTC)


def _time(text: str | None) -> datetime.datetime | None:
    """A time as Trivy writes it, with up to nine digits of a second."""
    try:
        moment = datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text or ""))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def _download(trivy: Trivy, repository: str) -> str:
    """Fetches the database; returns why it could not be had, or nothing. Where no network is, this takes seconds."""
    hosts = [repository.partition("/")[0]] if repository else _DEFAULT_HOSTS
    proxied = any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"))
    if not proxied and not reachable(hosts):
        return f"{' and '.join(hosts)} cannot be reached"
    source = ("--db-repository", repository) if repository else ()
    try:
        done = trivy.call("image", "--download-db-only", *_QUIET, *source)
    except ProgramFailed:
        return f"the vulnerability database was not fetched within {trivy.timeout_s:g} s"
    return (
        "" if done.returncode == 0 else f"the vulnerability database could not be fetched: {trivy.said(done)}"
    )


def reachable(hosts: Sequence[str], timeout_s: float = _REACH_TIMEOUT_S) -> bool:
    """Whether one of these hosts (`NAME[:PORT]`, 443 by default) takes connections.

    Programs that try themselves wait for minutes where packets vanish. Asked on threads
    of their own, because looking up a name cannot be given a limit.
    """
    answers = threading.Event()
    threads = [
        threading.Thread(target=_knock, args=(host, timeout_s, answers), daemon=True) for host in hosts
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    while (
        not answers.is_set() and time.monotonic() < deadline and any(thread.is_alive() for thread in threads)
    ):
        answers.wait(0.02)
    return answers.is_set()


def _knock(host: str, timeout_s: float, answers: threading.Event) -> None:
    name, _, port = host.partition(":")
    with contextlib.suppress(OSError), socket.create_connection((name, int(port or 443)), timeout_s):
        answers.set()
