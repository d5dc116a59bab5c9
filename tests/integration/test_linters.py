"""The real linters: each finds a fault that was put there, and passes where there is none."""

import shutil
import subprocess

import pytest

from pipeline import lint, run
from pipeline.errors import GateRefused, ProgramFailed

COMMIT = "de0fac2e4500dabe0009e67214ff5f5447ce83dd"
WORKFLOW = """name: a
on: push
permissions: {}
concurrency: {group: a, cancel-in-progress: true}
jobs:
  a:
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    permissions: {contents: read}
    steps:
      - uses: actions/checkout@%s # v6.0.2
        with: {persist-credentials: false}
      - run: make check
"""
SOUND = {
    "pipeline/a.py": '"""A."""\n\n\ndef double(number: int) -> int:\n    """Twice."""\n    return 2 * number\n',
    "scripts/a": '#!/bin/sh\nset -eu\necho "$1"\n',
    "docker/Dockerfile": "FROM scratch\nCOPY a /a\n",
    ".gitlab-ci.yml": "a:\n  script: [make check]\n",
    ".github/workflows/a.yml": WORKFLOW % COMMIT,
    ".github/actions/b/action.yml": (
        "name: b\ndescription: b\nruns:\n  using: composite\n  steps:\n    - run: make b\n      shell: bash\n"
    ),
}
FAULTS = {
    "mypy": ("pipeline/a.py", "2 * number", "str(number)", "return-value"),
    "ruff-check": ("pipeline/a.py", '"""A."""\n', '"""A."""\n\nimport os\n', "F401"),
    "ruff-format": ("pipeline/a.py", "double(number", "double( number", "reformat"),
    "shellcheck": ("scripts/a", '"$1"', "$1", "SC2086"),
    "hadolint": ("docker/Dockerfile", "FROM scratch", "FROM debian", "DL3006"),
    "yamllint": (".gitlab-ci.yml", "[make check]", "[make check]\n  script: []", "key-duplicates"),
    "actionlint": (
        ".github/workflows/a.yml",
        "make check",
        "echo ${{ github.event.issue.title }}",
        "expression",
    ),
    "zizmor": (".github/workflows/a.yml", f"@{COMMIT} # v6.0.2", "@main", "unpinned-uses"),
    "schema-gitlab": (".gitlab-ci.yml", "[make check]", "{make: check}", "script"),
    "schema-workflows": (".github/workflows/a.yml", "name: a\n", "nam: a\n", "nam"),
    "schema-actions": (".github/actions/b/action.yml", "using: composite", "using: bash", "using"),
}
CONFIGURATION = (
    "pyproject.toml",
    ".yamllint.yaml",
    ".hadolint.yaml",
    ".github/zizmor.yml",
    ".github/actionlint.yaml",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture
def house(tmp_path, root):
    """A small repository with a file of each kind, all sound, and this one's rules."""
    for path, text in SOUND.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for path in CONFIGURATION:
        shutil.copy(root / path, tmp_path / path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def lint_all(house, cache):
    folder = house / "report"
    folder.mkdir()
    with lint.started(house, folder, cache) as linted:
        return {verdict.name: verdict for verdict in linted()}


def test_every_linter_passes_what_is_sound_and_its_report_is_kept(house, cache):
    found = lint_all(house, cache)
    assert [verdict for verdict in found.values() if verdict.faults or verdict.error] == []
    assert {path.stem for path in (house / "report").iterdir()} == {linter.name for linter in lint.LINTERS}


def test_every_linter_finds_the_fault_that_was_put_there(house, cache):
    assert set(FAULTS) == {linter.name for linter in lint.LINTERS}
    for path, old, new, _ in FAULTS.values():
        text = (house / path).read_text()
        (house / path).write_text(text.replace(old, new))
    found = lint_all(house, cache)
    for name, (path, _, _, word) in FAULTS.items():
        said = (house / "report" / f"{name}.txt").read_text()
        assert found[name].faults, f"{name} found nothing: {found[name]} {said}"
        assert word in said, f"{name} said {said}"
        assert path in said, f"{name} said {said}"


def test_a_linter_that_is_missing_or_crashes_is_an_error_and_the_others_still_speak(
    house, cache, monkeypatch
):
    find = run.find

    def without_hadolint(program):
        if program == "hadolint":
            raise ProgramFailed("hadolint is not on PATH.")
        return find(program)

    monkeypatch.setattr(run, "find", without_hadolint)
    (house / ".yamllint.yaml").write_text("rules: {no-such-rule: enable}\n")
    found = lint_all(house, cache)
    errors = {name: verdict.error for name, verdict in found.items() if verdict.error}
    assert errors.keys() == {"hadolint", "yamllint"}
    assert "not on PATH" in errors["hadolint"]
    assert "could not do its work" in errors["yamllint"]


def test_documents_and_settings_are_looked_at_without_the_stage(house):
    (house / "pipeline.yaml").write_text("image:\n  base: scratch\n")
    (house / "README.md").write_text("# A\n")
    assert "2 files" in lint.look_at_the_rest(house)
    (house / "README.md").write_text("# A\n\ndocker run a:latest\n")
    (house / "pipeline.yaml").write_text("image:\n  base: scratch\n  base: scratch\n")
    with pytest.raises(GateRefused, match=r"pipeline.yaml:3:3: .*duplicat[\s\S]*README.md:3: a:latest"):
        lint.look_at_the_rest(house)
    (house / "pipeline.yaml").unlink()
    with pytest.raises(ProgramFailed, match="look at nothing"):
        lint.look_at_the_rest(house)


def test_every_file_of_the_repository_is_in_the_key_of_check_or_looked_at_beside_it(root):
    listed = subprocess.run(["git", "ls-files"], cwd=root, check=True, capture_output=True, text=True).stdout
    tracked = {path for path in listed.splitlines() if (root / path).is_file()}
    seen = {*lint.files(root), *lint.rest(root)}
    assert tracked - seen == {".dockerignore", ".gitignore", "LICENSE"}
