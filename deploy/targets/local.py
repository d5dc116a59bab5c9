"""The local target: a version is a process on this machine, on free loopback ports."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from deploy import ports, standing, strays, web
from deploy.targets.base import Release, Version
from pipeline import run
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.settings import Settings

SERVER = (sys.executable, "-m", "serve")
_POLL_S = 0.05
_TRIES = 3
_LOG_LINES = 15

Unpack = Callable[[str, str, Path], None]


class Local:
    """Runs versions as processes.

    `server` is the command that takes TF Serving's options; `unpack` puts an image's files
    into a folder, by default `deploy.oci.unpack`.
    """

    def __init__(
        self,
        settings: Settings,
        state: Path,
        environment: str,
        server: Sequence[str] = SERVER,
        unpack: Unpack | None = None,
    ):
        self.settings = settings
        self.models = state.resolve() / "run" / "models"
        self.log = state.resolve() / "logs"
        self.environment = environment
        self.server = tuple(server)
        self.unpack = unpack

    def start(self, release: Release, note: Callable[[Version], None]) -> Version:
        """Unpacks a release, starts its process, and returns when the model is available."""
        folder = self._unpacked(release)
        log = self.log / f"{self.environment}-v{release.number}.log"
        for _ in range(_TRIES):
            begin = log.stat().st_size if log.exists() else 0
            version = self._launch(release, folder, log)
            note(version)
            trouble = self._trouble(version)
            if not trouble:
                return version
            lost_a_port = any(ports.taken("127.0.0.1", port) for port in (version.rest, version.grpc))
            if not lost_a_port:
                break
        raise ProgramFailed(
            f"Version {release.number} of {self.settings.model} {trouble}; {log} ends:\n{_tail(log, begin)}"
        )

    def alive(self, version: Version) -> bool:
        """Whether this very process still runs."""
        return version.process.alive()

    def hangs(self, version: Version) -> bool:
        """Whether this process does not answer, though it may run."""
        return standing.hangs("127.0.0.1", version.rest, self.settings.model)

    def stop(self, version: Version, grace_s: float) -> None:
        """Ends a version, by force after `grace_s` seconds."""
        version.process.stop(grace_s)

    def sweep(self, known: Collection[Version], everything: bool) -> list[str]:
        """Stops model servers of this state folder that nobody noted, and removes models that none serves."""
        pids = {version.process.pid for version in known}
        marker = f"--model_base_path={self.models}/"
        unknown = [pid for pid in strays.find(marker) if pid not in pids]
        for pid in unknown:
            strays.end(pid, marker)
        served = {Path(version.folder).name for version in known}
        for folder in self.models.iterdir() if self.models.is_dir() else ():
            if folder.name not in served and (everything or folder.name.startswith(".")):
                shutil.rmtree(folder, ignore_errors=True)
        return [f"a model server that nobody noted (process {pid})" for pid in unknown]

    def _launch(self, release: Release, folder: Path, log: Path) -> Version:
        rest, grpc = ports.free(2)
        argv = [
            *self.server,
            f"--port={grpc}",
            f"--rest_api_port={rest}",
            f"--model_name={self.settings.model}",
            f"--model_base_path={folder}",
            "--address=127.0.0.1",
            "--max_num_load_retries=0",  # a model that cannot be loaded is told at once, not after minutes
        ]
        # Without oneDNN's own order of summation the answers equal those that evaluation saw.
        process = run.start(argv, log=log, env={"TF_ENABLE_ONEDNN_OPTS": "0"})
        return Version(release.number, release.digest, process, rest, grpc, str(folder))

    def _trouble(self, version: Version) -> str:
        """Waits until a version is ready; otherwise stops it and says what happened."""
        limit_s = self.settings.target.ready_timeout_s
        deadline = time.monotonic() + limit_s
        trouble = "ended before it was ready"
        try:
            while self.alive(version):
                if self._available(version):
                    return ""
                if time.monotonic() > deadline:
                    trouble = f"was not ready within target.ready_timeout_s ({limit_s:g} s) and was stopped"
                    break
                time.sleep(_POLL_S)
        except BaseException:
            self.stop(version, 1)
            raise
        self.stop(version, 2)
        return trouble

    def _available(self, version: Version) -> bool:
        """Whether its own status says that the version can be asked."""
        try:
            path = f"/v1/models/{self.settings.model}"
            said = web.get_json(f"127.0.0.1:{version.rest}", path, timeout_s=2)
        except OSError:
            return False
        states = said.get("model_version_status", ())
        return any(s.get("state") == "AVAILABLE" and s.get("version") == str(version.number) for s in states)

    def _unpacked(self, release: Release) -> Path:
        """The folder for `--model_base_path`: it holds the release's number as its only version."""
        home = self.models / f"{release.digest.removeprefix('sha256:')[:32]}.{release.number}"
        if home.is_dir():
            return home
        work = self.models / f".{home.name}.{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(parents=True)
            self._unpack(release, work / "image")
            (work / "base").mkdir()
            _only_model(work / "image" / "models" / self.settings.model).rename(
                work / "base" / str(release.number)
            )
            (work / "base").rename(home)  # visible in one step: what is there is whole
        except OSError as error:
            raise ProgramFailed(
                f"{release.digest} could not be unpacked into {self.models}: {error}"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return home

    def _unpack(self, release: Release, into: Path) -> None:
        if self.unpack is None:
            from deploy import oci

            self.unpack = oci.unpack
        self.unpack(release.registry, release.digest, into)


def _only_model(folder: Path) -> Path:
    versions = sorted(folder.iterdir()) if folder.is_dir() else []
    if len(versions) != 1:
        raise IntegrityError(
            f"The image holds {len(versions)} versions in models/{folder.name}, where one was expected. "
            "Run image and publish again, with the model's present name."
        )
    return versions[0]


def _tail(log: Path, begin: int) -> str:
    """The last lines that were written to `log` after its first `begin` bytes."""
    said = log.read_bytes()[begin:].decode(errors="replace").strip() if log.exists() else ""
    return "\n".join(said.splitlines()[-_LOG_LINES:]) or "it said nothing"
