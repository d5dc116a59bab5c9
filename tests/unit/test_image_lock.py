"""docker/images.lock: what it may say, what is refused, and how it is written anew."""

import re

import pytest

from deploy import pins
from pipeline.errors import GateRefused, SettingsError

OLD, NEW = ("sha256:" + letter * 64 for letter in "ab")
TEXT = f"""# What this is.
images:
  # Why this one.
  python: {{image: docker.io/library/python, tag: 3.11-bookworm, digest: {OLD}}}   # and a word behind it
  serving:
    image: docker.io/tensorflow/serving
    digest: ""
    tag: "2.19.1"
"""


def test_lock_is_read_in_either_style():
    found = pins.parse(TEXT)
    assert (found["python"].image, found["python"].tag) == ("docker.io/library/python", "3.11-bookworm")
    assert found["python"].digest == OLD
    assert found["serving"].digest == ""


def test_new_digests_change_nothing_else():
    found = pins.parse(TEXT)
    changed = pins.moved(found, lambda pin: NEW)
    assert pins.rewritten(TEXT, changed) == TEXT.replace(OLD, f'"{NEW}"').replace(
        'digest: ""', f'digest: "{NEW}"'
    )
    assert {pin.digest for pin in pins.parse(pins.rewritten(TEXT, changed)).values()} == {NEW}


def test_new_digests_stand_where_the_old_ones_did_behind_letters_of_any_alphabet():
    text = f"# für später 🚀\nimages:\n  a: {{image: x/y, tag: '1', digest: '{OLD}'}}\n"
    changed = pins.moved(pins.parse(text), lambda pin: NEW)
    assert pins.rewritten(text, changed) == text.replace(f"'{OLD}'", f'"{NEW}"')


def test_a_lock_that_would_be_spoilt_is_not_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "images.lock"
    path.write_text(TEXT)
    monkeypatch.setattr(pins, "resolve", lambda pin: NEW)
    monkeypatch.setattr(pins.moved, "__defaults__", (pins.resolve,))
    monkeypatch.setattr(pins, "rewritten", lambda text, changes: text.replace(OLD, NEW))
    assert pins.main(["--lock", str(path)]) == 6
    assert "was not changed" in capsys.readouterr().err
    assert path.read_text() == TEXT


def test_digest_that_is_still_right_is_left_alone():
    assert [pin.name for pin in pins.moved(pins.parse(TEXT), lambda pin: OLD)] == ["serving"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("images: {a: {image: x/y, tag: latest, digest: ''}}", "lock:1: a.tag is latest"),
        ("images: {a: {image: x/y, tag: '1'}}", "a has image, tag, must have image, tag, digest"),
        ("images: {a: {image: x/y, tag: '1', digest: sha256:12}}", "a.digest is 'sha256:12'"),
        ("images: {a: {image: y, tag: '1', digest: ''}}", "a.image is 'y'"),
        (
            "images: {a: {image: x/y, tag: '1', digest: ''}, a: {image: x/y, tag: '1', digest: ''}}",
            "named twice",
        ),
        (
            f"images:\n  a: {{image: x/y, tag: '1', digest: {OLD}, digest: {NEW}}}",
            "lock:2: digest is named twice",
        ),
        ("images: {}\nimages: {}", "lock:2: images is named twice"),
        ("images:\n  a:\n    image: x/y\n    tag: '1'\n    digest:\n", "lock:5: a.digest must be a text"),
        ("images:\n  a:\n    image: x/y\n    tag: '1'\n    digest: >-\n", "lock:5: a.digest must be a text"),
        (
            f"images:\n  a:\n    image: x/y\n    tag: '1'\n    digest: |-\n      {OLD}\n",
            "lock:5: a.digest must be",
        ),
        ("images: {a: {image: x/y, tag: [1], digest: ''}}", "lock:1: a.tag must be a text"),
        (
            f"b: &one {OLD}\nimages:\n  a: {{image: x/y, tag: '1', digest: *one}}",
            "lock:3: *one names a value that stands elsewhere",
        ),
        ("images: \x01", "lock:1: is not YAML: a character"),
        ("[" * 100_000, "lock:1: is nested more than 50 deep"),
        ("images: {}", "names no image"),
        ("images: []", "must be a mapping"),
        ("", "must be a mapping"),
        ("{", "is not YAML"),
    ],
)
def test_lock_that_says_something_else_is_refused_with_its_line(text, says):
    with pytest.raises(SettingsError, match=re.escape(says)):
        pins.parse(text, "lock")


def test_an_image_is_named_by_its_digest_and_refused_without_one(tmp_path, capsys):
    path = tmp_path / "images.lock"
    path.write_text(TEXT)
    assert pins.pinned("python", path) == f"docker.io/library/python@{OLD}"
    with pytest.raises(GateRefused, match=r"has no digest.*make lock-images"):
        pins.pinned("serving", path)
    with pytest.raises(SettingsError, match="names no image nothing; it has python, serving"):
        pins.pinned("nothing", path)
    assert pins.main(["--lock", str(path), "--reference", "python"]) == 0
    assert capsys.readouterr().out == f"docker.io/library/python@{OLD}\n"
    assert pins.main(["--lock", str(path), "--reference", "serving"]) == 3


def test_lock_of_this_repository_names_what_ci_names(root):
    found = pins.parse((root / pins.LOCK).read_text())
    named = re.search(r"CPU_IMAGE: (\S+):(\S+)@(\S+)", (root / ".gitlab-ci.yml").read_text())
    python = found["python"]
    assert (python.image.rpartition("/")[2], python.tag, python.digest) == named.groups()
    dockerfile = (root / "docker/train.Dockerfile").read_text()
    for name in ("tensorflow", "tensorflow-gpu"):
        assert f":{found[name].tag}" in dockerfile
