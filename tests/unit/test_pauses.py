"""When a training pauses: told to stop, at the end of its money, or for a checkpoint."""

import os
import signal
import threading

import pytest

from pipeline import config, key
from pipeline.errors import SettingsError
from pipeline.settings import Cost
from tests.support import settings
from train.pauses import Pause, Pauses, decide, noticed


@pytest.mark.parametrize(
    ("told", "left_s", "unsaved_s", "saving_s", "then"),
    [
        (False, float("inf"), 59.0, 5.0, Pause.NONE),
        (False, float("inf"), 60.0, 5.0, Pause.SAVE),
        (False, 100.0, 60.0, 5.0, Pause.SAVE),
        (False, 5.1, 1.0, 5.0, Pause.NONE),
        (False, 5.0, 1.0, 5.0, Pause.COST),
        (False, 0.0, 0.0, 0.0, Pause.COST),
        (False, -7.0, 99.0, 0.0, Pause.COST),
        (True, float("inf"), 0.0, 0.0, Pause.TOLD),
        (True, 0.0, 0.0, 0.0, Pause.TOLD),
    ],
)
def test_what_a_training_does_next(told, left_s, unsaved_s, saving_s, then):
    assert decide(told, left_s, unsaved_s, saving_s, every_s=60) == then


@pytest.mark.parametrize(
    ("per_hour", "at_most", "seconds"), [(2.0, 1.0, 1800.0), (0.5, 10.0, 72_000.0), (0.0, 0.0, float("inf"))]
)
def test_a_price_and_a_cap_allow_a_time(per_hour, at_most, seconds):
    assert Cost(per_hour, at_most).seconds == seconds


def test_the_seconds_of_attempts_before_count(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    train = settings({"train.cost.per_hour": 3600, "train.cost.at_most": 50}).train
    assert not Pauses(train, lambda: False, began=990.0, before_s=39.0).look()
    spent = Pauses(train, lambda: False, began=990.0, before_s=40.0)
    assert spent.look()
    assert spent.ends
    assert spent.found == Pause.COST


def test_sigterm_is_noted_while_it_trains_and_means_what_it_meant_afterwards():
    met = []
    before = signal.signal(signal.SIGTERM, lambda *_: met.append("as before"))
    try:
        with noticed() as told:
            assert not told()
            os.kill(os.getpid(), signal.SIGTERM)
            assert told()
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert met == ["as before"]


def test_another_thread_changes_no_signal():
    seen = []

    def elsewhere():
        with noticed() as told:
            seen.append(told())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_training_costs_is_in_no_key():
    few = settings()
    more = settings({"train.cost.at_most": 7, "train.checkpoint_every_s": 9, "train.timeout_s": 99})
    assert key._setting(few, "train") == key._setting(more, "train")
    assert key._setting(few, "train") != key._setting(settings({"train.epochs": 7}), "train")


def test_a_price_without_a_cap_is_refused_with_its_line(tmp_path, settings_text):
    path = tmp_path / "pipeline.yaml"
    path.write_text(settings_text)
    with pytest.raises(SettingsError, match=r"pipeline.yaml:\d+: train.cost.at_most: is 0 at 2.5 an hour"):
        config.load(path, {"TIDEGATE_TRAIN_PER_HOUR": "2.5"})
    assert config.load(
        path, {"TIDEGATE_TRAIN_PER_HOUR": "2.5", "TIDEGATE_TRAIN_AT_MOST": "10"}
    ).train.cost == Cost(2.5, 10.0)
