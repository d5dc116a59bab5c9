"""Where versions run: one file per kind of target; and what the command line says and does about all of them."""

import shutil
import time
from pathlib import Path
from typing import Any

from deploy.targets.local import Local
from pipeline.errors import ProgramFailed
from pipeline.settings import Settings

TARGETS = {"local": Local}
"""Kind of target (`target.kind`) to what makes one of settings, state folder and environment."""


def look(settings: Settings, state: Path) -> list[dict]:
    """What runs: a row per version, production's first.

    Each has environment, version, digest, role, weight (percent), pid, rest and grpc (HOST:PORT where
    clients ask), alive, router_alive, answers (whether clients are served there now), and requests (answered
    so far; None where the router does not say).
    """
    from deploy import environment

    return [row for name in environment.NAMES for row in _look(settings, environment.read(state, name), name)]


def down(settings: Settings, state: Path) -> list[str]:
    """Stops every version and router of both environments; returns what it stopped, a line each.

    Clients are refused first, requests that are being answered finish (target.drain_s at most).
    """
    from deploy import environment, router, standing

    stopped = []
    for name in environment.NAMES:
        here = environment.Environment(settings, state, name)
        _drain(settings, here)
        stopped += _stop(here)
        stopped += [f"{name}: {line}" for line in router.sweep(state.resolve() / "run" / name)]
        standing.state_file(state, name).unlink(missing_ok=True)
        shutil.rmtree(state / "run" / name, ignore_errors=True)
    return stopped + Local(settings, state, "").sweep((), everything=True)


def _look(settings: Settings, now: Any, name: str) -> list[dict]:
    from deploy import standing

    counts, answers = {}, False
    if now.router and now.router.process.alive():
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
            "pid": one.version.process.pid,
            "rest": now.router.rest if now.router else "",
            "grpc": now.router.grpc if now.router else "",
            "alive": one.version.process.alive(),
            "router_alive": bool(now.router and now.router.process.alive()),
            "answers": answers,
            "requests": counts[one.version.key].requests if one.version.key in counts else None,
        }
        for one in now.placed
    ]


def _drain(settings: Settings, here: Any) -> None:
    """Closes the public ports, and waits for what is being answered."""
    router = here.now.router
    if not router or not router.serving():
        return
    try:
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
            stopped.append(f"{here.name}: version {one.version.number} (process {one.version.process.pid})")
    router = here.now.router
    if router and router.process.alive():
        router.stop()
        stopped.append(f"{here.name}: router (process {router.process.pid})")
    return stopped
