"""The command line; turns our errors into exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import errors
from pipeline.errors import SettingsError, TidegateError
from pipeline.execution import Paths
from pipeline.runner import Plan, Runner, needed
from pipeline.settings import ROLES
from pipeline.stages import BY_NAME

_INTERRUPTED = 130
_SHOWN = 20
_EXIT_CODES = """exit codes: 0 done, 1 a bug, 2 settings or usage, 3 a gate refused, 4 could not measure,
5 another program failed, 6 something is not what was signed, 7 lost a race"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments, Paths.of(Path.cwd(), arguments.settings.absolute())) or 0
    except TidegateError as error:
        from pipeline import report

        report.fault(error)
        return error.exit_code
    except BrokenPipeError:  # whoever read our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped; what was finished is kept, what was not is not used", file=sys.stderr)
        return _INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The commands, each with its help and an example."""
    top = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Takes a model from a commit to a gated production deployment.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--settings", type=Path, default=Path("pipeline.yaml"), help="the settings file (pipeline.yaml)"
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name, does, function, example, **options):
        sub = commands.add_parser(
            name, help=does, description=does, epilog=f"example: python -m pipeline {example}"
        )
        sub.set_defaults(command=function, **options)
        return sub

    _add_runs(command)
    _add_looks(command)
    _add_people(command)
    return top


def _add_runs(command: Callable) -> None:
    """Commands that run stages, or say which would."""
    runs = command("run", "run stages, and what they need", _run, "run evaluate")
    runs.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(BY_NAME))
    runs.add_argument("--all", action="store_true", help="all stages, up to production")
    runs.add_argument(
        "--force", action="append", default=[], metavar="STAGE", help="run it even if nothing changed"
    )
    runs.add_argument(
        "--recheck",
        type=int,
        metavar="N",
        help="run nothing; execute N of the stages that hold again, and compare with what is recorded",
    )
    runs.add_argument("--recheck-seed", type=int, metavar="SEED", help="draw the same N as another recheck")
    command("plan", "show which stages would run, and why", _plan, "plan")
    explains = command("explain", "say why a stage would run or not", _explain, "explain train")
    explains.add_argument("stage", metavar="STAGE", help=", ".join(BY_NAME))


def _add_looks(command: Callable) -> None:
    """Commands that look, and change nothing."""
    looks = command("status", "show what runs now, and what the channels name", _status, "status --json")
    looks.add_argument("--json", action="store_true", help="the same, for programs")
    past = command(
        "history", "show what was live when, and who let it in", _history, "history --at 2026-01-31"
    )
    past.add_argument("channel", nargs="?", default="production", help="staging or production (production)")
    past.add_argument("--at", metavar="TIME", help="only what was live at this time (ISO 8601)")
    past.add_argument("--all", action="store_true", help=f"all entries, not only the newest {_SHOWN}")
    past.add_argument("--json", action="store_true", help="the same, for programs")
    audits = command(
        "verify",
        "judge the evidence behind what a channel serves, or ever served",
        _verify,
        "verify production",
    )
    audits.add_argument("subject", help="production, staging, a version (v3) or an image (NAME@sha256:…)")
    audits.add_argument("--json", action="store_true", help="the same, for programs")
    draws = command(
        "lineage", "draw what a version was made of, as Mermaid", _lineage, "lineage v3 > lineage.mmd"
    )
    draws.add_argument("subject", nargs="?", default="production", help="as for verify (production)")
    fetches = command(
        "fetch",
        "download an output of what a channel serves, or ever served",
        _fetch,
        "fetch train/log --to logs/v3 v3",
    )
    fetches.add_argument("output", help="as build/ names it: train/log, export/savedmodel, scan/report …")
    fetches.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder, new or empty")
    fetches.add_argument("subject", nargs="?", help="as for verify (production, else the newest that passed)")
    looks = command(
        "doctor", "show what this machine lacks, or the CI platform, with the remedy", _doctor, "doctor --ci"
    )
    looks.add_argument(
        "--ci",
        nargs="?",
        const="auto",
        choices=("auto", "gitlab", "github"),
        help="ask GitLab or GitHub whether branches, environments, approvals and keys are as the gates need them",
    )


def _add_people(command: Callable) -> None:
    """Commands by which a person lets in, takes out, or stops."""
    approves = command("approve", "let the digest in staging into production, by name", _approve, "approve")
    approves.add_argument("digest", nargs="?", help="refuse unless staging serves this digest (sha256:…)")
    backs = command("rollback", "put an earlier version back into production, at once", _rollback, "rollback")
    backs.add_argument("version", nargs="?", help="the version, as v3 or 3 (the one before)")
    breaks = command(
        "break-glass",
        "put the published version into production without the usual evidence, in writing",
        _break_glass,
        'break-glass --reason "all answers are wrong since 14:00, and the fix cannot wait for a canary"',
    )
    breaks.add_argument(
        "--reason", required=True, help="why; it is signed, and shown until it is followed up"
    )
    follows = command(
        "follow-up",
        "say what became of a break-glass",
        _follow_up,
        'follow-up --note "the fix was canaried the next day, see v9"',
    )
    follows.add_argument("--note", required=True, help="what was found and done")
    makes = command("keygen", "make a key, and trust it with a role", _keygen, "keygen alice --role approver")
    makes.add_argument("name", help="what history calls it")
    makes.add_argument("--role", action="append", required=True, metavar="ROLE", help=", ".join(ROLES))
    makes.add_argument(
        "--identity", action="append", default=[], help="a commit address or login of whoever holds it"
    )
    command("down", "stop staging and production on this machine", _down, "down")
    cleans = command("gc", "remove what no channel and no retention rule needs", _gc, "gc --dry-run")
    cleans.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    cleans.add_argument(
        "--lost",
        action="append",
        default=[],
        metavar="SHA256",
        help="go on without this record, which cannot be brought back",
    )


def _run(arguments, paths: Paths) -> int:
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

    return recheck(Runner.open(paths), names, arguments.recheck, arguments.recheck_seed)


def _walk(runner: Runner, names: Sequence[str]) -> int:
    """Walks the named stages and, on a laptop, what they need; in CI those ran in jobs of their own."""
    from pipeline import ci, logs, report

    wanted = needed(names)
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
    if "promote" in wanted:
        live = runner.store.channel("production").live
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


def _plan(_, paths: Paths) -> int:
    runner = Runner.open(paths)
    for stage, plan, waits in _looked(runner, list(BY_NAME)):
        print(f"{stage.name:<9} {_foreseen(plan, waits)}")
    return 0


def _explain(arguments, paths: Paths) -> int:
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
            runner.done[stage.name] = plan.hit
        found.append((stage, plan, waits))
    runner.digests.save()
    return found


def _foreseen(plan: Plan | None, waits: Sequence[str]) -> str:
    """What a run would do with a stage, in a few words."""
    if waits:
        return f"waits for {', '.join(waits)}"
    if not plan.why:
        return f"holds: it passed at {plan.hit.finished} with the same inputs"
    more = f"; and {len(plan.why) - 3} more" if len(plan.why) > 3 else ""
    return f"runs: {'; '.join(plan.why[:3])}{more}"


def _status(arguments, paths: Paths) -> int:
    from pipeline import operate

    runner = Runner.open(paths)
    seen = operate.status(runner)
    if arguments.json:
        print(json.dumps(seen, indent=1))
    else:
        operate.print_status(seen, runner)
    return 0


def _history(arguments, paths: Paths) -> int:
    import dataclasses
    import itertools

    from pipeline import operate

    runner = Runner.open(paths)
    channel = operate.channel(runner, arguments.channel)
    if arguments.at:
        live = channel.live_at(operate.moment(arguments.at))
        entries, more = [live] if live else [], 0
    else:
        entries = list(itertools.islice(channel.newest_first(), None if arguments.all else _SHOWN))
        more = channel.revision - len(entries)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=1))
    elif entries:
        operate.print_history(runner, entries, more)
    else:
        when = f" at {arguments.at}" if arguments.at else ""
        print(f"nothing was live{when}" if when else "nothing was ever let in")
    return 0


def _approve(arguments, paths: Paths) -> int:
    runner = Runner.open(paths, approving=True)
    live = runner.store.channel("staging").live
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


def _rollback(arguments, paths: Paths) -> int:
    from pipeline import operate

    version = arguments.version
    if version is not None and not re.fullmatch(r"v?[0-9]+", version):
        raise SettingsError(f"{version} is not a version; write it as v3 or 3.")
    print(operate.rollback(Runner.open(paths), int(version.removeprefix("v")) if version else None))
    return 0


def _verify(arguments, paths: Paths) -> int:
    from pipeline import audit

    found = audit.audit(Runner.open(paths), arguments.subject)
    print(json.dumps(found.document(), indent=1) if arguments.json else "\n".join(audit.lines(found)))
    return 0 if found.holds else errors.IntegrityError.exit_code


def _lineage(arguments, paths: Paths) -> int:
    from pipeline import audit

    print(audit.mermaid(audit.audit(Runner.open(paths), arguments.subject)))
    return 0


def _break_glass(arguments, paths: Paths) -> int:
    from pipeline import operate

    print(operate.break_glass(Runner.open(paths), arguments.reason))
    return 0


def _follow_up(arguments, paths: Paths) -> int:
    from pipeline import operate

    print(operate.follow_up(Runner.open(paths), arguments.note))
    return 0


def _keygen(arguments, paths: Paths) -> int:
    from pipeline import keygen

    print(keygen.make(paths, arguments.name, arguments.role, arguments.identity))
    return 0


def _down(_, paths: Paths) -> int:
    from pipeline import operate

    stopped = operate.down(Runner.open(paths))
    print("\n".join(f"stopped {what}" for what in stopped) or "nothing was running")
    return 0


def _gc(arguments, paths: Paths) -> int:
    from pipeline import gc

    print(gc.gc(Runner.open(paths), arguments.dry_run, arguments.lost))
    return 0


def _fetch(arguments, paths: Paths) -> int:
    from pipeline import fetch

    print(fetch.fetch(Runner.open(paths), arguments.output, arguments.to, arguments.subject))
    return 0


def _doctor(arguments, paths: Paths) -> int:
    if arguments.ci:
        from pipeline import protection
        from pipeline.trust import Trust

        approves = Trust.load(paths.root).has_role("approver")
        return protection.report(paths.root, vendor=arguments.ci, has_approver=approves)
    from pipeline import doctor

    return doctor.report(paths)


if __name__ == "__main__":
    sys.exit(main())
