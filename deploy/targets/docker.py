"""The docker target: a version is a container of this machine's engine, its ports published on loopback alone.

What outlasts a restart of the engine or of the host does so by itself: containers that serve have a restart policy
and fixed ports, and a router in a container (`target.router`) finds its weights in the folder that it reads.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from deploy import engine, ports, standing
from deploy import router as routers
from deploy.engine import Container
from deploy.router import Router, RouterPlan
from deploy.targets import containers, readiness
from deploy.targets.base import Release, Version
from deploy.targets.containers import GRPC, REST, Place
from deploy.targets.images import Images
from deploy.targets.models import Models, Unpack
from deploy.targets.sdk import Refused, speaking
from pipeline.errors import ProgramFailed
from pipeline.settings import Settings

_TRIES = 3
_LAST_LINES = 15
_KEPT_LINES = 2000
_PORT_LOST = ("port is already allocated", "address already in use")


class Docker:
    """Runs versions as containers. `unpack` puts an image's files into a folder, by default `deploy.oci.unpack`."""

    def __init__(self, settings: Settings, state: Path, environment: str, unpack: Unpack | None = None):
        self.settings = settings
        self.environment = environment
        self.place = Place.of(state, environment)
        self.log = state.resolve() / "logs"
        self._store = Models(state, settings.model, unpack)
        self._images = Images(settings, self.place.state)

    # --- versions ---

    def start(self, release: Release, note: Callable[[Version], None]) -> Version:
        """Makes a release's container, starts it, and returns when the model is available."""
        image = self._images.for_version(release)
        folder = self._store.unpacked(release)
        for attempt in range(1, _TRIES + 1):
            version = self._create(release, image, folder)
            note(version)
            if self._begun(version, last=attempt == _TRIES):
                break
        self._await(version)
        return version

    def runs(self, version: Version) -> bool:
        """Whether it is a container that was made with the options and the server that settings ask for now."""
        handle = version.process
        return isinstance(handle, Container) and handle.setup == containers.version_setup(self.settings)

    def keep(self, version: Version) -> None:
        """From now on the engine starts it again when it dies, and after a reboot."""
        if isinstance(version.process, Container):
            with speaking(f"set the restart policy of {version.process}") as client:
                client.api.update_container(version.process.id, restart_policy=containers.LASTING)

    def alive(self, version: Version) -> bool:
        """Whether its container runs, or is being restarted."""
        return version.process.alive()

    def hangs(self, version: Version) -> bool:
        """Whether it does not answer, though it may run. One that the engine has just started again is waited for."""
        if not standing.hangs("127.0.0.1", version.rest, self.settings.model):
            return False
        if isinstance(version.process, Container) and _loads(version.process):
            return bool(readiness.trouble(self, version, self.settings))
        return True

    def stop(self, version: Version, grace_s: float) -> None:
        """Ends and removes a container, by force after `grace_s` seconds; its log is kept in `logs/`."""
        if isinstance(version.process, Container):
            self._keep_log(version)
        version.process.stop(grace_s)

    def sweep(self, known: Collection[Version], everything: bool) -> list[str]:
        """Removes containers of this state folder and environment that nobody noted, and what no version needs."""
        noted = {version.process.id for version in known if isinstance(version.process, Container)}
        found = engine.labelled(self.place.labels(role="version"))
        unknown = [one for one in found if one.id not in noted]
        for one in unknown:
            one.kill()
        self._store.sweep(known, everything)
        if everything:
            self._images.sweep({version.digest for version in known})
        return [f"a model server that nobody noted ({one})" for one in unknown]

    # --- the router ---

    def routes(self, router: Router) -> bool:
        """Whether it is what `target.router` asks for: a container of this image, or a process."""
        wanted = self.settings.target.router
        if not isinstance(router.process, Container):
            return not wanted
        return bool(wanted) and router.process.setup == containers.router_setup(wanted)

    def start_router(self, plan: RouterPlan) -> Router:
        """Starts Envoy: in a container where `target.router` names an image, else as a process."""
        self.sweep_routers(plan.folder)
        wanted = self.settings.target.router
        if not wanted:
            return routers.start(plan)
        image = self._images.named("target.router", wanted)
        plan = replace(plan, admin_port=ports.lasting(1)[0])  # the same after a restart
        routers.prepare(plan, Path(containers.ROUTER_FOLDER) / plan.folder.name)
        plan.folder.chmod(0o755)  # Envoy reads it as another user
        options = containers.router(self.place, image, plan.folder, plan.admin_port)
        handle = self._made("router", options, {}, containers.router_setup(wanted))
        try:
            _start(handle)
        except BaseException:
            handle.stop(0)
            raise
        admin = f"127.0.0.1:{plan.admin_port}"
        return routers.ready(plan, handle, lambda: admin, lambda _: _last_words(handle, 1))

    def sweep_routers(self, folder: Path | None = None) -> list[str]:
        """Ends every router of this state folder and environment, whatever its kind."""
        found = engine.labelled(self.place.labels(role="router"))
        for one in found:
            one.kill()
        processes = routers.sweep(folder) if folder else []
        return [*processes, *(f"a router that nobody noted ({one})" for one in found)]

    # --- how ---

    def _create(self, release: Release, image: str, folder: Path) -> Version:
        options = containers.version(self.settings, self.place, release, image, folder)
        rest, grpc = ports.lasting(2)
        published = {REST: ("127.0.0.1", rest), GRPC: ("127.0.0.1", grpc)}
        setup = containers.version_setup(self.settings)
        handle = self._made(f"v{release.number}", options, published, setup)
        return Version(release.number, release.digest, handle, rest, grpc, str(folder))

    def _made(self, role: str, options: Mapping, published: Mapping, setup: str) -> Container:
        name = f"tidegate-{self.settings.model}-{self.environment}-{role}-{os.urandom(3).hex()}"
        with speaking(f"make container {name}") as client:
            made = client.containers.create(**options, name=name, ports=dict(published))
        return Container(made.id, name, setup)

    def _begun(self, version: Version, last: bool) -> bool:
        """Starts a container; False, and nothing is left of it, where another program took its port meanwhile."""
        try:
            _start(_container(version))
            return True
        except Refused as error:
            version.process.stop(0)
            if last or not any(words in error.why for words in _PORT_LOST):
                raise
            return False
        except BaseException:
            with contextlib.suppress(ProgramFailed):
                version.process.stop(0)
            raise

    def _await(self, version: Version) -> None:
        """Returns when a version is ready; otherwise stops it and raises ProgramFailed with its last words."""
        try:
            said = readiness.trouble(self, version, self.settings)
            if not said:
                return
            handle = _container(version)
            end, words = _end(handle, self.settings), _last_words(handle, _LAST_LINES)
        except BaseException:
            with contextlib.suppress(ProgramFailed):
                self.stop(version, 1)
            raise
        self.stop(version, 2)
        log = self._log_of(version)
        raise ProgramFailed(
            f"Version {version.number} of {self.settings.model} {said}{end}; {log} ends:\n{words}"
        )

    def _log_of(self, version: Version) -> Path:
        return self.log / f"{self.environment}-v{version.number}.log"

    def _keep_log(self, version: Version) -> None:
        """Appends what a container wrote to a file: the engine forgets it with the container."""
        try:
            written = _words(_container(version), _KEPT_LINES, timestamps=True)
        except ProgramFailed:
            return
        self.log.mkdir(parents=True, exist_ok=True)
        with self._log_of(version).open("ab") as file:
            file.write(written)


def _container(version: Version) -> Container:
    """The container of a version that this target started."""
    if not isinstance(version.process, Container):
        raise TypeError(f"{version.name} runs in no container")
    return version.process


def _start(handle: Container) -> None:
    with speaking(f"start {handle}") as client:
        client.api.start(handle.id)


def _words(handle: Container, lines: int, timestamps: bool = False) -> bytes:
    with speaking(f"read the log of {handle}") as client:
        return client.api.logs(handle.id, tail=lines, timestamps=timestamps)


def _last_words(handle: Container, lines: int) -> str:
    return _words(handle, lines).decode(errors="replace").strip() or "it said nothing"


def _loads(handle: Container) -> bool:
    """Whether its health is not known yet: it was started, or started again, and may still load its model."""
    state = (handle.look() or {}).get("State", {})
    return not state.get("Paused") and (state.get("Health") or {}).get("Status") == "starting"


def _end(handle: Container, settings: Settings) -> str:
    """How a container ended, where its end says more than its log."""
    state = (handle.look() or {}).get("State", {})
    if state.get("OOMKilled"):
        return f": it needed more than target.memory_mib ({settings.target.memory_mib} MiB)"
    return f" (exit status {state['ExitCode']})" if state.get("Status") == "exited" else ""
