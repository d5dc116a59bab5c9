"""The local target: a version is a process on this machine, on free loopback ports."""

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from deploy import ports, standing, strays
from deploy import router as routers
from deploy.router import Router, RouterPlan
from deploy.targets import readiness
from deploy.targets.base import Release, Version
from deploy.targets.models import Models, Unpack
from pipeline import run
from pipeline.errors import ProgramFailed
from pipeline.run import Process
from pipeline.settings import Settings

SERVER = (sys.executable, "-m", "serve")
_TRIES = 3
_LOG_LINES = 15


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
        self._store = Models(state, settings.model, unpack)
        self.models = self._store.folder
        self.log = state.resolve() / "logs"
        self.environment = environment
        self.server = tuple(server)

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

    def runs(self, version: Version) -> bool:
        """Whether it is a process."""
        return isinstance(version.process, Process)

    def keep(self, version: Version) -> None:
        """A process outlasts nothing; the next run starts what has ended."""

    def routes(self, router: Router) -> bool:
        """Whether it is a process."""
        return isinstance(router.process, Process)

    def start_router(self, plan: RouterPlan) -> Router:
        """Starts Envoy as a process."""
        routers.sweep(plan.folder)
        return routers.start(plan)

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
        pids = {version.process.pid for version in known if isinstance(version.process, Process)}
        marker = f"--model_base_path={self.models}/"
        unknown = [pid for pid in strays.find(marker) if pid not in pids]
        for pid in unknown:
            strays.end(pid, marker)
        self._store.sweep(known, everything)
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
        try:
            said = readiness.trouble(self, version, self.settings)
        except BaseException:
            self.stop(version, 1)
            raise
        if said:
            self.stop(version, 2)
        return said

    def _unpacked(self, release: Release) -> Path:
        """The folder for `--model_base_path`: it holds the release's number as its only version."""
        return self._store.unpacked(release)


def _tail(log: Path, begin: int) -> str:
    """The last lines that were written to `log` after its first `begin` bytes."""
    said = log.read_bytes()[begin:].decode(errors="replace").strip() if log.exists() else ""
    return "\n".join(said.splitlines()[-_LOG_LINES:]) or "it said nothing"
