"""The export stage: write the SavedModel that is served, with preprocessing in its graph and warm-up requests."""

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import digest
from pipeline.errors import IntegrityError
from pipeline.settings import Bound
from pipeline.stages import Context, Decided, Outcome, Result
from train import answers, data, runtime, signatures, weights

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_ROWS_TO_CHECK = 64
_LARGEST_DIFFERENCE = 1e-5
_INPUT, _PROBABILITIES, _CLASS = "pixels", "probabilities", "class"


def export(context: Context) -> Result:
    """Writes `savedmodel/`, reads it back and holds its answers against the Keras model's.

    Signature `serving_default`: `pixels` float32 [n, *row_shape], raw values, to `probabilities`
    float32 [n, classes] and `class` int64 [n]. The same weights give the same bytes. The folder appears
    in one step. Fails if a client of the champion would notice another signature,
    unless export.signature_may_change says that this is meant.
    """
    settings = context.settings
    runtime.use_cpu()
    keras_model = weights.load(context.inputs["train/model"])
    features, _ = data.load(context.inputs["data/rows"], "test")
    partial = context.out / ".savedmodel.part"
    try:
        with runtime.writing("the SavedModel"):
            _write(partial, keras_model, settings.data.row_shape)
            _write_warmup(partial, settings.model, features[: settings.export.warmup_requests])
        changed = _changes(context, partial)
        if changed and not settings.export.signature_may_change:
            return _refused(changed)
        difference = _largest_difference(partial, keras_model, features[:_ROWS_TO_CHECK])
        partial.rename(context.out / "savedmodel")
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _passed(context, changed, difference)


def _write(folder: Path, keras_model: Any, row_shape: tuple[int, ...]) -> None:
    """The SavedModel, with saved_model.pb last: whoever waits for that file finds everything else."""
    tf = runtime.tensorflow()
    served = _served(keras_model, row_shape)
    tf.saved_model.save(served, str(folder), signatures={signatures.NAME: served.predict})
    graph = folder / "saved_model.pb"
    waiting = graph.rename(folder / "saved_model.pb.part")
    _fix_fingerprint(folder)
    waiting.rename(graph)


def _served(keras_model: Any, row_shape: tuple[int, ...]) -> Any:
    """A tf.Module whose one function is what clients call."""
    tf = runtime.tensorflow()

    class Served(tf.Module):  # type: ignore[name-defined]  # TensorFlow is imported late, and untyped
        def __init__(self) -> None:
            super().__init__(name="served")
            # TensorFlow's variables, not Keras's around them: of those the SavedModel would hold two of each, and
            # TF Serving, which restores in a session, would fill the one that the graph does not read.
            self.weights = [variable.value for variable in keras_model.variables]

        @tf.function(input_signature=[tf.TensorSpec([None, *row_shape], tf.float32, name=_INPUT)])
        def predict(self, pixels: Any) -> Any:
            probabilities = keras_model(pixels, training=False)
            return {
                _PROBABILITIES: probabilities,
                _CLASS: tf.argmax(probabilities, axis=1, output_type=tf.int64),
            }

    return Served()


def _fix_fingerprint(folder: Path) -> None:
    """Derives fingerprint.pb's UUID, random as TensorFlow writes it, from the model's own bytes."""
    from tensorflow.core.protobuf import fingerprint_pb2

    path = folder / "fingerprint.pb"
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(path.read_bytes())
    content = sorted(p for p in folder.rglob("*") if p.is_file() and p != path)
    named = digest.of_json([[str(p.relative_to(folder)), digest.of_file(p)] for p in content])
    fingerprint.uuid = str(uuid.UUID(hex=named[:32], version=4).int)
    path.write_bytes(fingerprint.SerializeToString(deterministic=True))


def _write_warmup(folder: Path, model: str, rows: np.ndarray) -> None:
    """One predict request per row, as TF Serving replays them while a version loads."""
    tf = runtime.tensorflow()
    from tensorflow_serving.apis import prediction_log_pb2

    if not len(rows):
        return
    path = folder / WARMUP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in rows:
            log = prediction_log_pb2.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = model
            request.model_spec.signature_name = signatures.NAME
            request.inputs[_INPUT].CopyFrom(tf.make_tensor_proto(np.asarray(row)[None], tf.float32))
            writer.write(log.SerializeToString(deterministic=True))


def _changes(context: Context, folder: Path) -> list[str]:
    """What a client of the champion would notice; empty where there is no champion."""
    champion = context.inputs.get("champion/savedmodel")
    if champion is None:
        return []
    old, new = signatures.read(champion), signatures.read(folder)
    if old is None:
        return [f"the champion's signature {signatures.NAME} cannot be read"]
    if new is None:
        return [f"the new model's signature {signatures.NAME} cannot be read"]
    return signatures.changes(old, new)


def _largest_difference(folder: Path, keras_model: Any, rows: np.ndarray) -> float:
    """How far the SavedModel's probabilities are from the Keras model's. Raises IntegrityError if too far."""
    try:
        found = answers.of_saved_model(folder, rows)[_PROBABILITIES]
    except answers.Unanswered as error:
        raise IntegrityError(f"the SavedModel that was just written cannot be used: {error}") from error
    difference = float(np.abs(found - answers.of_keras(keras_model, rows)).max())
    if not difference <= _LARGEST_DIFFERENCE:
        raise IntegrityError(
            f"the SavedModel's probabilities differ from the Keras model's by {difference:g}, more than "
            f"{_LARGEST_DIFFERENCE:g}: what would be served is not what was evaluated. Look at train/model.py for "
            "layers that behave differently once saved."
        )
    return difference


def _refused(changed: list[str]) -> Result:
    listed = "\n".join(f"  - {text}" for text in changed)
    return Result(
        Outcome.FAILED,
        f"the signature is not the champion's; its clients would break:\n{listed}\n"
        "Keep the signature, or tell the clients and set export.signature_may_change: true.",
        numbers={"signature_changes": len(changed)},
        decided=Decided("signature changes", len(changed), Bound(at_most=0)),
    )


def _passed(context: Context, changed: list[str], difference: float) -> Result:
    folder = context.out / "savedmodel"
    size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Result(
        Outcome.PASSED,
        f"SavedModel of {size_bytes / 1e6:.1f} MB with {context.settings.export.warmup_requests} warm-up requests; its "
        f"probabilities differ from the Keras model's by at most {difference:.1g}.",
        numbers={
            "size_bytes": size_bytes,
            "largest_difference": difference,
            "signature_changes": len(changed),
        },
        decided=Decided("difference from Keras", difference, Bound(at_most=_LARGEST_DIFFERENCE)),
        warnings=tuple(
            f"the signature changed, as export.signature_may_change allows: {text}" for text in changed
        ),
    )
