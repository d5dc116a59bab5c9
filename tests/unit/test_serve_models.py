"""Versions of models: loaded, tried again, failed, found. And what predict checks before it runs one."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serve import config, dtypes, manager, predict
from serve.config import ModelConfig, Policy
from serve.model import Signature, TensorSpec
from serve.models import LoadPolicy, Models, NotAvailable, Options, State
from serve.reload import ConfigFile
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

    served = models(base_path(tmp_path, 1), load)
    served.start(poll_s=0.01)
    base_path(tmp_path, 2)
    wait_until(lambda: served.status("m")[0].state is State.END)
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


def many(tmp_path, *names, load=None, options=None, poll_s=0.002, **labels) -> Models:
    """A started server of these models, each with version 1; labels are the first model's."""
    served = Models(configs(tmp_path, *names, **labels), load or (lambda path: Doubler()), AT_ONCE, options)
    served.start(poll_s)
    return served


def configs(tmp_path, *names, **labels):
    for name in names:
        (tmp_path / name / "1").mkdir(parents=True, exist_ok=True)
    given = {names[0]: labels} if names else {}
    return [ModelConfig(name, tmp_path / name, labels=given.get(name, {})) for name in names]


def states(served, name):
    return {each.number: each.state.name for each in served.status(name)}


@pytest.fixture(autouse=True)
def _fast_ticks_that_end(monkeypatch):
    monkeypatch.setattr(manager, "TICK_S", 0.001)
    made, usual = [], Models.__init__

    def noted(self, *given, **options):
        made.append(self)
        usual(self, *given, **options)

    monkeypatch.setattr(Models, "__init__", noted)
    yield
    for each in made:
        each.stop()


def test_start_waits_for_every_model(tmp_path):
    served = Models(
        [*configs(tmp_path, "a"), ModelConfig("b", tmp_path / "b")], lambda path: Doubler(), AT_ONCE
    )
    thread = threading.Thread(target=served.start, args=(0.002,))
    thread.start()
    wait_until(lambda: "a" in served.names())
    assert thread.is_alive()
    base_path(tmp_path / "b", 1)
    thread.join(5)
    assert not thread.is_alive()
    assert (served.find("a").version, served.find("b").version) == (1, 1)


def test_start_without_models_is_a_start(tmp_path):
    served = many(tmp_path)
    assert (served.names(), served.configs) == ([], {})


def test_start_tells_every_model_that_failed(tmp_path):
    def load(path):
        if path.parent.name != "b":
            raise ServingError(Code.DATA_LOSS, "broken")
        return Doubler()

    with pytest.raises(NotAvailable) as caught:
        many(tmp_path, "a", "b", "c", load=load)
    assert caught.value.message == (
        "2 servable(s) did not become available: {{{name: a version: 1} due to error: DATA_LOSS: broken}, "
        "{{name: c version: 1} due to error: DATA_LOSS: broken}, }"
    )


def test_polling_loads_new_versions_and_unloads_old_ones(tmp_path):
    served = many(tmp_path, "m")
    base_path(tmp_path / "m", 2)
    wait_until(lambda: states(served, "m") == {1: "END", 2: "AVAILABLE"})


@pytest.mark.parametrize("poll_s", [0, -1])
def test_new_versions_are_not_looked_for_unless_asked(tmp_path, monkeypatch, poll_s):
    threads = []
    monkeypatch.setattr(Models, "_poll", lambda self: threads.append(self))
    if poll_s < 0:
        with pytest.raises(NotAvailable, match="No versions of m found"):
            many(tmp_path, "m", poll_s=poll_s)
    else:
        assert many(tmp_path, "m", poll_s=poll_s).find("m").version == 1
    assert threads == []


def test_base_path_that_vanishes_never_unloads_what_serves(tmp_path):
    served = many(tmp_path, "m", "other")
    shutil.rmtree(tmp_path / "m")
    base_path(tmp_path / "other", 2)
    wait_until(lambda: states(served, "other") == {1: "END", 2: "AVAILABLE"})
    assert served.find("m").version == 1


def test_as_tf_serving_an_empty_base_path_unloads(tmp_path):
    served = many(tmp_path, "m", options=Options(unload_on_empty_base_path=True))
    (tmp_path / "m" / "1").rmdir()
    wait_until(lambda: states(served, "m") == {1: "END"})
    with pytest.raises(ServingError, match="Servable not found for request: Latest"):
        served.find("m")


def test_labels_of_the_first_config_fail_the_start_unless_allowed(tmp_path):
    with pytest.raises(ServingError) as caught:
        many(tmp_path, "m", stable=1)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert "assign label to version 1 of model m, which is not currently available" in caught.value.message
    served = many(tmp_path, "m", stable=1, options=Options(unavailable_labels=True))
    assert served.find("m", label="stable").version == 1


# --- reload ---


def test_reload_returns_when_new_models_are_available_and_old_ones_go(tmp_path):
    served = many(tmp_path, "a", "b")
    served.reload(configs(tmp_path, "b", "c"))
    assert (served.find("b").version, served.find("c").version) == (1, 1)
    wait_until(lambda: states(served, "a") == {1: "END"})
    assert sorted(served.configs) == ["b", "c"]


def test_reload_of_an_empty_list_unloads_everything(tmp_path):
    served = many(tmp_path, "a", "b")
    served.reload([])
    wait_until(lambda: states(served, "a") == states(served, "b") == {1: "END"})


def test_reload_fails_with_its_new_models_and_keeps_the_others(tmp_path):
    def load(path):
        if path.parent.name == "new":
            raise ServingError(Code.NOT_FOUND, "no file")
        return Doubler()

    served = many(tmp_path, "a", load=load)
    with pytest.raises(ServingError) as caught:
        served.reload(configs(tmp_path, "a", "new"))
    assert str(caught.value) == (
        "UNKNOWN: 1 model(s) did not become available: {{{name: new version: 1} due to error: NOT_FOUND: no file}, }"
    )
    assert served.find("a").version == 1


def test_reload_does_not_wait_for_new_versions_of_old_models(tmp_path):
    go = threading.Event()

    def load(path):
        assert path.name == "1" or go.wait(5)
        return Doubler()

    served = many(tmp_path, "m", load=load)
    base_path(tmp_path / "m", 2)
    served.reload(configs(tmp_path, "m"))
    assert served.find("m").version == 1
    go.set()
    wait_until(lambda: states(served, "m") == {1: "END", 2: "AVAILABLE"})


def test_model_that_was_removed_can_come_back(tmp_path):
    served = many(tmp_path, "a")
    served.reload([])
    wait_until(lambda: states(served, "a") == {1: "END"})
    served.reload(configs(tmp_path, "a"))
    assert served.find("a").version == 1


def test_reload_with_a_label_that_may_not_be_given_changes_nothing(tmp_path):
    served = many(tmp_path, "a")
    with pytest.raises(ServingError, match="version 7 of model new"):
        served.reload(configs(tmp_path, "new", stable=7))
    assert (sorted(served.configs), states(served, "a")) == (["a"], {1: "AVAILABLE"})


def test_labels_move_and_go_with_the_config_that_lacks_them(tmp_path):
    base_path(tmp_path / "m", 1, 2)
    both = ModelConfig("m", tmp_path / "m", Policy(latest=0))
    served = Models([both], lambda path: Doubler(), AT_ONCE)
    served.start(0)
    wait_until(lambda: states(served, "m") == {1: "AVAILABLE", 2: "AVAILABLE"})
    for given, answers in (({"stable": 1}, 1), ({"stable": 2}, 2)):
        served.reload([replace(both, labels=given)])
        assert served.acquire("m", label="stable").servable.version == answers
    served.reload([both])
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: Unrecognized servable version label: stable"):
        served.find("m", label="stable")


def test_label_of_a_version_that_is_gone_is_not_found(tmp_path):
    served = many(tmp_path, "m")
    served.reload(configs(tmp_path, "m", stable=1))
    base_path(tmp_path / "m", 2)
    wait_until(lambda: states(served, "m") == {1: "END", 2: "AVAILABLE"})
    with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(m, 1\)"):
        served.find("m", label="stable")


def test_reload_of_a_model_without_versions_is_waited_for_as_long_as_its_client(tmp_path):
    served = many(tmp_path, "a")
    asked = []
    served.reload(
        [ModelConfig("later", tmp_path / "later")], awaited=lambda: asked.append(1) or len(asked) < 2
    )
    assert sorted(served.configs) == ["later"]
    base_path(tmp_path / "later", 1)
    wait_until(lambda: served.names() == ["a", "later"] and states(served, "later") == {1: "AVAILABLE"})


def test_reload_of_a_model_without_versions_fails_where_none_will_be_looked_for(tmp_path):
    served = many(tmp_path, "a", poll_s=0)
    with pytest.raises(
        ServingError, match=r"1 model\(s\) did not become available: {{no versions of later found}, }"
    ):
        served.reload([ModelConfig("later", tmp_path / "later")])


def test_who_watches_configs_sees_the_one_in_force_and_each_that_follows(tmp_path):
    served = many(tmp_path, "a")
    seen = []
    served.watch(lambda configs: seen.append(sorted(configs)))
    served.reload(configs(tmp_path, "b"))
    assert seen == [["a"], ["b"]]


# --- the model config file ---

CONFIG = 'model_config_list {{ config {{ name: "m" base_path: "{}" model_platform: "{}" }} }}'


def test_config_file_is_taken_again_and_trouble_with_it_changes_nothing(tmp_path, capsys):
    served = many(tmp_path, "a")
    base_path(tmp_path / "m", 1)
    file = tmp_path / "models.config"
    polled = ConfigFile(str(file), served)
    for text in (
        "nonsense",
        "nonsense",
        CONFIG.format(tmp_path / "m", "torch"),
        "custom_model_config {}",
        "",
    ):
        file.write_text(text)
        polled.look()
        assert sorted(served.configs) == ["a"]
    told = capsys.readouterr().err
    assert told.count("model config file is not taken") == 3
    assert "requests unsupported platform torch" in told
    file.write_text(CONFIG.format(tmp_path / "m", "tensorflow"))
    polled.look()
    assert served.find("m").version == 1
    file.unlink()
    polled.look()
    assert sorted(served.configs) == ["m"]
    assert "Invalid protobuf file" in capsys.readouterr().err


def test_config_file_is_looked_at_until_the_server_stops(tmp_path):
    served = many(tmp_path, "a")
    base_path(tmp_path / "m", 1)
    (tmp_path / "models.config").write_text(CONFIG.format(tmp_path / "m", "tensorflow"))
    thread = threading.Thread(target=ConfigFile(str(tmp_path / "models.config"), served).run, args=(0.001,))
    thread.start()
    wait_until(lambda: sorted(served.configs) == ["m"])
    served.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_empty_config_file_does_nothing_and_an_empty_list_unloads_everything(tmp_path):
    file = tmp_path / "models.config"
    file.write_text("")
    assert config.read_file(str(file)) is None
    file.write_text("model_config_list {}")
    assert config.read_file(str(file)) == []


def test_whole_config_file_is_read(tmp_path):
    file = tmp_path / "models.config"
    file.write_text(
        """model_config_list { config { name: "m" base_path: "/m" model_type: TENSORFLOW
             model_version_policy { specific { versions: 4 versions: 2 } }
             version_labels { key: "stable" value: 4 }
             logging_config { log_collector_config { type: "tfrecord" filename_prefix: "/logs/m" }
               sampling_config { sampling_rate: 0.5 } } } }"""
    )
    [read] = config.read_file(str(file))
    assert (read.name, read.base_path, read.policy, read.labels) == (
        "m",
        Path("/m"),
        Policy(specific=frozenset({2, 4})),
        {"stable": 4},
    )
    assert (read.sampling.rate, read.sampling.prefix) == (0.5, "/logs/m")


def wait_until(condition):
    for _ in range(2500):
        if condition():
            return
        threading.Event().wait(0.002)
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
