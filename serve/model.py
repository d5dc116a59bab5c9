"""What the rest of the server knows of a model: signatures of named, typed tensors, and a way to run them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from serve.status import ServingError

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph: its name there, and its type as a number of tensorflow.DataType."""

    name: str
    dtype: int


@dataclass(frozen=True)
class Signature:
    """One way to call a model: inputs and outputs by alias; `defaults` fill inputs that a request lacks."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)


class Model(Protocol):
    """A loaded version of a model."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """The named functions."""

    signature_defs: Any
    """The same as a tensorflow.serving.SignatureDefMap, for metadata."""

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Sequence[np.ndarray]:
        """Feeds graph tensors by name and returns others. Raises ServingError."""

    def close(self) -> None:
        """Gives back what the model holds."""


Outcome = Sequence[np.ndarray] | ServingError


class Queue(Protocol):
    """Takes runs of one version, and runs them alone or several as one."""

    def submit(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        deadline: float | None,
        done: Callable[[Outcome], None],
    ) -> None:
        """Runs this soon. `done` is called once, in any thread, with tensors in the order of `fetches`, or an error.

        `deadline` is in time.monotonic(); None is no limit. Raises RESOURCE_EXHAUSTED where the queue is full.
        """


@dataclass(frozen=True)
class Servable:
    """A version that can be called now."""

    name: str
    version: int
    model: Model
