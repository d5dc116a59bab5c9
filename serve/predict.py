"""Predict: which signature, which inputs, which outputs; the same for REST, gRPC and warm-up."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from serve import dtypes
from serve.inference import CLASSIFY, PREDICT, REGRESS
from serve.model import Signature, TensorSpec
from serve.status import Code, ServingError, invalid
from serve.work import Result, Work


def check_method(signature: Signature) -> None:
    """Raises INTERNAL where the signature's method name is checked and none that can be called."""
    if signature.method_name not in (None, PREDICT, CLASSIFY, REGRESS):
        raise ServingError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. "
            f"Was: {signature.method_name}",
        )


def check_inputs(signature: Signature, sent: Collection[str]) -> None:
    """Raises INVALID_ARGUMENT unless `sent` are the signature's inputs; those with defaults may lack."""
    inputs, defaults = signature.inputs, signature.defaults
    if len(sent) > len(inputs) or (len(sent) < len(inputs) and not defaults):
        missing = inputs.keys() - defaults.keys() - set(sent)
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(inputs)} "
            f"len({_set(sent)}) != len({_set(inputs)}). "
            f"Sent extra: {_set(set(sent) - inputs.keys())}. Missing but required: {_set(missing)}."
        )
    for alias, spec in inputs.items():
        if alias not in sent and alias not in defaults:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {spec.name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {_set(sent)}, or default input alias "
                f"set: {','.join(sorted(defaults))}"
            )
    if not inputs.keys() >= set(sent):
        used = inputs.keys() & set(sent)
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(used))}, "
            f"request input: {','.join(sorted(sent))}"
        )


def check_type(alias: str, spec: TensorSpec, provided: int) -> None:
    """Raises INVALID_ARGUMENT where a tensor's type is not what the signature's input has."""
    if provided != spec.dtype:
        raise invalid(
            f"input {alias}: expected it to be {dtypes.name_of(spec.dtype)} but "
            f"{dtypes.name_of(provided)} is provided"
        )


def work(
    signature: Signature,
    inputs: Mapping[str, np.ndarray],
    finish: Callable[[dict[str, np.ndarray]], Result],
    output_filter: Sequence[str] = (),
) -> Work[Result]:
    """The run of a signature on tensors of the right types. `finish` gets the outputs by alias, sorted.

    `output_filter` names the outputs that are wanted; empty means all. Raises INVALID_ARGUMENT.
    """
    check_method(signature)
    check_inputs(signature, inputs)
    wanted = _wanted(signature, output_filter)
    given = {**signature.defaults, **inputs}
    feeds = {_tensor_name(alias, spec): given[alias] for alias, spec in signature.inputs.items()}
    fetches = {alias: _tensor_name(alias, signature.outputs[alias]) for alias in wanted}
    names = sorted(set(fetches.values()))

    def finished(tensors: Sequence[np.ndarray]) -> Result:
        found = dict(zip(names, tensors, strict=True))
        return finish({alias: found[fetches[alias]] for alias in wanted})

    return Work(feeds, names, finished)


def _wanted(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    if not output_filter:
        return sorted(signature.outputs)
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {_set(signature.outputs)}."
            )
    for alias, count in Counter(output_filter).items():
        if count > 1:
            raise invalid(f"duplicate output tensor alias: {alias}")
    return sorted(output_filter)


def _tensor_name(alias: str, spec: TensorSpec) -> str:
    if not spec.name:
        raise ServingError(
            Code.UNIMPLEMENTED,
            f"tensor {alias} of the signature is no dense tensor; only dense ones are served",
        )
    return spec.name


def _set(names: Collection[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
