"""From SignatureDef messages to what the server knows of a model's signatures."""

from collections.abc import Mapping
from typing import Any

from serve import dtypes, tensors
from serve.model import Signature, TensorSpec


def read(signature_defs: Mapping[str, Any], check_method_names: bool = False) -> dict[str, Signature]:
    """Signatures by name. Only with `check_method_names` do their method names matter."""
    return {name: _signature(proto, check_method_names) for name, proto in signature_defs.items()}


def _signature(proto: Any, check_method_names: bool) -> Signature:
    return Signature(
        inputs={alias: _spec(info) for alias, info in proto.inputs.items()},
        outputs={alias: _spec(info) for alias, info in proto.outputs.items()},
        defaults={alias: tensors.decode(value) for alias, value in proto.defaults.items()},
        method_name=proto.method_name if check_method_names else None,
        proto=proto,
    )


def _spec(info: Any) -> TensorSpec:
    dtype, shape = dtypes.without_reference(info.dtype), info.tensor_shape
    if shape.unknown_rank:
        return TensorSpec(info.name, dtype)
    return TensorSpec(info.name, dtype, tuple(None if dim.size < 0 else dim.size for dim in shape.dim))
