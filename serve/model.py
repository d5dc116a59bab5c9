"""What the rest of the server knows of a model: signatures of named, typed tensors, and a way to run them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from serve.status import ServingError

DEFAULT_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph: its name there, and its type as a number of tensorflow.DataType.

    `shape` is what the signature says: None for a dimension it leaves open, and None in all for an unknown rank.
    """

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Signature:
    """One way to call a model: inputs and outputs by alias; `defaults` fill inputs that a request lacks.

    `method_name` is None where it is not to be checked; `proto` is the tensorflow.SignatureDef, for error texts.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)
    method_name: str | None = None
    proto: Any = None


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


class Ticket(Protocol):
    """A run that was submitted."""

    def give_up(self) -> ServingError | None:
        """The caller waits no longer. `done` will not be called, and the run is left out if it has not begun.

        Returns what to answer where the reason is a deadline that passed. None: it is too late, `done` was called
        or is being called.
        """


class Queue(Protocol):
    """Takes runs of one version, and runs them alone or several as one."""

    def submit(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        deadline: float | None,
        done: Callable[[Outcome], None],
    ) -> Ticket:
        """Runs this soon; returns at once. `done` gets tensors in the order of `fetches`, or an error.

        It is called at most once, in any thread (even this one, before `submit` returns), and should be quick: other
        answers wait for it. `deadline` is in time.monotonic(), None is no limit; who passes it while waiting is
        not run. A caller that wants to be told at the deadline itself keeps the time, and calls `give_up`.
        Tensors may be views of larger ones. Raises ServingError, RESOURCE_EXHAUSTED where too much waits.
        """


@dataclass(frozen=True)
class Servable:
    """A version that can be called now."""

    name: str
    version: int
    model: Model
