"""A person lets one digest in; on a laptop the pipeline does, for the local target, and says so."""

import json
from datetime import UTC, datetime
from pathlib import Path

from pipeline.ci import LAPTOP
from pipeline.stages import Context, Outcome, Result
from pipeline.store import Entry, open_store


def approve(context: Context) -> Result:
    """Approves the published digest, and that one alone.

    Without a person (`make ci-local`) the local target is approved automatically, except for a version
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
    taken_back = _rolled_back(context, published["digest"])
    if automatic and taken_back:
        return Result(
            Outcome.FAILED,
            f"v{published['version']} was rolled back by {taken_back.by} at {taken_back.at}. "
            "If it may go in again, say so: make approve, then run again.",
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
        "automatically, for the local target, as nobody else is asked on a laptop" if automatic else "by name"
    )
    sentence = f"{who} approves v{published['version']}, {published['digest']}, {how}."
    context.say(sentence)
    return Result(Outcome.PASSED, sentence, digest=published["digest"])


def withdrawn(context: Context) -> str | None:
    """Why an approval counts no longer: production has moved on to something else since. None if it counts.

    So an approval lets a version in once; going back, or another version, uses it up.
    """
    approval = json.loads((context.inputs["approve/approval"] / "approval.json").read_bytes())
    since = [e for e in _history(context) if e.at > approval["at"] and e.image != approval["digest"]]
    if not since:
        return None
    what = "rolled back to" if since[0].why == "rollback" else "promoted"
    return f"{since[0].by} {what} v{since[0].version} after it was given, at {since[0].at}"


def _rolled_back(context: Context, digest: str) -> Entry | None:
    """The rollback that took this image out of production, unless it was let in again since; None if none did."""
    for entry in reversed(_history(context)):
        if entry.why == "rollback" and entry.left == digest:
            return entry
        if entry.image == digest and entry.why != "rollback":
            return None
    return None


def _history(context: Context) -> tuple[Entry, ...]:
    return open_store(context.settings.store, Path(context.root)).channel("production").history
