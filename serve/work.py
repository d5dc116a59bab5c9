"""A request that was read: what its model has to run, and how the answer is made of what that gives.

Reading, running and writing are three steps, so that a server can read and write where it likes and let a
queue run several requests as one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from serve.model import Model

Result = TypeVar("Result")


@dataclass(slots=True)
class Work(Generic[Result]):
    """One run of a graph. `feeds` are tensors by graph name; `finish` makes the answer of those in `fetches`."""

    feeds: Mapping[str, np.ndarray]
    fetches: Sequence[str]
    finish: Callable[[Sequence[np.ndarray]], Result]

    def run(self, model: Model) -> Result:
        """All of it, in this thread. Raises ServingError."""
        return self.finish(model.run(self.feeds, self.fetches))
