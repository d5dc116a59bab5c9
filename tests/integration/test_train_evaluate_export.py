"""From a trained model to verdict and SavedModel, with TensorFlow in this process where one process is enough."""

import json
import shutil

import numpy as np
import pytest

from pipeline.errors import IntegrityError
from pipeline.stages import Outcome
from tests import support
from train import answers, runtime, signatures, weights
from train.data import data
from train.evaluate import evaluate
from train.export import WARMUP, export
from train.fit import train

SMALL = {"train.epochs": 4, "train.learning_rate": 0.003, "train.accelerator": "cpu", "train.replicas": 1}
EASY = {"accuracy": {"at_least": 0.5}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The digits, and a model trained on them for a moment."""
    made = support.context(tmp_path_factory.mktemp("data"))
    data(made)
    folder = tmp_path_factory.mktemp("train")
    rows = made.out / "rows"
    train(support.context(folder, inputs={"data/rows": rows}, changes=SMALL))
    return {"data/rows": rows, "train/model": folder / "out" / "model"}


@pytest.fixture(scope="module")
def exported(inputs, tmp_path_factory):
    """The SavedModel, as a process of its own writes it."""
    folder = tmp_path_factory.mktemp("exported")
    code, result, said = support.run_stage(
        "train.export.export", folder, inputs=inputs, env={"PYTHONHASHSEED": "1"}
    )
    assert code == 0, said
    assert result["outcome"] == "passed"
    return folder / "out" / "savedmodel"


def test_two_exports_in_two_processes_are_the_same_bytes(inputs, exported, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(inputs["train/model"], moved)
    given = {**inputs, "train/model": moved}
    code, _, said = support.run_stage(
        "train.export.export", tmp_path, inputs=given, env={"PYTHONHASHSEED": "2"}
    )
    assert code == 0, said
    found = support.tree(tmp_path / "out" / "savedmodel")
    assert {
        name: len(content) for name, content in found.items() if content == support.tree(exported)[name]
    } == {name: len(content) for name, content in found.items()}
    assert set(found) == {
        "saved_model.pb",
        "fingerprint.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        str(WARMUP),
    }


def test_savedmodel_holds_no_folder_of_this_machine(exported, tmp_path):
    for name, content in support.tree(exported).items():
        for folder in (str(support.ROOT), str(exported.parent), "site-packages", "/tmp/"):
            assert folder.encode() not in content, name


def test_signature_has_the_names_types_and_shapes_that_clients_know(exported):
    signature = signatures.read(exported)
    assert {name: str(tensor) for name, tensor in signature.inputs.items()} == {
        "pixels": "float32 [any, 8, 8]"
    }
    assert {name: str(tensor) for name, tensor in signature.outputs.items()} == {
        "probabilities": "float32 [any, 10]",
        "class": "int64 [any]",
    }


def test_savedmodel_answers_raw_rows_as_evaluation_predicted(inputs, exported, tmp_path):
    made = support.context(tmp_path, inputs=inputs, changes={"evaluate.gates": EASY})
    evaluate(made)
    predicted = np.load(made.out / "predictions" / "probabilities.npy")
    features = np.load(inputs["data/rows"] / "test_features.npy")
    assert predicted.dtype == np.float32
    assert features.max() == 16
    found = answers.of_saved_model(exported, features)
    assert np.abs(found["probabilities"] - predicted).max() < 1e-5
    assert (found["class"] == predicted.argmax(axis=1)).all()


def test_warmup_requests_are_what_tf_serving_replays(inputs, exported):
    tf = runtime.tensorflow()
    from tensorflow_serving.apis import prediction_log_pb2

    features = np.load(inputs["data/rows"] / "test_features.npy")
    records = list(tf.data.TFRecordDataset(str(exported / WARMUP)).as_numpy_iterator())
    assert len(records) == 8
    for row, record in zip(features, records, strict=False):
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == ("digits", "serving_default")
        assert (tf.make_ndarray(request.inputs["pixels"]) == row[None]).all()


def test_an_export_without_warmup_requests_has_no_file_for_them(inputs, tmp_path):
    made = support.context(tmp_path, inputs=inputs, changes={"export.warmup_requests": 0})
    assert export(made).outcome is Outcome.PASSED
    assert not (made.out / "savedmodel" / "assets.extra").exists()
    assert [path.name for path in made.out.iterdir()] == ["savedmodel"]


def stranger(folder, rename="pixels", shape=(None, 8, 8), classes=10):
    """A SavedModel of another signature."""
    tf = runtime.tensorflow()
    module = tf.Module()
    spec = tf.TensorSpec(shape, tf.float32, name=rename)

    def predict(rows):
        count = tf.shape(rows)[0]
        return {
            "probabilities": tf.fill([count, classes], 1.0 / classes),
            "class": tf.zeros([count], tf.int64),
        }

    function = tf.function(predict, input_signature=[spec])
    module.predict = function
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})
    return folder


CHANGED = {
    "another name": (
        {"rename": "image"},
        ["input image (float32 [any, 8, 8]) is gone", "input pixels (float32"],
    ),
    "another shape": (
        {"shape": (None, 9, 8)},
        ["input pixels was float32 [any, 9, 8], is float32 [any, 8, 8]"],
    ),
    "more classes": ({"classes": 12}, ["output probabilities was float32 [any, 12], is float32 [any, 10]"]),
}


@pytest.mark.parametrize(("kind", "words"), CHANGED.values(), ids=CHANGED)
def test_a_changed_signature_fails_saying_what_changed_unless_it_may(inputs, tmp_path, kind, words):
    given = {**inputs, "champion/savedmodel": stranger(tmp_path / "champion", **kind)}
    made = support.context(tmp_path / "one", inputs=given)
    result = export(made)
    assert result.outcome is Outcome.FAILED
    for word in words:
        assert word in result.sentence
    assert list(made.out.iterdir()) == []
    made = support.context(tmp_path / "two", inputs=given, changes={"export.signature_may_change": True})
    result = export(made)
    assert result.outcome is Outcome.PASSED
    assert any(words[0] in warning for warning in result.warnings)


def test_the_champions_own_signature_passes(inputs, exported, tmp_path):
    made = support.context(tmp_path, inputs={**inputs, "champion/savedmodel": exported})
    assert export(made).outcome is Outcome.PASSED


def test_a_model_equal_to_the_champion_differs_by_nothing(inputs, exported, tmp_path):
    given = {**inputs, "champion/savedmodel": exported}
    made = support.context(tmp_path, inputs=given, changes={"evaluate.gates": EASY})
    result = evaluate(made)
    assert result.outcome is Outcome.PASSED, result.sentence
    assert result.numbers["accuracy_minus_champion"] == 0
    assert json.loads((made.out / "metrics" / "metrics.json").read_text())["champion"]["disagreements"] == 0


def test_a_model_worse_than_the_champion_fails_on_the_difference(inputs, exported, tmp_path):
    worse = weights.load(inputs["train/model"])
    worse.set_weights([*[w * 0.3 for w in worse.get_weights()[:-2]], *worse.get_weights()[-2:]])
    weights.save(worse, tmp_path / "worse")
    given = {**inputs, "train/model": tmp_path / "worse", "champion/savedmodel": exported}
    low = {"evaluate.gates": {"accuracy": {"at_least": 0.0}}}
    result = evaluate(support.context(tmp_path, inputs=given, changes=low))
    assert result.outcome is Outcome.FAILED
    assert result.decided.name == "accuracy minus champion"
    assert "the gate asks at least -0.010" in result.sentence


@pytest.mark.parametrize(
    "kind", [{"shape": (None, 9, 8)}, {"classes": 12}], ids=["another shape", "more classes"]
)
def test_a_champion_that_cannot_take_the_rows_is_no_data(inputs, tmp_path, kind):
    given = {**inputs, "champion/savedmodel": stranger(tmp_path / "champion", **kind)}
    result = evaluate(support.context(tmp_path, inputs=given, changes={"evaluate.gates": EASY}))
    assert result.outcome is Outcome.NO_DATA
    assert "the champion cannot be compared" in result.sentence
    assert "evaluate.champion" in result.sentence


def test_a_champion_that_is_no_savedmodel_is_no_data(inputs, tmp_path):
    (tmp_path / "champion").mkdir()
    given = {**inputs, "champion/savedmodel": tmp_path / "champion"}
    result = evaluate(support.context(tmp_path, inputs=given, changes={"evaluate.gates": EASY}))
    assert result.outcome is Outcome.NO_DATA


def test_a_failed_gate_leaves_its_evidence(inputs, tmp_path):
    changes = {"evaluate.gates": {"accuracy": {"at_least": 1.0}}}
    made = support.context(tmp_path, inputs=inputs, changes=changes)
    result = evaluate(made)
    assert result.outcome is Outcome.FAILED
    assert "the gate asks at least 1.000." in result.sentence
    assert {path.name for path in (made.out / "metrics").iterdir()} == {
        "metrics.json",
        "metrics.txt",
        "confusion.csv",
        "confusion.svg",
    }


def test_evaluating_twice_writes_the_same_bytes(inputs, tmp_path):
    for name in ("one", "two"):
        evaluate(support.context(tmp_path / name, inputs=inputs))
    assert support.tree(tmp_path / "one" / "out") == support.tree(tmp_path / "two" / "out")


def test_a_damaged_model_is_an_integrity_error_and_exports_nothing(inputs, tmp_path):
    shutil.copytree(inputs["train/model"], tmp_path / "model")
    path = tmp_path / "model" / "weights.npz"
    path.write_bytes(path.read_bytes()[:-999])
    made = support.context(tmp_path, inputs={**inputs, "train/model": tmp_path / "model"})
    with pytest.raises(IntegrityError, match="the trained model cannot be read"):
        export(made)
    assert list(made.out.iterdir()) == []
