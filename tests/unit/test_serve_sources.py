"""Looking at base paths: which versions are wanted, and what happens when they vanish."""

import shutil

import pytest

from serve.config import ModelConfig, Policy
from serve.sources import Source


class Wishes(dict):
    """What the source wanted last, by model; and how often it said so."""

    def __call__(self, name, paths):
        self[name] = sorted(paths)


def source(*configs, as_tf_serving=False):
    wishes = Wishes()
    made = Source(wishes, as_tf_serving)
    made.configure({config.name: config for config in configs})
    return made, wishes


def model(tmp_path, name, *versions, policy=None):
    for version in versions:
        (tmp_path / name / str(version)).mkdir(parents=True)
    return ModelConfig(name, tmp_path / name, policy or Policy())


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        (Policy(), [3]),
        (Policy(latest=2), [2, 3]),
        (Policy(latest=0), [1, 2, 3]),
        (Policy(specific=frozenset({1, 3, 9})), [1, 3]),
    ],
)
def test_policy_chooses_among_the_versions_on_disk(tmp_path, policy, wanted):
    looked, wishes = source(model(tmp_path, "m", 1, 2, 3, policy=policy))
    assert looked.look() == []
    assert wishes == {"m": wanted}


def test_versions_that_are_asked_for_and_absent_are_told_once(tmp_path, capsys):
    looked, _ = source(model(tmp_path, "m", 1, policy=Policy(specific=frozenset({1, 9, 8}))))
    looked.look()
    looked.look()
    told = capsys.readouterr().err
    assert told.count("versions are not there") == 1
    assert "what=8,9" in told


def test_new_versions_are_found_and_removed_ones_are_not_wanted_any_more(tmp_path):
    looked, wishes = source(model(tmp_path, "m", 1))
    looked.look()
    (tmp_path / "m" / "2").mkdir()
    looked.look()
    assert wishes == {"m": [2]}
    (tmp_path / "m" / "2").rmdir()
    looked.look()
    assert wishes == {"m": [1]}


def test_base_path_that_vanishes_or_empties_changes_nothing_for_what_serves(tmp_path, capsys):
    looked, wishes = source(model(tmp_path, "m", 1), model(tmp_path, "other", 1))
    looked.look()
    (tmp_path / "m" / "1").rmdir()
    assert looked.look() == ["m"]
    (tmp_path / "other" / "2").mkdir()
    shutil.rmtree(tmp_path / "m")
    assert looked.look() == ["m"]
    assert wishes == {"m": [1], "other": [2]}
    told = capsys.readouterr().err
    assert "base path has no versions model=m" in told
    assert "base path cannot be read model=m" in told


def test_as_tf_serving_an_absent_base_path_drops_the_whole_look(tmp_path):
    looked, wishes = source(model(tmp_path, "m", 1), model(tmp_path, "other", 1), as_tf_serving=True)
    looked.look()
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "other" / "2").mkdir()
    looked.look()
    assert wishes == {"m": [1], "other": [1]}


def test_as_tf_serving_an_empty_base_path_unloads_its_model(tmp_path):
    looked, wishes = source(model(tmp_path, "m", 1), as_tf_serving=True)
    looked.look()
    (tmp_path / "m" / "1").rmdir()
    assert looked.look() == ["m"]
    assert wishes == {"m": []}


def test_model_that_the_config_lacks_is_not_wanted_any_more(tmp_path):
    looked, wishes = source(model(tmp_path, "m", 1), model(tmp_path, "other", 1))
    looked.look()
    looked.configure({"other": model(tmp_path, "other")})
    looked.look()
    assert wishes == {"m": [], "other": [1]}


def test_specific_policy_that_names_no_version_unloads(tmp_path):
    looked, wishes = source(model(tmp_path, "m", 1, policy=Policy(specific=frozenset())))
    looked.look()
    assert wishes == {"m": []}
