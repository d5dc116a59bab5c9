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
    """Why an approval counts no longer: the version was rolled back after it was given. None if it counts."""
    approval = json.loads((context.inputs["approve/approval"] / "approval.json").read_bytes())
    taken_back = _rolled_back(context, approval["digest"])
    if taken_back and taken_back.at > approval["at"]:
        return f"{taken_back.by} rolled it back at {taken_back.at}"
    return None


def _rolled_back(context: Context, digest: str) -> Entry | None:
    """The newest rollback that took this image out of production; None if none did."""
    history = open_store(context.settings.store, Path(context.root)).channel("production").history
    return next((e for e in reversed(history) if e.why == "rollback" and e.left == digest), None)
