"""TF Serving's batching (`--enable_batching`): what joins, waits, is padded, split and refused."""

import threading
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest

from serve import batching_parameters, dtypes, queueing
from serve.batching import Batching
from serve.batching_parameters import Parameters
from serve.flags import parse
from serve.model import Signature, TensorSpec
from serve.queues import Options
from serve.scheduler import Scheduler
from serve.status import Code, ServingError


def specs(*names):
    return {name: TensorSpec(f"{name}:0", dtypes.FLOAT, (None,)) for name in names}


class HalfPlus:
    """y is x / 2 + 2, y3 is x2 / 2 + 3; keeps the inputs of its runs. `answer` replaces what it does."""

    signature_defs = None

    def __init__(self):
        self.signatures = {
            "one": Signature(specs("x"), specs("y")),
            "two": Signature(specs("x", "x2"), specs("y", "y3")),
        }
        self.runs = []
        self.answer = self.half

    def run(self, feeds, fetches):
        self.runs.append(feeds)
        return self.answer(feeds, fetches)

    def half(self, feeds, fetches):
        found = {"y:0": feeds["x:0"] / 2 + 2, "y3:0": feeds.get("x2:0", np.zeros(1)) / 2 + 3}
        return [found[name] for name in fetches]

    def close(self):
        pass


class Seen:
    """Keeps what an observer is told, but for times."""

    def __init__(self):
        self.batches = []

    def batch(self, pool, waited_us, rows, padding):
        assert len(waited_us) == len(rows)
        self.batches.append((pool, list(rows), padding))


class Stage:
    """A version's queues, a clock that stands still, and no threads: batches run when a test says so."""

    def __init__(self, **parameters):
        self.now = 0.0
        self.model = HalfPlus()
        self.seen = Seen()
        self.scheduler = Scheduler(0, "none", clock=lambda: self.now)
        self.parameters = Parameters(**parameters)
        self.queue = self.another()

    def another(self):
        options = Options(threads_alone=1, observer=self.seen)
        return Batching(self.model, "m", self.parameters, self.scheduler, options)

    def submit(self, *rows, deadline=None, queue=None, fetches=("y:0",), **inputs):
        """Submits the rows as input x, or the inputs by name; what came back is in `outcome`."""
        feeds = {f"{name}:0": np.asarray(value) for name, value in inputs.items()} or {
            "x:0": np.float32(rows)
        }
        result = SimpleNamespace(outcome=None)
        result.ticket = (queue or self.queue).submit(
            feeds, list(fetches), deadline, lambda outcome: setattr(result, "outcome", outcome)
        )
        return result

    def run(self) -> int:
        """Runs all batches that are to run now; how many."""
        count = 0
        while found := self.scheduler.next():
            queue, tasks = found
            queue.run(tasks)
            count += 1
        return count


def listed(result):
    assert not isinstance(result.outcome, ServingError), result.outcome
    return [tensor.tolist() for tensor in result.outcome]


def test_requests_that_fill_a_batch_run_as_one_and_their_rows_come_back_in_order():
    stage = Stage(max_batch_size=4, batch_timeout_micros=1_000_000)
    first = stage.submit(100, 42)
    assert stage.run() == 0
    second = stage.submit(71.5, 18.5)
    assert stage.run() == 1
    assert stage.model.runs[0]["x:0"].tolist() == [100, 42, 71.5, 18.5]
    assert listed(first) == [[52, 23]]
    assert listed(second) == [[37.75, 11.25]]


def test_batch_that_is_not_full_runs_when_its_oldest_task_has_waited_the_timeout():
    stage = Stage(max_batch_size=4, batch_timeout_micros=1_000_000)
    first = stage.submit(2)
    stage.now = 0.6
    second = stage.submit(4)
    stage.now = 0.999
    assert stage.run() == 0
    stage.now = 1.0
    assert stage.run() == 1
    assert [listed(first), listed(second)] == [[[3]], [[4]]]


def test_without_a_timeout_a_lone_request_runs_at_once():
    stage = Stage()
    alone = stage.submit(2)
    assert stage.run() == 1
    assert listed(alone) == [[3]]


def test_request_that_does_not_fit_closes_the_batch_that_waits():
    stage = Stage(max_batch_size=4, batch_timeout_micros=1_000_000)
    stage.submit(1, 2, 3)
    stage.submit(4, 5)
    assert stage.run() == 1
    assert [run["x:0"].tolist() for run in stage.model.runs] == [[1, 2, 3]]


def test_each_signature_of_a_version_has_its_own_queue():
    stage = Stage(max_batch_size=2, batch_timeout_micros=1_000_000)
    both = {"x": np.float32([8]), "x2": np.float32([100]), "fetches": ("y:0", "y3:0")}
    one, two = stage.submit(2), stage.submit(**both)
    assert stage.run() == 0
    stage.submit(4)
    assert stage.run() == 1
    assert two.outcome is None
    stage.submit(**both)
    assert stage.run() == 1
    assert [listed(one), listed(two)] == [[[3]], [[6], [53]]]


def test_each_version_has_its_own_queue_and_they_take_turns():
    stage = Stage(max_batch_size=1)
    other = stage.another()
    for row in (1, 2):
        stage.submit(row)
    for row in (11, 12):
        stage.submit(row, queue=other)
    assert stage.run() == 4
    assert [run["x:0"].tolist() for run in stage.model.runs] == [[1], [11], [2], [12]]


def test_outputs_come_in_the_order_that_each_request_asked():
    stage = Stage(max_batch_size=2, batch_timeout_micros=1_000_000)
    first = stage.submit(x=np.float32([8]), x2=np.float32([100]), fetches=("y:0", "y3:0"))
    second = stage.submit(x2=np.float32([100]), x=np.float32([8]), fetches=("y3:0", "y:0"))
    assert stage.run() == 1
    assert [listed(first), listed(second)] == [[[6], [53]], [[53], [6]]]


def test_other_outputs_than_a_signatures_run_outside_of_batches():
    stage = Stage(max_batch_size=100, batch_timeout_micros=2**31)
    answered = SimpleNamespace(value=None)
    done = threading.Event()

    def tell(outcome):
        answered.value = outcome
        done.set()

    stage.queue.submit({"x:0": np.float32([8]), "x2:0": np.float32([1])}, ["y:0"], None, tell)
    assert done.wait(10)
    assert answered.value[0].tolist() == [6]
    assert stage.seen.batches == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": [3.0], "x2": [5.0, 7.0]}, "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"x": 3.0, "x2": 5.0}, "Batching Run() input tensors must have at least one dimension"),
    ],
)
def test_inputs_need_a_first_dimension_that_is_equal(inputs, message):
    stage = Stage()
    with pytest.raises(ServingError) as refused:
        stage.submit(**inputs, fetches=("y:0", "y3:0"))
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, message)
    assert (stage.run(), stage.seen.batches) == (0, [])


def test_request_of_more_rows_than_a_batch_is_refused():
    with pytest.raises(ServingError) as refused:
        Stage(max_batch_size=4).submit(1, 2, 3, 4, 5)
    assert str(refused.value) == "INVALID_ARGUMENT: Task size 5 is larger than maximum input batch size 4"


def test_large_request_is_split_where_that_is_asked_for_and_joined_again():
    stage = Stage(
        max_batch_size=5,
        max_execution_batch_size=2,
        enable_large_batch_splitting=True,
        batch_timeout_micros=1_000_000,
    )
    first = stage.submit(2)
    large = stage.submit(4, 6, 8, 10)
    assert stage.run() == 2
    assert large.outcome is None
    stage.now = 1.0
    assert stage.run() == 1
    assert [run["x:0"].tolist() for run in stage.model.runs] == [[2, 4], [6, 8], [10]]
    assert [listed(first), listed(large)] == [[[3]], [[4, 5, 6, 7]]]


def test_large_request_fails_as_a_whole_when_one_of_its_parts_does():
    stage = Stage(max_batch_size=4, max_execution_batch_size=2, enable_large_batch_splitting=True)

    def fails_on_six(feeds, fetches):
        if 6 in feeds["x:0"]:
            raise ServingError(Code.OUT_OF_RANGE, "six")
        return stage.model.half(feeds, fetches)

    stage.model.answer = fails_on_six
    large = stage.submit(2, 4, 6)
    assert stage.run() == 2
    assert str(large.outcome) == "OUT_OF_RANGE: six"


def test_splitting_does_not_lift_the_limit_of_a_request():
    stage = Stage(max_batch_size=3, max_execution_batch_size=2, enable_large_batch_splitting=True)
    with pytest.raises(ServingError, match="Task size 4 is larger than maximum input batch size 3"):
        stage.submit(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("sizes", "ran", "padding"),
    [((2, 4), [100, 42], 0), ((1, 3, 4), [100, 42, 100], 1), ((4,), [100, 42, 100, 100], 2)],
)
def test_batch_is_filled_up_to_the_next_allowed_size_and_the_answer_cut(sizes, ran, padding):
    stage = Stage(max_batch_size=4, allowed_batch_sizes=sizes, thread_pool_name="pool")
    request = stage.submit(100, 42)
    assert stage.run() == 1
    assert stage.model.runs[0]["x:0"].tolist() == ran
    assert listed(request) == [[52, 23]]
    assert stage.seen.batches == [("pool", [2], padding)]


def test_strings_are_joined_and_padded_too():
    stage = Stage(max_batch_size=4, allowed_batch_sizes=(4,), batch_timeout_micros=1000)
    stage.model.answer = lambda feeds, fetches: [feeds["x:0"]]
    texts = [np.array(row, object) for row in ([b"a"], [b"bc", b"\0"])]
    results = [stage.submit(x=text) for text in texts]
    stage.now = 1.0
    assert stage.run() == 1
    assert stage.model.runs[0]["x:0"].tolist() == [b"a", b"bc", b"\0", b"bc"]
    assert [listed(result) for result in results] == [[[b"a"]], [[b"bc", b"\0"]]]


def test_different_inner_shapes_fail_the_batch_unless_they_are_padded():
    stage = Stage(max_batch_size=2)
    results = [stage.submit(x=np.ones((1, size, size))) for size in (2, 3)]
    assert stage.run() == 1
    for result in results:
        assert result.outcome.code is Code.FAILED_PRECONDITION
        assert result.outcome.message == (
            "Tensors with name 'x:0' from different tasks have different shapes and padding is turned off."
            "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
            "have equal dimensions starting with the first dim."
        )


def test_inner_shapes_are_padded_to_the_largest_with_the_tensors_first_value():
    stage = Stage(max_batch_size=2, pad_variable_length_inputs=True)
    small = stage.submit(x=np.float32([[[1, 2], [3, 4]]]))
    large = stage.submit(x=np.float32([[[5, 6, 7], [8, 9, 10], [11, 12, 13]]]))
    assert stage.run() == 1
    assert listed(small) == [[[[2.5, 3, 2.5], [3.5, 4, 2.5], [2.5, 2.5, 2.5]]]]
    assert listed(large) == [[[[4.5, 5, 5.5], [6, 6.5, 7], [7.5, 8, 8.5]]]]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 0), (1, 2)], "Got empty tensor in batch of non-empty tensors."),
        ([(1,) * 7, (1,) * 6 + (2,)], "Only tensors with rank from 1 to 6 can be padded."),
        ([(1, 2), (1, 2, 2)], "Tensors with name 'x:0' from different tasks have different shapes"),
    ],
)
def test_shapes_that_cannot_be_padded_fail_the_batch(shapes, message):
    stage = Stage(max_batch_size=2, pad_variable_length_inputs=True)
    results = [stage.submit(x=np.ones(shape)) for shape in shapes]
    assert stage.run() == 1
    assert all(result.outcome.message.startswith(message) for result in results)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (
            np.ones(3),
            (
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                "input tensors"
            ),
        ),
    ],
)
def test_output_without_a_row_for_each_input_row_fails_the_batch(output, message):
    stage = Stage()
    stage.model.answer = lambda feeds, fetches: [output]
    request = stage.submit(1, 2)
    assert stage.run() == 1
    assert (request.outcome.code, request.outcome.message) == (Code.FAILED_PRECONDITION, message)


def test_error_of_a_run_is_told_to_all_of_its_batch_each_with_its_own():
    stage = Stage()

    def fail(feeds, fetches):
        raise ServingError(Code.INVALID_ARGUMENT, "no")

    stage.model.answer = fail
    results = [stage.submit(1), stage.submit(2)]
    assert stage.run() == 1
    assert [str(result.outcome) for result in results] == ["INVALID_ARGUMENT: no"] * 2
    assert results[0].outcome is not results[1].outcome


def test_bug_in_a_model_ends_no_thread(capsys):
    stage = Stage()
    stage.model.answer = lambda feeds, fetches: 1 / 0
    request = stage.submit(1)
    assert stage.run() == 1
    assert str(request.outcome) == "INTERNAL: ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


def test_request_that_waited_past_its_deadline_is_refused_and_not_run():
    stage = Stage()
    late, other = stage.submit(1, deadline=0.0), stage.submit(2)
    assert stage.run() == 1
    assert str(late.outcome) == "RESOURCE_EXHAUSTED: Run() timeout exceeded while waiting in batching queue"
    assert listed(other) == [[3]]
    assert stage.model.runs[0]["x:0"].tolist() == [2]


def test_caller_that_gives_up_is_told_the_same_and_its_request_is_left_out():
    stage = Stage(max_batch_size=4, max_execution_batch_size=2, enable_large_batch_splitting=True)
    request = stage.submit(1, 2, 3)
    error = request.ticket.give_up()
    assert str(error) == "RESOURCE_EXHAUSTED: Run() timeout exceeded while waiting in batching queue"
    stage.run()
    assert (stage.model.runs, request.outcome, request.ticket.give_up()) == ([], None, None)


def test_full_queue_is_unavailable():
    stage = Stage(max_batch_size=2, max_enqueued_batches=2, batch_timeout_micros=1_000_000)
    for row in range(4):
        stage.submit(row)
    with pytest.raises(ServingError) as refused:
        stage.submit(5)
    assert refused.value.code is Code.UNAVAILABLE
    assert refused.value.message == (
        "The batch scheduling queue to which this task was submitted is full; "
        "currently 2 batches enqueued and max_enqueued_batches is 2"
    )
    assert stage.run() == 2
    stage.submit(5)


def test_full_queue_with_splitting_tells_its_capacity():
    stage = Stage(
        max_batch_size=8,
        max_execution_batch_size=2,
        max_enqueued_batches=2,
        enable_large_batch_splitting=True,
        batch_timeout_micros=1_000_000,
    )
    stage.submit(1)
    with pytest.raises(ServingError) as refused:
        stage.submit(1, 2, 3, 4)
    assert str(refused.value) == (
        "UNAVAILABLE: The batch scheduling queue to which this task was submitted is full; task size is 4 but "
        "scheduling capacity is only 3 (num_enqueued_batches=1, max_enqueued_batches=2, open_batch_size=1, "
        "max_execution_batch_size=2)"
    )


def test_version_that_is_unloaded_runs_what_waits_and_takes_no_more():
    stage = Stage(max_batch_size=4, batch_timeout_micros=1_000_000)
    request = stage.submit(2)
    stage.queue.close()
    assert stage.run() == 1
    assert listed(request) == [[3]]
    with pytest.raises(ServingError, match="unloaded"):
        stage.submit(2)
    assert not stage.scheduler._queues


def test_threads_of_the_scheduler_run_batches_when_they_are_due():
    model = HalfPlus()
    queue = Batching(
        model, "m", Parameters(batch_timeout_micros=1000), Scheduler(2, "threads"), Options(threads_alone=1)
    )
    answers = SimpleQueue()
    for row in range(50):
        queue.submit({"x:0": np.float32([row])}, ["y:0"], None, answers.put)
    found = sorted(float(answers.get(timeout=10)[0][0]) for _ in range(50))
    queue.close()
    assert found == [row / 2 + 2 for row in range(50)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"max_batch_size": 4, "allowed_batch_sizes": (2, 8)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 8; expected 4",
        ),
        (
            {"max_batch_size": 4, "allowed_batch_sizes": (4, 2)},
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4",
        ),
        (
            {"max_batch_size": 4, "allowed_batch_sizes": (3, 2, 4)},
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            {
                "max_batch_size": 4,
                "max_execution_batch_size": 2,
                "enable_large_batch_splitting": True,
                "allowed_batch_sizes": (1, 4),
            },
            (
                "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; "
                "last entry was 4; expected 2"
            ),
        ),
        ({"max_batch_size": 0}, "input_batch_size_limit must be positive; was 0"),
        ({"max_batch_size": -1}, "input_batch_size_limit must be positive; was -1"),
        ({"max_enqueued_batches": -1}, "max_enqueued_batches must be positive; was -1"),
        ({"batch_timeout_micros": -1}, "batch_timeout_micros must be non-negative; was -1"),
        (
            {"enable_large_batch_splitting": True, "max_enqueued_batches": 0},
            "max_enqueued_batches must be positive; was 0",
        ),
        (
            {"max_batch_size": 2, "max_execution_batch_size": 4, "enable_large_batch_splitting": True},
            (
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
                "max_execution_batch_size. 2 4"
            ),
        ),
    ],
)
def test_parameters_that_cannot_be_fail_the_load(parameters, message):
    with pytest.raises(ServingError) as refused:
        Parameters(**parameters).check()
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, message)


def test_defaults_are_tf_servings():
    found = Parameters()
    assert (found.max_batch_size, found.batch_timeout_micros, found.max_enqueued_batches) == (1000, 0, 10)
    assert (found.allowed_batch_sizes, found.pad_variable_length_inputs) == ((), False)
    assert (found.enable_large_batch_splitting, found.rows_at_most) == (False, 1000)
    assert found.num_batch_threads >= 1
    assert batching_parameters.common("").thread_pool_name == "model_server_batch_threads"


def test_parameters_are_read_from_the_file(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text("max_batch_size { value: 8 } num_batch_threads { value: 3 } allowed_batch_sizes: [2, 8]")
    found = batching_parameters.common(str(path))
    assert (found.max_batch_size, found.num_batch_threads, found.allowed_batch_sizes) == (8, 3, (2, 8))
    assert found.max_enqueued_batches == 10


def test_file_without_a_thread_is_refused(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text("num_batch_threads { value: 0 }")
    with pytest.raises(ServingError, match="num_batch_threads must be positive; was 0"):
        batching_parameters.common(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_batch_threads { value: 100000 }", "num_batch_threads is 100000; give at most 4096"),
        ("max_batch_size { value: 2147483648 }", "max_batch_size is 2147483648; give at most 2147483647"),
        ("allowed_batch_sizes: 4294967296", "allowed_batch_sizes is 4294967296; give at most 2147483647"),
        (
            "batch_timeout_micros { value: 9223372036854775807 }",
            "batch_timeout_micros is 9223372036854775807; give at most 1000000000000000",
        ),
    ],
)
def test_sizes_that_could_not_work_are_refused_when_the_file_is_read(tmp_path, text, message):
    path = tmp_path / "batching.txt"
    path.write_text(text)
    with pytest.raises(ServingError) as refused:
        batching_parameters.common(str(path))
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, f"{path}: {message}")


def test_largest_sizes_are_taken(tmp_path):
    path = tmp_path / "batching.txt"
    path.write_text(
        "max_batch_size { value: 2147483647 } max_enqueued_batches { value: 9223372036854775807 } "
        "batch_timeout_micros { value: 1000000000000000 } num_batch_threads { value: 4096 }"
    )
    found = batching_parameters.common(str(path))
    found.check()
    assert found.batch_timeout_micros / 1e6 < threading.TIMEOUT_MAX


def test_threads_that_the_system_does_not_give_are_told_with_their_number(monkeypatch):
    started = []

    def start(thread):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ServingError) as refused:
        Scheduler(9, "none")
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert refused.value.message == (
        "num_batch_threads is 9, and the system allows 3: can't start new thread. Give fewer"
    )


def test_parameters_of_a_version_keep_the_shared_threads_and_nothing_else(tmp_path):
    shared = Parameters(max_batch_size=7, num_batch_threads=3, thread_pool_name="all")
    path = tmp_path / batching_parameters.PER_VERSION_FILE
    path.write_text(
        'batch_timeout_micros { value: 5 } num_batch_threads { value: 9 } thread_pool_name { value: "own" }'
    )
    found = batching_parameters.of_version(tmp_path, shared, per_model=True)
    assert (found.max_batch_size, found.batch_timeout_micros) == (1000, 5)
    assert (found.num_batch_threads, found.thread_pool_name) == (3, "all")
    assert batching_parameters.of_version(tmp_path, shared, per_model=False) == shared


def kind_of_queue(tmp_path, *arguments):
    model = queueing.maker(parse(arguments).flags)(HalfPlus(), tmp_path)
    model.close()
    return type(model.queue).__name__


def test_flags_choose_the_queue(tmp_path):
    own = tmp_path / batching_parameters.PER_VERSION_FILE
    assert kind_of_queue(tmp_path) == "Adaptive"
    assert kind_of_queue(tmp_path, "--adaptive_batching=false") == "Direct"
    assert kind_of_queue(tmp_path, "--enable_batching") == "Batching"
    per_model = ("--enable_batching", "--enable_per_model_batching_parameters")
    assert kind_of_queue(tmp_path, *per_model) == "Direct"
    own.write_text("")
    assert kind_of_queue(tmp_path, *per_model) == "Batching"
    own.write_text("allowed_batch_sizes: 3")
    with pytest.raises(ServingError, match="Last entry in allowed_batch_sizes must match max_batch_size"):
        kind_of_queue(tmp_path, *per_model)
