"""The locked environment: made, changed, broken off; by the Makefile's own rules, with two packages of a byte each."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from pipeline import locked
from tests.support import ROOT

FAKE = '#!/bin/sh\necho "$(basename "$0") $*" >> "$(dirname "$0")/asked"\n'


def wheel(folder: Path, name: str, version: str, content: str = "") -> str:
    """Makes a wheel; returns its entry in a lock."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n{content}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), text)
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Checkout:
    """What `make setup` needs of the repository, a folder of wheels, and the environment beside it."""

    def __init__(self, folder: Path):
        self.folder, self.wheels = folder, folder.parent / "wheels"
        self.wheels.mkdir(exist_ok=True)
        for name in (
            "Makefile",
            "scripts/make-venv",
            "pipeline/__init__.py",
            "pipeline/errors.py",
            "pipeline/locked.py",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self.venv = folder / ".venv"

    def lock(self, *entries: str) -> None:
        (self.folder / "requirements.txt").write_text("".join(entries))

    def make(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        given = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
            **env,
        }
        return subprocess.run(
            ["make", f"PYTHON3={sys.executable}", *arguments],
            cwd=self.folder, env={**os.environ, **given}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    @property
    def site(self) -> Path:
        (found,) = self.venv.glob("lib/python3*/site-packages")
        return found

    def differences(self) -> list[str]:
        return locked.differences((self.folder / "requirements.txt").read_text(), self.site)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A checkout whose environment was made once."""
    made = Checkout(tmp_path_factory.mktemp("first") / "checkout")
    made.lock(wheel(made.wheels, "alpha", "1"), wheel(made.wheels, "beta", "1"))
    done = made.make("setup")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def checkout(first, tmp_path):
    """A copy of it to change; its programs are those of the first."""
    shutil.copytree(first.wheels, tmp_path / "wheels")
    shutil.copytree(first.folder, tmp_path / "checkout", symlinks=True)
    for program in (tmp_path / "checkout/.venv/bin").iterdir():
        if not program.is_symlink() and program.name.startswith("pip"):
            program.write_text(program.read_text().replace(str(first.folder), str(tmp_path / "checkout")))
    return Checkout(tmp_path / "checkout")


def test_an_environment_of_the_lock_is_left_as_it_is_whatever_the_times(checkout):
    os.utime(checkout.folder / "requirements.txt")
    done = checkout.make("setup", PIP_FIND_LINKS="/nonexistent")
    assert (done.returncode, done.stderr) == (0, "")
    assert checkout.differences() == []


def test_an_environment_made_from_another_lock_is_mended_though_its_file_is_younger(checkout):
    foreign = wheel(checkout.wheels, "alpha", "2")
    before = (checkout.folder / "requirements.txt").read_text()
    checkout.lock(foreign, "beta==1" + before.split("beta==1")[1])
    assert checkout.make("setup").returncode == 0
    checkout.lock(before)
    long_ago = time.time() - 1000
    os.utime(checkout.folder / "requirements.txt", (long_ago, long_ago))
    done = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert checkout.differences() == []
    assert (checkout.venv / ".locked").read_text() == before


def test_what_the_new_lock_does_not_name_is_taken_out(checkout):
    checkout.lock(wheel(checkout.wheels, "alpha", "1"))
    done = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert checkout.differences() == []
    assert not (checkout.site / "beta.py").exists()


def test_the_same_version_with_another_hash_is_installed_anew(checkout):
    before = (checkout.folder / "requirements.txt").read_text()
    rebuilt = wheel(checkout.wheels, "alpha", "1", "rebuilt = True\n")
    checkout.lock(rebuilt, "beta==1" + before.split("beta==1")[1])
    done = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert "rebuilt" in (checkout.site / "alpha.py").read_text()


def test_a_lock_that_cannot_be_installed_costs_only_what_it_changes(checkout):
    before = (checkout.folder / "requirements.txt").read_text()
    kept = (checkout.site / "beta.py").stat().st_ino
    entry = wheel(checkout.wheels, "alpha", "2")
    (checkout.wheels / "alpha-2-py3-none-any.whl").unlink()
    checkout.lock(entry, "beta==1" + before.split("beta==1")[1])
    done = checkout.make("setup")
    assert done.returncode != 0
    assert "Run the same again" in done.stderr
    # Back to the lock that was installed: it is no longer, and make knows.
    checkout.lock(before)
    done = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert checkout.differences() == []
    assert (checkout.site / "beta.py").stat().st_ino == kept, "beta was installed anew, too"


def test_an_installation_that_was_killed_is_not_taken_for_the_lock_before(checkout):
    before = (checkout.folder / "requirements.txt").read_text()
    checkout.lock(wheel(checkout.wheels, "alpha", "2"))
    python = checkout.venv / "bin/python"
    real = python.resolve()
    python.unlink()
    python.write_text(
        f'#!/bin/sh\n[ "$3" = uninstall ] && exec {real} "$@"\ntouch {checkout.folder}/begun\nsleep 60\n'
    )
    python.chmod(0o755)
    child = subprocess.Popen(
        ["scripts/make-venv", sys.executable, ".venv"], cwd=checkout.folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (checkout.folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    checkout.lock(before)
    done = checkout.make("setup")
    assert done.returncode == 0, done.stderr
    assert checkout.differences() == []
    assert (checkout.venv / ".locked").read_text() == before
    assert not (checkout.venv / ".unfinished").exists()


def test_a_folder_that_is_no_environment_of_ours_is_left_alone(checkout, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    done = checkout.make("setup", f"VENV={mine}")
    assert done.returncode != 0
    assert "was not made by make setup" in done.stderr
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_locking_anew_in_a_worktree_leaves_the_environment_that_it_is_given_as_it_was(checkout, tmp_path):
    given = tmp_path / "given"
    (given / "bin").mkdir(parents=True)
    shutil.copy(checkout.folder / "requirements.txt", given / ".locked")
    for name, more in (("python", ""), ("uv", 'echo "# newer" >> requirements.txt\n')):
        (given / "bin" / name).write_text(FAKE + more)
        (given / "bin" / name).chmod(0o755)
    before = (given / ".locked").read_bytes()
    done = checkout.make("lock", f"VENV={given}", "PYTHON3=/nonexistent")
    assert done.returncode == 0, done.stderr
    assert "# newer" in (checkout.folder / "requirements.txt").read_text()
    assert (given / ".locked").read_bytes() == before
    asked = (given / "bin/asked").read_text().splitlines()
    assert [line.partition(" ")[0] for line in asked] == ["uv", "python"]
    assert asked[1] == "python -m deploy.pins"
