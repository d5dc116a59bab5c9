"""How runs wait and which of them run as one, without `--enable_batching`; on models that wait to be let go."""

import gc
import threading
import time
import weakref
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import pytest

from serve import dtypes, framework, lines
from serve.batch import Joinable
from serve.lines import Limits
from serve.model import Signature, TensorSpec
from serve.queues import Adaptive, Direct, Inline, Options, Queued, queue_of, run_in
from serve.status import Code, ServingError, invalid
from serve.work import Work

PATIENCE_S = 20
WAITED = "DEADLINE_EXCEEDED: Timed out waiting for the model to be free"
RUNNING = "DEADLINE_EXCEEDED: Timed out waiting for notification"


def spec(name, *shape):
    return TensorSpec(f"{name}:0", dtypes.FLOAT, shape)


PLAIN = Signature({"x": spec("x", None, None)}, {"y": spec("y", None, None), "z": spec("z", None)})


class Model:
    """y is twice x, z its first column. While `hold` is used, runs wait in it; each that begins is told."""

    signature_defs = None

    def __init__(self, **signatures):
        self.signatures = signatures or {"serving_default": PLAIN}
        self.runs = []
        self.began = SimpleQueue()
        self.gate = threading.Event()
        self.gate.set()
        self.closed = False

    def run(self, feeds, fetches):
        self.runs.append(feeds["x:0"].tolist())
        self.began.put(None)
        assert self.gate.wait(PATIENCE_S)
        return self.answer(feeds["x:0"], fetches)

    def answer(self, x, fetches):
        return [
            {"y:0": x * 2, "z:0": x[:, 0] if x.ndim > 1 else x, "mean:0": x.sum()}[name] for name in fetches
        ]

    def close(self):
        self.closed = True

    @contextmanager
    def hold(self, queue):
        """The model is busy with a first run, [[0]], so that what is submitted now waits."""
        self.gate.clear()
        busy = ask(queue, [[0]])
        self.began.get(timeout=PATIENCE_S)
        yield busy
        self.gate.set()


class Asked:
    """A request: what came back, and its ticket."""

    def __init__(self, queue, x, fetches, deadline):
        self.outcomes = SimpleQueue()
        self.ticket = queue.submit(
            {"x:0": np.asarray(x, np.float32)}, list(fetches), deadline, self.outcomes.put
        )

    def outcome(self):
        return self.outcomes.get(timeout=PATIENCE_S)

    def rows(self):
        found = self.outcome()
        assert not isinstance(found, ServingError), found
        return [tensor.tolist() for tensor in found]


def ask(queue, x, fetches=("y:0",), deadline=None) -> Asked:
    return Asked(queue, x, fetches, deadline)


def adaptive(model, **options) -> Adaptive:
    return Adaptive(model, "m", Options(**options))


def test_lone_request_runs_at_once_and_alone():
    model = Model()
    assert ask(adaptive(model), [[1], [2]]).rows() == [[[2], [4]]]
    assert model.runs == [[[1], [2]]]


def test_requests_that_wait_while_the_model_is_busy_run_as_one_and_get_their_own_rows():
    model = Model()
    queue = adaptive(model)
    with model.hold(queue) as busy:
        waiting = [ask(queue, x, ("y:0", "z:0")) for x in ([[1]], [[2], [3]], [[4]])]
    assert busy.rows() == [[[0]]]
    assert [each.rows() for each in waiting] == [
        [[[2]], [1]],
        [[[4], [6]], [2, 3]],
        [[[8]], [4]],
    ]
    assert model.runs == [[[0]], [[1], [2], [3], [4]]]


def test_requests_of_as_many_rows_each_are_told_apart_too():
    model = Model()
    queue = adaptive(model)
    with model.hold(queue):
        waiting = [ask(queue, [[n], [n + 1]], ("z:0",)) for n in (1, 3, 5)]
    assert [each.rows() for each in waiting] == [[[1, 2]], [[3, 4]], [[5, 6]]]


def test_run_has_no_more_rows_than_allowed_but_for_a_request_that_has_more_by_itself():
    model = Model()
    queue = adaptive(model, rows_at_most=3)
    with model.hold(queue):
        waiting = [ask(queue, [[n]] * n) for n in (2, 1, 1, 4)]
    assert [len(each.rows()[0]) for each in waiting] == [2, 1, 1, 4]
    assert [len(run) for run in model.runs] == [1, 3, 1, 4]


def test_requests_for_other_outputs_run_apart():
    model = Model()
    queue = adaptive(model)
    with model.hold(queue):
        one, two, three = ask(queue, [[1]]), ask(queue, [[2]], ("z:0",)), ask(queue, [[3]])
    assert [one.rows(), two.rows(), three.rows()] == [[[[2]]], [[2]], [[[6]]]]
    assert model.runs[1:] == [[[1], [3]], [[2]]]


def test_requests_of_other_inner_shapes_run_with_their_like():
    model = Model()
    queue = adaptive(model)
    with model.hold(queue):
        waiting = [ask(queue, x) for x in ([[1]], [[2, 2]], [[3]])]
    assert [each.rows() for each in waiting] == [[[[2]]], [[[4, 4]]], [[[6]]]]
    assert model.runs[1:] == [[[1], [3]], [[2, 2]]]


@pytest.mark.parametrize(
    "signature",
    [
        Signature({"x": spec("x", None, 1)}, {"y": spec("y", None), "mean": spec("mean")}),
        Signature({"x": spec("x", 8, 1)}, {"y": spec("y", None)}),
        Signature({"x": spec("x", None)}, {"y": spec("y", 1)}),
        Signature({"x": TensorSpec("x:0", dtypes.FLOAT)}, {"y": spec("y", None)}),
        Signature({"x": spec("x", None), "s": spec("s")}, {"y": spec("y", None)}),
        Signature({}, {"y": spec("y", None)}),
    ],
    ids=["scalar output", "fixed input", "fixed output", "unknown rank", "scalar input", "no input"],
)
def test_signature_that_fixes_a_first_dimension_is_not_joined(signature):
    assert not Joinable.of({"s": signature}).outputs


def test_run_outside_of_batchable_signatures_is_alone():
    model = Model(s=Signature({"x": spec("x", None, 1)}, {"y": spec("y", 1, 1)}))
    queue = adaptive(model, threads_alone=1)
    with model.hold(queue):
        waiting = [ask(queue, [[n]]) for n in (1, 2)]
    assert [each.rows() for each in waiting] == [[[[2]]], [[[4]]]]
    assert model.runs == [[[0]], [[1]], [[2]]]


def test_signatures_with_the_same_inputs_may_be_asked_together():
    other = Signature(PLAIN.inputs, {"w": spec("w", None)})
    joinable = Joinable.of({"a": PLAIN, "b": other})
    assert joinable.allows(["x:0"], ["y:0", "w:0"])
    assert not joinable.allows(["x:0"], ["y:0", "mean:0"])
    assert not joinable.allows(["x:0", "w:0"], ["y:0"])


def test_output_of_other_rows_ends_joining_for_good_and_each_gets_its_own_answer(capsys):
    model = Model()
    model.answer = lambda x, fetches: [x[:1] * 2]
    queue = adaptive(model, threads_alone=1)
    for _ in range(2):
        with model.hold(queue):
            waiting = [ask(queue, [[n]]) for n in (1, 2)]
        assert [each.rows() for each in waiting] == [[[[2]]], [[[4]]]]
    assert model.runs == [[[0]], [[1], [2]], [[1]], [[2]], [[0]], [[1]], [[2]]]
    assert capsys.readouterr().err.count("not joined any more") == 1


def test_request_that_the_model_refuses_fails_alone():
    model = Model()
    queue = adaptive(model)

    def refuse_seven(x, fetches):
        if 7 in x:
            raise invalid(f"seven among {len(x)}")
        return [x * 2]

    model.answer = refuse_seven
    with model.hold(queue):
        waiting = {n: ask(queue, [[n]]) for n in range(1, 9)}
    assert {n: each.rows() for n, each in waiting.items() if n != 7} == {
        n: [[[2 * n]]] for n in range(1, 9) if n != 7
    }
    assert str(waiting[7].outcome()) == "INVALID_ARGUMENT: seven among 1"
    assert len(model.runs) <= 8


def test_bug_in_a_model_is_told_and_logged_and_the_next_request_runs(capsys):
    model = Model()
    queue = adaptive(model)
    twice = model.answer
    model.answer = lambda x, fetches: 1 / 0
    assert str(ask(queue, [[1]]).outcome()) == "INTERNAL: ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err
    model.answer = twice
    assert ask(queue, [[1]]).rows() == [[[2]]]


def test_answer_that_its_caller_cannot_take_ends_no_thread(capsys):
    queue = adaptive(Model(), runners=1)

    def raises(outcome):
        raise OSError("gone")

    queue.submit({"x:0": np.ones((1, 1))}, ["y:0"], None, raises)
    assert ask(queue, [[1]]).rows() == [[[2]]]
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [Adaptive, Direct])
def test_request_whose_deadline_passes_while_it_waits_is_told_so_and_not_run(kind):
    model = Model()
    queue = kind(model, "m", Options(threads_alone=1))
    with model.hold(queue):
        late = ask(queue, [[1]], deadline=time.monotonic())
        other = ask(queue, [[2]], deadline=time.monotonic() + 1000)
    assert str(late.outcome()) == WAITED
    assert other.rows() == [[[4]]]
    assert model.runs == [[[0]], [[2]]]


@pytest.mark.parametrize("kind", [Adaptive, Direct])
def test_request_whose_caller_gave_up_while_it_waited_is_not_run(kind):
    model = Model()
    queue = kind(model, "m", Options(threads_alone=1))
    with model.hold(queue):
        left = ask(queue, [[1]])
        assert str(left.ticket.give_up()) == WAITED
        other = ask(queue, [[2]])
    assert other.rows() == [[[4]]]
    assert model.runs == [[[0]], [[2]]]
    assert left.outcomes.empty()


def test_caller_can_give_up_a_run_once_and_not_one_that_is_done():
    model = Model()
    queue = adaptive(model)
    with model.hold(queue) as busy:
        assert str(busy.ticket.give_up()) == RUNNING
        assert busy.ticket.give_up() is None
    done = ask(queue, [[1]])
    assert done.rows() == [[[2]]]
    assert done.ticket.give_up() is None
    assert busy.outcomes.empty()


@pytest.mark.parametrize("kind", [Adaptive, Direct])
def test_more_requests_than_may_wait_are_refused_until_there_is_room(kind):
    model = Model()
    queue = kind(model, "m", Options(threads_alone=1, limits=Limits(requests=2)))
    with model.hold(queue):
        waiting = [ask(queue, [[n]]) for n in (1, 2)]
        with pytest.raises(ServingError) as refused:
            ask(queue, [[3]])
    assert str(refused.value) == "RESOURCE_EXHAUSTED: m has 2 requests waiting, as many as may wait"
    assert [each.rows() for each in waiting] == [[[[2]]], [[[4]]]]
    assert ask(queue, [[5]]).rows() == [[[10]]]


def test_more_bytes_than_may_wait_are_refused_but_one_request_of_any_size_may():
    model = Model()
    queue = adaptive(model, limits=Limits(bytes=8))
    with model.hold(queue):
        large = ask(queue, [[1], [2], [3]])
        with pytest.raises(ServingError) as refused:
            ask(queue, [[4]])
    assert str(refused.value) == (
        "RESOURCE_EXHAUSTED: m has 12 bytes of requests waiting; 4 more are over what may wait, 8"
    )
    assert large.rows() == [[[2], [4], [6]]]


def test_run_has_no_more_bytes_than_allowed():
    model = Model()
    queue = adaptive(model, bytes_at_most=8)
    with model.hold(queue):
        waiting = [ask(queue, [[n]]) for n in range(1, 6)]
    assert [each.rows() for each in waiting] == [[[[2 * n]]] for n in range(1, 6)]
    assert [len(run) for run in model.runs] == [1, 2, 2, 1]


def test_what_nobody_waits_for_makes_room_for_others():
    model = Model()
    queue = adaptive(model, limits=Limits(requests=3))
    with model.hold(queue):
        left, late = ask(queue, [[1]]), ask(queue, [[2]], deadline=time.monotonic())
        kept = ask(queue, [[3]])
        left.ticket.give_up()
        more = [ask(queue, [[n]]) for n in (4, 5)]
        assert str(late.outcome()) == WAITED
        with pytest.raises(ServingError, match="3 requests waiting"):
            ask(queue, [[6]])
    assert [each.rows() for each in (kept, *more)] == [[[[6]]], [[[8]]], [[[10]]]]
    assert model.runs == [[[0]], [[3], [4], [5]]]


def test_limits_of_zero_are_none():
    model = Model()
    queue = adaptive(model, limits=Limits(0, 0))
    with model.hold(queue):
        waiting = [ask(queue, [[n]]) for n in range(3000)]
    assert [each.rows()[0][0][0] for each in waiting] == [2 * n for n in range(3000)]


def test_model_that_hangs_holds_up_no_other_and_its_callers_are_told_at_their_deadlines():
    hanging, other = Model(), Model()
    stuck, free = adaptive(hanging, runners=1), adaptive(other)
    with hanging.hold(stuck):
        with pytest.raises(ServingError, match="Timed out waiting for the model to be free"):
            run_in(stuck, work([[1]]), time.monotonic() + 0.01)
        assert run_in(free, work([[1]])) == [[2]]
    assert ask(stuck, [[3]]).rows() == [[[6]]]


def work(x):
    return Work({"x:0": np.float32(x)}, ["y:0"], lambda outputs: outputs[0].tolist())


def test_waiting_caller_gets_a_runs_answer_or_its_error():
    model = Model()
    queue = adaptive(model)
    assert run_in(queue, work([[1]]), time.monotonic() + PATIENCE_S) == [[2]]

    def refuse(x, fetches):
        raise invalid("no")

    model.answer = refuse
    with pytest.raises(ServingError, match="no"):
        run_in(queue, work([[1]]))


def test_runs_that_are_not_joined_go_side_by_side_in_as_many_threads_as_allowed():
    model = Model()
    queue = Direct(model, "m", Options(threads_alone=2))
    with model.hold(queue):
        waiting = [ask(queue, [[n]]) for n in (1, 2)]
        model.began.get(timeout=PATIENCE_S)
        assert model.runs == [[[0]], [[1]]]
    assert [each.rows() for each in waiting] == [[[[2]]], [[[4]]]]


def test_two_runners_take_what_waits_side_by_side():
    model = Model()
    queue = adaptive(model, runners=2)
    with model.hold(queue):
        second = ask(queue, [[1]])
        model.began.get(timeout=PATIENCE_S)
        waiting = [ask(queue, [[n]]) for n in (2, 3)]
        assert model.runs == [[[0]], [[1]]]
    assert [each.rows() for each in (second, *waiting)] == [[[[2]]], [[[4]]], [[[6]]]]
    assert sorted(row for run in model.runs[2:] for row in run) == [[2], [3]]


def test_closing_runs_what_waits_then_ends_the_threads_and_takes_no_more():
    model = Model()
    queue = Adaptive(model, "closing", Options(runners=1))
    served = Queued(model, queue)
    with model.hold(queue):
        waiting = ask(served.queue, [[1]])
        served.close()
    assert waiting.rows() == [[[2]]]
    assert model.closed
    with pytest.raises(ServingError) as refused:
        ask(queue, [[1]])
    assert str(refused.value) == "UNAVAILABLE: closing is being unloaded"
    for thread in threading.enumerate():
        if thread.name.startswith("closing"):
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def test_idle_threads_keep_no_tensors():
    model = Model()
    queue = adaptive(model)
    released = threading.Event()
    x = np.ones((1, 1), np.float32)
    weakref.finalize(x, released.set)
    answers = SimpleQueue()
    queue.submit({"x:0": x}, ["y:0"], None, answers.put)
    del x
    answers.get(timeout=PATIENCE_S)
    assert released.wait(PATIENCE_S)


def test_observer_is_told_each_batch_and_who_waited():
    model = Model()
    told = SimpleQueue()

    class Observer:
        def batch(self, pool, waited_us, rows, padding):
            told.put((pool, len(waited_us), min(waited_us) >= 0, list(rows), padding))

    queue = adaptive(model, observer=Observer())
    with model.hold(queue):
        waiting = [ask(queue, [[1]]), ask(queue, [[2], [3]])]
    for each in waiting:
        each.rows()
    assert [told.get(timeout=PATIENCE_S) for _ in range(2)] == [
        ("m", 1, True, [1], 0),
        ("m", 2, True, [1, 2], 0),
    ]


def test_what_is_imported_is_left_out_of_garbage_collection():
    before = gc.get_freeze_count()
    framework.settle()
    try:
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_request_without_rows_runs_alone():
    model = Model()
    queue = adaptive(model, threads_alone=1)
    assert ask(queue, np.empty((0, 1))).rows() == [[]]


def test_model_without_a_queue_runs_in_its_callers_thread():
    model = Model()
    queue = queue_of(model)
    assert isinstance(queue, Inline)
    assert run_in(queue, work([[1]])) == [[2]]
    with pytest.raises(ServingError) as late:
        run_in(queue, work([[1]]), time.monotonic() - 1)
    assert late.value.code is Code.DEADLINE_EXCEEDED
    assert len(model.runs) == 1
    own = Queued(model, Direct(model, "m", Options(threads_alone=1)))
    assert queue_of(own) is own.queue
    own.close()


def test_what_an_event_loop_submits_in_a_turn_runs_together_at_its_end():
    model = Model()
    queue = adaptive(model)
    ask(queue, [[0]]).rows()
    until(lambda: queue._line._idle == 1)
    waiting, runs_before, turns = [], [], []

    def loop():
        lines.wake_once_a_turn(turns.append)
        for _ in range(2):
            waiting.extend(ask(queue, [[n]]) for n in (1, 2, 3))
            runs_before.append(len(model.runs))
            turns.pop()()
            for each in waiting[-3:]:
                each.outcomes.put(each.outcome())
            until(lambda: queue._line._idle == 1)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join(PATIENCE_S)
    assert [each.rows() for each in waiting] == [[[[2]]], [[[4]]], [[[6]]]] * 2
    assert model.runs == [[[0]], [[1], [2], [3]], [[1], [2], [3]]]
    assert runs_before == [1, 2]


def until(true):
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("kind", [Adaptive, Direct])
def test_request_without_a_thread_to_run_it_is_refused_and_not_run_later(kind, monkeypatch):
    model = Model()
    queue = kind(model, "m", Options())

    def refused(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refused)
        for _ in range(5):
            with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: no thread can be started for m"):
                ask(queue, [[1]])
    assert ask(queue, [[2]]).rows() == [[[4]]]
    assert model.runs == [[[2]]]
