"""What the repository says of itself: settings documented, links that lead somewhere, nothing that moves."""

import re
import subprocess

import pytest
import yaml

from pipeline import config


def tracked(root) -> list[str]:
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(argv, cwd=root, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("name", ["pipeline.yaml", "tests/settings.yaml"])
def test_the_settings_that_we_ship_are_valid(root, name):
    assert config.load(root / name, {}).model == "digits"


def test_every_section_of_the_settings_begins_with_a_comment(root):
    lines = (root / "pipeline.yaml").read_text().splitlines()
    for name in yaml.safe_load("\n".join(lines)):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}:"))
        beside = lines[at + 1] if lines[at] == f"{name}:" else lines[at - 1]
        assert beside.strip().startswith("#"), f"pipeline.yaml: {name} is not explained"


def test_links_in_the_documents_lead_to_files(root):
    for document in [root / "README.md", *(root / "docs").glob("*.md"), root / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_nothing_is_pinned_to_a_tag_that_moves(root):
    for name in tracked(root):
        path = root / name
        if name.startswith("tests/") or not path.is_file() or path.suffix in (".md", ".npy"):
            continue
        found = re.search(r"[\w./-]:latest\b", path.read_text(errors="replace"))
        assert not found, f"{name} names {found[0]}"


def test_every_lock_entry_has_hashes_and_tensorflow_is_there_once(root):
    entries = re.split(r"\n(?=[A-Za-z])", (root / "requirements.txt").read_text().split("\n\n")[-1])
    packages = [entry for entry in entries if "==" in entry]
    assert len(packages) > 50
    assert all("--hash=sha256:" in entry for entry in packages)
    tensorflows = [entry.split("==")[0] for entry in packages if re.match(r"tensorflow(-cpu|-gpu)?==", entry)]
    assert tensorflows == ["tensorflow-cpu"]


def test_every_command_has_help_with_an_example(root):
    from pipeline.__main__ import parser

    commands = next(
        action for action in parser()._actions if action.choices and "run" in action.choices
    ).choices
    assert set(commands) >= {
        "run",
        "plan",
        "explain",
        "status",
        "history",
        "approve",
        "rollback",
        "down",
        "doctor",
    }
    for name, command in commands.items():
        assert f"example: python -m pipeline {name}" in command.format_help()
