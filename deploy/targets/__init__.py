"""Where versions run: one file per kind of target; and what the command line says and does about all of them."""

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy import engine
from deploy.engine import Container
from deploy.handles import Handle
from deploy.targets.containers import DIGEST, Place
from deploy.targets.docker import Docker
from deploy.targets.local import Local
from pipeline.errors import ProgramFailed
from pipeline.settings import Settings

TARGETS = {"local": Local, "docker": Docker}
"""Kind of target (`target.kind`) to what makes one of settings, state folder and environment."""


def look(settings: Settings, state: Path) -> list[dict]:
    """What runs: a row per version, production's first.

    Each has environment, version, digest, role, weight (percent), pid (of a process), rest and grpc (HOST:PORT where
    clients ask), alive and router_alive (None where the engine does not answer), answers (whether clients are served
    there now), changing (whether a change is under way there, or was left unfinished), and requests (answered so far;
    None where the router does not say). A container's row also says its id (container), name, health, since, restarts
    and ports, and `trouble` where the engine does not answer.
    """
    from deploy import environment

    return [row for name in environment.NAMES for row in _look(settings, environment.read(state, name), name)]


def candidate(state: Path) -> tuple[int, str] | None:
    """The number and digest of the version that a canary of production started, and that was neither promoted nor
    ended; None where there is none."""
    from deploy import environment

    found = environment.read(state, "production").by_role(environment.CANDIDATE)
    return (found.version.number, found.version.digest) if found else None


def logs(state: Path, name: str, tail: int, follow: bool) -> Iterator[str]:
    """What an environment's versions and router wrote: lines, each behind its writer's name."""
    from deploy.targets import output

    return output.merged(output.writers(state, name), tail, follow)


def down(settings: Settings, state: Path) -> list[str]:
    """Stops every version and router of both environments; returns what it stopped, a line each.

    Clients are refused first, requests that are being answered finish (target.drain_s at most). Raises EngineSilent,
    and clients are served as before, where containers run and the engine does not answer.
    """
    from deploy import environment, router, standing

    stopped = []
    all_here = [environment.Environment(settings, state, name) for name in environment.NAMES]
    containers = settings.target.kind == "docker" or any(
        isinstance(one, Container) for here in all_here for one in _handles(here.now)
    )
    if containers:
        engine.labelled(Place.of(state, "").labels())  # nothing is begun that the engine cannot end
    for name, here in zip(environment.NAMES, all_here, strict=True):
        here.begin()
        _drain(settings, here)
        stopped += _stop(here)
        stopped += [f"{name}: {line}" for line in router.sweep(state.resolve() / "run" / name)]
        standing.state_file(state, name).unlink(missing_ok=True)
        shutil.rmtree(state / "run" / name, ignore_errors=True)
    if containers:
        docker = Docker(settings, state, "")
        stopped += [*docker.sweep_routers(), *docker.sweep((), everything=True)]
    return stopped + Local(settings, state, "").sweep((), everything=True)


def _handles(now: Any) -> list[Handle]:
    return [one.version.process for one in now.placed] + ([now.router.process] if now.router else [])


def _look(settings: Settings, now: Any, name: str) -> list[dict]:
    from deploy import standing

    counts, answers = {}, False
    router_alive = _seen(now.router.process)["alive"] if now.router else False
    if now.router and router_alive is not False:
        try:
            counts = now.router.counts([one.version.key for one in now.placed], settings.canary.slow_ms)
        except ProgramFailed:
            counts = {}
        answers = standing.answers(settings.target.address, getattr(settings, name).rest_port, settings.model)
    return [
        {
            "environment": name,
            "version": one.version.number,
            "digest": one.version.digest,
            "role": one.role,
            "weight": one.weight,
            **_seen(one.version.process),
            "rest": now.router.rest if now.router else "",
            "grpc": now.router.grpc if now.router else "",
            "router": str(now.router.process) if now.router else "",
            "router_alive": router_alive,
            "answers": answers,
            "changing": now.changing,
            "requests": counts[one.version.key].requests if one.version.key in counts else None,
        }
        for one in now.placed
    ]


def _seen(handle: Handle) -> dict:
    """What is to be said of a process or a container itself."""
    if not isinstance(handle, Container):
        return {"pid": handle.pid, "alive": handle.alive()}
    named = {"pid": None, "container": handle.id, "name": handle.name, "alive": False}
    try:
        seen = handle.look()
    except ProgramFailed as error:
        return named | {"alive": None, "trouble": str(error)}
    return named | (_told(seen) if seen else {})


def _told(seen: Mapping) -> dict:
    """What the engine says of a container, in the words of `docker ps`; version and digest from its labels."""
    state, labels, published = seen["State"], seen["Config"]["Labels"], seen["NetworkSettings"]["Ports"] or {}
    about = {key: labels[label] for key, label in (("digest", DIGEST),) if label in labels}
    return about | {
        "pid": state["Pid"] or None,
        "alive": bool(state["Running"] or state["Restarting"]),
        "status": state["Status"],
        "health": (state.get("Health") or {}).get("Status", "none"),
        "since": state["StartedAt"][:19] + "Z",
        "restarts": seen["RestartCount"],
        "ports": sorted(
            f"{one['HostIp']}:{one['HostPort']}->{inside}"
            for inside, all_ in published.items()
            for one in all_ or ()
        ),
    }


def _drain(settings: Settings, here: Any) -> None:
    """Closes the public ports, and waits for what is being answered."""
    router = here.now.router
    if not router:
        return
    try:
        if not router.process.alive():
            return
        router.refuse_clients()
        deadline = time.monotonic() + settings.target.drain_s
        while any(router.active(one.version.key) for one in here.now.placed) and time.monotonic() < deadline:
            time.sleep(0.05)
    except (ProgramFailed, OSError):
        return  # it ended meanwhile; its connections with it


def _stop(here: Any) -> list[str]:
    stopped = []
    for one in here.now.placed:
        if here.target.alive(one.version):
            here.target.stop(one.version, 5)
            stopped.append(f"{here.name}: version {one.version.number} ({one.version.process})")
    router = here.now.router
    if router and router.process.alive():
        router.stop()
        stopped.append(f"{here.name}: router ({router.process})")
    return stopped
