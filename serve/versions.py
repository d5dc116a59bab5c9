"""One version of a model: the states it goes through, and what is decided from them."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.leases import Handle
from serve.status import ServingError


class State(enum.IntEnum):
    """The states of a version, with their numbers in tensorflow.serving.ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(eq=False)
class Version:
    """One version of a model. An END with an error is a load that failed for good.

    `wanted` is what its model's policy says now; `cancelled` tells a load that it need not be tried again;
    `handle` is there while something can be run.
    """

    name: str
    number: int
    path: Path
    state: State = State.START
    error: ServingError | None = None
    wanted: bool = True
    cancelled: bool = False
    closing: bool = False
    handle: Handle | None = None

    @property
    def leaving(self) -> bool:
        """Whether nothing keeps it from its end any more."""
        return self.state is State.UNLOADING or (self.cancelled and self.state is State.LOADING)

    def __str__(self) -> str:
        return f"{{name: {self.name} version: {self.number}}}"


@dataclass(frozen=True)
class Action:
    """What the manager does next: load a version, or unload it."""

    version: Version
    unload: bool


def next_action(models: Iterable[Mapping[int, Version]]) -> Action | None:
    """The one action of a tick over all models' versions; unloading comes first."""
    actions = [action for versions in models if (action := _next_of(versions))]
    return min(actions, key=lambda action: not action.unload, default=None)


def _next_of(versions: Mapping[int, Version]) -> Action | None:
    """TF Serving's availability-preserving policy: the old version goes when a new one is there."""
    ordered = [versions[number] for number in sorted(versions)]
    wanted = [version for version in ordered if version.wanted]
    ready = [version for version in wanted if version.state is State.AVAILABLE]
    leftover = [version for version in ordered if not version.wanted and version.state is State.AVAILABLE]
    if leftover and (not wanted or ready or len(leftover) > 1):
        return Action(leftover[0], unload=True)
    new = [version for version in wanted if version.state is State.START]
    return Action(new[-1], unload=False) if new else None
