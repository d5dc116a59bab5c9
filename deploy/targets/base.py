"""What a target is: a place where versions of a model run."""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy import handles
from deploy.handles import Handle
from deploy.router import Router, RouterPlan
from pipeline.errors import ProgramFailed


@dataclass(frozen=True)
class Release:
    """A published image: where it is, its digest (`sha256:…`), and the number it was published under."""

    registry: str
    digest: str
    number: int

    @staticmethod
    def read(published: Path) -> "Release":
        """Reads publish's output folder. Raises ProgramFailed where it says nothing."""
        try:
            said = json.loads((published / "published.json").read_text())
            return Release(said["registry"], said["digest"], int(said["version"]))
        except (OSError, ValueError, KeyError) as error:
            raise ProgramFailed(
                f"{published}/published.json names no published image ({error!r}). Run publish again."
            ) from error


@dataclass(frozen=True)
class Version:
    """A version that was started: its process (or container), its loopback ports, and the folder that it serves."""

    number: int
    digest: str
    process: Handle
    rest: int
    grpc: int
    folder: str

    def of(self, release: Release) -> bool:
        """Whether it is this release: clients ask for the number, so the same image under another one is not."""
        return (self.digest, self.number) == (release.digest, release.number)

    @property
    def key(self) -> str:
        """A name without dots, which no other version shares while this one lives."""
        return f"v{self.number}_{handles.tag(self.process)}"

    @property
    def name(self) -> str:
        """What people call it."""
        return f"version {self.number} ({self.digest[:19]}…)"


class Target(Protocol):
    """Starts and stops versions."""

    def start(self, release: Release, note: Callable[[Version], None]) -> Version:
        """Starts a release and returns when it answers.

        `note` is told of each process at once, before it is ready, so that none is forgotten.
        Raises ProgramFailed with the end of its log where it does not get ready in time or ends;
        nothing of it runs then.
        """

    def runs(self, version: Version) -> bool:
        """Whether it was started as this target starts versions now; another kind, or other options, say no."""

    def keep(self, version: Version) -> None:
        """Takes note that a version was found good: from now on it outlasts crashes and reboots, where that can be."""

    def alive(self, version: Version) -> bool:
        """Whether this very process still runs."""

    def hangs(self, version: Version) -> bool:
        """Whether it answers nothing though it runs; asks more than once."""

    def stop(self, version: Version, grace_s: float) -> None:
        """Ends a version, by force after `grace_s` seconds. No error if it has ended."""

    def sweep(self, known: Collection[Version], everything: bool) -> list[str]:
        """Stops what this target started and nobody noted, and removes models that no `known` version serves.

        With `everything` false a folder that may be served again is kept. Returns what it stopped.
        """

    def routes(self, router: Router) -> bool:
        """Whether a router runs the way this target starts one now."""

    def start_router(self, plan: RouterPlan) -> Router:
        """Starts a router without versions; what is left of another one in its folder is ended first."""
