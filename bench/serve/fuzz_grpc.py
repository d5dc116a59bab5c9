"""Messages for a gRPC port: right ones broken in one place, then maybe in their bytes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
RELOAD = _MODEL + "HandleReloadConfigRequest"
_INPUTS = {"text": ("s",), "matrix": ("m",), "reshape": ("a",), "pick": ("b",), "serving_default": ("a", "b"),
           "": ("a", "b"),
           "classify": ("inputs",), "regress": ("inputs",), "no_inputs": ()}  # fmt: skip
_SIGNATURES = (*_INPUTS, "float32", "float64", "int64", "int8", "uint8", "uint64", "bool", "float16",
               "complex64", "none",
               "\x00", "s" * 3000)  # fmt: skip
_TYPES = {"text": 7, "matrix": 1, "reshape": 1, "pick": 3, "float32": 1, "float64": 2, "int64": 9, "int8": 6,
          "uint8": 4,
          "uint64": 23, "bool": 10, "float16": 19, "complex64": 8, "classify": 7, "regress": 7}  # fmt: skip
_FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 6: "int_val", 7: "string_val",
           8: "scomplex_val",
           9: "int64_val", 10: "bool_val", 17: "int_val", 19: "half_val", 22: "uint32_val",
           23: "uint64_val"}  # fmt: skip
_SIZES = (0, 1, 2, 3, 9, 40, -1, 2**31, 2**62, 2**63 - 1, -(2**63))
_SMALL = (0, 1, 1, 2, 3, 3, 9)


@dataclass(frozen=True)
class Case:
    """The bytes that one method is called with."""

    method: str
    message: bytes


def ready() -> None:
    """Imports the messages, which takes seconds and may not be done by several threads at once."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tensorflow.core.example import example_pb2  # noqa: F401
    from tensorflow_serving.apis import predict_pb2  # noqa: F401


def case(rng: random.Random) -> Case:
    """One case; the same for the same state of `rng`. Models come and go by those of `reload` alone."""
    names = {
        "Predict": (_predict, 10),
        "Classify": (_on_examples, 3),
        "Regress": (_on_examples, 3),
        "MultiInference": (_multi_inference, 3),
        "GetModelMetadata": (_metadata, 2),
    }
    kinds: list[tuple[str, Callable[[random.Random], Any]]] = [
        (_PREDICTION + name, make) for name, (make, weight) in names.items() for _ in range(weight)
    ]
    kinds += [(_MODEL + "GetModelStatus", _status), (_PREDICTION + "Nothing", _status)]
    method, make = rng.choice(kinds)
    return Case(method, _bytes(rng, make(rng)))


def reload(rng: random.Random, entries: str) -> Case:
    """A new configuration: that of `entries` (text format) with one more model, and one thing that is wrong."""
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(entries, request.config.model_config_list)
    new = request.config.model_config_list.config.add(
        model_platform=rng.choice(("tensorflow",) * 4 + ("", "torch"))
    )
    new.name = rng.choice(("half", "new", "new/../x", "", "\u00e9", "n" * 2000, "a:b"))
    new.base_path = rng.choice((request.config.model_config_list.config[0].base_path, "/nowhere", "", "relative",
                                "/proc/self/fd", "/dev/null", "/x\x00y", "/" + "p" * 5000))  # fmt: skip
    if rng.random() < 0.4:
        new.version_labels[rng.choice(("stable", "", "\u00e9/:"))] = rng.choice((1, 2, 99, -1, 2**62))
    policy = new.model_version_policy
    rng.choice((lambda: policy.latest.SetInParent(), lambda: policy.all.SetInParent(),
                lambda: policy.specific.versions.extend([1, -5, 2**62]),
                lambda: setattr(policy.latest, "num_versions", 2**32 - 1)))()  # fmt: skip
    request.metric_names.extend(rng.choice(([], ["a"], [":tensorflow:serving:request_count"] * 3, ["\x00"])))
    if rng.random() < 0.2:
        request.config.custom_model_config.type_url = "type.googleapis.com/x"
    return Case(RELOAD, request.SerializeToString())


def restored(entries: str) -> Case:
    """The configuration of `entries` alone."""
    from google.protobuf import text_format
    from tensorflow_serving.apis import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(entries, request.config.model_config_list)
    return Case(RELOAD, request.SerializeToString())


def good(value: float, model: str = "half", version: int | None = 2) -> Case:
    """What has a known answer: value / 2 + version."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add(size=1)
    request.inputs["x"].float_val.append(value)
    return Case(_PREDICTION + "Predict", request.SerializeToString())


def answer_of(message: bytes) -> list[float]:
    """The values in the answer to `good`."""
    from tensorflow_serving.apis import predict_pb2

    return list(predict_pb2.PredictResponse.FromString(message).outputs["y"].float_val)


# --- messages ---


def _spec(rng: random.Random, spec: Any) -> str:
    """Fills a model_spec; returns the signature that it names."""
    spec.name = rng.choice(("kinds",) * 12 + ("half", "", "none", "k" * 2000, "\x00", "\u00e9"))
    signature = rng.choice(_SIGNATURES)
    spec.signature_name = signature
    pick = rng.random()
    if pick < 0.08:
        spec.version.value = rng.choice((1, 2, 0, -1, 2**62))
    elif pick < 0.12:
        spec.version_label = rng.choice(("stable", "", "l" * 2000))
    return signature


def _predict(rng: random.Random) -> Any:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    signature = _spec(rng, request.model_spec)
    for alias in _INPUTS.get(signature, ("x",)):
        dtype = _TYPES.get(signature, 3 if alias == "b" else 1)
        _tensor(rng, request.inputs[alias], dtype, 3 if alias == "m" else None)
    if rng.random() < 0.1:
        _tensor(rng, request.inputs[rng.choice(("extra", "", "a", "\u00e9"))], 1, None)
    if rng.random() < 0.1:
        request.output_filter.extend(
            rng.choices(("sum", "twice", "x", "echo", "none", ""), k=rng.randrange(1, 4))
        )
    return request


def _tensor(rng: random.Random, proto: Any, dtype: int, width: int | None) -> None:
    """Fills a TensorProto; most often as its type and shape want."""
    rows, bad = rng.choice(_SMALL), rng.random()
    shape = [rows] if width is None else [rows, width]
    if bad < 0.15:
        shape = rng.choices(_SIZES, k=rng.randrange(5))
    elif bad < 0.17:
        shape = [1] * rng.choice((32, 33, 64, 65, 255, 1000))
    proto.dtype = rng.randrange(-1, 130) if 0.17 < bad < 0.25 else dtype
    for size in shape:
        proto.tensor_shape.dim.add(size=size, name=rng.choice(("", "", "d")))
    if 0.25 < bad < 0.27:
        proto.tensor_shape.unknown_rank = True
    count = rows * (width or 1) if bad > 0.35 else rng.choice((0, 1, 5, 100))
    if 0.27 < bad < 0.35:
        proto.tensor_content = rng.randbytes(rng.randrange(200))
    _values(rng, getattr(proto, _FIELDS[dtype]), dtype, count)
    proto.version_number = rng.choice((0, 0, 0, 7))


def _values(rng: random.Random, field: Any, dtype: int, count: int) -> None:
    kinds = {1: (0.5, 1e30, float("nan"), float("-inf")), 2: (0.5, 1e300, float("nan")), 7: (b"", b"s",
             b"\xff", b"l" * 2000),
             8: (0.5, 1.0), 10: (True, False), 19: (0, 15360, 2**16, -1), 23: (1, 2**64 - 1), 9: (1,
             -(2**63))}  # fmt: skip
    field.extend(rng.choices(kinds.get(dtype, (0, 1, 5, 9, 10, 300, -1, 2**31 - 1)), k=count))


def _examples(rng: random.Random, given: Any) -> None:
    """Fills an Input with examples: by themselves, with a context, or none."""
    from tensorflow.core.example import example_pb2

    def fill(example: example_pb2.Example) -> None:
        feature = example.features.feature
        pick = rng.random()
        if pick < 0.7:
            feature["x"].float_list.value.extend([rng.random()] * rng.choice((1, 1, 1, 0, 2)))
        elif pick < 0.8:
            feature["x"].int64_list.value.append(1)
        elif pick < 0.9:
            feature["names"].bytes_list.value.extend([b"\xff"] * rng.randrange(3))

    pick = rng.random()
    several = given.example_list if pick < 0.7 else given.example_list_with_context
    if pick < 0.95:
        several.SetInParent()
        for _ in range(rng.choice((0, 1, 1, 2, 30))):
            fill(several.examples.add())
    if 0.8 < pick < 0.95:
        fill(several.context)


def _on_examples(rng: random.Random) -> Any:
    """Classify and Regress have the same fields, by number."""
    from tensorflow_serving.apis import classification_pb2

    request = classification_pb2.ClassificationRequest()
    _spec(rng, request.model_spec)
    if rng.random() < 0.6:
        request.model_spec.name, request.model_spec.signature_name = (
            "kinds",
            rng.choice(("classify", "regress")),
        )
    _examples(rng, request.input)
    return request


def _multi_inference(rng: random.Random) -> Any:
    from tensorflow_serving.apis import inference_pb2

    request = inference_pb2.MultiInferenceRequest()
    for number in range(rng.choice((0, 1, 2, 2, 2, 3))):
        task = request.tasks.add(
            method_name=rng.choice(("tensorflow/serving/classify", "tensorflow/serving/regress", "", "x"))
        )
        _spec(rng, task.model_spec)
        if rng.random() < 0.7:
            task.model_spec.name = "kinds"
            task.model_spec.signature_name = ("classify", "regress")[number % 2]
            task.method_name = "tensorflow/serving/" + task.model_spec.signature_name
    _examples(rng, request.input)
    return request


def _metadata(rng: random.Random) -> Any:
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest()
    _spec(rng, request.model_spec)
    request.metadata_field.extend(
        rng.choice((["signature_def"], ["signature_def"], [], ["x"], ["signature_def", "\x00"]))
    )
    return request


def _status(rng: random.Random) -> Any:
    from tensorflow_serving.apis import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    if rng.random() < 0.9:
        _spec(rng, request.model_spec)
    return request


# --- bytes ---


def _bytes(rng: random.Random, message: Any) -> bytes:
    """The message serialized, a quarter of them broken."""
    found = bytearray(message.SerializeToString(deterministic=True))
    if rng.random() < 0.75:
        return bytes(found)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found) + 1)
        pick = rng.randrange(5)
        if pick == 0 and at < len(found):
            found[at] = rng.randrange(256)
        elif pick == 1:
            del found[at : at + rng.randrange(1, 9)]
        elif pick == 2:
            found[at:at] = rng.choice(
                (rng.randbytes(4), b"\xff" * 10, b"\x0b\x0b\x0b", b"\x0a\xff\xff\xff\xff\x0f", b"\x80" * 12)
            )
        elif pick == 3:
            found += found[at:]
        elif rng.random() < 0.3:
            found = bytearray(rng.randbytes(rng.randrange(40)))
    return bytes(found)
