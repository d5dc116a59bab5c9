"""A session is closed once, and not from under a run."""

import threading

import pytest

from serve.runs import Runs
from serve.status import ServingError


def test_session_is_closed_at_once_where_nothing_runs_and_only_once():
    closed = []
    runs = Runs(lambda: closed.append(1))
    with runs:
        pass
    assert not closed
    runs.end()
    runs.end()
    assert closed == [1]


def test_session_is_closed_when_the_last_run_is_over_and_takes_no_new_one_before():
    closed = []
    runs = Runs(lambda: closed.append(1))
    with runs:
        with runs:
            runs.end()
            with pytest.raises(ServingError, match="UNAVAILABLE: this version is being unloaded"), runs:
                pass
        assert not closed
    assert closed == [1]


def test_run_that_fails_is_over_too():
    closed = []
    runs = Runs(lambda: closed.append(1))

    def fail():
        with runs:
            runs.end()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert closed == [1]


def test_of_many_runs_in_threads_the_session_is_closed_after_all():
    events: list[str] = []
    runs = Runs(lambda: events.append("closed"))
    begun, go_on = threading.Barrier(9), threading.Event()

    def run():
        with runs:
            begun.wait(5)
            go_on.wait(5)
            events.append("ran")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait(5)
    runs.end()
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert events == ["ran"] * 8 + ["closed"]
