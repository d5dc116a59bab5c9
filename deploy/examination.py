"""Reads an examination (deploy/examine.py) as what it is: files that a job wrote which nobody trusts.

It must be of this image, of this commit's files, made lately by the Trivy that the lock names, with every part that is
demanded; anything else is refused, and nothing of it is a pass. A Trivy that lies about what it found is not found out
by this: what it cannot do is learn a secret, or change what is signed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deploy.examine import (
    CANARY,
    CYCLONEDX,
    FORMAT,
    SPDX,
    Places,
    canary_trouble,
    copied,
    part_names,
    tidied,
    tree_of,
)
from deploy.findings import checked, tidy_cyclonedx, tidy_spdx, version
from deploy.oci import Image, Layout, parse_json
from deploy.trivy import FOUND, pinned, read_json
from deploy.verdict import IMAGE, Database
from deploy.vulnerabilities import judged_age, moment
from pipeline.errors import NoData, ProgramFailed
from pipeline.settings import Scan

_FRESH = timedelta(hours=24)
_SKEW = timedelta(minutes=5)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|")


@dataclass(frozen=True)
class Examination:
    """What an examination says, after all that could be checked was. Times are ISO 8601."""

    reports: Mapping[str, Mapping]
    cyclonedx: Mapping
    spdx: Mapping
    database: Database
    trivy: str
    started: str
    finished: str
    confined: Mapping[str, str] = field(default_factory=dict)


def read_examination(places: Places, image: Image, options: Scan, now: datetime) -> Examination:
    """The examination of this image. Raises NoData where there is none that counts, ProgramFailed for nonsense."""
    folder = places.examination(image.digest)
    if not (folder / "examination.json").is_file():
        raise NoData(
            f"nobody examined {image.digest[:19]}: there is no {folder.name[:12]}… in build/examination. In CI the job "
            "examine leaves it; `make examine` does the same."
        )
    said = read_json(folder / "examination.json")
    _check_identity(said, image, now)
    if said.get("repository") != tree_of(copied(places.root), places.root):
        raise NoData("the examination is of other files than this commit's. Run `make examine` again.")
    reports = _reports(folder, said, (IMAGE, *part_names(options.also)))
    _check_report(reports[IMAGE], places, image)
    database = _database(folder, said, options, now)
    try:
        return Examination(
            reports,
            tidy_cyclonedx(_sbom(folder, CYCLONEDX, "bomFormat", "CycloneDX"), image.digest),
            tidy_spdx(_sbom(folder, SPDX, "spdxVersion", "SPDX-2.3"), image.digest),
            database,
            version(reports[IMAGE]),
            str(said["started"]),
            str(said["finished"]),
            _confined(said.get("confined")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ProgramFailed(
            f"the examination's SBOM has another shape than Trivy writes ({error!r})"
        ) from error


def _check_identity(said: Mapping, image: Image, now: datetime) -> None:
    """Whether it says that it is of this image, lately made."""
    if said.get("format") != FORMAT or said.get("image") != image.digest:
        raise NoData(
            f"the examination says that it is of {str(said.get('image'))[:19]}, and the image is {image.digest[:19]}."
            " Run `make examine` again."
        )
    started, finished = moment(said.get("started")), moment(said.get("finished"))
    if not started or not finished or not started <= finished <= now + _SKEW or now - started > _FRESH:
        raise NoData(
            f"the examination was made at {str(said.get('started'))[:32]}, and one of the last "
            f"{_FRESH // timedelta(hours=1)} hours is asked. Run `make examine` again."
        )


def _reports(folder: Path, said: Mapping, wanted: Sequence[str]) -> dict[str, Mapping]:
    """Trivy's report on each part, each what its exit status says, all of the locked version."""
    parts = said.get("parts")
    parts = parts if isinstance(parts, Mapping) else {}
    missing = [name for name in wanted if name not in parts]
    if missing:
        raise NoData(f"the examination left out {', '.join(missing)}. Run `make examine` again.")
    found: dict[str, Mapping] = {}
    for name in wanted:
        entry = parts[name]
        code = entry.get("exit_code") if isinstance(entry, Mapping) else None
        if code not in (0, FOUND):
            raise ProgramFailed(f"Trivy ended with {code!r} on {name}; nothing is known of it.")
        report = tidied(dict(checked(read_json(folder / f"{name}.json"), code, FOUND)))
        if version(report) != pinned():
            raise NoData(
                f"the report on {name} is of Trivy {version(report) or 'without a version'}, and the lock names "
                f"{pinned()}. Run `make examine` with the locked environment."
            )
        found[name] = report
    return found


def _check_report(report: Mapping, places: Places, image: Image) -> None:
    """Whether the report itself names this image: its configuration, and with it every layer."""
    metadata = report.get("Metadata")
    named = metadata.get("ImageID") if isinstance(metadata, Mapping) else None
    layers = parse_json(Layout(places.layout).read(image.config), "the image's configuration")["rootfs"][
        "diff_ids"
    ]
    listed = metadata.get("DiffIDs") if isinstance(metadata, Mapping) else None
    if named != image.config.digest or (listed is not None and listed != layers):
        raise ProgramFailed(
            f"Trivy's report is of the image {str(named)[:19]}, and this one's configuration is "
            f"{image.config.digest[:19]}; nothing is known of it. Run it again."
        )


def _database(folder: Path, said: Mapping, options: Scan, now: datetime) -> Database:
    """The database that the examination used, judged anew: its age, and whether it knew the canary."""
    raw = said.get("database")
    if not isinstance(raw, Mapping) or not all(
        isinstance(raw.get(name, ""), str) for name in Database.__dataclass_fields__
    ):
        raise ProgramFailed("the examination says nothing of its database; nothing is known of this image.")
    database = Database(**{name: raw.get(name, "")[:2000] for name in Database.__dataclass_fields__})
    if not _DIGEST.fullmatch(database.digest):
        database = Database(trouble="the examination names no database by digest")
    database = judged_age(database, options.database_age_days, now)
    if database.trouble:
        return database
    path = folder / f"{CANARY}.json"
    trouble = canary_trouble(read_json(path)) if path.is_file() else "the canary was not looked for"
    return Database(database.updated_at, trouble, database.note, database.source, database.digest)


def _sbom(folder: Path, name: str, member: str, value: str) -> dict:
    sbom = read_json(folder / name)
    if sbom.get(member) != value:
        raise ProgramFailed(f"Trivy wrote an SBOM that is not {value}; nothing is known of this image.")
    return sbom


def _confined(said: Any) -> dict[str, str]:
    said = said if isinstance(said, Mapping) else {}
    return {name: str(said.get(name) or "")[:100] for name in ("files", "network")}


def unconfined(examination: Examination) -> list[str]:
    """What Trivy could do that it should not, where the kernel did not keep it from that."""
    said = []
    if not examination.confined.get("files"):
        said.append("Trivy could read and write the files of its user: this kernel has no Landlock")
    network = examination.confined.get("network")
    if network != "namespace":
        why = "UDP is not kept from it" if network else "nothing keeps it from it"
        said.append(f"Trivy ran without a network namespace of its own, so {why}")
    return said
