"""Keep a training's state after each epoch, so that one that was killed goes on where it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from train import runtime

KEPT = 2


class Checkpoints:
    """A training's variables and its history so far, in one tf.train.Checkpoint below `folder`.

    A checkpoint counts once the file that names it was renamed into place; TensorFlow does
    that last. Every tensor in it carries a checksum.
    """

    def __init__(self, folder: Path, variables: dict[str, list]):
        tf = runtime.tensorflow()
        self._folder = folder
        with tf.device("/cpu:0"):
            self._history = tf.Variable("[]", dtype=tf.string, trainable=False)
        self._checkpoint = tf.train.Checkpoint(history=self._history, **variables)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(folder), max_to_keep=KEPT)

    def save(self, history: list[dict]) -> None:
        """Writes a checkpoint after an epoch. Raises ProgramFailed if the disk will not have it."""
        self._history.assign(json.dumps(history))
        with runtime.writing(f"the checkpoint after epoch {len(history)}"):
            self._manager.save(checkpoint_number=len(history))

    def restore(self, say: Callable[[str], None]) -> list[dict] | None:
        """Puts the newest readable checkpoint back and returns its history ([]: there is none).

        None if there are checkpoints and none is readable; the variables are then worth nothing.
        """
        tf = runtime.tensorflow()
        for path in reversed(self._manager.checkpoints):
            try:
                self._checkpoint.restore(path).assert_consumed()
                return json.loads(self._history.numpy())
            except (tf.errors.OpError, AssertionError, ValueError, RuntimeError) as error:
                say(f"the checkpoint {Path(path).name} is damaged: {str(error).splitlines()[0][:200]}")
        leftovers = any(self._folder.glob("ckpt-*"))
        return None if leftovers else []

    def discard(self) -> None:
        """Removes all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)
