"""Keep a training's state after an epoch or within one, so that one that was stopped goes on where it was."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from train import runtime
from train.loop import Part

KEPT = 2


@dataclass(frozen=True)
class State:
    """What a training has done: a point for each whole epoch, the part of the next one, its seconds in all attempts."""

    history: list[dict] = field(default_factory=list)
    part: Part = Part()
    seconds: float = 0.0

    @property
    def where(self) -> str:
        """How far that is, in words."""
        within = f", step {self.part.steps} of {self.part.of} of the next" if self.part.steps else ""
        return f"after epoch {len(self.history)}{within}"

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def load(cls, text: str | bytes) -> "State":
        """A state from its JSON form. Raises ValueError or TypeError for anything else."""
        said = json.loads(text)
        return cls(**{**said, "part": Part(**said["part"])}) if said else cls()


class Checkpoints:
    """A training's variables and its state so far, in one tf.train.Checkpoint below `folder`.

    A checkpoint counts once the file that names it was renamed into place; TensorFlow does
    that last. Every tensor in it carries a checksum.
    """

    def __init__(self, folder: Path, variables: dict[str, list]):
        tf = runtime.tensorflow()
        self._folder = folder
        with tf.device("/cpu:0"):
            self._state = tf.Variable("{}", dtype=tf.string, trainable=False)
        self._checkpoint = tf.train.Checkpoint(state=self._state, **variables)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=KEPT)

    def save(self, state: State, step: int) -> list[Path]:
        """Writes a checkpoint after so many steps in all; returns its files.

        Raises ProgramFailed if the disk will not have it.
        """
        self._state.assign(state.dump())
        with runtime.writing(f"the checkpoint {state.where}"):
            name = Path(self._manager.save(checkpoint_number=step)).name
        return [self._folder / "checkpoint", *sorted(self._folder.glob(f"{name}.*"))]

    def restore(self, say: Callable[[str], None]) -> State | None:
        """Puts the newest readable checkpoint back and returns its state (an empty one: there is none).

        None if there are checkpoints and none is readable; the variables are then worth nothing.
        """
        tf = runtime.tensorflow()
        for path in reversed(self._manager.checkpoints):
            try:
                self._checkpoint.restore(path).assert_consumed()
                return State.load(self._state.numpy())
            except (
                tf.errors.OpError,
                AssertionError,
                KeyError,
                TypeError,
                ValueError,
                RuntimeError,
            ) as error:
                say(f"the checkpoint {Path(path).name} is damaged: {str(error).splitlines()[0][:200]}")
        leftovers = any(self._folder.glob("ckpt-*"))
        return None if leftovers else State()

    def discard(self) -> None:
        """Removes all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)
