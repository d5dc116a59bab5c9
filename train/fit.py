"""The train stage: fit the model under MirroredStrategy, on all GPUs or on logical CPU devices."""

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import GateRefused, ProgramFailed, SettingsError
from pipeline.settings import Train
from pipeline.stages import Context, Decided, Outcome, Result
from train import accelerators, data, runtime, weights
from train.checkpoints import Checkpoints, State
from train.logs import Log
from train.loop import Part, Plan, Trainer
from train.pauses import Pause, Pauses, noticed

_WORD_EVERY_S = 10.0


def train(context: Context) -> Result:
    """Fits the model.

    Writes `model/` (architecture.json and weights.npz; the same inputs on the same kind of
    accelerator give the same bytes) and `log/` (TensorBoard events, curves.csv, accelerator.json; these
    hold times and so differ from run to run). After each epoch, and every `checkpoint_every_s` within one, a
    checkpoint goes to `work` and is offered to the runner; a training that was stopped goes on from it, to the same
    bytes. One that has cost what it may ends with no data, at a checkpoint. Raises ProgramFailed
    (accelerator, memory, disk; told to stop by SIGTERM, at a checkpoint), SettingsError, GateRefused (the loss is not
    a number).
    """
    began = time.monotonic()
    settings = context.settings.train
    before = context.progress
    if before.epoch < settings.epochs and before.seconds >= settings.cost.seconds:
        # TensorFlow's start would cost more, and change nothing.
        return _too_dear(settings, f"after epoch {before.epoch}", before.epoch, before.seconds)
    asked = accelerators.Asked(settings.accelerator, settings.gpus_at_least, settings.gpu_memory_mib_at_least)
    choice, seen, strategy, proof = accelerators.take(asked, settings.replicas)
    context.say(choice.sentence)
    replicas = strategy.num_replicas_in_sync
    if settings.global_batch % replicas:
        raise SettingsError(
            f"train.global_batch is {settings.global_batch}; it must be a multiple of the {replicas} GPUs here."
        )
    (context.out / "log").mkdir()
    report = json.dumps(accelerators.report(choice, seen, proof), indent=2)
    (context.out / "log" / "accelerator.json").write_text(report + "\n")
    attempt = _fit(context, strategy, began)
    if attempt.left:
        return _stopped(attempt, choice)
    _refuse_broken(attempt.trainer.model)
    weights.save(attempt.trainer.model, context.out / "model")
    return _result(attempt, choice)


@dataclass
class _Attempt:
    """A training as it goes. `state` is what its newest checkpoint holds, `resumed` what it began with."""

    context: Context
    trainer: Trainer
    checkpoints: Checkpoints
    pauses: Pauses
    state: State
    resumed: State
    steps: int
    unoffered: bool = False

    @property
    def left(self) -> int:
        """How many epochs are not done."""
        return self.context.settings.train.epochs - len(self.state.history)

    @property
    def cost(self) -> float:
        """What it has cost so far, over all attempts."""
        return self.pauses.spent_s / 3600 * self.context.settings.train.cost.per_hour

    def reach(self, history: list[dict], part: Part) -> None:
        """Writes down how far it is, in a checkpoint, and offers that to the runner.

        A disk that will not have the checkpoint stops the training; one that will not have the offer is told of once.
        """
        self.state = State(history, part, round(self.pauses.spent_s, 3))
        step = len(history) * self.steps + part.steps
        with self.pauses.saving():
            files = self.checkpoints.save(self.state, step)
            try:
                self.context.checkpoint(files, step, len(history), self.state.seconds)
            except OSError as error:
                if not self.unoffered:
                    self.context.say(f"! checkpoints stay on this machine alone: {error}")
                self.unoffered = True


def _fit(context: Context, strategy: Any, began: float) -> _Attempt:
    """Trains to the end, or to where it must stop."""
    settings = context.settings.train
    features, labels = data.load(context.inputs["data/rows"], "train")
    trainer, checkpoints, state = _begin(context, strategy)
    steps = -(-len(labels) // settings.global_batch)
    with noticed() as told:
        pauses = Pauses(settings, told, began, state.seconds)
        attempt = _Attempt(context, trainer, checkpoints, pauses, state, state, steps)
        progress = _Progress(context, len(labels), len(state.history) + state.part.steps / steps)
        log = Log(context.out / "log", state.history)
        if (
            pauses.look() and pauses.ends and attempt.left
        ):  # what the start took counts, though no step was done
            attempt.reach(state.history, state.part)
        while attempt.left and not pauses.ends:
            _go_on(attempt, features, labels, progress, log)
        log.close()
    return attempt


def _go_on(
    attempt: _Attempt, features: np.ndarray, labels: np.ndarray, progress: "_Progress", log: Log
) -> None:
    """One epoch, or what is left of it, or a part of that where the training pauses; then a checkpoint."""
    history, done, clock = attempt.state.history, attempt.state.part, time.monotonic()
    part = _epoch(attempt, len(history) + 1, features, labels, progress)
    part = dataclasses.replace(part, seconds=round(done.seconds + time.monotonic() - clock, 3))
    if part.whole:
        history, part = [*history, progress.point(len(history) + 1, part)], Part()
        log.add(history)
    attempt.reach(history, part)


def _epoch(
    attempt: _Attempt, number: int, features: np.ndarray, labels: np.ndarray, progress: "_Progress"
) -> Part:
    tf = runtime.tensorflow()
    done, pause = attempt.state.part, attempt.pauses.look
    try:
        return attempt.trainer.epoch(number, features, labels, progress.look, done, pause)
    except tf.errors.ResourceExhaustedError as error:
        raise ProgramFailed(
            f"the memory of the accelerator was not enough in epoch {number}: {error.message.splitlines()[0]}. "
            "Lower train.global_batch, or look with nvidia-smi whether others use it too."
        ) from error
    except tf.errors.UnimplementedError as error:
        raise ProgramFailed(
            f"an operation of the model cannot run on this accelerator, or not deterministically: "
            f"{error.message.splitlines()[0]}. Replace the layer in train/model.py."
        ) from error


def _begin(context: Context, strategy: Any) -> tuple[Trainer, Checkpoints, State]:
    """A trainer as the last checkpoint left it, or a new one."""
    settings = context.settings
    plan = Plan(
        row_shape=tuple(settings.data.row_shape),
        classes=settings.data.classes,
        value_range=(settings.data.value_range[0], settings.data.value_range[1]),
        global_batch=settings.train.global_batch,
        learning_rate=settings.train.learning_rate,
        seed=settings.train.seed,
    )
    folder = context.work / "checkpoints"
    trainer = Trainer(strategy, plan)
    checkpoints = Checkpoints(folder, trainer.variables())
    state = checkpoints.restore(context.say)
    if state is None:
        context.say("no checkpoint is readable: training starts over")
        checkpoints.discard()
        trainer = Trainer(strategy, plan)
        checkpoints, state = Checkpoints(folder, trainer.variables()), State()
    elif state.seconds:
        context.say(f"going on {state.where}; {settings.train.epochs} epochs in all")
    return trainer, checkpoints, state


class _Progress:
    """Tells how the training goes."""

    def __init__(self, context: Context, rows: int, done: float):
        self._context = context
        self._rows = rows
        self._done_before = done
        self._epoch = int(done) + 1
        self._begun = self._told = time.monotonic()

    def look(self, step: int, steps: int) -> None:
        """Between steps of a long epoch: a word now and then."""
        now = time.monotonic()
        if step < steps and now - self._told > _WORD_EVERY_S:
            self._told = now
            epochs = self._context.settings.train.epochs
            self._context.say(f"epoch {self._epoch}/{epochs}  step {step}/{steps}  {self._eta(step / steps)}")

    def point(self, epoch: int, whole: Part) -> dict:
        """One point of the history, told."""
        loss, accuracy = whole.loss / self._rows, whole.correct / self._rows
        self._told = time.monotonic()
        rate = self._rows / max(whole.seconds, 1e-3)
        total = self._context.settings.train.epochs
        self._epoch = epoch + 1
        self._context.say(
            f"epoch {epoch:>{len(str(total))}}/{total}  loss {loss:.4f}  accuracy {accuracy:.4f}  "
            f"{rate:>7,.0f} rows/s  {self._eta(0)}"
        )
        return {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            "seconds": whole.seconds,
            "rows_per_s": round(rate),
            "wall_time": time.time(),
        }

    def _eta(self, part: float) -> str:
        """Seconds to go, if the rest goes as fast as what this run has done."""
        done = self._epoch - 1 - self._done_before + part
        left = self._context.settings.train.epochs - self._done_before - done
        return f"ETA {(time.monotonic() - self._begun) / done * left:,.0f} s"


def _refuse_broken(model: Any) -> None:
    """The last step of the last epoch can break weights, and no loss comes after it to show that."""
    broken = [w.path for w in model.weights if not np.isfinite(np.asarray(w)).all()]
    if broken:
        raise GateRefused(
            f"after the last step {', '.join(broken)} holds NaN or infinity: training has diverged, and nothing was "
            "written. Lower train.learning_rate first."
        )


def _stopped(attempt: _Attempt, choice: Any) -> Result:
    """What an unfinished training comes to: no data where it has cost what it may. Raises ProgramFailed otherwise."""
    state, spent_s = attempt.state, attempt.pauses.spent_s
    where = f"{state.where}, of {attempt.context.settings.train.epochs} epochs in all"
    if attempt.pauses.found == Pause.TOLD:
        raise ProgramFailed(
            f"training was told to stop (SIGTERM) {where}, after {spent_s:,.0f} s of work. Its checkpoint is written: "
            "run it again, here or on another runner with the same store, and it goes on from there."
        )
    stopped = _too_dear(attempt.context.settings.train, where, len(state.history), spent_s)
    return dataclasses.replace(stopped, warnings=choice.warnings)


def _too_dear(settings: Train, where: str, epochs: int, spent_s: float) -> Result:
    """No data: so many epochs and seconds have cost what they may."""
    cost, price = settings.cost, spent_s / 3600 * settings.cost.per_hour
    return Result(
        Outcome.NO_DATA,
        f"training stopped {where}: {spent_s:,.1f} s at {cost.per_hour:g} an hour have cost {price:.4g}, and "
        f"train.cost.at_most is {cost.at_most:g}. Its checkpoint is kept. Raise train.cost.at_most "
        "(TIDEGATE_TRAIN_AT_MOST), and the next run goes on from there.",
        numbers={"epochs": epochs, "seconds": round(spent_s, 3), "cost": price},
        decided=Decided("cost", round(price, 6)),
    )


def _result(attempt: _Attempt, choice: Any) -> Result:
    trainer, history = attempt.trainer, attempt.state.history
    last = history[-1]
    seconds = sum(point["seconds"] for point in history)
    replicas = trainer.strategy.num_replicas_in_sync
    where = f"{replicas} {choice.kind.upper()} replica{'s' if replicas > 1 else ''}"
    again = f", going on {attempt.resumed.where}" if attempt.resumed.seconds else ""
    priced = {"cost": attempt.cost} if attempt.context.settings.train.cost.per_hour else {}
    return Result(
        Outcome.PASSED,
        f"{len(history)} epochs on {where} in {seconds:.1f} s{again}: loss {last['loss']:.4f}, "
        f"accuracy {last['accuracy']:.4f} on the rows trained on.",
        numbers={
            "epochs": len(history),
            "loss": last["loss"],
            "accuracy": last["accuracy"],
            "seconds": round(seconds, 3),
            "rows_per_s": last["rows_per_s"],
            "replicas": replicas,
            "gpus": replicas if choice.kind == "gpu" else 0,
            "parameters": sum(math.prod(w.shape) for w in trainer.model.weights),
            **priced,
        },
        decided=Decided("train accuracy", round(last["accuracy"], 4)),
        warnings=choice.warnings,
    )
