"""Ports of tests: each of pytest-xdist's workers has a thousand of its own, so that files may run side by side."""

import os

# Ports from 24000 on are for tests that take free ones, those from 32768 on the system's.
_PER_WORKER = 1000
_MOST_WORKERS = 4


def port(number: int) -> int:
    """`number`, from 20000 to 20999, moved to the thousand of this worker; of the first, or of no worker, unmoved."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    assert 20_000 <= number < 20_000 + _PER_WORKER, f"{number} is no port of the tests' own"
    assert worker < _MOST_WORKERS, f"tests run on at most {_MOST_WORKERS} workers: each has ports of its own"
    return number + _PER_WORKER * worker
