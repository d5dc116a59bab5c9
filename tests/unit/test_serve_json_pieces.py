"""Large requests are read in pieces, and large answers written in pieces: to the same as at once."""

import gc
import json
import time

import numpy as np
import pytest

from serve import dtypes, json_answer, json_loads, json_parse, json_plain
from serve.json_request import Form
from serve.status import ServingError

SHAPES = [
    (15,), (16,), (17,), (32,), (33,), (100,), (16, 1), (17, 1), (1, 16), (1, 17), (3, 5), (4, 4), (3, 6), (2, 40),
    (40, 3), (5, 3, 2), (2, 3, 7), (3, 1, 17), (1, 1, 33), (2, 2, 2, 5), (0,), (17, 0), (40, 0), (2, 40, 0), (0, 40),
    (2, 0, 40),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_turns(monkeypatch):
    """Pieces are tiny here, and no other thread waits for its turn."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def values(shape, dtype):
    count = int(np.prod(shape))
    if dtype == dtypes.STRING:
        texts = [b'%d \xff\xc3\xa9"' % number for number in range(count)]
        return np.array([*texts, None], object)[:-1].reshape(shape)
    if dtype == dtypes.BOOL:
        return (np.arange(count) % 3 == 0).reshape(shape)
    return (np.arange(count) / 7 - 3).astype(dtypes.DTYPES[dtype].numpy).reshape(shape)


def written(monkeypatch, at_once, *question):
    monkeypatch.setattr(json_answer, "_AT_ONCE", at_once)
    return json_answer.answer(*question)


@pytest.mark.parametrize("dtype", [dtypes.FLOAT, dtypes.DOUBLE, dtypes.INT64, dtypes.BOOL, dtypes.STRING])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", Form)
def test_pieces_of_an_answer_make_what_is_written_at_once(monkeypatch, form, shape, dtype):
    one = {"y": values(shape, dtype)}
    several = {"a_bytes": values(shape, dtypes.STRING), "b": values((*shape, 2), dtypes.FLOAT), "c": one["y"]}
    scalar = {"s": np.float32(1.5), "y": one["y"]} if form is Form.COLUMNS else one
    of_rows = {"n": np.arange(shape[0]), "y": one["y"]}
    for outputs in (one, several, of_rows, scalar):
        arrays = {alias: np.asarray(value) for alias, value in outputs.items()}
        types = {"y": dtype, "a_bytes": dtypes.STRING, "b": dtypes.FLOAT, "c": dtype, "n": dtypes.INT64}
        types["s"] = dtypes.FLOAT
        at_once = written(monkeypatch, 1 << 30, form, arrays, types)
        assert json.loads(at_once.decode("utf-8", "replace"))
        for size in (1, 16):
            assert written(monkeypatch, size, form, arrays, types) == at_once


def test_default_pieces_make_what_is_written_at_once(monkeypatch):
    size = json_answer._AT_ONCE
    for shape in ((size,), (size + 1,), (2, size), (2, size + 1), (size // 10 + 1, 10), (3 * size, 1)):
        arrays = {"y": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}
        for form in Form:
            in_pieces = written(monkeypatch, size, form, arrays, {"y": dtypes.FLOAT})
            assert in_pieces == written(monkeypatch, 1 << 30, form, arrays, {"y": dtypes.FLOAT})


@pytest.mark.parametrize("form", Form)
def test_type_without_json_is_refused_in_a_large_answer_too(monkeypatch, form):
    arrays = {"a": np.zeros(40, np.float32), "b": np.zeros(40, np.complex64)}
    with pytest.raises(ServingError, match="tensor type: complex64"):
        written(monkeypatch, 16, form, arrays, {"a": dtypes.FLOAT, "b": dtypes.COMPLEX64})


# --- reading ---


def both(monkeypatch, body, dtype, at_once=8):
    """What the straight reader makes of a body at once, and in pieces."""
    found = []
    for size in (1 << 30, at_once):
        monkeypatch.setattr(json_plain, "_AT_ONCE", size)
        plain = json_plain.read(body)
        array = None if plain is None else plain.array(dtype)
        if plain is None or array is None:
            found.append(None)
        else:
            array = array.astype(np.float32) if dtype == dtypes.FLOAT else array
            found.append((plain.key, plain.signature, array.shape, array.dtype, array.tolist()))
    return found


LISTS = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
    [[1], [2], [3], [4], [5], [6], [7]],
    [[[1, 2.5, -3e2], [0.1, 1e-9, 7]], [[1, 2, 3], [4, 5, 6]], [[9, 8, 7], [6, 5, 4]]],
    [[[[1]], [[2]]], [[[3]], [[4]]], [[[5]], [[6]]]],
    [[[[12345678, 23456789]]]],
    [18446744073709551615, 1, 9007199254740993, 2, 3],
    [18446744073709551615, 1, -1, 2, 3],
    [18446744073709551615, 1, 0.5, 2, 3],
    [9007199254740993, 1000000000, 1.5, 1000000000],
]


@pytest.mark.parametrize("dtype", [dtypes.FLOAT, dtypes.DOUBLE, dtypes.INT32, dtypes.INT64, dtypes.UINT64])
@pytest.mark.parametrize("numbers", LISTS)
def test_pieces_of_a_request_are_what_is_read_at_once(monkeypatch, numbers, dtype):
    for document in ({"instances": numbers}, {"signature_name": "s", "inputs": numbers},
                     {"inputs": numbers, "signature_name": "s"}):  # fmt: skip
        for indent in (None, 1):
            body = json.dumps(document, indent=indent).encode()
            for at_once in (1, 8, 20):
                whole, pieces = both(monkeypatch, body, dtype, at_once)
                assert pieces == whole
        if dtype == dtypes.DOUBLE:
            assert whole is not None


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[1], 2[], [3]]}',
        b'{"instances": [[1], [2]3, [3]]}',
        b'{"instances": [[1, 2], [3, 4] 5]}',
        b'{"instances": [[1, 2], 3 [4, 5]]}',
        b'{"instances": 1 [[1, 2], [4, 5]]}',
        b'{"instances": [[1, 2], [4, 5]] 1}',
        b'{"instances": [[1, 2], [4, 5]]} 1',
        b'{"instances": [[1, 2], [4, 05]]}',
        b'{"instances": [[1, 2], [4, ]]}',
        b'{"instances": [[1, 2], [ , 5]]}',
        b'{"instances": [[1, 2], [4 5, 6]]}',
        b'{"instances": [[1, 2], [4, true]]}',
        b'{"instances": [[1, 2], [4, NaN]]}',
        b'{"instances": [[1, 2], [4, 1e400]]}',
        b'{"instances": [[1, 2], [4, \xff]]}',
        b'{"instances": [[1, 2], [3, 4], [5]]}',
        b'{"instances": [[1, 2], [3, 4], [5, 6, 7]]}',
        b'{"instances": [[1, 2], [3, 4], [[5, 6]]]}',
        b'{"instances": [[1, 2], [3, 4], 5, 6]}',
        b'{"instances": [[], [], [], []]}',
        b'{"instances": [[], [1], [2], []]}',
        b'{"instances": [[1, 2], [3, 4]], "instances": 1}',
        b'{"other": [[1, 2], [3, 4]]}',
        b'{"signature_name": "a]b", "instances": [[1, 2], [3, 4]]}',
        b"[[1, 2], [3, 4], [5, 6]]",
    ],
)
def test_what_is_no_list_of_numbers_alike_is_none_in_pieces_either(monkeypatch, body):
    for at_once in (1, 8, 20):
        assert both(monkeypatch, body, dtypes.FLOAT, at_once) == [None, None]


def test_large_request_is_read_as_it_was_written(monkeypatch):
    numbers = np.random.default_rng(4).standard_normal((300, 10, 10)).round(6)
    body = json.dumps({"instances": numbers.tolist()}).encode()
    assert len(body) > 2 * json_plain._AT_ONCE
    plain = json_plain.read(body)
    assert plain is not None
    np.testing.assert_array_equal(plain.array(dtypes.DOUBLE), numbers)
    np.testing.assert_array_equal(plain.array(dtypes.FLOAT), numbers.astype(np.float32))
    assert plain.array(dtypes.INT32) is None


def test_large_json_of_objects_is_read_and_garbage_is_looked_for_afterwards():
    rows = [{"x": [number], "s": "é"} for number in range(12_000)]
    body = json.dumps({"instances": rows}, ensure_ascii=False).encode()
    assert len(body) > json_loads.LARGE
    assert json_parse.parse(body).value == {"instances": rows}
    with pytest.raises(ServingError):
        json_parse.parse(body[:-1])
    assert gc.isenabled()
