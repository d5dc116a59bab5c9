"""The train stage: fit the model under MirroredStrategy, on all GPUs or on logical CPU devices."""

import json
import math
import time
from typing import Any

import numpy as np

from pipeline.errors import GateRefused, ProgramFailed, SettingsError
from pipeline.stages import Context, Decided, Outcome, Result
from train import accelerators, data, runtime, weights
from train.checkpoints import Checkpoints
from train.logs import Log
from train.loop import Plan, Trainer

_WORD_EVERY_S = 10.0


def train(context: Context) -> Result:
    """Fits the model.

    Writes `model/` (architecture.json and weights.npz; the same inputs on the same kind of
    accelerator give the same bytes) and `log/` (TensorBoard events, curves.csv, accelerator.json; these
    hold times and so differ from run to run). After each epoch a checkpoint goes to
    `work`; a training that was killed goes on from it, to the same bytes. Raises ProgramFailed
    (accelerator, memory, disk), SettingsError, GateRefused (the loss is not a number).
    """
    settings = context.settings.train
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
    trainer, history, resumed = _fit(context, strategy)
    _refuse_broken(trainer.model)
    weights.save(trainer.model, context.out / "model")
    return _result(trainer, history, resumed, choice)


def _fit(context: Context, strategy: Any) -> tuple[Trainer, list[dict], int]:
    """The trained model, its history (one point per epoch), and how many epochs a run before had done."""
    settings = context.settings.train
    features, labels = data.load(context.inputs["data/rows"], "train")
    trainer, checkpoints, history = _begin(context, strategy)
    resumed = len(history)
    progress = _Progress(context, len(labels), resumed)
    log = Log(context.out / "log", history)
    for epoch in range(resumed + 1, settings.epochs + 1):
        loss, accuracy = _epoch(trainer, epoch, features, labels, progress)
        history.append(progress.point(epoch, loss, accuracy))
        log.add(history)
        checkpoints.save(history)
    log.close()
    return trainer, history, resumed


def _epoch(
    trainer: Trainer, number: int, features: np.ndarray, labels: np.ndarray, progress: Any
) -> tuple[float, float]:
    tf = runtime.tensorflow()
    try:
        return trainer.epoch(number, features, labels, progress.look)
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


def _begin(context: Context, strategy: Any) -> tuple[Trainer, Checkpoints, list[dict]]:
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
    history = checkpoints.restore(context.say)
    if history is None:
        context.say("no checkpoint is readable: training starts over")
        checkpoints.discard()
        trainer = Trainer(strategy, plan)
        checkpoints, history = Checkpoints(folder, trainer.variables()), []
    elif history:
        context.say(f"going on after epoch {len(history)} of {settings.train.epochs}")
    return trainer, checkpoints, history


class _Progress:
    """Tells how the training goes."""

    def __init__(self, context: Context, rows: int, done: int):
        self._context = context
        self._rows = rows
        self._done_before = done
        self._epoch = done + 1
        self._begun = self._epoch_begun = self._told = time.monotonic()

    def look(self, step: int, steps: int) -> None:
        """Between steps of a long epoch: a word now and then."""
        now = time.monotonic()
        if step < steps and now - self._told > _WORD_EVERY_S:
            self._told = now
            epochs = self._context.settings.train.epochs
            self._context.say(f"epoch {self._epoch}/{epochs}  step {step}/{steps}  {self._eta(step / steps)}")

    def point(self, epoch: int, loss: float, accuracy: float) -> dict:
        """One point of the history, told."""
        now = time.monotonic()
        seconds, self._epoch_begun, self._told = now - self._epoch_begun, now, now
        rate = self._rows / seconds
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
            "seconds": round(seconds, 3),
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


def _result(trainer: Trainer, history: list[dict], resumed: int, choice: Any) -> Result:
    last = history[-1]
    seconds = sum(point["seconds"] for point in history)
    replicas = trainer.strategy.num_replicas_in_sync
    where = f"{replicas} {choice.kind.upper()} replica{'s' if replicas > 1 else ''}"
    again = f", going on after epoch {resumed}" if resumed else ""
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
        },
        decided=Decided("train accuracy", round(last["accuracy"], 4)),
        warnings=choice.warnings,
    )
