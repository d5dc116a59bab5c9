"""Requests that run as one: TF Serving's batching by a version's own parameters, and adaptive on TensorFlow."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from tests import support_serve
from tests.support_serve import GRPC, REST, config, predict, refusal, request, running

FLAGS = ("--enable_batching", "--enable_per_model_batching_parameters", "--max_num_load_retries=0")
# A request of one row waits longer than any test unless another comes.
PAIRS = "max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 }"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


def with_parameters(models, base, text) -> Path:
    """A version of half_plus_two below a new folder, with batching parameters of its own."""
    version = base / "pairs" / "2"
    shutil.copytree(models / "half" / "2", version)
    (version / "batching_params.pbtxt").write_text(text)
    return base


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    """A server of two models: one is batched in pairs, the other has no parameters."""
    base = with_parameters(models, tmp_path_factory.mktemp("batching"), PAIRS)
    (base / "digits").symlink_to(models / "digits")
    file = config(base, ("pairs", ""), ("digits", ""))
    with running(
        f"--model_config_file={file}", *FLAGS, "--rest_api_timeout_in_ms=2000", grpc=GRPC, rest=REST
    ) as process:
        yield process


@pytest.fixture
def empty_queue(server):
    """A request that gave up stays in its batch until that runs, as in TF Serving: a full one pushes it out."""
    assert predict("pairs", {"instances": [[2.0], [4.0]]}).json == {"predictions": [[3.0], [4.0]]}


@pytest.mark.usefixtures("empty_queue")
def test_two_requests_run_as_one_and_each_gets_its_rows():
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda x: predict("pairs", {"instances": [[x]]}), [2.0, 6.0]))
    assert [answer.json for answer in answers] == [{"predictions": [[3.0]]}, {"predictions": [[5.0]]}]
    assert time.monotonic() - began < 60


@pytest.mark.usefixtures("empty_queue")
def test_request_of_more_rows_than_a_batch_is_refused():
    answer = predict("pairs", {"instances": [[1.0], [2.0], [3.0]]})
    assert (answer.status, answer.json) == (
        400,
        {"error": "Task size 3 is larger than maximum input batch size 2"},
    )


@pytest.mark.usefixtures("empty_queue")
def test_request_that_waits_past_its_deadline_is_told_so():
    answer = predict("pairs", {"instances": [[1.0]]})
    assert (answer.status, answer.json) == (
        429,
        {"error": "Run() timeout exceeded while waiting in batching queue"},
    )


@pytest.mark.usefixtures("empty_queue")
def test_deadline_of_a_grpc_client_ends_its_wait():
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{GRPC}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request("pairs", x=np.float32([[1.0]])), timeout=0.3)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.usefixtures("empty_queue")
def test_version_without_parameters_is_not_batched():
    answer = predict("digits", {"instances": np.zeros((1, 8, 8)).tolist()})
    assert answer.json["predictions"][0]["class"] == 9


def test_allowed_sizes_that_do_not_end_at_the_largest_fail_the_load(models, tmp_path):
    text = "max_batch_size { value: 4 } allowed_batch_sizes: 2 allowed_batch_sizes: 8"
    base = with_parameters(models, tmp_path, text)
    out = refusal(*FLAGS, "--model_name=pairs", f"--model_base_path={base / 'pairs'}")
    assert (
        "INVALID_ARGUMENT: Last entry in allowed_batch_sizes must match max_batch_size; "
        "last entry was 8; expected 4" in out
    )


def test_many_requests_at_once_get_their_own_answers_of_runs_that_were_joined(models):
    from serve import session
    from serve.queues import Adaptive, Options

    model = session.load(models / "digits" / "7", session.SessionOptions())
    signature = model.signatures["serving_default"]
    (pixels,) = (spec.name for spec in signature.inputs.values())
    fetches = [signature.outputs["probabilities"].name]
    inputs = [np.full((1 + n % 3, 8, 8), n / 400, np.float32) for n in range(400)]
    sizes, answers = [], SimpleQueue()

    class Seen:
        def batch(self, pool, waited_us, rows, padding):
            sizes.append(len(rows))

    queue = Adaptive(model, "digits", Options(runners=2, observer=Seen()))
    for n, each in enumerate(inputs):
        queue.submit({pixels: each}, fetches, None, lambda outcome, n=n: answers.put((n, outcome)))
    found = dict(answers.get(timeout=60) for _ in inputs)
    for n, each in enumerate(inputs):
        np.testing.assert_allclose(found[n][0], model.run({pixels: each}, fetches)[0], rtol=1e-5)
    assert max(sizes) > 1
    queue.close()
    model.close()


@pytest.mark.parametrize(("intra", "inter", "in_one"), [(0, 0, True), (2, 0, False), (1, 1, True)])
def test_small_model_keeps_to_one_thread_unless_threads_are_asked_for(models, intra, inter, in_one):
    from serve import session

    options = session.SessionOptions(intra_op_threads=intra, inter_op_threads=inter)
    model = session.load(models / "half" / "2", options)
    assert model.in_one_thread is in_one
    assert model.run({"x:0": np.float32([[2]])}, ["y:0"])[0].tolist() == [[3]]
    model.close()


def test_large_model_uses_all_processors_for_a_run(models, tmp_path):
    from serve import session

    version = tmp_path / "2"
    shutil.copytree(models / "half" / "2", version)
    (version / "variables" / "more").write_bytes(bytes(5 << 20))
    model = session.load(version, session.SessionOptions())
    assert not model.in_one_thread
    model.close()


def test_runs_of_each_signature_are_prepared_when_a_model_is_loaded(models):
    from serve import session

    model = session.load(models / "kinds" / "1", session.SessionOptions())
    prepared = dict(model._callables)
    for signature in model.signatures.values():
        if signature.inputs:
            feeds = sorted(spec.name for spec in signature.inputs.values())
            assert (
                tuple(feeds),
                tuple(sorted({spec.name for spec in signature.outputs.values()})),
            ) in prepared
    both = model.signatures["serving_default"]
    a, b = both.inputs["a"].name, both.inputs["b"].name
    fetches = sorted(spec.name for spec in both.outputs.values())
    for feeds in ({a: np.float32([1]), b: np.int32([2])}, {b: np.int32([2]), a: np.float32([1])}):
        found = dict(zip(fetches, model.run(feeds, fetches), strict=True))
        assert found[both.outputs["sum"].name].tolist() == [3]
    assert model._callables == prepared
    model.close()
