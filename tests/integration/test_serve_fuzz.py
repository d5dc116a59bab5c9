"""A real server gets some thousand requests that nobody should send, the same ones each time."""

import json
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from bench.serve import fuzz
from tests.support_serve import call

REQUESTS = 2000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.make_models(folder)
    with fuzz.server(folder, fuzz.entries(folder)) as running:
        yield running


def test_no_request_of_many_broken_ones_is_answered_badly_or_harms_the_others(server):
    tally = fuzz.Fuzz(server, seed=5).all(REQUESTS, clients=4)
    assert tally.faults == []
    assert tally.asked == REQUESTS
    assert {
        "good",
        "rest 200",
        "rest 400",
        "grpc OK",
        "grpc INVALID_ARGUMENT",
        "grpc broken message",
    } <= tally.kinds.keys()
    assert tally.kinds["good"] == REQUESTS // 20


@pytest.mark.parametrize("depth", [32, 33, 63, 64])
def test_deep_lists_of_strings_are_refused_before_they_reach_tensorflow(server, depth):
    body = f'{{"signature_name": "text", "inputs": {"[" * depth}"a"{"]" * depth}}}'
    answer = call("POST", "/v1/models/kinds:predict", body, server.rest)
    assert answer.status == 400
    assert answer.json["error"].endswith("is nested deeper than 31 lists")
    assert server.child.poll() is None


def test_error_of_a_run_that_quotes_what_is_no_text_is_the_clients(server):
    body = json.dumps({"signature_name": "classify", "inputs": [{"b64": "//4="}]})
    answer = call("POST", "/v1/models/kinds:predict", body, server.rest)
    assert answer.status == 400
    assert "Could not parse example" in answer.json["error"]
