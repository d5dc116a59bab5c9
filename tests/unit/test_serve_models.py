"""Versions of models: loaded, tried again, failed, found. And what predict checks before it runs one."""

import threading

import numpy as np
import pytest

from serve import dtypes, predict
from serve.config import ModelConfig, Policy
from serve.model import Signature, TensorSpec
from serve.models import LoadPolicy, Models, NotAvailable, State
from serve.status import Code, ServingError

AT_ONCE = LoadPolicy(retries=2, interval_s=0)


SIGNATURE = Signature(
    {"x": TensorSpec("x:0", dtypes.FLOAT)},
    {"y": TensorSpec("y:0", dtypes.FLOAT), "same": TensorSpec("y:0", dtypes.FLOAT)},
)


class Doubler:
    """A model: y is twice x."""

    def __init__(self):
        self.signatures = {"serving_default": SIGNATURE}

    def run(self, feeds, fetches):
        return [feeds["x:0"] * 2 for _ in fetches]

    def close(self):
        pass


def base_path(tmp_path, *versions):
    for version in versions:
        (tmp_path / str(version)).mkdir(parents=True)
    return tmp_path


def models(path, load, policy=None, tries=AT_ONCE) -> Models:
    return Models([ModelConfig("m", path, policy or Policy(latest=0))], load, tries)


def test_highest_available_version_answers_and_all_are_listed_newest_first(tmp_path):
    served = models(base_path(tmp_path, 1, 3, 2), lambda path: Doubler())
    served.start(poll_s=1)
    wait_until(lambda: all(version.state is State.AVAILABLE for version in served.status("m")))
    assert [version.number for version in served.status("m")] == [3, 2, 1]
    assert served.find("m").version == 3
    assert served.find("m", 1).version == 1


def test_version_that_cannot_load_is_listed_with_its_error_and_another_answers(tmp_path):
    def load(path):
        if path.name == "2":
            raise ServingError(Code.DATA_LOSS, "broken")
        return Doubler()

    served = models(base_path(tmp_path, 1, 2), load)
    served.start(poll_s=1)
    wait_until(lambda: served.status("m", 2)[0].state is State.END)
    assert served.find("m").version == 1
    assert str(served.status("m", 2)[0].error) == "DATA_LOSS: broken"
    with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 2\)"):
        served.find("m", 2)


def test_failed_loads_are_tried_again_as_often_as_asked(tmp_path):
    tries = []

    def load(path):
        tries.append(path)
        if len(tries) < 3:
            raise OSError("not yet")
        return Doubler()

    served = models(base_path(tmp_path, 1), load)
    served.start(poll_s=1)
    assert len(tries) == 3
    assert served.find("m").version == 1


def test_start_fails_when_every_version_failed(tmp_path):
    def load(path):
        raise ServingError(Code.NOT_FOUND, "no file")

    with pytest.raises(NotAvailable) as caught:
        models(base_path(tmp_path, 1), load).start(poll_s=1)
    assert caught.value.code is Code.UNKNOWN
    assert caught.value.message == (
        "1 servable(s) did not become available: {{{name: m version: 1} due to error: NOT_FOUND: no file}, }"
    )


def test_start_waits_for_a_first_version(tmp_path):
    served = models(tmp_path / "later", lambda path: Doubler())
    thread = threading.Thread(target=served.start, args=(0.02,))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    base_path(tmp_path / "later", 4)
    thread.join(5)
    assert served.find("m").version == 4


def test_start_that_looks_once_fails_without_versions(tmp_path):
    with pytest.raises(NotAvailable, match="No versions of m found"):
        models(tmp_path, lambda path: Doubler()).start(poll_s=0)


def test_stop_ends_waiting_for_versions_and_for_the_next_try(tmp_path):
    def load(path):
        raise OSError("broken")

    for path in (tmp_path / "absent", base_path(tmp_path / "there", 1)):
        served = models(path, load, tries=LoadPolicy(retries=5, interval_s=600))
        thread = threading.Thread(target=served.start, args=(600,))
        thread.start()
        served.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_unknown_models_versions_and_labels_are_refused_in_tf_servings_words(tmp_path):
    served = models(base_path(tmp_path, 1), lambda path: Doubler())
    served.start(poll_s=1)
    for call, message in (
        (lambda: served.find("x"), "NOT_FOUND: Servable not found for request: Latest(x)"),
        (lambda: served.find("m", 9), "NOT_FOUND: Servable not found for request: Specific(m, 9)"),
        (lambda: served.find("m", label="L"), "INVALID_ARGUMENT: Unrecognized servable version label: L"),
        (lambda: served.status("x"), "NOT_FOUND: Could not find any versions of model x"),
        (lambda: served.status("m", 9), "NOT_FOUND: Could not find version 9 of model m"),
    ):
        with pytest.raises(ServingError) as caught:
            call()
        assert str(caught.value) == message


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within 5 s")


X = np.ones(2, np.float32)


def run(signature, inputs, output_filter=()):
    return predict.work(signature, inputs, lambda outputs: outputs, output_filter).run(Doubler())


def test_predict_answers_the_outputs_that_are_asked_for_sorted():
    assert list(run(SIGNATURE, {"x": X})) == ["same", "y"]
    assert run(SIGNATURE, {"x": X}, ["y"])["y"].tolist() == [2, 2]


def test_inputs_with_defaults_may_be_left_out():
    signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, {"x": X * 5})
    assert run(signature, {})["y"].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("inputs", "output_filter", "message"),
    [
        (
            {"b": X, "a": X},
            (),
            (
                "input size does not match signature: 2!=1 len({a,b}) != len({x}). "
                "Sent extra: {a,b}. Missing but required: {x}."
            ),
        ),
        (
            {},
            (),
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
        (
            {"x": X},
            ["A"],
            "output tensor alias not found in signature: A Outputs expected to be in the set {same,y}.",
        ),
        ({"x": X}, ["y", "y"], "duplicate output tensor alias: y"),
    ],
)
def test_predict_refuses_what_the_signature_does_not_have(inputs, output_filter, message):
    with pytest.raises(ServingError) as caught:
        run(SIGNATURE, inputs, output_filter)
    assert str(caught.value) == f"INVALID_ARGUMENT: {message}"


def test_wrong_type_is_told_in_tensorflows_names():
    with pytest.raises(ServingError, match="to be float but string is provided"):
        predict.check_type("x", TensorSpec("x:0", dtypes.FLOAT), dtypes.STRING)
