"""An environment (staging, production): one router in front of the versions that run, and its state on disk.

`run/NAME.json` in the state folder says what runs. It is replaced as a whole, before a change
begins (`changing`) and after it, so whoever finds it knows what to trust.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deploy import handles
from deploy.handles import Handle
from deploy.router import Backend, Router, RouterPlan
from deploy.standing import state_file
from deploy.targets.base import Release, Target, Version
from pipeline.errors import ProgramFailed
from pipeline.settings import Settings
from pipeline.stages import Context

NAMES = ("production", "staging")
STABLE, CANDIDATE, PREVIOUS = "stable", "candidate", "previous"
_ORDER = (STABLE, PREVIOUS, CANDIDATE)  # who rescues a request first
# Longer than the router takes for all tries of a request (deploy/envoy.py): a version's clusters must not vanish
# while requests that it lost are on their way to another one.
_RETRIES_S = 0.5
_POLL_S = 0.05
_GRACE_S = 5.0


@dataclass(frozen=True)
class Placed:
    """A version in an environment: its role, and its share of the traffic in percent."""

    version: Version
    role: str
    weight: int = 0


@dataclass(frozen=True)
class State:
    """What runs in an environment, as `run/NAME.json` has it."""

    router: Router | None = None
    placed: tuple[Placed, ...] = ()
    changing: bool = False

    def by_role(self, role: str) -> Placed | None:
        """The version that has this role; there is at most one."""
        return next((one for one in self.placed if one.role == role), None)


def read(state: Path, name: str) -> State:
    """What was last written of an environment; an empty State where nothing can be read."""
    try:
        said = json.loads(state_file(state, name).read_text())
        return State(
            said["router"] and _router(said["router"]),
            tuple(_placed(one) for one in said["versions"]),
            said["changing"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return State()


def write(state: Path, name: str, now: State) -> None:
    """Replaces an environment's state in one step."""
    router = now.router
    document = {
        "router": router
        and {
            **handles.document(router.process),
            "folder": str(router.folder),
            "admin": router.admin,
            "rest": router.rest,
            "grpc": router.grpc,
        },
        "versions": [_flat(one) for one in now.placed],
        "changing": now.changing,
    }
    path = state_file(state, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fresh.write_text(json.dumps(document, indent=1))
    fresh.replace(path)


def _flat(one: Placed) -> dict:
    version = one.version
    return {
        "version": version.number,
        "digest": version.digest,
        **handles.document(version.process),
        "rest": version.rest,
        "grpc": version.grpc,
        "folder": version.folder,
        "role": one.role,
        "weight": one.weight,
    }


def _placed(said: Mapping) -> Placed:
    ports = {"rest": int(said["rest"]), "grpc": int(said["grpc"])}
    version = Version(
        int(said["version"]), said["digest"], handles.read(said), **ports, folder=said["folder"]
    )
    return Placed(version, said["role"], int(said["weight"]))


def _router(said: Mapping) -> Router:
    return Router(Path(said["folder"]), handles.read(said), said["admin"], said["rest"], said["grpc"])


def make_target(settings: Settings, state: Path, name: str) -> Target:
    """The target that settings name, for one environment."""
    from deploy.targets import TARGETS

    return TARGETS[settings.target.kind](settings, state, name)


def _mute(text: str) -> None:
    """Says nothing, for those who only look or stop."""


class Environment:
    """The doing side: every method changes one thing, waits until it holds, and writes the state."""

    def __init__(self, settings: Settings, state: Path, name: str, say: Callable[[str], None] = _mute):
        self.settings = settings
        self.folder = state
        self.name = name
        self.say = say
        self.target = make_target(settings, state, name)
        self.now = read(state, name)

    # --- looking ---

    @property
    def router(self) -> Router:
        """The running router; `open_environment` made sure of it."""
        if self.now.router is None:
            raise ProgramFailed(f"{self.name} has no router. Run the stage again: it starts one.")
        return self.now.router

    def placed(self, role: str) -> Version | None:
        """The version with this role."""
        found = self.now.by_role(role)
        return found.version if found else None

    def warm(self, release: Release, process: Handle | None = None) -> Version | None:
        """A running version of this digest under this number (and, if given, in this very process)."""
        for one in self.now.placed:
            version = one.version
            same = version.of(release) and process in (None, version.process)
            if same and self.target.runs(version) and self.target.alive(version):
                return version
        return None

    def serves(self, release: Release) -> bool:
        """Whether the stable version is this release, started as settings ask now."""
        stable = self.placed(STABLE)
        return stable is not None and stable.of(release) and self.target.runs(stable)

    # --- doing ---

    def begin(self) -> None:
        """Notes that a change begins: whoever finds it unfinished puts right what it left."""
        if self.now != State():
            self._write(self.now.placed, changing=True)

    def start(self, release: Release) -> Version:
        """Starts a release as the candidate, without traffic; an earlier candidate is ended first."""
        if self.placed(CANDIDATE):
            self.back()
        self.say(f"starting version {release.number} ({release.digest[:19]}…) in {self.name}")
        began = time.monotonic()
        try:
            version = self.target.start(release, self._note)
            self._tell_versions(wait_for=[version])
        except BaseException:
            self.abandon()
            raise
        self._write(self.now.placed)
        self.say(f"version {release.number} is ready after {time.monotonic() - began:.1f} s")
        return version

    def share(self, percent: int) -> None:
        """Gives the candidate this share of the traffic, and the stable version the rest."""
        self._weigh({CANDIDATE: percent, STABLE: 100 - percent})

    def settle(self, version: Version) -> float:
        """Gives all traffic to `version` and makes it the stable one; returns the seconds that the switch took.

        The one that was stable becomes the previous one and stays warm; the one before that drains and ends.
        """
        began = time.monotonic()
        old = self.placed(STABLE)
        self._weigh({one.role: 100 if one.version == version else 0 for one in self.now.placed})
        took_s = time.monotonic() - began
        self.target.keep(version)
        if old != version:
            leaving = [one.version for one in self.now.placed if one.version not in (version, old)]
            roles = {version: STABLE, old: PREVIOUS}
            kept = (replace(one, role=roles.get(one.version, one.role)) for one in self.now.placed)
            self._write(tuple(kept))
            for one in leaving:
                self.retire(one)
        return took_s

    def answering(self, version: Version) -> bool:
        """Whether a version's process runs and answers the router's health checks."""
        return self.target.alive(version) and self.router.healthy(version.key)

    def back(self, drain_s: float | None = None) -> None:
        """Gives all traffic to the stable version, then ends the candidate. See `retire`."""
        candidate = self.placed(CANDIDATE)
        stable = self.now.by_role(STABLE)
        if stable and stable.weight != 100:
            self._weigh({STABLE: 100})
        if candidate:
            self.retire(candidate, drain_s)

    def retire(self, version: Version, drain_s: float | None = None) -> None:
        """Ends a version once it has answered its requests, or after `drain_s` seconds (target.drain_s).

        One that hangs is ended at once: the router then asks others what it was asked.
        """
        if any(one.version == version and one.weight for one in self.now.placed):
            self._weigh({one.role: one.weight for one in self.now.placed if one.version != version})
        answering = self.answering(version)
        if answering:
            self._drain(version, self.settings.target.drain_s if drain_s is None else drain_s)
        else:
            self.target.stop(version, grace_s=0.2)
            time.sleep(_RETRIES_S)
        self._write((one for one in self.now.placed if one.version != version), changing=True)
        self._tell_versions()
        self.target.stop(version, _GRACE_S)
        self._write(self.now.placed)
        self.say(f"{self.name}: stopped version {version.number} ({version.process})")

    def tidy(self) -> None:
        """Removes unpacked models that no environment serves."""
        self.target.sweep(known(self.folder), everything=True)

    def abandon(self) -> None:
        """Puts traffic back and ends the candidate at once, also where the router does not answer."""
        candidate = self.placed(CANDIDATE)
        try:
            self.back(drain_s=1)
        except ProgramFailed as error:
            self.say(str(error))
        if candidate:
            self._drop(candidate)

    # --- how ---

    def _drop(self, version: Version) -> None:
        """Ends a version at once; one that cannot be ended now stays noted, for the next run to end."""
        try:
            self.target.stop(version, 1)
        except ProgramFailed as error:
            self.say(f"{version.name} could not be stopped: {error}")
            return
        self._write(one for one in self.now.placed if one.version != version)

    def _note(self, version: Version) -> None:
        """Remembers a process that is being started; of several tries only the last is one."""
        others = tuple(one for one in self.now.placed if one.role != CANDIDATE)
        self._write((*others, Placed(version, CANDIDATE)), changing=True)

    def _weigh(self, weights: Mapping[str, int]) -> None:
        """Shares the traffic by role; roles that are not named get none."""
        wanted = tuple(replace(one, weight=weights.get(one.role, 0)) for one in self.now.placed)
        self._write(wanted, changing=True)
        self.router.set_weights({one.version.key: one.weight for one in wanted})
        self._write(wanted)

    def _tell_versions(self, wait_for: Iterable[Version] = ()) -> None:
        """Tells the router which versions there are, in the order in which they rescue others' requests."""
        living = [one for one in self.now.placed if self.target.alive(one.version)]
        ordered = sorted(living, key=lambda one: _ORDER.index(one.role))
        backends = [Backend(one.version.key, one.version.rest, one.version.grpc) for one in ordered]
        # In staging a version must answer for itself; in production clients come first.
        failover = self.name == "production"
        keys = [version.key for version in wait_for]
        self.router.set_versions(backends, self.settings.model, failover, keys)

    def _drain(self, version: Version, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while self.target.alive(version) and self.router.active(version.key) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _write(self, placed: Iterable[Placed], changing: bool = False) -> None:
        self.now = replace(self.now, placed=tuple(placed), changing=changing)
        write(self.folder, self.name, self.now)


def known(state: Path) -> list[Version]:
    """Every version that any environment's state names."""
    return [one.version for name in NAMES for one in read(state, name).placed]


def open_environment(context: Context, name: str) -> Environment:
    """An environment whose router runs in front of the versions that live; starts and repairs what it must.

    What a killed command left half-done is put right: traffic flows as the state says, dead versions
    and hanging ones are dropped, processes that nobody noted are stopped. Raises ProgramFailed where a port is taken.
    """
    here = Environment(context.settings, context.state, name, context.say)
    _drop_the_dead(here)
    for stopped in here.target.sweep(known(context.state), everything=False):
        context.say(f"{name}: stopped {stopped}")
    fresh = _ensure_router(here)
    here._tell_versions(wait_for=[one.version for one in here.now.placed if fresh and one.weight])
    here._weigh({one.role: one.weight for one in here.now.placed})
    return here


def _drop_the_dead(here: Environment) -> None:
    """Forgets versions that have ended or hang; where the stable one did, the previous one takes its place."""
    living = []
    for one in here.now.placed:
        named = f"{here.name}: {one.role} version {one.version.number}"
        if not here.target.alive(one.version):
            here.say(f"{named} has ended by itself")
        elif here.target.hangs(one.version):
            here.say(f"{named} ({one.version.process}) does not answer, and is ended")
            here.target.stop(one.version, grace_s=0.2)
        else:
            living.append(one)
    if not any(one.role == STABLE for one in living):
        living = [replace(one, role=STABLE) if one.role == PREVIOUS else one for one in living]
    taken = sum(one.weight for one in living if one.role != STABLE)
    living = [replace(one, weight=100 - taken) if one.role == STABLE else one for one in living]
    here._write(living, changing=True)


def _ensure_router(here: Environment) -> bool:
    """Keeps the router that runs on the ports of settings; otherwise ends it and starts one (True)."""
    wanted = getattr(here.settings, here.name)
    address, ports = here.settings.target.address, (wanted.rest_port, wanted.grpc_port)
    router = here.now.router
    if router and here.target.routes(router) and router.listens(address, *ports) and router.serving():
        return False
    if router:
        router.stop()
    folder = here.folder.resolve() / "run" / here.name
    log = here.folder.resolve() / "logs" / f"envoy-{here.name}.log"
    router = here.target.start_router(RouterPlan(folder, address, *ports, log, here.name))
    here.now = dataclasses.replace(here.now, router=router)
    here._write(here.now.placed, changing=True)
    return True
