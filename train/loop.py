"""The training loop: the same rows in the same order through the same sums, so that the same weights come out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import GateRefused
from train import model as architecture
from train import runtime

LOOK_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """What a training is made from, beside its rows."""

    row_shape: tuple[int, ...]
    classes: int
    value_range: tuple[float, float]
    global_batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Batch:
    """Rows of one step over all replicas. `weights` are 1/n for its n rows, and 0 for those that fill it up."""

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Part:
    """A part of an epoch: its first `steps` of `of` steps.

    `loss` is the sum of the rows' losses, `correct` how many were right; `seeds` are the states of the generators of
    dropout after it, by generator and replica; `seconds` is how long it took. All are plain numbers, kept as JSON.
    """

    steps: int = 0
    of: int = 0
    loss: float = 0.0
    correct: float = 0.0
    seeds: Sequence = ()
    seconds: float = 0.0

    @property
    def whole(self) -> bool:
        """Whether it is all of the epoch."""
        return 0 < self.steps == self.of


def batches(
    features: np.ndarray, labels: np.ndarray, global_batch: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[Batch]:
    """All rows once, in an order that `seed` and `epoch` alone decide; without the first `skip` batches.

    The last batch is filled up with rows that weigh nothing, so that every replica has as many.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(labels))
    for start in range(skip * global_batch, len(order), global_batch):
        rows = order[start : start + global_batch]
        weights = np.zeros(global_batch, np.float32)
        weights[: len(rows)] = 1 / len(rows)
        rows = np.concatenate([rows, np.repeat(order[:1], global_batch - len(rows))])
        yield Batch(features[rows], labels[rows], weights)


class Trainer:
    """A model under a strategy, and how one epoch goes."""

    def __init__(self, strategy: Any, plan: Plan) -> None:
        self.strategy = strategy
        self.plan = plan
        with strategy.scope():
            self.model = architecture.build(plan.row_shape, plan.classes, plan.value_range, plan.seed)
            self.optimizer = architecture.optimizer(plan.learning_rate)
            self.optimizer.build(self.model.trainable_variables)
        self._step = runtime.tensorflow().function(self._one_step)

    def epoch(
        self,
        number: int,
        features: np.ndarray,
        labels: np.ndarray,
        look: Callable[[int, int], None],
        done: Part = Part(),
        pause: Callable[[], bool] = lambda: False,
    ) -> Part:
        """Goes once over all rows, after the part that is `done`; `number` counts from 1. Returns what is done then.

        That is less than all where `pause()`, asked after each step, says so. `look(step, steps)` is called every few
        steps. Raises GateRefused when the loss or a gradient is not a number any more: some processors' relu and clip
        turn NaN into a number, so the loss alone may hide it.
        """
        self._reseed(number, done.seeds)
        steps = -(-len(labels) // self.plan.global_batch)
        waiting, loss, correct, step, paused = [], done.loss, done.correct, done.steps, False
        rest = batches(features, labels, self.plan.global_batch, self.plan.seed, number, skip=done.steps)
        for step, batch in enumerate(rest, start=done.steps + 1):
            sums = self._step(*(self._spread(part) for part in (batch.features, batch.labels, batch.weights)))
            waiting.append((*sums, np.count_nonzero(batch.weights)))
            paused = pause()
            if paused or len(waiting) == LOOK_STEPS or step == steps:
                seen = np.array([[float(value) for value in sums] for sums in waiting])
                _refuse_nan(seen[:, 0], seen[:, 2], number, step - len(waiting), steps)
                for (
                    mean,
                    right,
                    _,
                    size,
                ) in seen.tolist():  # one by one: the sums are the same wherever it paused
                    loss, correct = loss + mean * size, correct + right
                waiting.clear()
                look(step, steps)
            if paused:
                break
        return Part(step, steps, loss, correct, self._seeds())

    def variables(self) -> dict[str, list]:
        """All that an epoch changes and the next one needs."""
        return {
            "model": [variable.value for variable in self.model.weights],
            "optimizer": [variable.value for variable in self.optimizer.variables],
        }

    def _spread(self, rows: np.ndarray) -> Any:
        """The rows of a batch, a part for each replica."""
        tf = runtime.tensorflow()
        parts = np.split(rows, self.strategy.num_replicas_in_sync)
        return self.strategy.experimental_distribute_values_from_function(
            lambda replica: tf.constant(parts[replica.replica_id_in_sync_group])
        )

    def _one_step(self, features: np.ndarray, labels: np.ndarray, weights: Any) -> Any:
        """Loss, number of right answers and gradient norm of one step, each summed over the replicas."""
        sums = self.strategy.run(self._on_replica, (features, labels, weights))
        return tuple(self.strategy.reduce("SUM", value, axis=None) for value in sums)

    def _on_replica(self, features: np.ndarray, labels: np.ndarray, weights: Any) -> Any:
        import keras

        tf = runtime.tensorflow()
        with tf.GradientTape() as tape:
            probabilities = self.model(features, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, probabilities)
            loss = tf.reduce_sum(losses * weights)
            if self.model.losses:
                loss += tf.add_n(self.model.losses) / self.strategy.num_replicas_in_sync
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        right = tf.equal(tf.argmax(probabilities, axis=1), labels)
        correct = tf.reduce_sum(tf.cast(right, tf.float32) * tf.cast(weights > 0, tf.float32))
        return loss, correct, tf.linalg.global_norm(gradients)

    def _reseed(self, epoch: int, seeds: Sequence) -> None:
        """Dropout in this epoch depends on the seed, the epoch, the layer and the replica; on nothing before it.

        Within an epoch it goes on from `seeds`, as `_seeds` gave them.
        """
        for place, states in enumerate(self._seed_states()):
            for replica, state in enumerate(states):
                first = np.random.SeedSequence([self.plan.seed, epoch, place, replica]).generate_state(2) >> 1
                state.assign(np.array(seeds[place][replica], np.uint32) if seeds else first)

    def _seeds(self) -> list[list[list[int]]]:
        """The states of all generators, by generator and replica."""
        return [[state.numpy().tolist() for state in states] for states in self._seed_states()]

    def _seed_states(self) -> list:
        """The variables that hold them."""
        return [
            self.strategy.experimental_local_results(generator.state.value)
            for generator in self._seed_generators()
        ]

    def _seed_generators(self) -> list:
        return [generator for layer in self.model._flatten_layers() for generator in layer._seed_generators]


def _refuse_nan(losses: np.ndarray, norms: np.ndarray, epoch: int, before: int, steps: int) -> None:
    wrong = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
    if len(wrong):
        first = int(wrong[0])
        step = before + first + 1
        raise GateRefused(
            f"the loss is {losses[first]} and the gradients' norm {norms[first]} in epoch {epoch}, step {step} of "
            f"{steps}: training has diverged, and nothing was written. Likely causes: train.learning_rate is too "
            "high, data.value_range does not fit the rows, or a layer divides by zero. Lower train.learning_rate "
            "first."
        )
