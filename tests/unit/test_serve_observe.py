import json
import re

import numpy as np
import pytest

from serve import log, trace
from serve.metrics import Metrics
from serve.observe import GRPC, REST, BatchObserver, Observer
from serve.pages import Pages
from serve.rest import Answer, Request, answered, counted_as
from serve.status import Code, invalid
from serve.work import Work

SECRET = "what a client sent"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def json_lines(capsys):
    """The lines that were logged, as objects."""
    log.write_as(log.JSON)
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    log.write_as(log.TEXT)


def counts(observer):
    lines = observer.metrics.page().decode().splitlines()
    return [line for line in lines if line.startswith(":tensorflow:serving:request_count{")]


def get(target, method="GET"):
    return Request(method, target, {}, b"")


# --- traces ---------------------------------------------------------------------------------------------


def test_trace_of_a_request_goes_on_in_its_answer():
    found = trace.read(PARENT)
    assert (found.trace_id, found.parent_id) == (PARENT[3:35], PARENT[36:52])
    assert re.fullmatch(r"00-0af7651916cd43dd8448eb211c80319c-[0-9a-f]{16}-01", found.header)
    assert found.span_id not in (found.parent_id, "0" * 16)


def test_trace_of_a_later_version_is_read_as_far_as_it_is_known():
    assert trace.read(PARENT.replace("00-", "cc-", 1) + "-what-will-be").header.startswith("00-0af765")


@pytest.mark.parametrize(
    "header",
    ["", "00", PARENT + "-x", PARENT.upper(), PARENT.replace("00-", "ff-", 1), "00-" + "0" * 32 + PARENT[35:],
     PARENT[:36] + "0" * 16 + "-01", PARENT[:-1], "x" * 100_000],
)  # fmt: skip
def test_malformed_trace_is_passed_over(header):
    assert trace.read(header) is None


def test_answer_has_a_trace_only_if_the_request_had_one_or_requests_are_logged(capsys):
    quiet, telling = Observer(), Observer(log_requests=True)
    assert quiet.ended(quiet.began(), REST, "predict", "m", Code.OK) is None
    assert quiet.ended(quiet.began(PARENT), REST, "predict", "m", Code.OK).startswith(PARENT[:36])
    assert trace.read(telling.ended(telling.began(), REST, "predict", "m", Code.OK))
    assert "request entrypoint=REST api=predict model=m code=OK" in capsys.readouterr().err


# --- lines ----------------------------------------------------------------------------------------------


def test_log_line_of_a_request_says_what_came_of_it_and_whose_it_is(json_lines):
    observer = Observer(log_requests=True)
    observer.ended(observer.began(PARENT), GRPC, "Predict", "m", Code.NOT_FOUND)
    (line,) = json_lines()
    assert line["event"] == "request"
    assert (line["entrypoint"], line["api"], line["model"], line["code"]) == (
        "GRPC",
        "Predict",
        "m",
        "NOT_FOUND",
    )
    assert (line["trace_id"], line["parent_id"]) == (PARENT[3:35], PARENT[36:52])
    assert line["ms"] >= 0


def test_lines_about_a_request_carry_its_trace_and_others_do_not(json_lines):
    with log.about(trace.read(PARENT)):
        log.warning("inside")
    log.warning("outside")
    inside, outside = json_lines()
    assert inside["trace_id"] == PARENT[3:35]
    assert "trace_id" not in outside


def test_json_line_keeps_numbers_and_is_one_line_whatever_is_in_it(json_lines):
    log.error("bug", count=3, seconds=0.5, trace="a\nb\x1b[0m\udc80", on=True)
    (line,) = json_lines()
    assert (line["level"], line["count"], line["seconds"], line["on"]) == ("error", 3, 0.5, True)
    assert line["trace"] == "a\nb\x1b[0m\udc80"


def test_text_line_is_one_line_whatever_a_client_named_its_model(capsys):
    log.info("request", model="m\r\n2026 I faked\x1b[2J")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\r" not in said
    assert "\x1b" not in said


def test_line_about_a_bug_says_where_it_was_and_not_what_the_request_held(json_lines):
    def fails():
        raise ValueError(SECRET)

    with log.about(trace.read(PARENT)):
        answer = answered(get(f"/v1/models/m:predict?{SECRET}", "POST"), fails)
    assert answer.code is Code.INTERNAL
    (line,) = json_lines()
    assert (line["event"], line["where"], line["kind"]) == ("bug", "POST /v1/models/m:predict", "ValueError")
    assert "in fails" in line["trace"]
    assert line["trace_id"] == PARENT[3:35]
    assert SECRET not in json.dumps(line)


# --- counting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "counted"),
    [
        ("POST", "/v1/models/m:predict", ("predict", "m")),
        ("POST", "/V1/models/m%20n/versions/3:classify", ("classify", "m n")),
        ("GET", "/v1/models/m/labels/stable", ("", "m")),
        ("GET", "/v1/models/m/metadata", ("", "m")),
        ("GET", "/v1/models", ("", "")),
        ("POST", "/v1/models/m:predict?x=1", ("", "")),
        ("DELETE", "/v1/models/m", ("", "")),
        ("GET", "/v1/" + "x" * 5000, ("", "")),
        ("OPTIONS", "/v1/models/m", None),
        ("GET", "/", None),
    ],
)
def test_rest_request_is_counted_under_its_model_and_verb(method, target, counted):
    assert counted_as(method, target) == counted


def test_all_rest_calls_are_counted_and_of_grpc_those_that_infer():
    observer = Observer()
    observer.ended_rest(observer.began(), get("/v1/models/m"), Answer(200))
    observer.ended_rest(observer.began(), get("/elsewhere"), Answer(404))
    observer.ended_rest(observer.began(), get("/v1/x"), Answer(400, code=Code.INVALID_ARGUMENT))
    observer.ended(observer.began(), GRPC, "GetModelStatus", "m", Code.OK)
    observer.ended(observer.began(), GRPC, "Classify", "m", Code.OK)
    assert counts(observer) == [
        ':tensorflow:serving:request_count{model_name="",status="INVALID_ARGUMENT"} 1',
        ':tensorflow:serving:request_count{model_name="m",status="OK"} 2',
    ]


def test_run_of_a_model_is_timed_without_the_making_of_its_answer():
    observer = Observer()
    seen = observer.began()
    work = observer.timed(seen, Work({"x": np.zeros(1)}, ["y"], lambda outputs: outputs[0] + 1))
    assert work.finish([41]) == 42
    assert seen.runtime_us > 0
    observer.ended(seen, GRPC, "Predict", "m", Code.OK)
    assert (
        'runtime_latency_count{model_name="m",API="Predict",runtime="TF1"} 1'
        in observer.metrics.page().decode()
    )


def test_warm_up_is_timed_with_what_came_of_it(tmp_path):
    observer = Observer()
    with observer.warming(tmp_path):
        pass
    with pytest.raises(Exception, match="wrong"), observer.warming(tmp_path):
        raise invalid("wrong")
    shown = observer.metrics.page().decode()
    for code in ("OK", "INVALID_ARGUMENT"):
        assert f'model_warmup_latency_count{{model_path="{tmp_path}",status="{code}"}} 1' in shown


def test_batches_are_counted_under_tf_servings_names():
    metrics = Metrics()
    BatchObserver(metrics).batch("batch_threads", waited_us=[400.0, 600.0], rows=[1, 2], padding=1)
    shown = metrics.page().decode().splitlines()
    prefix = ":tensorflow:serving:batching_session:"
    assert f"{prefix}wrapped_run_count{{}} 1" in shown
    assert f'{prefix}queuing_latency_sum{{thread_pool_name="batch_threads"}} 1000.0' in shown
    assert f"{prefix}input_batch_size_sum{{}} 3" in shown
    assert f"{prefix}processed_batch_size_sum{{}} 4" in shown
    assert f'{prefix}padding_size_sum{{execution_batch_size="4"}} 1' in shown


# --- pages ----------------------------------------------------------------------------------------------


def test_metrics_are_at_their_path_and_want_no_query():
    pages = Pages(None, Metrics(), "/metrics")
    found = pages.answer(get("/metrics"))
    assert (found.status, found.kind) == (200, b"text/plain")
    assert found.body.startswith(b"# TYPE :tensorflow:serving:request_count counter\n")
    refused = pages.answer(get("/metrics?name=x"))
    assert (refused.status, refused.kind) == (400, b"text/plain")
    assert refused.body == b"Unexpected path: /metrics?name=x. Should be /metrics"
    assert pages.answer(get("/metrics/x")) is None


def test_nothing_is_shown_that_no_flag_asked_for():
    assert Pages(None, Metrics()).answer(get("/monitoring/prometheus/metrics")) is None
    assert Pages(None, Metrics()).answer(get("/v1/models")) is None
