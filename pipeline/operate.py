"""What a person does to what runs: look, look back, roll back, stop."""

from __future__ import annotations

import dataclasses
import importlib
import json
from datetime import UTC, datetime

from pipeline import ci, digest, key, trees
from pipeline.errors import GateRefused, IntegrityError, SettingsError
from pipeline.execution import Work
from pipeline.runner import Runner, deployment_lock
from pipeline.stages import ROLLBACK, Outcome
from pipeline.store import Entry

CHANNELS = ("staging", "production")


def _targets():
    return importlib.import_module("deploy.targets")


def status(runner: Runner) -> dict:
    """What each channel names, and what runs, as plain values."""
    channels = {name: runner.store.channel(name).live for name in CHANNELS}
    return {
        "model": runner.settings.model,
        "channels": {name: dataclasses.asdict(live) if live else None for name, live in channels.items()},
        "running": _targets().look(runner.settings, runner.paths.state),
    }


def print_status(seen: dict) -> None:
    """Status for a person (stdout)."""
    for name, live in seen["channels"].items():
        running = [row for row in seen["running"] if row["environment"] == name]
        if live is None:
            print(f"{name}: nothing was ever let in")
        else:
            print(
                f"{name}: v{live['version']} {live['image'][:19]}  by {live['by']} at {live['at']} ({live['why']})"
            )
        trouble = _trouble(running) if live else None
        if trouble:
            print(f"  {trouble}; `make ci-local` starts it")
        for row in running:
            state = f"{row['weight']:>3} % of traffic" if row["alive"] else "DEAD"
            print(f"  v{row['version']} {row['role']:<9} {state}  {row['rest']}  pid {row['pid']}")


def _trouble(running: list[dict]) -> str | None:
    """What keeps an environment from serving, by the rows of its versions."""
    if not any(row["alive"] for row in running):
        return "NOT RUNNING"
    if not running[0]["router_alive"]:
        return "its router is DEAD, so clients reach nothing"
    return None if running[0]["answers"] else f"DOES NOT ANSWER at {running[0]['rest']}"


def history(runner: Runner, channel: str) -> list[Entry]:
    """A channel's entries, newest first. Raises SettingsError for a channel that does not exist."""
    if channel not in CHANNELS:
        raise SettingsError(f"{channel} is not a channel. Allowed: {', '.join(CHANNELS)}.")
    return list(reversed(runner.store.channel(channel).history))


def print_history(entries: list[Entry]) -> None:
    """A channel's history for a person (stdout)."""
    if not entries:
        print("nothing was ever let in")
    for entry in entries:
        made = f"{entry.image[:19]}  {entry.why:<8}  {entry.by}  record {entry.evidence[:12]}"
        print(f"{entry.at}  v{entry.version:<3} {made}")


def down(runner: Runner) -> list[str]:
    """Stops staging and production on this machine; says what it stopped."""
    with deployment_lock(runner.paths.state):
        return _targets().down(runner.settings, runner.paths.state)


def earlier(entries: tuple[Entry, ...], version: int | None) -> Entry:
    """The entry to go back to: the version named, or the one that served before the live one was let in.

    Going back twice goes back two versions; it never returns to the version that was left.
    """
    live = entries[-1] if entries else None
    if live is None:
        raise GateRefused("production never served anything; there is nothing to go back to.")
    if version is not None:
        named = next((e for e in reversed(entries) if e.version == version), None)
        if named is None:
            known = ", ".join(f"v{n}" for n in sorted({e.version for e in entries}))
            raise SettingsError(f"v{version} never was in production. These were: {known}.")
        if named.image == live.image:
            raise SettingsError(f"v{version} is what production serves now.")
        return named
    let_in = max(i for i, e in enumerate(entries) if e.image == live.image and e.why != ROLLBACK.name)
    before = [e for e in entries[:let_in] if e.image != live.image]
    if not before:
        raise GateRefused(
            f"there is no version before v{live.version}. `make down` stops serving altogether."
        )
    return before[-1]


def rollback(runner: Runner, version: int | None = None) -> str:
    """Puts an earlier version back into production; returns one sentence."""
    if ci.vendor() != ci.LAPTOP and not ci.is_protected():
        raise GateRefused(
            "rollback: only a protected ref may deploy, and CI says that this one is not protected."
        )
    with deployment_lock(runner.paths.state):
        channel = runner.store.channel("production")
        goal = earlier(channel.history, version)
        runner.keys.verify(runner.store.fetch_bytes(goal.evidence))
        place = runner.paths.build / "rollback-to" / "published"
        trees.place(goal.published, place, runner.store, runner.digests)
        if json.loads((place / "published.json").read_bytes())["digest"] != goal.image:
            raise IntegrityError(
                f"v{goal.version}: the channel names {goal.image}, its evidence another image."
            )
        reads = {"publish/published": goal.published}
        parts = key.parts(ROLLBACK, runner.settings, reads, runner.paths.root, runner.digests)
        work = Work(
            ROLLBACK, digest.of_json(parts), parts, {"publish/published": place}, {"promote": goal.evidence}
        )
        made = runner.executor.execute(work)
        if made.outcome != Outcome.PASSED:
            raise GateRefused(f"rollback: {made.sentence}")
        entry = dataclasses.replace(
            goal, by=runner.facts.actor, at=made.finished, why="rollback", evidence=made.sha256,
            left=channel.live.image,
        )  # fmt: skip
        runner.store.append(channel, entry)
    return made.sentence


def live_at(entries: list[Entry], moment: str) -> list[Entry]:
    """The entry that was live at a moment (ISO 8601; UTC where no zone is given), alone in a list, or none.

    `entries` come newest first.
    """
    try:
        wanted = datetime.fromisoformat(moment)
    except ValueError:
        raise SettingsError(
            f"--at {moment!r} is not a time. Write it as 2026-01-31 or 2026-01-31T14:00:00Z."
        ) from None
    wanted = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
    return [entry for entry in entries if datetime.fromisoformat(entry.at) <= wanted][:1]
