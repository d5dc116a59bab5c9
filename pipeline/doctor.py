"""What this machine lacks for the pipeline, with the remedy."""

from __future__ import annotations

import importlib
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import config, locked, run
from pipeline.errors import ProgramFailed, SettingsError, TidegateError
from pipeline.execution import Paths
from pipeline.locked import LOCK

_FREE_BYTES_WANTED = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. Without a remedy it is all right; an optional lack stops nothing."""

    what: str
    remedy: str = ""
    optional: bool = False


def report(paths: Paths) -> int:
    """Prints the findings (stdout); returns 5 if something that is needed is lacking, else 0."""
    return ProgramFailed.exit_code if tell(findings(paths)) else 0


def tell(findings: Iterable[Finding]) -> list[Finding]:
    """Prints each finding (stdout) as it comes; returns those that are needed and lacking."""
    lacking = []
    for finding in findings:
        mark = "✓" if not finding.remedy else "–" if finding.optional else "✗"
        print(f"{mark} {finding.what}" + (f": {finding.remedy}" if finding.remedy else ""))
        if finding.remedy and not finding.optional:
            lacking.append(finding)
    return lacking


def findings(paths: Paths) -> Iterator[Finding]:
    """Looks at all that the pipeline needs here."""
    yield _locked(paths.root / LOCK)
    for program, use, optional in (
        ("trivy", "scan", False),
        ("envoy", "traffic", False),
        ("git", "the commit in each record", True),
        ("nvidia-smi", "GPUs", True),
        ("docker", "the training image", True),
        ("buildah", "the training image of a release (make train-image)", True),
    ):
        yield _program(program, use, optional)
    yield _disk(paths.root)
    try:
        settings = config.load(paths.settings)
    except SettingsError as error:
        yield Finding(paths.settings.name, str(error))
        return
    yield Finding(f"{paths.settings.name} is valid")
    if settings.target.kind == "docker":
        yield _engine()
    for name in ("staging", "production"):
        section = getattr(settings, name)
        for kind in ("rest_port", "grpc_port"):
            yield _port(settings.target.address, getattr(section, kind), f"{name}.{kind}")


def _locked(lock: Path) -> Finding:
    """Whether what is installed is what the lock names."""
    different = locked.differences(lock.read_text(), locked.site_packages(), locked.inherits())
    if different:
        return Finding(
            f"the locked environment ({lock.name})",
            f"{'; '.join(different)}. make setup; where that finds nothing to do, remove .venv first",
        )
    return Finding(f"the environment is what {lock.name} locks")


def _program(program: str, use: str, optional: bool) -> Finding:
    try:
        run.find(program)
    except TidegateError:
        return Finding(
            f"{program} ({use})",
            "not on PATH" if optional else "not on PATH; make setup installs it",
            optional,
        )
    return Finding(f"{program} ({use})")


def _engine() -> Finding:
    """Whether the engine answers that staging and production run in."""
    try:
        importlib.import_module("deploy.engine").ask("GET", "/version")
    except ProgramFailed as error:
        return Finding("the Docker engine (target.kind)", str(error))
    return Finding("the Docker engine (target.kind)")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    text = f"{free / 2**30:.0f} GiB free"
    return Finding(text, "" if free >= _FREE_BYTES_WANTED else "at least 2 GiB are wanted")


def _port(address: str, port: int, setting: str) -> Finding:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        taken = probe.connect_ex((address, port)) == 0
    return Finding(
        f"port {port} ({setting}) is {'in use, perhaps by this pipeline: see make status' if taken else 'free'}"
    )
