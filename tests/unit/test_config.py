"""pipeline.yaml: every error at once, each with its line, the nearest name and what is allowed."""

import dataclasses
import re

import pytest

from pipeline import config
from pipeline.errors import SettingsError
from pipeline.settings import Bound, Settings


@pytest.fixture
def write(tmp_path, settings_text):
    """Writes a settings file with texts replaced, and returns its path."""

    def _write(*replacements: tuple[str, str]):
        text = settings_text
        for old, new in replacements:
            assert old in text, f"{old!r} is not in the settings"
            text = text.replace(old, new)
        path = tmp_path / "pipeline.yaml"
        path.write_text(text)
        return path

    return _write


def faults(path, environ=None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        config.load(path, environ or {})
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def line_of(path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def test_the_settings_load_into_frozen_objects(write):
    settings = config.load(write(), {})
    assert settings.model == "digits"
    assert settings.evaluate.gates["accuracy"] == Bound(at_least=0.95)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.train.epochs = 1
    with pytest.raises(TypeError):
        settings.evaluate.gates["accuracy"] = None


def test_an_unknown_name_is_refused_with_its_line_and_the_nearest_name(write):
    path = write(("  steps:", "  stpes:"))
    line = line_of(path, "stpes")
    assert f"pipeline.yaml:{line}: canary.stpes is not an option. Did you mean canary.steps?" in faults(path)


def test_all_faults_come_at_once_in_the_order_of_their_lines(write):
    path = write(
        ("epochs: ", "epochs: -"),
        ("kind: ${TIDEGATE_TARGET:-local}", "kind: locl"),
        ("  classes: 10", "  classes: ten"),
    )
    found = faults(path)
    assert [int(re.match(r"pipeline.yaml:(\d+):", text)[1]) for text in found] == sorted(
        [
            line_of(path, "classes: ten"),
            line_of(path, "epochs: -"),
            line_of(path, "smoke_epochs: -"),
            line_of(path, "locl"),
        ]
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  learning_rate:", "  learning_rate: fast #", "train.learning_rate: is 'fast', must be a number"),
        ("  test_fraction:", "  test_fraction: 1.5 #", "must be from 0.01 to 0.9"),
        ("  test_fraction:", "  test_fraction: .nan #", "must be a number"),
        (
            "kind: ${TIDEGATE_TARGET:-local}",
            "kind: locl",
            "must be one of local, docker; did you mean local?",
        ),
        ("accuracy: {at_least: 0.95}", "accuracy: {}", "must have exactly one of at_least, at_most"),
        ("accuracy: {at_least: 0.95}", "accuracy: {at_least: 1, at_most: 2}", "must have exactly one of"),
        ("  row_shape: [8, 8]", "  row_shape: 64", "data.row_shape: must be a list"),
        (
            "value_range: [0, 16]",
            "value_range: [16, 0]",
            "data.value_range: is [16.0, 0.0], must be [lowest, highest]",
        ),
        (
            "  replicas: 2",
            "  replicas: 3",
            "train.global_batch: is 64, must be a multiple of train.replicas (3)",
        ),
        ("  steps: [10, 50]", "  steps: [50, 10]", "canary.steps: is [50, 10], must rise from step to step"),
        ("model: digits", "model: digits\nmodel: other", "model: is set twice, first on line"),
        ("model: digits", "model: ${MODEL}", "needs the environment variable MODEL, which is not set"),
        ("model: digits", "model: [", "is not YAML"),
        ("model: digits", "", "model: is missing"),
        ("store: ", "store: ftp://x #", "must be file:PATH"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(write, old, new, said):
    assert any(said in text for text in faults(write((old, new))))


def test_two_settings_with_the_same_port_are_refused(write):
    path = write(("  rest_port: 18501", "  rest_port: 8501"))
    assert any(
        "production.rest_port: is 8501, which staging.rest_port has already" in text for text in faults(path)
    )


@pytest.mark.parametrize(
    ("text", "environ", "value"),
    [
        ("${NAME:-digits}", {}, "digits"),
        ("${NAME:-digits}", {"NAME": ""}, "digits"),
        ("${NAME:-digits}", {"NAME": "letters"}, "letters"),
        ("a${NAME-b}c", {}, "abc"),
        ("a${NAME}c", {"NAME": "b"}, "abc"),
    ],
)
def test_values_are_filled_from_the_environment_as_compose_does(write, text, environ, value):
    assert config.load(write(("model: digits", f"model: {text}")), environ).model == value


def test_a_value_from_the_environment_is_checked_like_any_other(write):
    assert any(
        "model: is 'Not A Name'" in text
        for text in faults(write(("model: digits", "model: ${M:-x}")), {"M": "Not A Name"})
    )


def test_a_missing_file_is_named(tmp_path):
    assert "does not exist" in faults(tmp_path / "pipeline.yaml")[0]


def test_a_merge_request_trains_a_small_model_on_the_cpu_with_gates_of_its_own(write):
    settings = config.load(write(), {})
    small = config.smoke(settings)
    assert (small.train.epochs, small.train.accelerator) == (settings.train.smoke_epochs, "cpu")
    assert small.evaluate.gates == settings.evaluate.smoke_gates != settings.evaluate.gates
    assert not small.evaluate.champion


@pytest.mark.parametrize(
    ("bound", "number", "holds"),
    [
        (Bound(at_least=0.9), 0.9, True),
        (Bound(at_least=0.9), 0.89, False),
        (Bound(at_most=0.1), 0.1, True),
        (Bound(at_most=0.1), 0.11, False),
        (Bound(at_least=0.9), float("nan"), False),
        (Bound(at_most=0.1), float("nan"), False),
    ],
)
def test_a_bound_holds_its_edge_and_nothing_holds_for_nan(bound, number, holds):
    assert bound.holds(number) is holds


def test_every_section_of_the_settings_is_frozen():
    sections = [f.type for f in dataclasses.fields(Settings)]
    assert len(sections) > 10
    assert Settings.__dataclass_params__.frozen


def test_gates_on_metrics_that_do_not_exist_are_refused_all_at_once_with_the_nearest(write):
    path = write(("    accuracy: {at_least: 0.95}", "    acuracy: {at_least: 0.95}\n    zzz: {at_most: 1}"))
    first, second = faults(path)
    assert first.endswith("evaluate.gates.acuracy: is not a metric; did you mean accuracy?")
    assert "evaluate.gates.zzz: is not a metric; allowed: accuracy, worst_recall" in second
    assert all(re.match(r"pipeline\.yaml:\d+: ", line) for line in (first, second))


@pytest.mark.parametrize(
    "place", ["docker.io/library/python", "127.0.0.1:5000/team/base", "oci:bases/serving"]
)
def test_a_base_image_is_named_by_digest_and_never_by_a_tag(write, place):
    digest = f"{place}@sha256:{'0' * 64}"
    assert config.load(write(("base: scratch", f"base: {digest}")), {}).image.base == digest
    (said,) = faults(write(("base: scratch", f"base: {place}:1.0")))
    assert "image.base: is " in said
    assert "HOST[:PORT]/NAME@sha256:DIGEST" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a\nstore: \0", "pipeline.yaml:2: is not YAML: a character that it does not allow"),
        ("model: a\nstore: \x01", "pipeline.yaml:2: is not YAML: a character that it does not allow"),
        ("[" * 100_000, "pipeline.yaml:1: is nested more than 50 deep"),
        ("- " * 100_000, "pipeline.yaml:1: is nested more than 50 deep"),
        ("model: &a [*a]", "pipeline.yaml:1: *a stands within what it names"),
        ("#" * (2 << 20), "pipeline.yaml has 2,097,152 characters; 1,048,576 are read at most."),
    ],
)
def test_what_a_yaml_loader_does_not_survive_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    (fault,) = faults(path)
    assert fault.startswith(said)
