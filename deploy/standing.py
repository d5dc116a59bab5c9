"""What stands: whether an environment still serves a published digest. Reads files alone, in about a millisecond."""

import json
from collections.abc import Mapping
from pathlib import Path

from pipeline.run import Process
from pipeline.stages import Context


def state_file(state: Path, name: str) -> Path:
    """Where an environment's state is kept, below the state folder."""
    return state / "run" / f"{name}.json"


def not_in_staging(context: Context) -> str | None:
    """Why staging does not serve the published digest; None if it does."""
    return why_not(context.state, "staging", context.inputs.get("publish/published"))


def not_in_production(context: Context) -> str | None:
    """Why production does not serve the published digest; None if it does."""
    return why_not(context.state, "production", context.inputs.get("publish/published"))


def why_not(state: Path, name: str, published: Path | None) -> str | None:
    """Why an environment does not give all its traffic to this published digest; None if it does."""
    try:
        wanted = json.loads((published / "published.json").read_text())["digest"] if published else ""
    except (OSError, ValueError, KeyError):
        wanted = ""
    if not wanted:
        return "nothing is published"
    try:
        now = json.loads(state_file(state, name).read_text())
        return _why_not(now, name, wanted)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name} is not running"


def _why_not(now: Mapping, name: str, wanted: str) -> str | None:
    router = now["router"]
    stable = next((one for one in now["versions"] if one["role"] == "stable"), None)
    if router is None or stable is None:
        return f"{name} is not running"
    number = stable["version"]
    if stable["digest"] != wanted:
        return f"{name} serves version {number} ({stable['digest'][:19]}…)"
    if not Process(router["pid"], router["born"]).alive():
        return f"{name}'s router (process {router['pid']}) has ended"
    if not Process(stable["pid"], stable["born"]).alive():
        return f"{name}'s version {number} (process {stable['pid']}) has ended"
    if now["changing"]:
        return f"{name} was left in the middle of a change"
    if stable["weight"] != 100:
        return f"{name}'s version {number} has {stable['weight']} % of the traffic"
    return None
