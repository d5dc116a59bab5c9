"""The routes of the REST API, on a model without TensorFlow."""

import gzip
import json
import threading

import numpy as np
import pytest

from serve import dtypes
from serve.config import ModelConfig, Policy
from serve.model import Signature, TensorSpec
from serve.models import LoadPolicy, Models, State
from serve.rest import Request, handle
from serve.status import Code, ServingError, http_status

X = {"x": TensorSpec("x:0", dtypes.FLOAT)}
Y = {"y": TensorSpec("y:0", dtypes.FLOAT)}


class Half:
    """A model: y is x / 2 + 2; it can be told to fail, or to wait."""

    def __init__(self, then=None):
        self.signatures = {"serving_default": Signature(X, Y), "no_inputs": Signature({}, Y)}
        self.then = then

    def run(self, feeds, fetches):
        if self.then:
            self.then()
        return [feeds["x:0"] / np.float32(2) + np.float32(2)]

    def close(self):
        pass


def served(tmp_path, then=None) -> Models:
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    models = Models([ModelConfig("m é", tmp_path, Policy(latest=0))], lambda path: Half(then), LoadPolicy())
    models.start(poll_s=1)
    while any(version.state is not State.AVAILABLE for version in models.status("m é")):
        threading.Event().wait(0.01)
    return models


def ask(models, method, target, body=b"", **headers):
    lower = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return handle(Request(method, target, lower, body), models)


M = "/v1/models/m%20%C3%A9"
PREDICT = M + ":predict"


@pytest.mark.parametrize(
    "target", [PREDICT, M + "/versions/1:predict", "/V1/Models/m%20%c3%a9:predict", M + "/Versions/2:predict"]
)
def test_predict_answers_rows_and_columns(tmp_path, target):
    models = served(tmp_path)
    rows = ask(models, "POST", target, b'{"instances": [1, 2, 3]}')
    assert (rows.status, rows.body) == (200, b'{"predictions": [2.5, 3.0, 3.5]}')
    columns = ask(models, "POST", target, b'{"inputs": [[1, 2, 3]]}')
    assert columns.body == b'{"outputs": [[2.5, 3.0, 3.5]]}'


@pytest.mark.parametrize(
    ("method", "target", "status", "message"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v2/models/m", 404, None),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/", 400, "Malformed request: GET /v1/"),
        ("GET", PREDICT, 400, f"Malformed request: GET {PREDICT}"),
        ("DELETE", M, 400, f"Malformed request: DELETE {M}"),
        ("POST", M, 400, f"Malformed request: POST {M}"),
        ("POST", PREDICT + "?x=1", 400, f"Malformed request: POST {PREDICT}?x=1"),
        ("POST", M + "/versions/one:predict", 400, f"Malformed request: POST {M}/versions/one:predict"),
        ("POST", M + ":explain", 400, f"Malformed request: POST {M}:explain"),
        ("POST", M + ":Predict", 400, f"Malformed request: POST {M}:Predict"),
        ("GET", "/v1/models/m?x=1", 404, "Could not find any versions of model m?x=1"),
        ("GET", "/v1/models/none", 404, "Could not find any versions of model none"),
        ("GET", M + "/versions/9", 404, "Could not find version 9 of model m é"),
        ("GET", "/v1/models/none/metadata", 404, "Servable not found for request: Latest(none)"),
        ("POST", "/v1/models/none:predict", 404, "Servable not found for request: Latest(none)"),
        ("POST", M + "/versions/9:predict", 404, "Servable not found for request: Specific(m é, 9)"),
        ("POST", M + "/labels/L:predict", 400, "Unrecognized servable version label: L"),
    ],
)
def test_paths_that_lead_nowhere_say_so(tmp_path, method, target, status, message):
    answer = ask(served(tmp_path), method, target, b'{"instances": [1]}')
    assert answer.status == status
    assert answer.body == b"" if message is None else json.loads(answer.body) == {"error": message}


def test_version_beyond_int64_is_answered_by_400_and_an_empty_body(tmp_path):
    answer = ask(served(tmp_path), "POST", M + "/versions/9223372036854775808:predict", b'{"instances": [1]}')
    assert (answer.status, answer.body) == (400, b"")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "JSON Parse error: The document is empty"),
        (b"[", 400, "JSON Parse error: Invalid value. at offset: 1"),
        (b"[]", 400, "JSON Value: [] Is not object"),
        (
            b'{"signature_name": 5}',
            400,
            (
                'JSON Value: {\n    "signature_name": 5\n} not formatted correctly. '
                "'signature_name' key must be a string value."
            ),
        ),
        (b'{"signature_name": "s"}', 400, 'Serving signature name: "s" not found in signature def'),
        (
            b'{"signature_name": "no_inputs"}',
            400,
            "Failed to get input map for signature: no_inputs",
        ),
        (b"{}", 400, "Missing 'inputs' or 'instances' key"),
        (b'{"inputs": 1, "instances": "a"}', 400, None),
    ],
)
def test_bodies_that_are_no_request_are_refused(tmp_path, body, status, message):
    answer = ask(served(tmp_path), "POST", PREDICT, body)
    assert answer.status == status
    if message is not None:
        assert json.loads(answer.body) == {"error": message}


def test_mistake_in_the_body_is_told_before_an_unknown_model(tmp_path):
    answer = ask(served(tmp_path), "POST", "/v1/models/none:predict", b"nope")
    assert answer.status == 400


def test_column_answer_for_a_scalar_and_row_refusal_for_it(tmp_path):
    models = served(tmp_path)
    assert ask(models, "POST", PREDICT, b'{"inputs": 4}').body == b'{"outputs": 4.0}'


def test_gzip_bodies_are_inflated_and_false_ones_refused(tmp_path):
    models = served(tmp_path)
    packed = gzip.compress(b'{"instances": [2]}')
    assert ask(models, "POST", PREDICT, packed, content_encoding=b"gzip").body == b'{"predictions": [3.0]}'
    for broken in (b"no gzip", packed[:-9]):
        assert ask(models, "POST", PREDICT, broken, content_encoding=b"gzip").status == 400


def test_gzip_members_are_joined_and_junk_behind_them_refused(tmp_path):
    models = served(tmp_path)
    packed = gzip.compress(b'{"instances"') + gzip.compress(b": [2]}")
    assert ask(models, "POST", PREDICT, packed, content_encoding=b"gzip").body == b'{"predictions": [3.0]}'
    answer = ask(models, "POST", PREDICT, packed + b"junk", content_encoding=b"gzip")
    assert answer.status == 400
    assert b"is not gzip" in answer.body


@pytest.mark.parametrize("coding", [b"br", b"deflate", b"gzip, gzip"])
def test_other_content_codings_are_answered_by_415_and_the_one_that_is_taken(tmp_path, coding):
    answer = ask(served(tmp_path), "POST", PREDICT, b'{"instances": [2]}', content_encoding=coding)
    assert (answer.status, answer.code) == (415, Code.UNIMPLEMENTED)
    assert coding.decode() in json.loads(answer.body)["error"]
    assert list(answer.headers) == [(b"accept-encoding", b"gzip")]


@pytest.mark.parametrize(
    ("origin", "status"), [(b"https://x", 200), (b"http://x", 200), (b"x", 400), (b"", 400)]
)
def test_options_is_answered_by_its_origin(tmp_path, origin, status):
    answer = ask(served(tmp_path), "OPTIONS", PREDICT, origin=origin)
    assert (answer.status, answer.body) == (status, b"")


def test_status_lists_versions_newest_first(tmp_path):
    models = served(tmp_path)
    fine = {"error_code": "OK", "error_message": ""}
    both = [{"version": number, "state": "AVAILABLE", "status": fine} for number in ("2", "1")]
    assert json.loads(ask(models, "GET", M).body) == {"model_version_status": both}
    assert json.loads(ask(models, "GET", M + "/labels/any").body) == {"model_version_status": both}
    assert json.loads(ask(models, "GET", M + "/versions/1").body) == {"model_version_status": both[1:]}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARGUMENT, 400),
        (Code.OUT_OF_RANGE, 400),
        (Code.NOT_FOUND, 404),
        (Code.ABORTED, 409),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.CANCELLED, 499),
        (Code.UNIMPLEMENTED, 501),
        (Code.UNAVAILABLE, 503),
        (Code.DEADLINE_EXCEEDED, 504),
        (Code.UNKNOWN, 500),
        (Code.DATA_LOSS, 500),
    ],
)
def test_each_code_of_a_failed_run_has_its_http_status(tmp_path, code, status):
    def fail():
        raise ServingError(code, 'it "failed"\n')

    answer = ask(served(tmp_path, fail), "POST", PREDICT, b'{"instances": [1]}')
    assert answer.status == status == http_status(code)
    assert json.loads(answer.body) == {"error": 'it "failed"\n'}


def test_bug_is_answered_by_500_and_logged(tmp_path, capsys):
    def fail():
        raise KeyError("oops")

    answer = ask(served(tmp_path, fail), "POST", PREDICT, b'{"instances": [1]}')
    assert (answer.status, json.loads(answer.body)) == (500, {"error": "KeyError: 'oops'"})
    assert "Traceback" in capsys.readouterr().err
