"""Examples parsed for TFLite models: their ParseExampleV2 runs in TensorFlow, as the interpreter lacks it.

TF Serving links the operation into its interpreter; TensorFlow's package has it for graphs alone. So it is taken out of
the model: what it gave become inputs of the model, and they are fed with what TensorFlow's own operation gives.
Needs `serve.framework.lean` (or TensorFlow itself) before it is imported.
Source: tensorflow/lite/kernels/parse_example/parse_example.cc.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.client import session as tf_session
from tensorflow.python.framework import dtypes as tf_dtypes
from tensorflow.python.framework import ops
from tensorflow.python.ops import array_ops, gen_parsing_ops

from serve import tf_errors

_OPERATION = b"ParseExampleV2"
_TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.STRING: np.object_,
}


@dataclass(frozen=True)
class Parser:
    """One parse that was taken out of a model."""

    serialized: str  # the model's input that it reads
    outputs: tuple[str, ...]  # the tensors that it gives, now inputs
    parse: Callable[[np.ndarray], Sequence[np.ndarray]]

    def __call__(self, serialized: np.ndarray) -> dict[str, np.ndarray]:
        """What examples of shape [batch] hold. Raises the ServingError of TensorFlow's operation."""
        with tf_errors.told():
            return dict(zip(self.outputs, self.parse(serialized), strict=True))


def take_out(content: bytes) -> tuple[bytes, tuple[Parser, ...]]:
    """The model without its parses of fixed-length features, and these; others stay, and the model will not load."""
    if _OPERATION not in content:
        return content, ()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    found = [each for each in graph.operators if _is_parse(model, each)]
    if not found:
        return content, ()
    parsers = tuple(_parser(model, each) for each in found)
    graph.operators = [each for each in graph.operators if not any(each is one for one in found)]
    graph.inputs = [*graph.inputs, *(number for each in found for number in each.outputs)]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output()), parsers


def _is_parse(model: Any, operator: Any) -> bool:
    """Whether it parses an input of the model, with keys and defaults that are constants, into dense tensors alone."""
    if model.operatorCodes[operator.opcodeIndex].customCode != _OPERATION:
        return False
    serialized, _, *constants = operator.inputs
    made = {number for each in model.subgraphs[0].operators for number in each.outputs}
    if serialized not in model.subgraphs[0].inputs or not made.isdisjoint(constants):
        return False
    sparse, dense, ragged = (_value(model, each) for each in constants[:3])
    outputs = {model.subgraphs[0].tensors[each].type for each in operator.outputs}
    return (
        not len(sparse) and not len(ragged) and len(dense) == len(operator.outputs) and outputs <= {*_TYPES}
    )


def _parser(model: Any, operator: Any) -> Parser:
    tensors = model.subgraphs[0].tensors
    outputs = [tensors[each] for each in operator.outputs]
    keys = _value(model, operator.inputs[3])
    defaults = [_value(model, each) for each in operator.inputs[5:]]
    with ops.Graph().as_default() as graph:
        serialized = array_ops.placeholder(tf_dtypes.string, [None])
        parsed = gen_parsing_ops.parse_example_v2(
            serialized, names=[], sparse_keys=[], dense_keys=keys, ragged_keys=[], dense_defaults=defaults,
            num_sparse=0, sparse_types=[], ragged_value_types=[], ragged_split_types=[],
            dense_shapes=[list(each.shape[1:]) for each in outputs],
        )  # fmt: skip
        run = tf_session.Session(graph=graph).make_callable(list(parsed.dense_values), [serialized])
    names = tuple(each.name.decode() for each in outputs)
    return Parser(tensors[operator.inputs[0]].name.decode(), names, run)


def _bytes(model: Any, number: int) -> bytes:
    """The bytes of a constant; none if it is empty."""
    data = model.buffers[model.subgraphs[0].tensors[number].buffer].data
    return b"" if data is None else bytes(data)


def _value(model: Any, number: int) -> np.ndarray:
    """A constant, flat. Strings are a count, the count + 1 offsets of their bytes, and these."""
    data, kind = _bytes(model, number), _TYPES.get(model.subgraphs[0].tensors[number].type, np.float32)
    if not data:  # no default
        return np.array([], kind)
    if kind is not np.object_:
        return np.frombuffer(data, kind)
    count = int.from_bytes(data[:4], "little")
    offsets = np.frombuffer(data, "<i4", count + 1, 4)
    texts = [data[start:end] for start, end in itertools.pairwise(offsets)]
    return np.array(texts, np.object_)
