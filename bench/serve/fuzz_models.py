"""Writes the models that are fuzzed: `python -m bench.serve.fuzz_models FOLDER VERSIONS`, in a process of its own.

`half` (y = x / 2 + version) is asked what can be checked; `kinds` has a signature for each kind of
input, for what fails in the graph, and for examples.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_METHOD = "tensorflow/serving/"
_TYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "uint32", "uint64", "bool", "float16",
          "complex64")  # fmt: skip
Built = Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]


def half(number: int) -> Callable[[Any], Built]:
    """y = x / 2 + number, the number in a variable."""

    def build(tf: Any) -> Built:
        v1 = tf.compat.v1
        x = v1.placeholder(tf.float32, [None])
        y = x * v1.get_variable("half", initializer=0.5) + v1.get_variable("plus", initializer=float(number))
        return {"serving_default": ("predict", {"x": x}, {"y": y})}

    return build


def kinds(tf: Any) -> Built:
    """Signatures for predict of each type, for what raises, and for classify and regress."""

    def placeholder(dtype: Any, shape: Any = (None,)) -> Any:
        return tf.compat.v1.placeholder(dtype, shape)

    found: dict[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {}
    for name in _TYPES:
        x = placeholder(name)
        found[name] = ("predict", {"x": x}, {"x": tf.identity(x)})
    a, b, matrix, text = (
        placeholder("float32"),
        placeholder("int32"),
        placeholder("float32", (None, 3)),
        placeholder("string"),
    )
    found["serving_default"] = (
        "predict",
        {"a": a, "b": b},
        {"sum": a + tf.cast(b, "float32"), "twice": b * 2},
    )
    found["text"] = ("predict", {"s": text}, {"echo": tf.identity(text), "echo_bytes": tf.identity(text)})
    found["matrix"] = ("predict", {"m": matrix}, {"product": matrix @ tf.ones([3, 2])})
    found["reshape"] = ("predict", {"a": a}, {"square": tf.reshape(a, [3, 3])})
    found["pick"] = ("predict", {"b": b}, {"picked": tf.gather(tf.range(10.0), b)})
    found["no_inputs"] = ("predict", {}, {"five": tf.constant([5.0])})
    examples = placeholder("string")
    spec = {
        "x": tf.io.FixedLenFeature([], tf.float32, 0.0),
        "names": tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True, default_value=""),
    }
    parsed = tf.io.parse_example(examples, spec)
    scores = tf.stack([parsed["x"], 1.0 - parsed["x"]], axis=1)
    classes = tf.tile(tf.constant([["yes", "no"]]), [tf.size(examples), 1])
    found["classify"] = ("classify", {"inputs": examples}, {"classes": classes, "scores": scores})
    found["regress"] = ("regress", {"inputs": examples}, {"outputs": parsed["x"] * 2.0})
    return found


def write(path: Path, build: Callable[[Any], Built]) -> None:
    """A SavedModel as TensorFlow 1 wrote them, which may have signatures of all methods."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1.Graph().as_default(), v1.Session() as session:
        info = v1.saved_model.build_tensor_info
        signatures = {
            name: v1.saved_model.signature_def_utils.build_signature_def(
                {alias: info(tensor) for alias, tensor in inputs.items()},
                {alias: info(tensor) for alias, tensor in outputs.items()},
                _METHOD + method,
            )
            for name, (method, inputs, outputs) in build(tf).items()
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()


def main(folder: Path, versions: int) -> None:
    """Writes all of them, with so many versions of `half`."""
    for number in range(1, versions + 1):
        write(folder / "half" / str(number), half(number))
    write(folder / "kinds" / "1", kinds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
