"""Models for tests of inference and loading, shaped like those that TF Serving's own tests use.

`python -m tests.support_inference DIR` writes them all: in a process of its own, since it needs all of TensorFlow.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "123"


@functools.cache
def models(session: Path) -> Path:
    """The folders of models, written once a session."""
    base = session / "models_to_infer"
    argv = [sys.executable, "-m", "tests.support_inference", str(base)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return base


def _signature(v1, method, inputs, outputs):
    info = v1.saved_model.build_tensor_info
    return v1.saved_model.signature_def_utils.build_signature_def(
        {alias: info(tensor) for alias, tensor in inputs.items()},
        {alias: info(tensor) for alias, tensor in outputs.items()},
        f"tensorflow/serving/{method}" if method else "",
    )


def _save(v1, path, build, tags=("serve",)):
    """Writes a TF1 SavedModel; `build` makes the graph and returns {signature: (method, inputs, outputs)}."""
    with v1.Graph().as_default(), v1.Session(config=v1.ConfigProto(allow_soft_placement=True)) as session:
        signatures = {name: _signature(v1, *parts) for name, parts in build(v1).items()}
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, list(tags), signatures)
        builder.save()


def _examples(v1, **features):
    """A placeholder of serialized examples, and their features (32-bit floats, one each)."""
    serialized = v1.placeholder(v1.string, name="tf_example")
    specs = {
        name: v1.io.FixedLenFeature([1], v1.float32, None if default is None else [default])
        for name, default in features.items()
    }
    return serialized, v1.io.parse_example(serialized, specs)


def _half_plus(number):
    """y = x / 2 + number, y2 one more, y3 = x2 + number + 1; as TF Serving's half_plus_two has it."""

    def build(v1):
        serialized, parsed = _examples(v1, x=None, x2=0.0)
        half, plus = v1.get_variable("a", initializer=0.5), v1.get_variable("b", initializer=float(number))
        more = v1.get_variable("c", initializer=number + 1.0)
        x, x2 = v1.identity(parsed["x"], name="x"), v1.identity(parsed["x2"], name="x2")
        y, y2, y3 = (
            v1.add(half * x, plus, name="y"),
            v1.add(half * x, more, name="y2"),
            v1.add(x2, more, name="y3"),
        )
        return {
            "serving_default": ("predict", {"x": x}, {"y": y}),
            "regress_x_to_y": ("regress", {"inputs": serialized}, {"outputs": y}),
            "regress_x_to_y2": ("regress", {"inputs": serialized}, {"outputs": y2}),
            "regress_x2_to_y3": ("regress", {"inputs": x2}, {"outputs": y3}),
            "regress_both_to_y3": ("regress", {"inputs": serialized}, {"outputs": y3}),
            "classify_x_to_y": ("classify", {"inputs": serialized}, {"scores": y}),
            "no_method": ("", {"inputs": serialized}, {"outputs": y}),
        }  # fmt: skip

    return build


def _as_of_old(path):
    """Makes the placeholder of examples what old exports have: a scalar, in a graph that takes this for unknown."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for meta_graph in saved.meta_graphs:
        meta_graph.graph_def.versions.producer = 21
        for node in meta_graph.graph_def.node:
            node.attr.pop("_output_shapes", None)
            if node.name == "tf_example":
                node.attr["shape"].shape.Clear()
                node.attr["shape"].shape.SetInParent()
        for signature in meta_graph.signature_def.values():
            if "inputs" in signature.inputs:
                signature.inputs["inputs"].tensor_shape.Clear()
                signature.inputs["inputs"].tensor_shape.dim.add(size=-1)
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())


def _counter(v1):
    """A counter in a TF1 variable; what its operations give are references."""
    counter = v1.Variable(0.0, name="counter", use_resource=False)
    delta = v1.placeholder(v1.float32, name="delta")
    v1.add_to_collection("unused", counter)
    return {
        "get_counter": ("predict", {}, {"output": v1.identity(counter)}),
        "incr_counter": ("predict", {}, {"output": v1.assign_add(counter, 1.0)}),
        "incr_counter_by": ("predict", {"delta": delta}, {"output": v1.assign_add(counter, delta)}),
        "reset_counter": ("predict", {}, {"output": v1.assign(counter, 0.0)}),
    }


def _on_gpu(v1):
    """y = x / 2 + 2, pinned to a GPU."""
    with v1.device("/device:GPU:0"):
        x = v1.placeholder(v1.float32, [None, 1], name="x")
        y = x * v1.get_variable("a", initializer=0.5) + 2.0
    return {"serving_default": ("predict", {"x": x}, {"y": y})}


def _classes(v1):
    """Three labels and scores for each example; and signatures that classify and regress have to refuse."""
    serialized, parsed = _examples(v1, x=None)
    x = parsed["x"]
    scores = v1.concat([x, x * 2, x / 4], 1)
    labels = v1.tile([[b"car", b'b\xc3\xaf"ke', b"bus"]], [v1.shape(x)[0], 1])
    inputs = {"inputs": serialized}
    return {
        "serving_default": ("classify", inputs, {"classes": labels, "scores": scores}),
        "only_classes": ("classify", inputs, {"classes": labels}),
        "values": ("regress", inputs, {"outputs": v1.squeeze(x, 1)}),
        "wrong_input": ("classify", {"x": serialized}, {"scores": scores}),
        "two_inputs": ("classify", {"inputs": serialized, "x": x}, {"scores": scores}),
        "wrong_outputs": ("classify", inputs, {"y": scores}),
        "three_outputs": ("classify", inputs, {"classes": labels, "scores": scores, "x": x}),
        "flat": ("classify", inputs, {"scores": v1.squeeze(x, 1)}),
        "doubles": ("classify", inputs, {"scores": v1.cast(scores, v1.float64)}),
        "short": ("classify", inputs, {"scores": scores[:1]}),
        "uneven": ("classify", inputs, {"classes": labels, "scores": x}),
        "wide": ("regress", inputs, {"outputs": scores}),
        "wide_doubles": ("regress", inputs, {"outputs": v1.cast(x, v1.float64)}),
        "named": ("regress", inputs, {"y": x}),
        "raises": ("regress", inputs, {"outputs": v1.debugging.check_numerics(1 / x, "x must not be 0")}),
    }  # fmt: skip


def _strings(v1):
    """Strings as they are; a scalar that ends in a zero byte."""
    s = v1.placeholder(v1.string, name="s")
    return {"serving_default": ("predict", {"s": s}, {"echo": v1.identity(s)})}


def _write_tf2(tf, path):
    class Half(tf.Module):
        def __init__(self):
            super().__init__()
            self.plus = tf.Variable(2.0)

        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")])
        def serve(self, x):
            return {"y": x / 2 + self.plus}

    half = Half()
    tf.saved_model.save(half, str(path), signatures={"serving_default": half.serve})


def _tflite(tf, of, dtype, shape=(None,)) -> bytes:
    """A function of one input as a TFLite model without signatures."""
    function = tf.function(of, input_signature=[tf.TensorSpec(shape, dtype, name="x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    converter.allow_custom_ops = True
    return converter.convert()


def with_signature_defs(content: bytes, signatures) -> bytes:
    """A TFLite model with SignatureDefs in its metadata, as TF Serving looks for them; tensors lose their `:0`."""
    import flatbuffers
    from flatbuffers import flexbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for tensor in model.subgraphs[0].tensors:
        tensor.name = tensor.name.removesuffix(b":0")
    flex = flexbuffers.Builder()
    with flex.Map():
        for name, signature in signatures.items():
            flex.Blob(name, signature.SerializeToString())
    buffer = schema.BufferT()
    buffer.data = list(flex.Finish())
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = "signature_defs_metadata", len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor_names(tf, content: bytes) -> tuple[str, str]:
    interpreter = tf.lite.Interpreter(model_content=content)
    return interpreter.get_input_details()[0]["name"], interpreter.get_output_details()[0]["name"]


def _write_tflite(tf, base):
    from tensorflow.core.protobuf import meta_graph_pb2

    plain = _tflite(tf, lambda x: {"y": tf.identity(x / 2 + 2)}, tf.float32, [None, 1])
    parse = {"x": tf.io.FixedLenFeature([1], tf.float32), "y": tf.io.FixedLenFeature([1], tf.string, b"none")}
    sparse = {"x": tf.io.VarLenFeature(tf.float32)}
    x, y = _tensor_names(tf, plain)
    signature = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    signature.inputs["x"].name, signature.inputs["x"].dtype = x, 1
    signature.outputs["y"].name, signature.outputs["y"].dtype = y, 1
    wrong = meta_graph_pb2.SignatureDef()
    wrong.inputs["x"].name = "nowhere:0"
    for name, content in (
        ("tflite", plain),
        ("tflite_signed", with_signature_defs(plain, {"serving_default": signature, "again": signature})),
        ("tflite_lost", with_signature_defs(plain, {"serving_default": wrong})),
        ("tflite_junk", b"no model"),
        ("tflite_strings", _tflite(tf, lambda x: {"y": tf.gather(x, [0, 0])}, tf.string)),
        ("tflite_parse", _tflite(tf, lambda x: tf.io.parse_example(x, parse)["y"], tf.string)),
        ("tflite_half", _tflite(tf, lambda x: tf.io.parse_example(x, parse)["x"] / 2 + 2, tf.string)),
        ("tflite_sparse", _tflite(tf, lambda x: tf.io.parse_example(x, sparse)["x"].values, tf.string)),
        ("tflite_and_saved", plain),
    ):
        folder = base / name / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.tflite").write_bytes(content)


def write(base: Path) -> None:
    """Writes all models below a folder."""
    import tensorflow as tf

    v1 = tf.compat.v1
    for name, build, tags in (
        ("half_plus_two", _half_plus(2), ("serve",)),
        ("half_plus_three", _half_plus(3), ("serve",)),
        ("counter", _counter, ("serve",)),
        ("on_gpu", _on_gpu, ("serve",)),
        ("classes", _classes, ("serve",)),
        ("strings", _strings, ("serve",)),
        ("tagged", _half_plus(2), ("serve", "gpu")),
        ("tflite_and_saved", _half_plus(5), ("serve",)),
    ):
        _save(v1, base / name / VERSION, build, tags)
    _as_of_old(base / "half_plus_three" / VERSION)
    _write_tf2(tf, base / "tf2" / VERSION)
    _write_tflite(tf, base)
    (base / "session_bundle" / VERSION).mkdir(parents=True)
    (base / "session_bundle" / VERSION / "export.meta").write_bytes(b"")
    (base / "empty" / VERSION).mkdir(parents=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    write(Path(sys.argv[1]))
