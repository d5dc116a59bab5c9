"""The command line; turns our errors into exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline import commands
from pipeline.commands import SHOWN
from pipeline.errors import TidegateError
from pipeline.execution import Paths
from pipeline.settings import ROLES
from pipeline.stages import BY_NAME

_INTERRUPTED, _TERMINATED = 130, 143
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
    except KeyboardInterrupt as stopped:
        print("stopped; what was finished is kept, what was not is not used", file=sys.stderr)
        return _TERMINATED if isinstance(stopped, Terminated) else _INTERRUPTED


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever runs this takes the machine away, and wants what Ctrl-C wants."""


def stop_in_good_order() -> None:
    """Makes SIGTERM stop this process as Ctrl-C does. Once it is stopping, SIGTERM says nothing new.

    GitHub's runner sends SIGINT and, 7.5 s later, SIGTERM; a process group gets SIGTERM several times.
    """

    def ignore(*_: object) -> None:
        pass

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, ignore)
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, ignore)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, terminate)
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # else whoever started this has it ignored
        signal.signal(signal.SIGINT, interrupt)


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
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, does: str, function: Callable[..., int], example: str, **options: Any
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=does, description=does, epilog=f"example: python -m pipeline {example}"
        )
        sub.set_defaults(command=function, **options)
        return sub

    _add_runs(command)
    _add_looks(command)
    _add_audits(command)
    _add_doctor(command)
    _add_people(command)
    _add_upkeep(command)
    return top


def _add_runs(command: Callable) -> None:
    """Commands that run stages, or say which would."""
    runs = command("run", "run stages, and what they need", commands.run, "run evaluate")
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
    command(
        "examine",
        "run Trivy over the image in build/, without key or store; `run scan` judges what it found",
        commands.examine,
        "examine",
    )
    command("plan", "show which stages would run, and why", commands.plan, "plan")
    explains = command("explain", "say why a stage would run or not", commands.explain, "explain train")
    explains.add_argument("stage", metavar="STAGE", help=", ".join(BY_NAME))


def _add_looks(command: Callable) -> None:
    """Commands that show what runs, ran and was written; they change nothing."""
    looks = command(
        "status", "show what runs now, and what the channels name", commands.status, "status --json"
    )
    looks.add_argument("--json", action="store_true", help="the same, for programs")
    writes = command("logs", "show what staging or production wrote", commands.logs, "logs staging --follow")
    writes.add_argument(
        "environment", nargs="?", default="production", help="staging or production (production)"
    )
    writes.add_argument(
        "--tail", type=int, default=100, metavar="N", help="so many lines of each writer (100)"
    )
    writes.add_argument("--follow", action="store_true", help="go on with what they write, until Ctrl-C")
    past = command(
        "history", "show what was live when, and who let it in", commands.history, "history --at 2026-01-31"
    )
    past.add_argument("channel", nargs="?", default="production", help="staging or production (production)")
    past.add_argument("--at", metavar="TIME", help="only what was live at this time (ISO 8601)")
    past.add_argument("--all", action="store_true", help=f"all entries, not only the newest {SHOWN}")
    past.add_argument("--json", action="store_true", help="the same, for programs")


def _add_audits(command: Callable) -> None:
    """Commands that follow the records behind what a channel serves, or ever served."""
    audits = command(
        "verify",
        "judge the evidence behind what a channel serves, or ever served",
        commands.verify,
        "verify production",
    )
    audits.add_argument("subject", help="production, staging, a version (v3) or an image (NAME@sha256:…)")
    audits.add_argument("--json", action="store_true", help="the same, for programs")
    draws = command(
        "lineage", "draw what a version was made of, as Mermaid", commands.lineage, "lineage v3 > lineage.mmd"
    )
    draws.add_argument("subject", nargs="?", default="production", help="as for verify (production)")
    fetches = command(
        "fetch",
        "download an output of what a channel serves, or ever served",
        commands.fetch,
        "fetch train/log --to build/logs/v3 v3",
    )
    fetches.add_argument("output", help="as build/ names it: train/log, export/savedmodel, scan/report …")
    fetches.add_argument("--to", type=Path, required=True, metavar="DIR", help="a folder, new or empty")
    fetches.add_argument("subject", nargs="?", help="as for verify (production, else the newest that passed)")


def _add_doctor(command: Callable) -> None:
    """The command that looks at this machine, or at the CI platform."""
    doctors = command(
        "doctor",
        "show what this machine lacks, or the CI platform, with the remedy",
        commands.doctor,
        "doctor --ci",
    )
    doctors.add_argument(
        "--ci",
        nargs="?",
        const="auto",
        choices=("auto", "gitlab", "github"),
        help="ask GitLab or GitHub whether branches, environments, approvals and keys are as the gates need them",
    )


def _add_people(command: Callable) -> None:
    """Commands by which a person lets in or takes out, and says who may."""
    approves = command(
        "approve", "let the digest in staging into production, by name", commands.approve, "approve"
    )
    approves.add_argument("digest", nargs="?", help="refuse unless staging serves this digest (sha256:…)")
    backs = command(
        "rollback", "put an earlier version back into production, at once", commands.rollback, "rollback"
    )
    backs.add_argument("version", nargs="?", help="the version, as v3 or 3 (the one before)")
    breaks = command(
        "break-glass",
        "put the published version into production without the usual evidence, in writing",
        commands.break_glass,
        'break-glass --reason "all answers are wrong since 14:00, and the fix cannot wait for a canary"',
    )
    breaks.add_argument(
        "--reason", required=True, help="why; it is signed, and shown until it is followed up"
    )
    follows = command(
        "follow-up",
        "say what became of a break-glass",
        commands.follow_up,
        'follow-up --note "the fix was canaried the next day, see v9"',
    )
    follows.add_argument("--note", required=True, help="what was found and done")
    makes = command(
        "keygen", "make a key, and trust it with a role", commands.keygen, "keygen alice --role approver"
    )
    makes.add_argument("name", help="what history calls it")
    makes.add_argument("--role", action="append", required=True, metavar="ROLE", help=", ".join(ROLES))
    makes.add_argument(
        "--identity", action="append", default=[], help="a commit address or login of whoever holds it"
    )


def _add_upkeep(command: Callable) -> None:
    """Commands that stop, report and clean up."""
    command("down", "stop staging and production on this machine", commands.down, "down")
    comments = command(
        "comment", "tell a merge request what its pipeline found", commands.comment, "comment build"
    )
    comments.add_argument(
        "folder", nargs="?", type=Path, default=Path("build"), help="where its jobs' reports are (build)"
    )
    cleans = command("gc", "remove what no channel and no retention rule needs", commands.gc, "gc --dry-run")
    cleans.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    cleans.add_argument(
        "--lost",
        action="append",
        default=[],
        metavar="SHA256",
        help="go on without this record, which cannot be brought back",
    )


if __name__ == "__main__":
    stop_in_good_order()
    sys.exit(main())
