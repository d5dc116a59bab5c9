"""The house rules that a test can hold: who may import whom, and no long functions."""

import ast

import pytest

from pipeline import closure

HEAVY = {"tensorflow", "keras", "tensorflow_serving", "numpy", "boto3", "sklearn"}
ALLOWED = {
    "pipeline": {"pipeline"},
    "train": {"train", "pipeline"},
    "deploy": {"deploy", "pipeline"},
    "serve": {"serve"},
}
SPINE_FOR_STAGES = {"stages", "settings", "run", "errors", "digest", "record", "yaml_text"}
# Imports boto3, inside the functions that talk to S3.
FAR_STORE = "s3_client.py"


def files(root, package):
    found = sorted((root / package).rglob("*.py"))
    assert found, f"{package} has no files"
    return found


def imported(path, package):
    """The modules that a file imports, as dotted names."""
    for level, base, names in closure.parse(path.read_text()):
        module = f"{package}.{base}" if level else base
        yield module
        if module in ALLOWED:
            yield from (f"{module}.{name}" for name in names)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_downwards_only(root, package):
    for path in files(root, package):
        houses = {module.split(".")[0] for module in imported(path, package)} & set(ALLOWED)
        assert houses <= ALLOWED[package], f"{path.relative_to(root)} imports {houses - ALLOWED[package]}"


@pytest.mark.parametrize("package", ["train", "deploy"])
def test_stages_see_only_the_stage_interface_of_the_spine(root, package):
    for path in files(root, package):
        seen = {module.split(".")[1] for module in imported(path, package) if module.startswith("pipeline.")}
        assert seen <= SPINE_FOR_STAGES, (
            f"{path.relative_to(root)} imports pipeline.{seen - SPINE_FOR_STAGES}"
        )


@pytest.mark.parametrize("package", ["pipeline", "deploy"])
def test_commands_start_without_tensorflow(root, package):
    for path in files(root, package):
        allowed = {"numpy", "boto3"} if path.name == FAR_STORE else {"numpy"}
        heavy = {module.split(".")[0] for module in imported(path, package)} & (HEAVY - allowed)
        assert not heavy, f"{path.relative_to(root)} imports {heavy}"


@pytest.mark.parametrize("package", ALLOWED)
def test_functions_stay_short_enough_to_be_read(root, package):
    for path in files(root, package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{path.relative_to(root)}:{node.lineno} {node.name} has {lines} lines"
