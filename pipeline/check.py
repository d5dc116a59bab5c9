"""The first stage: lint, format, unit tests, coverage. Changes nothing."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from pipeline import run
from pipeline.settings import Bound
from pipeline.stages import Context, Decided, Outcome, Result

_NONE_COLLECTED = 5
_LINT_TIMEOUT_S = 120


def check(context: Context) -> Result:
    """Runs ruff and the unit tests; writes junit.xml (JUnit) and coverage.xml (Cobertura)."""
    folder = context.out / "report"
    folder.mkdir()
    for argv in (["ruff", "check", "--no-cache", "."], ["ruff", "format", "--no-cache", "--check", "."]):
        done = run.run(argv, timeout_s=_LINT_TIMEOUT_S, cwd=context.root, check=False)
        (folder / f"ruff-{argv[1]}.txt").write_text(done.stdout)
        if done.returncode != 0:
            print(done.stdout + done.stderr, file=sys.stderr)
            return Result(
                Outcome.FAILED, f"{' '.join(argv[:2])} found faults, listed above. `make fix` mends many."
            )
    status = _unit_tests(context, folder)
    return _judge(
        status, _count(folder / "junit.xml"), folder / "coverage.xml", context.settings.check.coverage
    )


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
    covered = round(100 * float(ElementTree.parse(cobertura).getroot().get("line-rate")), 2)
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
