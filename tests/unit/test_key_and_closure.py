"""What is in a stage's key, what is not, and how a difference is told."""

import dataclasses

import pytest

from pipeline import closure, config, key
from pipeline.digest import Digests
from pipeline.errors import SettingsError
from pipeline.stages import BY_NAME, OF_CHAMPION, STAGES


@pytest.fixture
def house(tmp_path, settings_text):
    """A small repository with the shape of ours."""
    files = {
        "requirements.txt": "tensorflow-cpu==2.20.0\n",
        "train/__init__.py": "",
        "train/fit.py": "import os\nfrom train import model\nfrom pipeline.stages import Result\n",
        "train/model.py": "from . import layers\n",
        "train/layers.py": "def f():\n    import train.lazy\n",
        "train/lazy.py": "",
        "train/unused.py": "",
        "deploy/__init__.py": "",
        "deploy/scan.py": "",
        "docs/guide.md": "text",
        "pipeline.yaml": settings_text,
        ".trivyignore.yaml": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def parts(house, stage="train", reads=None):
    settings = config.load(house / "pipeline.yaml", {})
    return key.parts(BY_NAME[stage], settings, reads or {}, house, Digests(house / "memory.json"))


def test_the_closure_follows_imports_also_relative_and_late_ones(house):
    found = closure.of("train.fit", house, lambda path: closure.parse(path.read_text()))
    names = [path.relative_to(house).as_posix() for path in found]
    assert names == [
        "train/__init__.py",
        "train/fit.py",
        "train/layers.py",
        "train/lazy.py",
        "train/model.py",
    ]


def test_a_file_that_is_not_python_is_named_with_its_line(house):
    (house / "train/model.py").write_text("x = 1\ndef broken(:\n")
    with pytest.raises(SettingsError, match=r"^train/model.py:2: is not Python"):
        parts(house)


def test_a_circle_of_imports_ends(house):
    (house / "train/lazy.py").write_text("from train import fit\n")
    assert len(closure.of("train.fit", house, lambda path: closure.parse(path.read_text()))) == 5


@pytest.mark.parametrize("name", ["docs/guide.md", "train/unused.py"])
def test_a_file_that_the_stage_does_not_read_is_not_in_its_key(house, name):
    before = parts(house)
    (house / name).write_text("changed")
    assert parts(house) == before


@pytest.mark.parametrize("name", ["train/model.py", "train/lazy.py", "requirements.txt"])
def test_a_file_that_the_stage_reads_is_in_its_key(house, name):
    before = parts(house)
    with (house / name).open("a") as stream:
        stream.write("# changed\n")
    assert key.differences(before, parts(house))


def test_a_setting_is_in_the_key_of_the_stages_that_read_it_and_no_other(house):
    changed_in = []
    before = {stage.name: parts(house, stage.name) for stage in STAGES}
    path = house / "pipeline.yaml"
    path.write_text(path.read_text().replace("fail_on: [", "fail_on: [MEDIUM, "))
    for stage in STAGES:
        if parts(house, stage.name) != before[stage.name]:
            changed_in.append(stage.name)
    assert changed_in == ["scan"]


def test_the_file_that_a_setting_names_is_in_the_key(house):
    before = parts(house, "scan")
    (house / ".trivyignore.yaml").write_text("vulnerabilities: []\n")
    assert any(".trivyignore.yaml" in line for line in key.differences(before, parts(house, "scan")))


def test_what_a_stage_reads_of_others_is_in_its_key(house):
    assert parts(house, reads={"data/rows": "a" * 64}) != parts(house, reads={"data/rows": "b" * 64})


def test_gpus_are_in_the_key_of_training_alone(house):
    assert parts(house)["hardware"] in ("cpu",) or parts(house)["hardware"]
    assert all(parts(house, stage.name)["hardware"] == "" for stage in STAGES if stage.name != "train")


def test_differences_are_told_item_by_item():
    old = {"files": {"a.py": "1" * 64, "gone.py": "2" * 64}, "settings": {"train": {"epochs": 1}}}
    new = {"files": {"a.py": "3" * 64, "new.py": "4" * 64}, "settings": {"train": {"epochs": 2}}}
    assert key.differences(old, new) == [
        "files a.py changed: 111111111111 -> 333333333333",
        "files gone.py is gone",
        "files new.py is new: 444444444444",
        "settings train epochs changed: 1 -> 2",
    ]


def test_every_stage_reads_only_what_stages_before_it_write():
    written = set()
    for stage in STAGES:
        for name in stage.reads:
            assert name in written or name in OF_CHAMPION, f"{stage.name} reads {name}"
        written |= {f"{stage.name}/{output}" for output in stage.outputs}
        assert set(stage.needs) < {s.name for s in STAGES[: STAGES.index(stage)]} | {stage.name}


def test_every_setting_that_a_stage_names_exists(house):
    settings = config.load(house / "pipeline.yaml", {})
    for stage in STAGES:
        for path in stage.settings:
            value = settings
            for name in path.split("."):
                assert name in {f.name for f in dataclasses.fields(value)}, f"{stage.name}: {path}"
                value = getattr(value, name)
