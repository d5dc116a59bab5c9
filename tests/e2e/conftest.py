"""A clone of the repository to walk in, with ports and settings of its own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import support_pipelines, support_registry
from tests.support_ports import port

ROOT = Path(__file__).resolve().parents[2]
_CODE = (
    "pipeline",
    "train",
    "deploy",
    "serve",
    "bench",
    "scripts",
    "docker",
    "trust",
    ".github",
    "tests/__init__.py",
)
_FILES = (
    "requirements.txt",
    "pyproject.toml",
    "Makefile",
    ".gitlab-ci.yml",
    ".hadolint.yaml",
    ".yamllint.yaml",
    ".trivyignore.yaml",
    ".gitignore",
)


def _hears_ctrl_c() -> None:
    """A shell that runs the tests in the background has them ignore Ctrl-C, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Walk:
    """A folder with the repository's code in it, and the commands that a person types there."""

    def __init__(self, folder: Path, ports: Mapping[str, int]):
        self.folder = folder
        self.ports = ports
        self.environ: dict[str, str] = {}
        self.command = [sys.executable, "-m", "pipeline"]

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen:
        """Starts `python -m pipeline ARGUMENTS` in a process group of its own."""
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("CI", "GITLAB", "GITHUB", "TIDEGATE"))
        }
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.folder,
            env={**clean, **self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_hears_ctrl_c,
        )

    def __call__(self, *arguments: str, expect: int = 0, **environ: str) -> str:
        """Runs a command to its end; returns all that it printed."""
        child = self.start(*arguments, **environ)
        output, _ = child.communicate(timeout=400)
        assert child.returncode == expect, (
            f"{arguments} left with {child.returncode}, not {expect}:\n{output}"
        )
        return output

    def kill_when(self, sign: signal.Signals, ready, *arguments: str, **environ: str) -> tuple[int, str]:
        """Starts a command, sends a signal to it once `ready()` holds; returns its exit status and output.

        SIGKILL goes to its whole group and to the stage's process, as when a machine loses power.
        """
        child = self.start(*arguments, **environ)
        deadline = time.monotonic() + 300
        while not ready() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert child.poll() is None, f"it ended before the moment came:\n{child.stdout.read()}"
        stages = _children(child.pid)
        child.send_signal(sign)
        if sign == signal.SIGKILL:
            for pid in stages:
                os.kill(pid, signal.SIGKILL)
        output, _ = child.communicate(timeout=60)
        return child.returncode, output

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{old!r} is not in {name}"
        path.write_text(text.replace(old, new))

    def rows(self) -> dict[str, dict]:
        """The closing table of the last run, by stage."""
        report = json.loads((self.folder / "build" / "report" / "report.json").read_text())
        return {row["stage"]: row for row in report["stages"]}

    def ran(self) -> list[str]:
        """The stages that really ran last time."""
        return [
            name for name, row in self.rows().items() if not row["cached"] and row["outcome"] != "not reached"
        ]

    def predict(self, rows: list, port: str = "production_rest") -> dict:
        url = f"http://127.0.0.1:{self.ports[port]}/v1/models/digits:predict"
        request = urllib.request.Request(url, json.dumps({"instances": rows}).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def live(self, channel: str = "production") -> dict | None:
        return json.loads(self("status", "--json"))["channels"][channel]

    def commit(self, message: str) -> None:
        _git(self.folder, "add", "-A")
        _git(self.folder, "commit", "-qm", message)


def _children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


def _copy(folder: Path) -> None:
    """The repository as it is in the work tree, with one quick unit test in place of all."""
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *_CODE, *_FILES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode)
    (folder / "tests" / "unit").mkdir(parents=True)
    (folder / "tests" / "unit" / "test_quick.py").write_text(
        "def test_arithmetic_works():\n    assert 1 + 1 == 2\n"
    )
    (folder / "docs").mkdir()
    (folder / "docs" / "guide.md").write_text("# A guide\n")


def make_walk(folder: Path, first_port: int) -> Walk:
    """A clone in `folder` whose four ports begin at `first_port`, from 20000 to 20999."""
    _copy(folder)
    begins = port(first_port)
    names = ("production_rest", "production_grpc", "staging_rest", "staging_grpc")
    ports = {name: begins + i for i, name in enumerate(names)}
    text = (ROOT / "tests" / "settings.yaml").read_text()
    for old, name in (("18501", "staging_rest"), ("18500", "staging_grpc")):
        text = text.replace(old, str(ports[name]))
    for old, name in (("8501", "production_rest"), ("8500", "production_grpc")):
        text = text.replace(f"_port: {old}", f"_port: {ports[name]}")
    (folder / "pipeline.yaml").write_text(text)
    # Of all clones, so that each does not read the types of every package anew.
    (folder / ".tidegate").mkdir()
    shared = folder.parent / "types"
    shared.mkdir(exist_ok=True)
    (folder / ".tidegate" / "cache").symlink_to(shared)
    walk = Walk(folder, ports)
    walk.edit("pipeline.yaml", "coverage: {at_least: 60}", "coverage: {at_least: 0}")
    _git(folder, "init", "-q", "-b", "main")
    walk.commit("A model")
    return walk


@pytest.fixture(scope="module")
def walk(request, tmp_path_factory):
    """A clone for the tests of a module; whatever it started is stopped in the end."""
    made = make_walk(tmp_path_factory.mktemp("clone"), request.module.FIRST_PORT)
    yield made
    made("down")
    left = subprocess.run(
        ["pgrep", "-fa", str(made.folder)], capture_output=True, text=True, check=False
    ).stdout
    assert not left, f"these still run:\n{left}"


@pytest.fixture(scope="session")
def trivy_mirror(tmp_path_factory):
    """The address of a registry with a vulnerability database, as a team's mirror has it."""
    support_registry.need_registry()
    folder, port = tmp_path_factory.mktemp("mirror"), support_registry.free_port()
    child = support_registry.serve(folder / "registry", port)
    yield support_pipelines.offer_database(folder, f"127.0.0.1:{port}/mirror/trivy-db")
    child.kill()
    child.wait()


@pytest.fixture(scope="session")
def team(tmp_path_factory, trivy_mirror):
    """A team's commit, which names its keys; and the digests that `make ci-local` gives its model and its image."""
    image = support_pipelines.job_image()
    folder = tmp_path_factory.mktemp("team") / "digits"
    folder.mkdir()
    walk = make_walk(folder, support_pipelines.FIRST_PORT)
    for old, new in support_pipelines.QUICK.items():
        walk.edit("pipeline.yaml", old, new)
    keys = {}
    for name, role in (("ci", "ci"), ("alice", "approver")):
        walk("keygen", name, "--role", role)
        keys[name] = folder.parent / f"{name}.pem"
        (folder / ".tidegate/keys" / keys[name].name).rename(keys[name])
    walk.commit("Keys")
    _git(folder, "remote", "add", "origin", support_pipelines.REMOTE)
    walk("run", "image", TIDEGATE_ACCELERATOR="cpu", TIDEGATE_SIGNING_KEY=str(keys["ci"]))
    digests = support_pipelines.digests(folder / ".tidegate/store")
    return support_pipelines.Team(folder, keys, image, trivy_mirror, digests, walk.ports)
