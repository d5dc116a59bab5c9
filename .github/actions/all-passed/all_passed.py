"""Fails unless every job that this one needs succeeded. A skipped, cancelled or missing one is no success."""

import json
import os
import sys
from collections.abc import Mapping

_GATE_REFUSED = 3


def not_passed(results: Mapping[str, Mapping]) -> list[str]:
    """Each job that did not succeed, with what became of it; `results` is GitHub's needs context."""
    if not results:
        return ["no job: nothing was waited for"]
    return [
        f"{job}: {said.get('result')}" for job, said in results.items() if said.get("result") != "success"
    ]


def main() -> int:
    results = json.loads(os.environ["RESULTS"])
    faults = not_passed(results)
    for fault in faults:
        print(f"::error::{fault}; this run is not complete")
    if not faults:
        print(f"all passed: {', '.join(results)}")
    return _GATE_REFUSED if faults else 0


if __name__ == "__main__":
    sys.exit(main())
