"""Threads for calls: how many work at once, and that those which wait keep nobody from working."""

import threading
from concurrent.futures import wait

import pytest

from serve import call_threads
from serve.call_threads import CallThreads

SOON_S = 30


def test_so_many_work_at_once_and_the_others_come_after_them():
    threads, lock, go = CallThreads(2), threading.Lock(), threading.Event()
    at_work = most = 0

    def job(number):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        assert go.wait(SOON_S)
        with lock:
            at_work -= 1
        return number

    found = [threads.submit(job, number) for number in range(20)]
    go.set()
    assert [each.result(SOON_S) for each in found] == list(range(20))
    assert most <= 2


def test_calls_that_wait_keep_no_other_from_working():
    threads, go = CallThreads(2), threading.Event()

    def hangs():
        with call_threads.waiting():
            return go.wait(SOON_S)

    hanging = [threads.submit(hangs) for _ in range(40)]
    assert [threads.submit(lambda: "here").result(SOON_S) for _ in range(5)] == ["here"] * 5
    assert not any(each.done() for each in hanging)
    go.set()
    assert all(each.result(SOON_S) for each in hanging)


def test_places_are_as_many_as_before_once_all_have_waited():
    threads, barrier = CallThreads(3), threading.Barrier(30)

    def meets():
        with call_threads.waiting():
            barrier.wait(SOON_S)

    for _ in range(20):
        wait([threads.submit(meets) for _ in range(30)], SOON_S)
    threads.submit(lambda: None).result(SOON_S)
    together = threading.Barrier(3)
    assert {each.result(SOON_S) for each in [threads.submit(together.wait, SOON_S) for _ in range(3)]} == {
        0,
        1,
        2,
    }
    assert threads._places + (threads._count - threads._idle) == 3


def test_what_a_call_raises_is_its_callers_and_the_thread_goes_on():
    threads = CallThreads(1)
    failed = threads.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(SOON_S)
    assert threads.submit(lambda: 1).result(SOON_S) == 1


def test_a_call_that_was_cancelled_before_its_turn_is_not_run():
    threads, go, ran = CallThreads(1), threading.Event(), []
    first = threads.submit(go.wait, SOON_S)
    second = threads.submit(ran.append, 2)
    assert second.cancel()
    go.set()
    assert first.result(SOON_S)
    assert threads.submit(lambda: 3).result(SOON_S) == 3
    assert ran == []


def test_no_more_threads_than_the_system_gives(monkeypatch):
    threads, go = CallThreads(4), threading.Event()
    first = threads.submit(go.wait, SOON_S)

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    second = threads.submit(lambda: 2)
    assert not second.done()
    go.set()
    assert (first.result(SOON_S), second.result(SOON_S)) == (True, 2)


def test_there_are_no_more_threads_than_allowed_however_many_wait(monkeypatch):
    monkeypatch.setattr(call_threads, "_AT_MOST", 3)
    threads, go = CallThreads(2), threading.Event()

    def hangs():
        with call_threads.waiting():
            return go.wait(SOON_S)

    hanging = [threads.submit(hangs) for _ in range(10)]
    assert threads._count <= 3
    go.set()
    assert all(each.result(SOON_S) for each in hanging)
    assert threads._count <= 3


def test_outside_of_such_threads_waiting_means_nothing():
    with call_threads.waiting():
        pass


def test_there_is_a_thread_for_the_first_call_even_if_the_system_gives_none_then(monkeypatch):
    threads = CallThreads(4)

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    found = [threads.submit(lambda number=number: number) for number in range(3)]
    assert [each.result(SOON_S) for each in found] == [0, 1, 2]
