import gc
import itertools
import threading

from serve import metrics
from serve.metrics import REQUEST_COUNT, Metrics
from serve.status import Code


def page(found: Metrics) -> list[str]:
    return found.page().decode().splitlines()


def test_every_metric_has_a_type_line_before_anything_was_counted():
    types = dict(line.removeprefix("# TYPE ").split() for line in page(Metrics()))
    prefix = ":tensorflow:serving:"
    assert types[f"{prefix}request_count"] == "counter"
    assert types[f"{prefix}batching_session:wrapped_run_count"] == "counter"
    for name in ("request_latency", "runtime_latency", "request_example_counts", "model_warmup_latency"):
        assert types[prefix + name] == "histogram"
    for name in ("queuing_latency", "input_batch_size", "padding_size", "processed_batch_size"):
        assert types[f"{prefix}batching_session:{name}"] == "histogram"


def test_requests_are_counted_by_model_and_status():
    found = Metrics()
    found.request("GRPC", "Predict", "m", Code.OK, 5.0)
    found.request("REST", "predict", "m", Code.OK, 5.0)
    found.request("REST", "predict", "absent", Code.NOT_FOUND, 5.0)
    lines = page(found)
    assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 2' in lines
    assert ':tensorflow:serving:request_count{model_name="absent",status="NOT_FOUND"} 1' in lines


def test_only_latencies_of_successes_are_shown():
    found = Metrics()
    found.request("REST", "predict", "m", Code.INTERNAL, 5.0)
    assert not [line for line in page(found) if "request_latency_count" in line]
    found.request("REST", "predict", "m", Code.OK, 5.0)
    labels = 'model_name="m",API="predict",entrypoint="REST"'
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 1" in page(found)
    assert f":tensorflow:serving:request_latency_sum{{{labels}}} 5.0" in page(found)


def test_runtime_has_one_api_name_for_rest_and_grpc():
    found = Metrics()
    found.request("REST", "predict", "m", Code.OK, 5.0, runtime_us=2.0)
    found.request("GRPC", "Predict", "m", Code.OK, 5.0, runtime_us=3.0)
    labels = 'model_name="m",API="Predict",runtime="TF1"'
    assert f":tensorflow:serving:runtime_latency_sum{{{labels}}} 5.0" in page(found)
    assert f":tensorflow:serving:runtime_latency_count{{{labels}}} 2" in page(found)


def test_histogram_has_tensorflows_limits_and_counts_up():
    found = Metrics()
    for value in (9.9, 10, 17, 1e12):
        found.observe(metrics.WARMUP_LATENCY, value, "/m/1", "OK")
    name = ':tensorflow:serving:model_warmup_latency_bucket{model_path="/m/1",status="OK",le='
    buckets = [line.removeprefix(name).split() for line in page(found) if line.startswith(name)]
    assert [limit for limit, _ in buckets[:4]] == ['"10"}', '"18"}', '"32.4"}', '"58.32"}']
    assert [count for _, count in buckets[:3]] == ["1", "3", "3"]
    assert buckets[-1] == ['"+Inf"}', "4"]
    assert len(buckets) == 34


def test_examples_are_counted_in_powers_of_two():
    found = Metrics()
    found.observe(metrics.EXAMPLE_COUNTS, 3, "m")
    name = ':tensorflow:serving:request_example_counts_bucket{model="m",le='
    buckets = [line.removeprefix(name).split() for line in page(found) if line.startswith(name)]
    assert buckets[:3] == [['"1"}', "0"], ['"2"}', "0"], ['"4"}', "1"]]
    assert buckets[-2][0] == '"16384"}'


def test_labels_are_escaped():
    found = Metrics()
    found.request("REST", "", 'a"b\\c\nd\udc80', Code.NOT_FOUND, 1.0)
    assert '{model_name="a\\"b\\\\c\\nd?",status="NOT_FOUND"} 1' in found.page().decode()


def test_counts_of_all_threads_are_added_up_also_when_these_have_ended():
    found = Metrics()

    def count():
        for _ in range(1000):
            found.request("GRPC", "Predict", "m", Code.OK, 1.0)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count()
    for _ in range(2):
        assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 9000' in page(found)


def test_names_that_never_answered_take_bounded_room():
    found = Metrics()
    for number in range(metrics.UNKNOWN_NAMES_AT_MOST + 500):
        found.request("REST", "predict", f"made-up-{number}", Code.NOT_FOUND, 1.0)
    found.request("REST", "predict", "x" * 10_000, Code.NOT_FOUND, 1.0)
    found.request("REST", "predict", "real", Code.OK, 1.0)
    found.request("REST", "predict", "real", Code.INTERNAL, 1.0)
    lines = [line for line in page(found) if line.startswith(":tensorflow:serving:request_count{")]
    assert len(lines) == metrics.UNKNOWN_NAMES_AT_MOST + 3
    assert ':tensorflow:serving:request_count{model_name="(other)",status="NOT_FOUND"} 501' in lines
    assert ':tensorflow:serving:request_count{model_name="real",status="INTERNAL"} 1' in lines


def test_totals_are_told_by_path_for_reloads():
    found = Metrics()
    found.request("REST", "predict", "a", Code.OK, 1.0)
    found.request("REST", "predict", "b", Code.INTERNAL, 1.0)
    assert found.totals(["/tensorflow/serving/request_count", "/no/such"]) == {
        "/tensorflow/serving/request_count": 2,
        "/no/such": 0,
    }


def test_metric_that_comes_while_others_are_added_up_disturbs_nothing():
    metrics, numbers = Metrics(), itertools.count()
    for number in range(5000):  # more than Python keeps tuples ready
        metrics.add(REQUEST_COUNT, f"model {number}", "OK")

    def come(*_: object) -> None:  # as another thread's may, when a finalizer lets it have its turn
        if (number := next(numbers)) < 1000:
            metrics.add(REQUEST_COUNT, f"new {number}", "OK")

    before = gc.get_threshold()
    gc.callbacks.append(come)
    gc.set_threshold(1)
    try:
        total = metrics.totals([REQUEST_COUNT.name])[REQUEST_COUNT.name]
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(come)
    assert next(numbers) > 1000
    assert 5000 <= total <= 6000
