"""A person lets one digest in; on a laptop the pipeline does, for its own target, and says so."""

import itertools
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline.ci import LAPTOP
from pipeline.stages import Context, Outcome, Result
from pipeline.store import Channel, Entry, Store, open_store


def approve(context: Context) -> Result:
    """Approves the published digest, and that one alone.

    Without a person (`make ci-local`) the target on this machine is approved automatically, except for a version
    that a person rolled back: that one waits for a person.
    """
    published = json.loads((context.inputs["publish/published"] / "published.json").read_bytes())
    who, automatic = context.facts.actor, not context.facts.approving
    if automatic and context.facts.vendor != LAPTOP:
        return Result(
            Outcome.FAILED,
            f"nobody has approved v{published['version']}, {published['digest']}. In CI a person does: the job that "
            "calls make approve.",
            digest=published["digest"],
        )
    taken_back = _taken_back(context, published) if automatic else ""
    if taken_back:
        return Result(
            Outcome.FAILED,
            f"{taken_back} If it may go in again, say so: make approve, then run again.",
            digest=published["digest"],
        )
    approval = {
        "digest": published["digest"],
        "version": published["version"],
        "by": who,
        "automatic": automatic,
        "target": context.settings.target.kind,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    folder = context.out / "approval"
    folder.mkdir()
    (folder / "approval.json").write_text(json.dumps(approval, indent=1) + "\n")
    how = (
        f"automatically, for the {context.settings.target.kind} target, as nobody else is asked on a laptop"
        if automatic
        else "by name"
    )
    sentence = f"{who} approves v{published['version']}, {published['digest']}, {how}."
    context.say(sentence)
    return Result(Outcome.PASSED, sentence, digest=published["digest"])


def withdrawn(context: Context) -> str | None:
    """Why an approval counts no longer: production has moved on to something else since. None if it counts.

    So an approval lets a version in once; going back, or another version, uses it up.
    """
    approval = json.loads((context.inputs["approve/approval"] / "approval.json").read_bytes())
    store, production = _production(context)
    begun = _rollback_begun(store, production)
    if begun and begun.at > approval["at"]:
        return f"{begun.by} began to roll back to v{begun.version} after it was given, at {begun.at}"
    since = itertools.takewhile(lambda entry: entry.at > approval["at"], production.newest_first())
    others = [entry for entry in since if entry.image != approval["digest"]]
    if not others:
        return None
    first = others[-1]
    what = "rolled back to" if first.why == "rollback" else "promoted"
    return f"{first.by} {what} v{first.version} after it was given, at {first.at}"


def _taken_back(context: Context, published: Mapping) -> str:
    """That a person took this version out of production, or began to; nothing where none did."""
    store, production = _production(context)
    begun = _rollback_begun(store, production)
    if begun and begun.left == published["digest"]:
        return (
            f"{begun.by} began at {begun.at} to roll v{published['version']} back to v{begun.version}, and that was "
            f"not finished: `python -m pipeline rollback v{begun.version}` finishes it."
        )
    done = _rolled_back(production, published)
    return f"v{published['version']} was rolled back by {done.by} at {done.at}." if done else ""


def _rollback_begun(store: Store, production: Channel) -> Entry | None:
    begun = store.begun(production)
    return begun if begun and begun.why == "rollback" else None


def _rolled_back(production: Channel, published: Mapping) -> Entry | None:
    """The rollback that took this image out of production, unless it was let in again since; None if none did."""
    if production.live is None or published["version"] > production.live.highest:
        return None  # it never was there, so a long history need not be read
    for entry in production.newest_first():
        if entry.why == "rollback" and entry.left == published["digest"]:
            return entry
        if entry.image == published["digest"] and entry.why != "rollback":
            return None
    return None


def _production(context: Context) -> tuple[Store, Channel]:
    store = open_store(context.settings.store, Path(context.root))
    return store, store.channel("production")
