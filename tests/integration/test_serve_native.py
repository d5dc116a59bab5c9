"""SavedModels loaded by TensorFlow's C++ loader: the same models, signatures and errors as Python's loader gives."""

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tensorflow.python.framework import errors

from serve import native, session
from serve.status import Code, ServingError
from tests import support_serve

OPTIONS = session.SessionOptions()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folders of models."""
    return support_serve.models(tmp_path_factory.getbasetemp())


def by_python(monkeypatch, path):
    with monkeypatch.context() as patched:
        patched.setattr(native, "supported", lambda: False)
        return session.load(path, OPTIONS)


def test_this_tensorflow_is_supported():
    assert native.supported()


@pytest.mark.parametrize("name", ["half/3", "kinds/1", "digits/7"])
def test_signatures_and_answers_are_those_of_pythons_loader(models, monkeypatch, name):
    ours, theirs = session.load(models / name, OPTIONS), by_python(monkeypatch, models / name)
    assert isinstance(ours._session, native.Session)
    assert not isinstance(theirs._session, native.Session)
    assert ours.signatures.keys() == theirs.signatures.keys()
    assert ours.signature_defs == theirs.signature_defs
    signature = ours.signatures["serving_default"]
    feeds = {spec.name: np.ones((2, 8, 8), np.int32 if spec.dtype == 3 else np.float32)
             for spec in signature.inputs.values()}  # fmt: skip
    fetches = [spec.name for spec in signature.outputs.values()]
    for mine, expected in zip(ours.run(feeds, fetches), theirs.run(feeds, fetches), strict=True):
        np.testing.assert_array_equal(mine, expected)
    ours.close()
    theirs.close()


def test_error_of_a_run_keeps_its_code_and_text(models):
    model = session.load(models / "kinds" / "1", OPTIONS)
    signature = model.signatures["reshape"]
    with pytest.raises(ServingError, match="requested shape has 9") as caught:
        model.run({signature.inputs["a"].name: np.float32([1, 2])}, [signature.outputs["square"].name])
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_closed_model_refuses_to_run_and_may_be_closed_again(models):
    model = session.load(models / "half" / "1", OPTIONS)
    assert model.run({"x:0": np.float32([1])}, ["y:0"])[0].tolist() == [1.5]
    model.close()
    model.close()
    with pytest.raises(ServingError):
        model.run({"x:0": np.float32([1])}, ["y:0"])


def test_model_that_is_closed_while_it_runs_ends_after_the_run(models):
    model = session.load(models / "kinds" / "1", OPTIONS)
    slow = model.signatures["slow"]
    feeds, fetches = {slow.inputs["seconds"].name: np.float64(1)}, [slow.outputs["waited"].name]
    model.run({name: np.float64(0) for name in feeds}, fetches)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(model.run, feeds, fetches) for _ in range(4)]
        while model._runs._count < 4:
            time.sleep(0.01)
        model.close()
        with pytest.raises(ServingError, match="is being unloaded"):
            model.run(feeds, fetches)
        assert all(run.result()[0] >= 1 for run in running)
    assert not model._session._pointer


def test_models_that_come_and_go_hold_no_memory(models):
    from serve import memory

    for _ in range(20):
        session.load(models / "half" / "1", OPTIONS).close()
    before = memory.resident()
    for _ in range(100):
        session.load(models / "half" / "1", OPTIONS).close()
    assert memory.resident() - before < 10_000_000


def test_choices_of_outputs_that_are_forgotten_hold_no_memory(models):
    model = session.load(models / "half" / "1", OPTIONS)
    feeds, before = {"x:0": np.float32([1])}, len(model._callables)
    model.run(feeds, ["y:0"] * 2)
    first = next(each._handle for key, each in model._callables.items() if key[1] == ("y:0", "y:0"))
    for times in range(3, 3 + session._CALLABLES_AT_MOST):
        assert [value.tolist() for value in model.run(feeds, ["y:0"] * times)] == [[1.5]] * times
    assert len(model._callables) <= before + session._CALLABLES_AT_MOST
    with pytest.raises(errors.InvalidArgumentError, match="after handle was released"):
        model._session.run(first, (np.float32([1]),))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "NOT_FOUND: Could not find meta graph def matching supplied tags: { serve }"),
        (b"junk", "DATA_LOSS: SavedModel below .* cannot be read"),
        (
            b"\x12\xff\xff\xff\x0fabc",
            "DATA_LOSS: SavedModel below .* cannot be read: saved_model.pb ends too early",
        ),
        (b"\x08\x01", "NOT_FOUND: Could not find meta graph def matching supplied tags: { serve }"),
    ],
)
def test_broken_saved_model_is_refused(tmp_path, data, message):
    (tmp_path / "saved_model.pb").write_bytes(data)
    with pytest.raises(ServingError) as caught:
        session.load(tmp_path, OPTIONS)
    assert re.match(message, str(caught.value))


def test_version_without_its_variables_is_refused(models, tmp_path):
    shutil.copy(models / "half" / "1" / "saved_model.pb", tmp_path)
    with pytest.raises(ServingError) as caught:
        session.load(tmp_path, OPTIONS)
    assert (
        str(caught.value)
        == f"NOT_FOUND: Failed to find any matching files for {tmp_path}/variables/variables"
    )
    shutil.copytree(models / "half" / "1" / "variables", tmp_path / "variables")
    (tmp_path / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(ServingError, match=re.escape("variables.data-00000-of-00001")):
        session.load(tmp_path, OPTIONS)


def test_other_tags_are_not_found(models):
    with pytest.raises(ServingError, match=re.escape("matching supplied tags: { serve gpu }")):
        session.load(models / "half" / "1", session.SessionOptions(tags=("serve", "gpu")))
