"""What a person does to what runs: look, look back, roll back, stop."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline import ci, digest, key, trees
from pipeline.authority import Authority
from pipeline.errors import GateRefused, IntegrityError, SettingsError
from pipeline.execution import Work, now
from pipeline.locks import deploying_now, deployment_lock
from pipeline.runner import Runner, needed
from pipeline.stages import BREAK_GLASS, FOLLOW_UP, ROLLBACK, Outcome, Result, Stage
from pipeline.store import Channel, Entry
from pipeline.trust import OWN

CHANNELS = ("staging", "production")
_LOOKED_BACK = 100


def _targets() -> Any:
    return importlib.import_module("deploy.targets")


def status(runner: Runner) -> dict:
    """What each channel names, and what runs, as plain values."""
    authority = runner.authority
    channels = {name: authority.channel(name) for name in CHANNELS}
    opened = unfollowed(authority, channels["production"])
    return {
        "model": runner.settings.model,
        "break_glass": _plainly(opened),
        "channels": {name: _plainly(one.live) for name, one in channels.items()},
        "begun": {name: _plainly(runner.store.begun(one)) for name, one in channels.items()},
        "deploying": deploying_now(runner.paths.state),
        "running": _targets().look(runner.settings, runner.paths.state),
    }


def _plainly(entry: Entry | None) -> dict | None:
    return dataclasses.asdict(entry) if entry else None


def print_status(seen: dict, authority: Authority) -> None:
    """Status for a person (stdout)."""
    if seen["deploying"]:
        print(f"a deployment is going on here ({seen['deploying']})")
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
            print(f"  {trouble}")
        for line in _unfinished(seen, name):
            print(f"  {plain(line)}")
        for row in running:
            state = "DEAD" if row["alive"] is False else f"{row['weight']:>3} % of traffic"
            print(f"  v{row['version']} {row['role']:<9} {state}  {row['rest']}  {_runs_as(row)}")
        if name == "production" and seen["break_glass"]:
            print(_alarm(Entry(**seen["break_glass"]), authority, "  let in without the usual evidence"))


def _runs_as(row: dict) -> str:
    """The process of a version, or its container in the words of `docker ps`."""
    if "container" not in row:
        return f"pid {row['pid']}"
    if "status" not in row:
        return f"container {row['name']} {'(the engine does not say)' if 'trouble' in row else 'is gone'}"
    told = f"{row['status']} ({row['health']}) since {row['since']}, restarts {row['restarts']}"
    return f"container {row['name']}  {told}  {' '.join(row['ports'])}".rstrip()


def print_logs(runner: Runner, name: str, tail: int, follow: bool) -> None:
    """What an environment's versions and router wrote (stdout); following ends with them, or with Ctrl-C."""
    if name not in CHANNELS:
        raise SettingsError(f"{name} is not an environment. Allowed: {', '.join(CHANNELS)}.")
    if tail < 0:
        raise SettingsError(f"--tail {tail} is no number of lines. Allowed: 0 or more.")
    silent = tail > 0
    for line in _targets().logs(runner.paths.state, name, tail, follow):
        silent = False
        print(plain(line), flush=follow)
    if silent:
        print(f"{name} has written nothing, or nothing is left of it", file=sys.stderr)


def _trouble(running: list[dict]) -> str | None:
    """What keeps an environment from serving or from being seen, by the rows of its versions; and the next move."""
    unseen = next((row["trouble"] for row in running if "trouble" in row), None)
    if unseen:
        served = "Clients are answered" if running[0]["answers"] else "Clients are NOT answered"
        return f"{unseen} {served} at {running[0]['rest']}."
    starts = "; `make ci-local` starts it"
    if not any(row["alive"] for row in running):
        return f"NOT RUNNING{starts}"
    if not running[0]["router_alive"]:
        return f"its router is DEAD, so clients reach nothing{starts}"
    return None if running[0]["answers"] else f"DOES NOT ANSWER at {running[0]['rest']}{starts}"


def _unfinished(seen: Mapping, name: str) -> list[str]:
    """What was begun in an environment and is left as it is, as nothing is at work on this machine; a line each."""
    if seen["deploying"]:
        return []
    running = [row for row in seen["running"] if row["environment"] == name]
    begun, lines = seen["begun"][name], []
    if begun:
        verb = {ROLLBACK.name: f"rollback v{begun['version']}", BREAK_GLASS.name: BREAK_GLASS.name}
        finishes = f"python -m pipeline {verb[begun['why']]}" if begun["why"] in verb else "make ci-local"
        said = f"{begun['why']} of v{begun['version']} was begun by {begun['by']} at {begun['at']}"
        lines.append(f"{said} and is not finished; `{finishes}` finishes it")
    if any(row["changing"] for row in running):
        lines.append("left in the middle of a change; `make ci-local` puts it right")
    lines += [
        f"v{row['version']} is being judged, and no canary is at work; `make ci-local` goes on with it, "
        "`make rollback` takes its traffic away"
        for row in running
        if row["role"] == "candidate" and name == "production"
    ]
    return lines


def channel(authority: Authority, name: str) -> Channel:
    """A channel. Raises SettingsError for one that does not exist."""
    if name not in CHANNELS:
        raise SettingsError(f"{name} is not a channel. Allowed: {', '.join(CHANNELS)}.")
    return authority.channel(name)


def print_history(authority: Authority, entries: Sequence[Entry], more: int = 0) -> None:
    """Entries of a channel for a person (stdout), newest first; `more` older ones are not shown."""
    for entry in entries:
        made = f"{entry.image[:19]}  {entry.why:<11}  {entry.by}  record {entry.evidence[:12]}"
        print(_alarm(entry, authority, f"{entry.at}  v{entry.version:<3} {made}"))
    if more:
        print(f"… and {more:,} before; --all shows them")


def plain(text: str) -> str:
    """A text without what could move a terminal's cursor: who acted chooses his name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _alarm(entry: Entry, authority: Authority, line: str) -> str:
    """The line, in red with its reason for a break-glass that nobody has followed up."""
    line = plain(line)
    if entry.why != BREAK_GLASS.name:
        return line
    after = followed_up(authority, entry)
    if after:
        return f"{line}\n    {plain(after)}"
    node = authority.policy.examine(BREAK_GLASS.name, entry.evidence)
    reason = plain(node.record.reason) if node.record else "its record cannot be read"
    alarm = f'{line}\n    BREAK-GLASS, not followed up: "{reason}". python -m pipeline follow-up --note "…" closes it'
    return f"\x1b[1;31m{alarm}\x1b[0m" if sys.stdout.isatty() else alarm


def down(runner: Runner) -> list[str]:
    """Stops staging and production on this machine; says what it stopped."""
    with deployment_lock(runner.paths.state):
        return _targets().down(runner.settings, runner.paths.state)


def earlier(production: Channel, version: int | None, judged: bool = False) -> Entry:
    """The entry to go back to: the version named, or the one that served before the live one was let in.

    Going back twice goes back two versions; it never returns to the version that was left. While another version
    is `judged`, has a share of the traffic and was never let in, the live one is what to go back to.
    """
    live = production.live
    if live is None:
        raise GateRefused(
            "production never served anything; there is nothing to go back to. `make down` stops what runs."
        )
    if judged and version in (None, live.version):
        return live
    if version is not None:
        named = production.of_version(version)
        if named is None:
            raise SettingsError(f"v{version} never was in production. `make history` shows what was.")
        if named.image == live.image:
            raise SettingsError(f"v{version} is what production serves now.")
        return named
    entries = production.newest_first()
    for entry in entries:
        if entry.image == live.image and entry.why != ROLLBACK.name:
            break
    before = next((entry for entry in entries if entry.image != live.image), None)
    if before is None:
        raise GateRefused(
            f"there is no version before v{live.version}. `make down` stops serving altogether."
        )
    return before


def rollback(runner: Runner, version: int | None = None) -> str:
    """Puts an earlier version back into production; returns one sentence.

    All evidence that once let it in must still hold; how old it is does not matter. Where a canary left a version
    with a share of the traffic, that one is taken away, and the version beside it has all of it again.
    """
    refuse_unprotected("rollback")
    with deployment_lock(runner.paths.state):
        production = runner.authority.channel("production")
        judged = _targets().candidate(runner.paths.state)
        goal = earlier(production, version, judged is not None)
        runner.authority.policy.accept("production", goal)
        needs = {goal.why: goal.evidence}
        if judged and judged[1] != goal.image:
            goal = dataclasses.replace(goal, highest=max(judged[0], goal.highest), left=judged[1])
            return _put_live(runner, ROLLBACK, production, goal, needs)
        return _put_live(runner, ROLLBACK, production, _leaving(production, goal), needs)


def break_glass(runner: Runner, reason: str) -> str:
    """Puts the newest published version into production without staging, approval and canary; returns one sentence.

    What built it is demanded all the same: its records from publish back to the commit. Raises SettingsError for
    a reason of less than ten characters.
    """
    refuse_unprotected("break-glass")
    if len(reason.strip()) < 10:
        raise SettingsError(
            f"--reason {reason!r} is no reason; write a sentence that will be read afterwards."
        )
    runner.recall(needed(["publish"]))
    made = runner.done["publish"]
    with deployment_lock(runner.paths.state):
        production = runner.authority.heads.channel("production")
        goal = runner.entry(production, BREAK_GLASS)
        needs = {"publish": made.sha256}
        return _put_live(runner, BREAK_GLASS, production, _leaving(production, goal), needs, reason.strip())


def follow_up(runner: Runner, note: str) -> str:
    """Records what became of the open break-glass of production, signed by an approver; returns one sentence."""
    authority = runner.authority
    opened = unfollowed(authority, authority.channel("production"))
    if opened is None:
        raise GateRefused("no break-glass waits for a follow-up.")
    if len(note.strip()) < 10:
        raise SettingsError(f"--note {note!r} says nothing; write what was found and done.")
    authority.policy.check_signer(FOLLOW_UP, authority.signer)
    parts = {"reads": {}, "break-glass": opened.evidence}
    work = Work(
        FOLLOW_UP, digest.of_json(parts), parts, {}, {"break-glass": opened.evidence}, reason=note.strip()
    )
    result = Result(
        Outcome.PASSED, f"{runner.facts.actor} followed up the break-glass of {opened.at}: {note.strip()}"
    )
    made = runner.executor.record(work, result, {}, now(), 0.0)
    return made.sentence


def unfollowed(authority: Authority, production: Channel) -> Entry | None:
    """The newest entry that a break-glass let in and nobody has followed up yet, among the last hundred of them."""
    broken = itertools.islice(production.break_glasses(), _LOOKED_BACK)
    return next((entry for entry in broken if not followed_up(authority, entry)), None)


def followed_up(authority: Authority, entry: Entry) -> str:
    """What was said of a break-glass afterwards, by somebody who may; nothing while nobody did."""
    key_of = digest.of_json({"reads": {}, "break-glass": entry.evidence})
    for sha256 in authority.store.records(FOLLOW_UP.name, key_of):
        node = authority.policy.examine(FOLLOW_UP.name, sha256)
        if node.faults or not node.record or node.record.needs.get("break-glass") != entry.evidence:
            continue
        by = {one.stage: one.key.name for one in node.walk() if one.key}
        if by[FOLLOW_UP.name] != by.get(BREAK_GLASS.name) or by[FOLLOW_UP.name] == OWN:
            return node.record.sentence
    return ""


def refuse_unprotected(what: str) -> None:
    """Only a protected ref, or a person at a machine, may deploy."""
    if ci.vendor() != ci.LAPTOP and (ci.is_merge_request() or not ci.is_protected()):
        raise GateRefused(
            f"{what}: only a protected ref may deploy, and CI says that this one is not protected."
        )


def _leaving(production: Channel, goal: Entry) -> Entry:
    return dataclasses.replace(goal, left=production.live.image if production.live else "")


def _put_live(
    runner: Runner, stage: Stage, production: Channel, goal: Entry, needs: Mapping[str, str], reason: str = ""
) -> str:
    """Gives production to a version whose evidence holds; returns one sentence. `goal` says what it leaves."""
    runner.authority.policy.check_signer(stage, runner.authority.signer)
    runner.authority.policy.demand(stage, needs, goal.image)
    place = runner.paths.build / f"{stage.name}-to" / "published"
    trees.place(goal.published, place, runner.store, runner.digests)
    if json.loads((place / "published.json").read_bytes())["digest"] != goal.image:
        raise IntegrityError(f"v{goal.version}: the channel names {goal.image}, its evidence another image.")
    reads = {"publish/published": goal.published}
    parts = key.parts(stage, runner.settings, reads, runner.paths.root, runner.digests)
    inputs = {"publish/published": place}
    work = Work(stage, digest.of_json(parts), parts, inputs, needs, reason=reason)
    entry = dataclasses.replace(goal, by=runner.facts.actor, why=stage.name)
    made = runner.enter(production, entry, work)
    if made.outcome != Outcome.PASSED:
        raise GateRefused(f"{stage.name}: {made.sentence}")
    return made.sentence


def moment(text: str) -> str:
    """A time (ISO 8601; UTC where no zone is given) as channels write theirs."""
    try:
        wanted = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(
            f"--at {text!r} is not a time. Write it as 2026-01-31 or 2026-01-31T14:00:00Z."
        ) from None
    wanted = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
    return wanted.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
