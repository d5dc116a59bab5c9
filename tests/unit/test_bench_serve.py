"""The benchmark of model servers: what is read from load generators, the arithmetic, tables and pictures."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.serve import load, measure, models, plot, process, publish, results, tables
from bench.serve.measure import Plan
from bench.serve.models import Model
from bench.serve.peers import fastapi, mlflow, mlserver
from bench.serve.process import Memory
from bench.serve.results import Cell, Limit, Results, Server, Started
from pipeline.errors import IntegrityError, ProgramFailed

WRK = """Running 3s test @ http://127.0.0.1:1/predict
  1 threads and 8 connections
TOTALS {"requests": 1000, "duration_us": 2000000, "p50_us": 1500, "p99_us": 9000, "max_us": 12000, %s}
"""
H2LOAD = """finished in 4.00s, 1279.67 req/s, 237.69KB/s
requests: 400 total, 408 started, 400 done, %d succeeded, %d failed, 0 errored, 0 timeout
status codes: 400 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 71.06KB (73005) total, 1.21KB (1456) headers (space savings 96.14%%), 62.13KB (%d) data
"""


def wrk(**errors):
    counts = {"statuses": 0, "timeouts": 0, "breaks": 0, **errors}
    return WRK % ", ".join(f'"{name}": {count}' for name, count in counts.items())


def test_rate_of_wrk_is_of_requests_answered_by_200():
    seen = load.read_wrk(wrk())
    assert (seen.requests, seen.failures, seen.per_second) == (1000, 0, 500)
    assert (seen.p50_ms, seen.p99_ms) == (1.5, 9)
    seen = load.read_wrk(wrk(statuses=200, timeouts=3, breaks=4))
    assert (seen.requests, seen.failures, seen.per_second) == (1000, 207, 400)


def test_few_answers_have_no_99th_percentile():
    assert load.read_wrk(wrk(statuses=901)).p99_ms is None
    assert load.read_wrk(wrk(statuses=900)).p99_ms == 9


@pytest.mark.parametrize("read", [load.read_wrk, lambda text: load.read_h2load(text, [], 1, 1)])
def test_a_generator_that_says_nothing_is_an_error_and_no_figure(read):
    with pytest.raises(ProgramFailed, match="did not print its totals: unable to connect"):
        read("unable to connect")


def test_rate_of_h2load_is_of_answers_that_are_whole():
    times = [1000] * 395 + [20_000] * 5
    seen = load.read_h2load(H2LOAD % (400, 0, 400 * 155), times, 150, 2)
    assert (seen.requests, seen.failures, seen.per_second) == (400, 0, 200)
    assert (seen.p50_ms, seen.p99_ms) == (1, 20)


def test_grpc_calls_that_failed_show_by_the_bytes_that_did_not_come():
    seen = load.read_h2load(H2LOAD % (400, 0, 100 * 155), [1000] * 400, 150, 2)
    assert (seen.failures, seen.per_second) == (300, 50)
    seen = load.read_h2load(H2LOAD % (390, 10, 390 * 155), [1000] * 400, 150, 2)
    assert (seen.requests, seen.failures) == (400, 10)


def test_a_server_that_answers_nothing_well_has_no_rate():
    with pytest.raises(ProgramFailed, match=r"of 1000 requests .* none was answered well"):
        load.read_wrk(wrk(statuses=1000))
    with pytest.raises(ProgramFailed, match=r"of 400 requests .* none was answered well"):
        load.read_h2load(H2LOAD % (400, 0, 0), [1000] * 400, 150, 2)


@pytest.mark.parametrize(
    ("percent", "value"), [(50, 5), (51, 6), (90, 9), (99, 10), (100, 10), (1, 1), (0, 1)]
)
def test_percentile_is_of_the_nearest_rank(percent, value):
    assert load.percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], percent) == value


def test_percentile_of_nothing_is_no_number():
    assert math.isnan(load.percentile([], 50))


def test_processes_share_the_pages_of_their_files():
    status = "Name:\tx\nRssAnon:\t  {} kB\nRssFile:\t  {} kB\nRssShmem:\t  {} kB\n"
    parts = [
        process.resident(status.format(1024, 4096, 1024)),
        process.resident(status.format(2048, 3072, 0)),
    ]
    assert parts == [Memory(2, 4), Memory(2, 3)]
    assert process.joined(parts) == Memory(4, 4)
    assert process.joined([]).total == 0


def test_rows_in_flight_of_a_heavy_model_are_bounded():
    plan = Plan((1, 32), (1, 8, 64), 1, 0, {})
    assert list(plan.shapes("digits")) == [(1, 1), (1, 8), (1, 64), (32, 1), (32, 8), (32, 64)]
    assert list(plan.shapes("resnet")) == [(1, 1), (1, 8), (1, 64), (32, 1), (32, 8)]


@pytest.fixture
def model(tmp_path):
    rows = {"city": np.array(["a", "b"]), "x": np.array([0.1, -2], np.float32)}
    np.savez(tmp_path / "rows.npz", **rows)
    np.savez(tmp_path / "expected.npz", score=np.array([0.25, 0.5], np.float32))
    return Model("wide", tmp_path)


def test_numbers_in_requests_are_as_short_as_float32_allows(model):
    assert model.instances(2) == [{"city": "a", "x": 0.1}, {"city": "b", "x": -2.0}]
    assert models.plain(np.array([[1 / 3]], np.float32)) == [[0.33333334]]


def test_each_peer_is_asked_in_its_own_protocol(model):
    assert fastapi.PEER.exchange(model, 1).body == b'{"instances":[{"city":"a","x":0.1}]}'
    assert mlflow.PEER.exchange(model, 2).body == b'{"inputs":{"city":["a","b"],"x":[0.1,-2.0]}}'
    assert mlserver.PEER.exchange(model, 1).body == (
        b'{"inputs":[{"name":"city","datatype":"BYTES","shape":[1,1],"data":["a"]},'
        b'{"name":"x","datatype":"FP32","shape":[1],"data":[0.1]}]}'
    )
    answer = b'{"outputs": [{"name": "score", "shape": [2, 1], "data": [0.25, 0.5]}]}'
    assert mlserver.PEER.exchange(model, 2).outputs(answer)["score"].tolist() == [0.25, 0.5]


def test_an_answer_that_is_not_tensorflows_is_refused(model):
    measure.check_outputs(model, 2, {"score": np.array([0.25, 0.50001])})
    for found in ({}, {"score": np.array([0.25])}, {"score": np.array([0.25, 0.6])}, {"class": np.zeros(2)}):
        with pytest.raises(ProgramFailed, match="answer for score is not TensorFlow's"):
            measure.check_outputs(model, 2, found)


@pytest.fixture
def found():
    """Ours and two peers; the faster of them fails once, and one could not be started."""
    speeds = {"Tidegate REST, batched": 4000.0, "Tidegate gRPC, batched": 5000.0, "A": 2000.0, "B": 9000.0}
    return Results(
        "2 cores",
        "today",
        4,
        [
            *(Server(name, "as it is", name.startswith("Tidegate")) for name in speeds),
            Server("C", "1.0: plain"),
        ],
        [Limit("digits", 3.0, 200.0, 300.0, {1: {1: 900.0, 2: 1000.0}, 32: {1: 8000.0, 2: 10_000.0}})],
        [
            *(Started(name, "digits", 1.5, 250.0, 280.0) for name in speeds),
            Started("C", "digits", reason="cannot be installed: no such version"),
        ],
        [
            Cell(name, "digits", 1, 64, 100, int(name == "B"), speed, 1.0, speed / 1000)
            for name, speed in speeds.items()
        ],
        120.0,
        {"digits": 43_000},
    )


def test_ratios_are_to_the_fastest_peer_that_answered_all(found):
    line = tables.against_peers(found).splitlines()[-1]
    cells = [part.strip() for part in line.strip("|").split("|")]
    assert cells == ["digits, 1, 64", "A", "2,000", "4,000", "2.00", "2.00", "4.00", "2.00"]


def test_share_of_the_limit_is_of_tensorflows_best(found):
    line = tables.against_limit(found).splitlines()[-1]
    assert [part.strip() for part in line.strip("|").split("|")] == [
        "digits, 1",
        "10,000",
        "4,000 (40%)",
        "5,000 (50%)",
    ]


def test_memory_is_over_that_of_tensorflow_with_the_model(found):
    lines = [
        [part.strip() for part in line.strip("|").split("|")]
        for line in tables.memory_and_start(found).splitlines()
    ]
    assert ["Tidegate, batched", "1.5", "+30"] in lines
    assert ["C", "–", "–"] in lines


def test_what_was_not_measured_is_told_with_its_reason(found):
    text = tables.document(found)
    assert "- C, digits: cannot be installed: no such version\n" in text
    assert "- B, digits, 1 rows, 64 clients: 1 of 100 requests failed\n" in text


def test_saved_results_make_the_same_tables(found, tmp_path):
    results.write(found, tmp_path / "deep/results.json")
    assert results.read(tmp_path / "deep/results.json") == found


def test_picture_is_svg_with_a_line_for_each_server(found):
    root = ElementTree.fromstring(plot.picture(found, "digits"))
    assert len(root.findall("{*}polyline")) == 4
    texts = [each.text for each in root.findall("{*}text")]
    assert {"Tidegate REST, batched", "B", "rows per second", "99th percentile, ms"} <= set(texts)


def test_there_is_no_picture_of_too_few_answers(found):
    found.cells = [Cell("A", "digits", 1, 1, 10, 0, 5.0, 1.0, None)]
    assert plot.picture(found, "digits") == ""


def test_logarithmic_axis_puts_a_decade_in_equal_steps():
    axis = plot.Axis(1, 100, 400, 0)
    assert [axis.at(value) for value in (1, 10, 100)] == [400, 200, 0]
    assert axis.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert [plot.short(value) for value in (0.5, 20, 1000, 2e6)] == ["0.5", "20", "1k", "2M"]


def test_only_the_measured_section_of_the_page_is_replaced():
    page = f"# Title\n\n{publish.BEGIN}\nold\n{publish.END}\n\nAfter.\n"
    assert (
        publish.replaced(page, "new\n") == f"# Title\n\n{publish.BEGIN}\n\nnew\n\n{publish.END}\n\nAfter.\n"
    )
    with pytest.raises(IntegrityError, match="lacks the lines"):
        publish.replaced("# Title\n", "new")
