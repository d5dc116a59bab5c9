"""TensorProtos made to hurt are refused before anything is made of them."""

from types import SimpleNamespace

import pytest

from serve import dtypes, tensors
from serve.status import Code, ServingError


def proto(*sizes: int, dtype=dtypes.BOOL, **fields):
    shape = SimpleNamespace(dim=[SimpleNamespace(size=size) for size in sizes], unknown_rank=False)
    given = {"tensor_content": b"", "bool_val": [], "string_val": []} | fields
    return SimpleNamespace(dtype=dtype, tensor_shape=shape, **given)


def refused(message) -> str:
    with pytest.raises(ServingError) as caught:
        tensors.decode(message)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


@pytest.mark.parametrize("dtype", [dtypes.STRING, dtypes.BOOL])
def test_tensors_of_more_dimensions_than_tensorflow_survives_are_refused(dtype):
    assert tensors.decode(proto(*[1] * 32, dtype=dtype)).ndim == 32
    assert (
        refused(proto(*[1] * 33, dtype=dtype)) == "TensorProto has 33 dimensions; no more than 32 are served"
    )


def test_few_bytes_that_ask_for_gigabytes_are_refused():
    assert tensors.decode(proto(1000, bool_val=[True])).all()
    assert "too many to be repeated" in refused(proto(2**31 - 1, bool_val=[True]))
    assert "too many to be repeated" in refused(proto(2**26, dtype=dtypes.STRING))
