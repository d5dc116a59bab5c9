"""Runs of a graph as one: their inputs joined along dimension 0, its outputs taken apart again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.model import Signature

Feeds = Mapping[str, np.ndarray]


class NotABatch(Exception):
    """What a joined run gave is not one row for each row that it got."""


@dataclass(frozen=True)
class Joinable:
    """Which runs of a model may be joined without being asked to: those of its batchable signatures.

    A signature is batchable if each of its inputs and outputs has a first dimension that the SignatureDef
    leaves open. Another kind may look at a run as a whole.
    """

    outputs: Mapping[frozenset[str], frozenset[str]]

    @classmethod
    def of(cls, signatures: Mapping[str, Signature]) -> "Joinable":
        """Those of a model's signatures."""
        outputs: dict[frozenset[str], frozenset[str]] = {}
        for signature in signatures.values():
            if _batchable(signature):
                inputs = frozenset(spec.name for spec in signature.inputs.values())
                fetched = frozenset(spec.name for spec in signature.outputs.values())
                outputs[inputs] = outputs.get(inputs, frozenset()) | fetched
        return cls(outputs)

    def allows(self, feeds: Sequence[str], fetches: Sequence[str]) -> bool:
        """Whether a run of these tensors is one of a batchable signature, or of several with the same inputs."""
        outputs = self.outputs.get(frozenset(feeds))
        return outputs is not None and outputs.issuperset(fetches)


def _batchable(signature: Signature) -> bool:
    specs = [*signature.inputs.values(), *signature.outputs.values()]
    return bool(signature.inputs) and all(
        spec.name and spec.shape is not None and spec.shape and spec.shape[0] is None for spec in specs
    )


def rows_of(feeds: Feeds) -> int | None:
    """The first dimension that all inputs share; None where they share none."""
    rows = -1
    for array in feeds.values():
        if not array.ndim:
            return None
        if array.shape[0] != rows:
            if rows >= 0:
                return None
            rows = array.shape[0]
    return rows if rows >= 0 else None


def form(feeds: Feeds) -> tuple:
    """What inputs must have in common to be joined: types, and shapes but for the first dimension."""
    return tuple([(array.dtype.char, array.shape[1:]) for array in feeds.values()])


def join(several: Sequence[Feeds], padding: int = 0) -> dict[str, np.ndarray]:
    """The inputs one after another, and then `padding` times the last one's first row (TF Serving does so)."""
    joined = {}
    for name in several[0]:
        arrays = [feeds[name] for feeds in several]
        if padding:
            arrays += [arrays[-1][:1]] * padding
        joined[name] = np.concatenate(arrays)
    return joined


def split(outputs: Sequence[np.ndarray], rows: Sequence[int], padding: int = 0) -> list[list[np.ndarray]]:
    """The outputs for each of the runs that were joined, as views. Raises NotABatch."""
    total = sum(rows) + padding
    for output in outputs:
        if not output.ndim:
            raise NotABatch("Batched output tensor has 0 dimensions")
        if output.shape[0] != total:
            raise NotABatch(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                "input tensors"
            )
    parts, begin = [], 0
    for count in rows:
        end = begin + count
        parts.append([output[begin:end] for output in outputs])
        begin = end
    return parts
