"""The first stage: linters, types, pins, unit tests, coverage. Changes nothing."""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from pipeline import lint, pins, run
from pipeline.errors import ProgramFailed
from pipeline.settings import Bound
from pipeline.stages import Context, Decided, Outcome, Result

_NONE_COLLECTED = 5


def check(context: Context) -> Result:
    """Runs the linters beside the unit tests; writes junit.xml (JUnit), coverage.xml (Cobertura), and each report.

    Raises ProgramFailed for a linter that could not do its work: what nobody looked at has not passed.
    """
    folder = context.out / "report"
    folder.mkdir()
    with lint.started(context.root, folder, context.state / "cache" / "mypy") as linted:
        status = _unit_tests(context, folder)
        verdicts = [*linted(), _pins(context.root, folder)]
    tested = _judge(
        status, _count(folder / "junit.xml"), folder / "coverage.xml", context.settings.check.coverage
    )
    return _both(verdicts, tested)


def _pins(root: Path, folder: Path) -> lint.Verdict:
    """The verdict on what could move (pipeline/pins.py), as if it were a linter's."""
    faults = pins.look(root, list(lint.files(root)))
    (folder / "pins.txt").write_text("\n".join(faults or ["nothing was found"]) + "\n")
    if not faults:
        return lint.Verdict("pins")
    print("  pins:\n" + "\n".join(faults), file=sys.stderr, flush=True)
    return lint.Verdict("pins", faults="pins found names that could move, listed above with what to write.")


def _both(verdicts: Sequence[lint.Verdict], tested: Result) -> Result:
    """The linters' verdicts and the tests' in one. A linter's error comes first, then any refusal."""
    errors = [verdict.error for verdict in verdicts if verdict.error]
    if errors:
        raise ProgramFailed("\n".join([*errors, "What nobody looked at has not passed."]))
    faults = [verdict.faults for verdict in verdicts if verdict.faults]
    numbers = {**tested.numbers, "linters": len(verdicts), "linters_with_faults": len(faults)}
    if not faults:
        says = f"{tested.sentence} {len(verdicts)} linters found nothing." if tested.sentence else ""
        return Result(tested.outcome, says, numbers, tested.decided)
    failed = [tested.sentence] if tested.outcome != Outcome.PASSED else []
    decided = Decided("linters with faults", len(faults), Bound(at_most=0))
    return Result(Outcome.FAILED, "\n".join([*faults, *failed]), numbers, decided)


def _unit_tests(context: Context, folder: Path) -> int:
    argv = [sys.executable, "-m", "pytest", "tests/unit", "-q", "-p", "no:cacheprovider"]
    argv += [
        f"--junitxml={folder / 'junit.xml'}",
        "--cov",
        "--cov-report=",
        f"--cov-report=xml:{folder / 'coverage.xml'}",
    ]
    env = {"COVERAGE_FILE": str(context.work / "coverage"), "PYTHONDONTWRITEBYTECODE": "1"}
    run.show(argv)
    return run.attend(argv, timeout_s=context.settings.check.timeout_s, cwd=context.root, env=env)


def _count(junit: Path) -> dict[str, int]:
    """How many tests ran, failed, could not run, and were skipped."""
    if not junit.exists():
        return {}
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))
    return {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}


def _judge(status: int, counts: dict[str, int], cobertura: Path, coverage: Bound) -> Result:
    """The verdict. No tests at all are no data, not a pass."""
    if status == _NONE_COLLECTED or not counts.get("tests"):
        return Result(Outcome.NO_DATA, "no unit test was collected; tests/unit must hold some.")
    bad = counts["failures"] + counts["errors"]
    if status != 0 or bad:
        failed = Decided("failed tests", bad, Bound(at_most=0))
        return Result(
            Outcome.FAILED, f"{bad} of {counts['tests']} unit tests failed; see above.", counts, failed
        )
    covered = round(100 * float(ElementTree.parse(cobertura).getroot().attrib["line-rate"]), 2)
    numbers = {**counts, "coverage_percent": covered}
    decided = Decided("coverage %", covered, coverage)
    if not coverage.holds(covered):
        asks = f"check.coverage asks {coverage}"
        return Result(
            Outcome.FAILED, f"the unit tests cover {covered} % of the lines, {asks}.", numbers, decided
        )
    return Result(
        Outcome.PASSED, f"{counts['tests']} unit tests passed, coverage {covered} %.", numbers, decided
    )
