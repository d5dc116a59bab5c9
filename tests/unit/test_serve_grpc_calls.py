"""gRPC calls from their beginning to their answer, without a connection: what their queue and their client do."""

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from serve import grpc_calls, log
from serve.grpc_calls import Answers, Runs
from serve.leases import Handle
from serve.model import Servable
from serve.observe import Observer
from serve.status import Code, ServingError, invalid
from serve.task import Task
from serve.work import Work

SOON_S = 30
OUTPUT = [np.float32([[2]])]
REQUEST = SimpleNamespace(model_spec=SimpleNamespace(name="m"))


class Queue:
    """Keeps what was submitted; the test settles it."""

    def __init__(self, refusal=None):
        self.tasks = []
        self.refusal = refusal

    def submit(self, feeds, fetches, deadline, done):
        if self.refusal:
            raise self.refusal
        self.tasks.append(Task(feeds, fetches, deadline, done))
        return self.tasks[-1]


class Context:
    """What a call knows of its client."""

    def __init__(self, is_there=True, remaining_s=None, aborted=None):
        self.is_there = is_there
        self.remaining_s = remaining_s
        self.callbacks = []
        self.trailing = ()

    def invocation_metadata(self):
        return [("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01")]

    def time_remaining(self):
        return self.remaining_s

    def add_callback(self, callback):
        self.callbacks.append(callback)
        return self.is_there

    def set_trailing_metadata(self, metadata):
        self.trailing = metadata

    def abort(self, code, details):
        raise PermissionError(code, details)


class Called:
    """A method with one model, and a call of it."""

    def __init__(self, refusal=None, read=None, finish=None, aside=None, **context):
        self.queue = Queue(refusal)
        self.handle = Handle(Servable("m", 3, SimpleNamespace(queue=self.queue)))
        self.context = Context(**context)
        self.replies = SimpleQueue()
        self.seen = []
        observer = Observer()
        observer.sampled = lambda *facts: self.seen.append(facts)
        self.runs = Runs(
            "Predict",
            lambda request: self.handle.lease(),
            read
            or (
                lambda model, request: Work(
                    {"x": np.float32([[1]])}, ["y"], finish or (lambda found: found[0].tolist())
                )
            ),
            lambda servable, response: (servable.name, servable.version, response),
            False,
            observer,
            Answers(aside),
        )

    def begin(self):
        self.runs.begin(REQUEST, self.context, self.replies.put)
        return self

    def reply(self):
        return self.replies.get(timeout=SOON_S)

    def is_over(self):
        """Whether the version is in use no more, and nothing else was replied."""
        self.handle.close()
        return self.handle.idle and self.replies.empty()


def test_call_is_answered_once_its_run_is_done_and_leaves_nothing_behind():
    called = Called().begin()
    (task,) = called.queue.tasks
    assert called.replies.empty()
    task.settle(OUTPUT)
    assert called.reply() == ("m", 3, [[2.0]])
    assert called.context.trailing[0][0] == "traceresponse"
    for callback in called.context.callbacks:  # as gRPC does at the end of every call
        callback()
    assert called.is_over()


@pytest.mark.parametrize(
    ("remaining_s", "code"),
    [(None, Code.CANCELLED), (SOON_S, Code.CANCELLED), (0, Code.DEADLINE_EXCEEDED)],
)
@pytest.mark.parametrize("is_there", [True, False])
def test_run_that_waits_for_a_client_that_left_is_left_out(remaining_s, code, is_there):
    called = Called(is_there=is_there, remaining_s=remaining_s).begin()
    (task,) = called.queue.tasks
    if is_there:
        called.context.callbacks[0]()  # it leaves right now
    reply = called.reply()
    assert isinstance(reply, ServingError)
    assert reply.code is code
    assert task.over(time.monotonic())
    task.settle(OUTPUT)
    assert called.is_over()


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ({"refusal": ServingError(Code.RESOURCE_EXHAUSTED, "full")}, Code.RESOURCE_EXHAUSTED),
        ({"read": lambda model, request: 1 / 0}, Code.INTERNAL),
        ({"read": lambda model, request: Work({}, [], list, "too many")}, Code.INTERNAL),
    ],
)
def test_call_that_cannot_be_queued_is_told_why_and_gives_its_version_back(trouble, code):
    called = Called(**trouble).begin()
    assert called.reply().code is code
    assert called.is_over()


@pytest.mark.parametrize(
    ("outcome", "finish", "code"),
    [
        (invalid("no"), None, Code.INVALID_ARGUMENT),
        (OUTPUT, lambda found: found[1], Code.INTERNAL),
        (OUTPUT, lambda found: (_ for _ in ()).throw(MemoryError), Code.RESOURCE_EXHAUSTED),
    ],
)
def test_run_that_fails_and_answer_that_cannot_be_written_are_told(outcome, finish, code):
    called = Called(finish=finish and (lambda found: list(finish(found)))).begin()
    called.queue.tasks[0].settle(outcome)
    assert called.reply().code is code
    assert not called.seen
    assert called.is_over()


def test_what_was_answered_is_offered_to_the_request_log():
    called = Called().begin()
    called.queue.tasks[0].settle(OUTPUT)
    reply = called.reply()
    deadline = time.monotonic() + SOON_S
    while not called.seen and time.monotonic() < deadline:
        time.sleep(0.001)
    assert called.seen == [("Predict", REQUEST, reply)]


def test_large_answers_are_written_aside():
    with ThreadPoolExecutor(1) as aside:
        called = Called(aside=aside, finish=lambda found: found[0].size).begin()
        called.queue.tasks[0].settle([np.zeros(grpc_calls._ASIDE_VALUES + 1)])
        assert called.reply() == ("m", 3, grpc_calls._ASIDE_VALUES + 1)
        assert aside._threads


def test_call_may_wait_in_a_thread_of_its_own():
    called = Called()
    with ThreadPoolExecutor(2) as pool:
        for outcome in (OUTPUT, invalid("no")):
            answer = pool.submit(called.runs, REQUEST, called.context)
            while not called.queue.tasks:
                time.sleep(0.001)
            called.queue.tasks.pop().settle(outcome)
            if outcome is OUTPUT:
                assert answer.result(SOON_S) == ("m", 3, [[2.0]])
            else:
                with pytest.raises(PermissionError) as told:
                    answer.result(SOON_S)
                assert told.value.args == (grpc.StatusCode.INVALID_ARGUMENT, "no")
    assert called.is_over()


def test_call_is_answered_though_it_cannot_be_counted_or_offered_and_so_is_the_next(capsys):
    called = Called()
    called.runs.observer.ended = called.runs.observer.sampled = lambda *_: 1 / 0
    for _ in range(2):
        called.begin()
        called.queue.tasks.pop().settle(OUTPUT)
        assert called.reply() == ("m", 3, [[2.0]])
    assert called.is_over()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_log_that_cannot_be_written_costs_its_line_alone(monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stderr", Full())
    log.info("lost")
    called = Called(finish=lambda found: [][0]).begin()
    called.queue.tasks[0].settle(OUTPUT)
    assert called.reply().code is Code.INTERNAL
