"""Runs of a graph as one: their inputs joined along dimension 0, its outputs taken apart again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serve.model import Signature
from serve.status import invalid

Feeds = Mapping[str, np.ndarray]

_PADDED_RANK_AT_MOST = 6


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

    def without(self, feeds: Sequence[str]) -> "Joinable":
        """The same, but for runs with these inputs."""
        names = frozenset(feeds)
        return Joinable({inputs: outputs for inputs, outputs in self.outputs.items() if inputs != names})


def _batchable(signature: Signature) -> bool:
    specs = [*signature.inputs.values(), *signature.outputs.values()]
    return bool(signature.inputs) and all(
        spec.name and spec.shape is not None and spec.shape and spec.shape[0] is None for spec in specs
    )


def rows_of(feeds: Feeds) -> int | None:
    """The first dimension that all inputs share; None where they share none."""
    try:
        rows = set(map(len, feeds.values()))
    except TypeError:  # a scalar has no dimension
        return None
    return rows.pop() if len(rows) == 1 else None


def form(feeds: Feeds) -> tuple:
    """What inputs must have in common to be joined: types, and shapes but for the first dimension."""
    return tuple([(array.dtype.char, array.shape[1:]) for array in feeds.values()])


def join(several: Sequence[Feeds], padding: int = 0) -> dict[str, np.ndarray]:
    """The inputs one after another, and then `padding` times the last one's first row (TF Serving does so).

    All have the same names in the same order.
    """
    columns: list[tuple[np.ndarray, ...]] = list(zip(*[feeds.values() for feeds in several], strict=True))
    if padding:
        columns = [(*arrays, *[arrays[-1][:1]] * padding) for arrays in columns]
    return dict(zip(several[0], map(np.concatenate, columns), strict=True))


def split(outputs: Sequence[np.ndarray], rows: Sequence[int], padding: int = 0) -> list[Sequence[np.ndarray]]:
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
    if not padding and len(set(rows)) == 1:  # half the time of slices
        return list(
            zip(*[list(each.reshape(len(rows), rows[0], *each.shape[1:])) for each in outputs], strict=True)
        )
    parts: list[Sequence[np.ndarray]] = []
    begin = 0
    for count in rows:
        end = begin + count
        parts.append([output[begin:end] for output in outputs])
        begin = end
    return parts


def same_shapes(several: Sequence[Feeds]) -> list[Feeds]:
    """Tensors of each name filled up to their largest size in each dimension but the first, with their first value.

    Raises INVALID_ARGUMENT for tensors that cannot be filled, and leaves those of different rank as they are.
    """
    padded: list[dict[str, np.ndarray]] = [{} for _ in several]
    for name in several[0]:
        arrays = [feeds[name] for feeds in several]
        ranks = {array.ndim for array in arrays}
        if len(ranks) == 1 and max(ranks) > _PADDED_RANK_AT_MOST:
            raise invalid("Only tensors with rank from 1 to 6 can be padded.")
        sizes = np.max([array.shape[1:] for array in arrays], axis=0) if len(ranks) == 1 else ()
        for feeds, array in zip(padded, arrays, strict=True):
            feeds[name] = _padded(array, tuple(sizes)) if len(ranks) == 1 else array
    return list(padded)


def _padded(array: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    if array.shape[1:] == sizes:
        return array
    if not array.size:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    whole = np.full((array.shape[0], *sizes), array.reshape(-1)[0], array.dtype)
    whole[tuple(slice(0, size) for size in array.shape)] = array
    return whole
