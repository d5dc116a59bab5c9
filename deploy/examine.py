"""Examines an image with Trivy, which is not trusted: no key, no store, no network. `deploy/scan.py` judges.

In CI this is a job of its own, without any secret, that reads the image and leaves reports; on a laptop the scan stage
does it first. What is left in `build/examination/DIGEST/`:

    examination.json     which image, when, by which Trivy, how it was confined, which database, and of each part the
                         report's file and Trivy's exit status
    NAME.json            Trivy's reports, without the lines around a secret: image, repository, canary, also-1 …
    sbom.cdx.json, sbom.spdx.json
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from deploy.disk import disk_trouble
from deploy.findings import findings, tidy, tidy_cyclonedx, tidy_spdx
from deploy.oci import Layout, load, open_source, parse_json
from deploy.trivy import Trivy
from deploy.verdict import IMAGE, Database
from deploy.vulnerabilities import find_database, judged_age
from pipeline.digest import of_bytes
from pipeline.errors import GateRefused, ProgramFailed
from pipeline.run import run
from pipeline.settings import Settings

FORMAT = 1
REPOSITORY, CANARY = "repository", "canary"
CYCLONEDX, SPDX = "sbom.cdx.json", "sbom.spdx.json"
# A version with a known hole: https://github.com/advisories/GHSA-x84v-xcm2-53pg. A database that does not know it is
# empty, foreign or broken.
CANARY_REQUIREMENT, CANARY_ANSWER = "requests==2.19.1", "CVE-2018-18074"
_CANARY_TIMEOUT_S = 60.0
_GIT_TIMEOUT_S = 60.0
_LEFT_OUT = frozenset({".git", ".venv", ".tidegate", "build", "__pycache__"})


@dataclass(frozen=True)
class Places:
    """Where examining finds its image, and works: the repository, and the state that lasts on this machine."""

    root: Path
    state: Path
    layout: Path

    def examination(self, digest: str) -> Path:
        """The folder that an examination of this image is left in."""
        return self.root / "build/examination" / digest.removeprefix("sha256:")


def part_names(also: Sequence[str]) -> dict[str, str]:
    """What is scanned beside the image, by the name of its report: the repository, and the images of scan.also."""
    return {REPOSITORY: "", **{f"also-{number}": reference for number, reference in enumerate(also, 1)}}


def examine(settings: Settings, places: Places, say: Callable[[str], None]) -> Path:
    """Runs Trivy over the image in `places.layout` and over what is scanned beside it; returns the folder of reports.

    Raises GateRefused where there is no image yet, ProgramFailed if Trivy is absent, hangs, crashes or answers
    nonsense, or if an image of scan.also cannot be had.
    """
    if not (places.layout / "index.json").is_file():
        raise GateRefused(f"there is no image in {places.layout} to examine. `make image` makes it.")
    options, started = settings.scan, datetime.now(UTC)
    layout = Layout(places.layout)
    image = load(layout, layout.only())
    source = of_bytes(options.database.encode())[:12] if options.database else "default"
    with disk_trouble(str(places.state)):
        work = places.state / "work/examine"
        trivy = Trivy.prepared(places.state / "trivy" / source, work, options.timeout_s)
        database = find_database(trivy.cache, options.database, trivy.left_s, say)
        usable = not judged_age(database, options.database_age_days, started).trouble
        canary, database = _canary(trivy, database) if usable else (None, database)
        reports = dict(_parts(trivy, settings, places, usable and not database.trouble))
        forms = _sboms(trivy, reports[IMAGE][0], image.digest)
    with disk_trouble(str(places.root)):
        documents = {f"{name}.json": report for name, (report, _) in reports.items()} | forms
        if canary:
            documents[f"{CANARY}.json"] = canary
        said = {
            "format": FORMAT,
            "image": image.digest,
            "started": started.isoformat(),
            "confined": trivy.confined,
            "database": asdict(database),
            "repository": tree_of(copied(places.root), places.root),
            "parts": {name: {"exit_code": code} for name, (_, code) in reports.items()},
            "finished": datetime.now(UTC).isoformat(),
        }
        return _written(places.examination(image.digest), documents | {"examination.json": said})


def _parts(
    trivy: Trivy, settings: Settings, places: Places, vulnerabilities: bool
) -> Iterator[tuple[str, tuple[dict, int]]]:
    """The report on each part and Trivy's exit status, by the part's name."""
    options = settings.scan
    report, code = trivy.image(places.layout, _title(places.layout), vulnerabilities=vulnerabilities)
    yield IMAGE, (tidied(report), code)
    for name, reference in part_names(options.also).items():
        if name == REPOSITORY:
            _copy(places.root, trivy.files / REPOSITORY)
            report, code = trivy.folder(REPOSITORY, "secret,misconfig")
        else:
            layout = _fetched(reference, trivy.work / name, places.root)
            report, code = trivy.image(layout, name, vulnerabilities=vulnerabilities)
        yield name, (tidied(report), code)


def tidied(report: dict) -> dict:
    """A report without what changes from run to run. Raises ProgramFailed for one of another shape."""
    try:
        return tidy(report)
    except (TypeError, AttributeError, ValueError) as error:
        raise ProgramFailed(
            f"Trivy's report has another shape than its version writes ({error}); nothing is known of what it scanned."
        ) from error


def _canary(trivy: Trivy, database: Database) -> tuple[dict | None, Database]:
    """What Trivy says of a version with a known hole; and the database, with trouble if it could not be used."""
    folder = trivy.files / CANARY
    folder.mkdir()
    (folder / "requirements.txt").write_text(CANARY_REQUIREMENT + "\n")
    try:
        report, _ = trivy.folder(CANARY, "vuln", _CANARY_TIMEOUT_S)
        return tidied(report), Database(**{**asdict(database), "trouble": canary_trouble(report)})
    except ProgramFailed as error:
        if "exit status" not in str(error):
            raise
        trouble = f"the vulnerability database is not usable: {error}"
        return None, Database(**{**asdict(database), "trouble": trouble})


def canary_trouble(report: dict) -> str:
    """Why the database does not know a hole that it must know; empty if it does."""
    if CANARY_ANSWER in {finding.id for finding in findings(report)}:
        return ""
    return (
        "the vulnerability database is empty or foreign: it does not know "
        f"{CANARY_ANSWER} of {CANARY_REQUIREMENT}"
    )


def _sboms(trivy: Trivy, report: dict, digest: str) -> dict[str, dict]:
    """The image's SBOM in both forms. Raises ProgramFailed for what is none."""
    try:
        return {
            CYCLONEDX: tidy_cyclonedx(trivy.convert(report, "cyclonedx"), digest),
            SPDX: tidy_spdx(trivy.convert(report, "spdx-json"), digest),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ProgramFailed(
            f"Trivy wrote an SBOM that is neither CycloneDX nor SPDX ({error!r}); nothing is known of this image."
        ) from error


def _title(layout: Path) -> str:
    """What the image calls itself, as a file's name."""
    source = Layout(layout)
    image = load(source, source.only())
    annotations = parse_json(image.body, image.digest).get("annotations", {})
    name = re.sub(r"[^a-z0-9-]", "-", annotations.get("org.opencontainers.image.title", ""))
    return f"{name.strip('-') or 'model'}-image"


def _fetched(reference: str, into: Path, root: Path) -> Path:
    """A layout with the image of `oci:PATH@DIGEST` or `HOST/NAME@DIGEST`, every blob of it verified."""
    place, _, digest = reference.rpartition("@")
    if place.startswith("oci:"):
        place = f"oci:{root / place.removeprefix('oci:')}"
    source = open_source(place)
    image = load(source, digest)
    layout = Layout(into).create()
    for blob in image.blobs:
        layout.take(blob, source)
    layout.add(image.body, image.descriptor.media_type)
    layout.write_index([image.descriptor])
    return into


def copied(root: Path) -> list[Path]:
    """The files of the repository that are scanned, relative to it: what git tracks, or all where there is no clone."""
    done = run(
        ["git", "ls-files", "-z"],
        timeout_s=_GIT_TIMEOUT_S, cwd=root, check=False, echo=False,
    )  # fmt: skip
    if done.returncode == 0 and done.stdout:
        names = [Path(name) for name in done.stdout.split("\0") if name]
    else:
        names = [path.relative_to(root) for path in root.rglob("*")]
    return sorted(
        name
        for name in set(names)
        if not _LEFT_OUT & set(name.parts) and (root / name).is_file() and not (root / name).is_symlink()
    )


def tree_of(names: Sequence[Path], root: Path) -> str:
    """The sha256 of the names and contents of files."""
    sha = hashlib.sha256()
    for name in names:
        sha.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\0".encode())
    return sha.hexdigest()


def _copy(root: Path, into: Path) -> None:
    """Copies the repository, so that Trivy needs to see nothing of the folder that it lies in."""
    for name in copied(root):
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, into / name)
    into.mkdir(exist_ok=True)


def _written(folder: Path, documents: dict[str, dict]) -> Path:
    """Writes all documents, or none: the folder appears whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, document in documents.items():
        (partial / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder
