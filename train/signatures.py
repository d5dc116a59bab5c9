"""What a SavedModel takes and gives, and how two of them differ. Reads saved_model.pb alone; no graph is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import runtime

NAME = "serving_default"


@dataclass(frozen=True)
class Tensor:
    """A named input or output: dtype as `float32`, shape with None where any size goes."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        return f"{self.dtype} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Signature:
    """A signature's inputs and outputs by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read(folder: Path) -> Signature | None:
    """The signature `serving_default` of a SavedModel; None if it has none or cannot be read."""
    runtime.tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    try:
        document.ParseFromString((folder / "saved_model.pb").read_bytes())
        definition = document.meta_graphs[0].signature_def[NAME]
    except (OSError, DecodeError, IndexError):
        return None
    if not definition.inputs or not definition.outputs:
        return None
    return Signature(_tensors(definition.inputs), _tensors(definition.outputs))


def _tensors(infos: Any) -> dict[str, Tensor]:
    tf = runtime.tensorflow()
    found = {}
    for name, info in sorted(infos.items()):
        shape = tf.TensorShape(info.tensor_shape)
        found[name] = Tensor(
            tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list())
        )
    return found


def changes(old: Signature, new: Signature) -> list[str]:
    """What a client of `old` would notice, one text each; empty if it would notice nothing. Pure."""
    return [*_changes("input", old.inputs, new.inputs), *_changes("output", old.outputs, new.outputs)]


def _changes(kind: str, old: dict[str, Tensor], new: dict[str, Tensor]) -> list[str]:
    texts = []
    for name in sorted({*old, *new}):
        if name not in new:
            texts.append(f"{kind} {name} ({old[name]}) is gone")
        elif name not in old:
            texts.append(f"{kind} {name} ({new[name]}) is new")
        elif old[name] != new[name]:
            texts.append(f"{kind} {name} was {old[name]}, is {new[name]}")
    return texts
