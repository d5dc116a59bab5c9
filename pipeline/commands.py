"""What each command of the command line does. Each takes its arguments and the paths, and returns an exit code."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from pipeline import errors
from pipeline.errors import SettingsError
from pipeline.execution import Paths
from pipeline.runner import Plan, Runner, needed, refuse_unprotected
from pipeline.stages import BY_NAME

SHOWN = 20
"""So many entries of a history are shown where nobody asks for all."""


def run(arguments: argparse.Namespace, paths: Paths) -> int:
    """Walks the stages; prints the table also when a stage fails."""
    names = _known(list(BY_NAME) if arguments.all else arguments.stages)
    if not names:
        raise SettingsError(f"name a stage, or --all. Stages: {', '.join(BY_NAME)}.")
    forced = frozenset(_known(arguments.force))
    if arguments.recheck is None and arguments.recheck_seed is not None:
        raise SettingsError("--recheck-seed says which stages --recheck N draws; give both.")
    if arguments.recheck is None:
        return _walk(Runner.open(paths, forced=forced), names)
    if forced:
        raise SettingsError("--recheck runs what holds already, and records nothing; leave --force out.")
    from pipeline.recheck import recheck

    recheck(Runner.open(paths), names, arguments.recheck, arguments.recheck_seed)
    return 0


def _walk(runner: Runner, names: Sequence[str]) -> int:
    """Walks the named stages and, on a laptop, what they need; in CI those ran in jobs of their own."""
    from pipeline import ci, logs, report

    wanted = needed(names)
    refuse_unprotected(set(names))  # before anything else is looked at, so that the reason is this one
    if ci.vendor() != ci.LAPTOP:
        runner.recall(name for name in wanted if name not in names)
        wanted = [name for name in wanted if name in names]
    try:
        runner.walk(wanted)
    finally:
        rows = [*runner.rows, *report.skipped(runner.rows, wanted)]
        if runner.rows:
            print(file=sys.stderr)
            report.table(rows)
            report.write(runner.paths.build / "report", rows, report.heading(runner.settings.model, rows))
            logs.after(runner)
    _closing_words(runner, wanted)
    return 0


def _closing_words(runner: Runner, wanted: Sequence[str]) -> None:
    """One sentence: whether anything had to be done, and where production answers."""
    settings = runner.settings
    if all(row.cached for row in runner.rows):
        print(f"Nothing to do: all that was asked ({len(wanted)}) holds for these inputs.", file=sys.stderr)
    live = runner.authority.channel("production").live if "promote" in wanted else None
    if live:
        address = settings.target.address
        print(
            f"Production serves {settings.model} v{live.version} ({live.image[:19]}) at "
            f"http://{address}:{settings.production.rest_port}/v1/models/{settings.model} "
            f"and gRPC {address}:{settings.production.grpc_port}, until `make down`.",
            file=sys.stderr,
        )


def _known(names: Sequence[str]) -> list[str]:
    """The names, if all are stages; the nearest one is offered for one that is not."""
    import difflib

    for name in names:
        if name not in BY_NAME:
            near = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Stages: {', '.join(BY_NAME)}."
            raise SettingsError(f"{name} is not a stage. {hint}")
    return list(names)


def plan(_: argparse.Namespace, paths: Paths) -> int:
    runner = Runner.open(paths)
    for stage, plan, waits in _looked(runner, list(BY_NAME)):
        print(f"{stage.name:<9} {_foreseen(plan, waits)}")
    return 0


def explain(arguments: argparse.Namespace, paths: Paths) -> int:
    (name,) = _known([arguments.stage])
    looked = _looked(Runner.open(paths), needed([name]))
    for stage, plan, waits in looked[:-1]:
        if waits or plan.why:
            print(f"before it, {stage.name} {_foreseen(plan, waits)}")
    stage, plan, waits = looked[-1]
    if waits:
        print(f"{name} {_foreseen(plan, waits)}")
        return 0
    if plan.why:
        print("\n".join([f"{name} runs, because:", *(f"  {reason}" for reason in plan.why)]))
    else:
        print(f"{name} {_foreseen(plan, waits)}")
    print(f"its key {plan.key[:12]} is made of:")
    for group, value in plan.parts.items():
        members = value.items() if isinstance(value, dict) else [("", value)]
        for member, item in members:
            print(f"  {group} {member}".rstrip() + f": {item}")
    return 0


def _looked(runner: Runner, names: Sequence[str]) -> list:
    """Each named stage with its plan or, where outputs that it reads are not made yet, the stages that it waits for."""
    found = []
    for stage in (BY_NAME[name] for name in names):
        waits = [name for name in stage.producers if name not in runner.done]
        plan = None if waits else runner.plan(stage)
        if plan and not plan.why:
            runner.done[stage.name] = plan.held
        found.append((stage, plan, waits))
    runner.digests.save()
    return found


def _foreseen(plan: Plan | None, waits: Sequence[str]) -> str:
    """What a run would do with a stage, in a few words."""
    if plan is None:
        return f"waits for {', '.join(waits)}"
    if not plan.why:
        return f"holds: it passed at {plan.held.finished} with the same inputs"
    more = f"; and {len(plan.why) - 3} more" if len(plan.why) > 3 else ""
    return f"runs: {'; '.join(plan.why[:3])}{more}"


def status(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    runner = Runner.open(paths)
    seen = operate.status(runner)
    if arguments.json:
        print(json.dumps(seen, indent=1))
    else:
        operate.print_status(seen, runner.authority)
    return 0


def history(arguments: argparse.Namespace, paths: Paths) -> int:
    import dataclasses
    import itertools

    from pipeline import operate

    authority = Runner.open(paths).authority
    channel = operate.channel(authority, arguments.channel)
    if arguments.at:
        live = channel.live_at(operate.moment(arguments.at))
        entries, more = [live] if live else [], 0
    else:
        entries = list(itertools.islice(channel.newest_first(), None if arguments.all else SHOWN))
        more = channel.revision - len(entries)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
    elif entries:
        operate.print_history(authority, entries, more)
    else:
        when = f" at {arguments.at}" if arguments.at else ""
        print(f"nothing was live{when}" if when else "nothing was ever let in")
    return 0


def approve(arguments: argparse.Namespace, paths: Paths) -> int:
    runner = Runner.open(paths, approving=True)
    live = runner.authority.channel("staging").live
    if live is None:
        raise errors.GateRefused("nothing is in staging yet; `make staging` puts it there.")
    if arguments.digest not in (None, live.image):
        raise errors.GateRefused(
            f"staging serves {live.image}, not {arguments.digest}; nothing was approved."
        )
    runner.recall(needed(["approve"])[:-1])
    if runner.done["publish"].digest != live.image:
        raise errors.GateRefused(
            f"staging serves {live.image}, and the files here make {runner.done['publish'].digest}; "
            "nothing was approved. `make staging` brings them together."
        )
    standing = runner.plan(BY_NAME["approve"])
    if standing.hit and not standing.why:
        print(f"Approved already: {standing.hit.sentence}")
        return 0
    runner.walk(["approve"])
    return 0


def rollback(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    version = arguments.version
    if version is not None and not re.fullmatch(r"v?[0-9]+", version):
        raise SettingsError(f"{version} is not a version; write it as v3 or 3.")
    print(operate.rollback(Runner.open(paths), int(version.removeprefix("v")) if version else None))
    return 0


def examine(_: argparse.Namespace, paths: Paths) -> int:
    """Opens neither the store nor a key: it runs what nobody trusts."""
    from pipeline import config
    from pipeline.child import function

    settings, build = config.load(paths.settings), paths.build
    places = function("deploy.examine.Places")(paths.root, paths.state, build / "image/layout")
    folder = function("deploy.examine.examine")(
        settings, places, lambda text: print(f"  {text}", file=sys.stderr)
    )
    print(folder.relative_to(paths.root))
    return 0


def verify(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import audit

    found = audit.audit(Runner.open(paths).authority, arguments.subject)
    print(json.dumps(found.document(), indent=1) if arguments.json else "\n".join(audit.lines(found)))
    return 0 if found.holds else errors.IntegrityError.exit_code


def lineage(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import audit

    print(audit.mermaid(audit.audit(Runner.open(paths).authority, arguments.subject)))
    return 0


def break_glass(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    print(operate.break_glass(Runner.open(paths), arguments.reason))
    return 0


def follow_up(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    print(operate.follow_up(Runner.open(paths), arguments.note))
    return 0


def keygen(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import keygen

    print(keygen.make(paths, arguments.name, arguments.role, arguments.identity))
    return 0


def down(_: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    stopped = operate.down(Runner.open(paths))
    print("\n".join(f"stopped {what}" for what in stopped) or "nothing was running")
    return 0


def logs(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import operate

    operate.print_logs(Runner.open(paths), arguments.environment, arguments.tail, arguments.follow)
    return 0


def comment(arguments: argparse.Namespace, _: Paths) -> int:
    from pipeline import comment

    print(comment.post(arguments.folder))
    return 0


def gc(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import gc

    print(gc.gc(Runner.open(paths), arguments.dry_run, arguments.lost))
    return 0


def fetch(arguments: argparse.Namespace, paths: Paths) -> int:
    from pipeline import fetch

    print(fetch.fetch(Runner.open(paths), arguments.output, arguments.to, arguments.subject))
    return 0


def doctor(arguments: argparse.Namespace, paths: Paths) -> int:
    if arguments.ci:
        from pipeline import protection
        from pipeline.trust import Trust

        approves = Trust.load(paths.root).has_role("approver")
        return protection.report(paths.root, vendor=arguments.ci, has_approver=approves)
    from pipeline import doctor

    return doctor.report(paths)
