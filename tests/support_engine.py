"""A Docker engine for tests, and the two images that they run in, each made once per machine.

`stand_in_base()` has the shape of tensorflow/tensorflow:2.20.0, which needs Docker Hub: Debian bookworm with Python,
pip, make and git from the archive that this machine itself uses, and the locked TensorFlow with what it needs,
installed system wide. `training_image()` is docker/train.Dockerfile built on it. As a program (`python -m
tests.support_engine base|training`) it makes one ahead of the tests and prints its name.
"""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
# Also the first minutes of a fresh machine, with all its cores busy. What makes an image first takes `@SLOW`.
BUILD_TIMEOUT_S = 1200
SLOW = pytest.mark.timeout(2 * BUILD_TIMEOUT_S)
TENSORFLOW = "tensorflow-cpu"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_SUITE = "bookworm"
_PACKAGES = "ca-certificates,python3,python3-venv,python3-pip,make,git"
_UNREAD = ("doc", "man", "locale")
_PIP = "python3 -m pip install --quiet --root-user-action=ignore --break-system-packages --no-deps --no-cache-dir"
_INSTALL = f"{_PIP} --no-index --find-links /wheels --require-hashes --requirement /wheels/lock.txt"
_ENGINE_LACKS = "no Docker engine answers; apt-get install docker.io, then start dockerd"


# --- the engine ---------------------------------------------------------------------------------------


def need_engine() -> None:
    """Skips where no Docker engine answers and none can be started; where CI is set, that is a failure.

    Called in a test, in a fixture, or by a module when it is collected.
    """
    lacks = engine_lacks()
    if lacks and os.environ.get("CI"):
        raise AssertionError(f"{lacks} (CI must run these tests)")
    if lacks:
        pytest.skip(lacks, allow_module_level=True)


@functools.cache
def engine_lacks() -> str | None:
    """What is missing for tests with an engine, or None. As root, starts dockerd where it is installed and silent."""
    if not shutil.which("docker"):
        return "docker is not on PATH; apt-get install docker.io"
    if _answers() or _started():
        return None
    return _ENGINE_LACKS


def _answers() -> bool:
    asked = ["docker", "info", "--format", "{{.ServerErrors}}"]
    return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0


def _started() -> bool:
    """Whether an engine answers after dockerd was started; it outlives the tests, as a service would."""
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        return False
    with _alone("engine"):
        if _answers():
            return True
        with (cache() / "dockerd.log").open("ab") as log:
            subprocess.Popen(
                ["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not _answers():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
    return True


@functools.cache
def builder() -> str:
    """The docker program that builds with BuildKit: one with buildx, else one that reaches the engine's own (< 23).

    Skips (fails where CI is set) if neither is there.
    """
    need_engine()
    everywhere = [Path(folder) / "docker" for folder in os.get_exec_path()]
    programs = [str(program) for program in everywhere if os.access(program, os.X_OK)]
    for program in programs:
        if subprocess.run([program, "buildx", "version"], capture_output=True).returncode == 0:
            return program
    for program in programs:
        asked = [program, "version", "--format", "{{.Client.Version}}"]
        version = subprocess.run(asked, capture_output=True, text=True).stdout
        if (number := re.match(r"\d+", version)) and int(number[0]) < 23:
            return program
    lacks = "no docker program here has BuildKit; apt-get install docker-buildx (or docker-buildx-plugin)"
    if os.environ.get("CI"):
        raise AssertionError(lacks)
    return pytest.skip(lacks)


def build(*arguments: str, context: Path = ROOT, timeout_s: float = BUILD_TIMEOUT_S):
    """`docker build ARGUMENTS CONTEXT` with BuildKit and the machine's certificates.

    Returns the finished process, also when it failed. What the build said stands in its stderr, one line a step.
    """
    secret = ["--secret", f"id=ca,src={CERTIFICATES}"] if CERTIFICATES.exists() else []
    argv = [builder(), "build", "--progress=plain", *secret, *arguments, str(context)]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=timeout_s)


# --- the images ---------------------------------------------------------------------------------------


def stand_in_base() -> str:
    """The name of the base image, `tidegate-stand-in:HASH of its recipe`. Needs root and mmdebstrap to make it."""
    need_engine()
    name = f"tidegate-stand-in:{_recipe()[:12]}"
    with _alone("base"):
        if not _present(name):
            _make_base(name)
    return name


def training_image() -> str:
    """The name of the training image of this tree, `tidegate-train:HASH of its content`, built on the stand-in."""
    base = stand_in_base()
    with _alone("training"), tempfile.TemporaryDirectory() as folder:
        id_file = Path(folder) / "id"
        arguments = ["--build-arg", f"BASE={base}", "--iidfile", str(id_file)]
        done = build("--file", str(ROOT / "docker/train.Dockerfile"), *arguments)
        assert done.returncode == 0, f"the training image cannot be built:\n{done.stderr[-4000:]}"
        found = id_file.read_text().strip()
        name = f"tidegate-train:{found.removeprefix('sha256:')[:12]}"
        subprocess.run(["docker", "tag", found, name], check=True, capture_output=True, timeout=60)
    return name


def closure(package: str) -> list[str]:
    """A package and all that it needs, by the names that the lock gives them, as installed here."""
    found: list[str] = []
    waiting = [package]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.append(name)
        needs = (Requirement(text) for text in metadata.requires(name) or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return sorted(found)


def locked(packages: Sequence[str]) -> str:
    """The lock's entries of some packages, with their hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.txt").read_text())
    by_name = {entry.partition("==")[0]: entry.rstrip() for entry in entries}
    return "\n".join(by_name[name] for name in packages) + "\n"


def wheelhouse(lock: str) -> Path:
    """A folder with the wheels of a lock and the lock itself, downloaded once per machine."""
    folder = cache() / "wheels" / hashlib.sha256(lock.encode()).hexdigest()[:12]
    if not (folder / "lock.txt").exists():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        (part / "lock").write_text(lock)
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        argv += ["--dest", str(part), "--requirement", str(part / "lock")]
        subprocess.run(argv, check=True, timeout=BUILD_TIMEOUT_S)
        (part / "lock").rename(part / "lock.txt")
        part.rename(folder)
    return folder


def cache() -> Path:
    """What tests keep on this machine from one run to the next."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "tidegate-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _recipe() -> str:
    parts = (_SUITE, _PACKAGES, *_UNREAD, _INSTALL, locked(closure(TENSORFLOW)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _make_base(name: str) -> None:
    assert shutil.which("mmdebstrap"), (
        "mmdebstrap is not on PATH; apt-get install mmdebstrap makes the base image"
    )
    wheels = wheelhouse(locked(closure(TENSORFLOW)))
    leave_out = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _UNREAD]
    hooks = [
        'mkdir -p "$1/wheels"',
        f'sync-in "{wheels}" /wheels',
        f'chroot "$1" {_INSTALL}',
        'rm -rf "$1/wheels"',
    ]
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        tar = f"{folder}/base.tar"
        argv = ["mmdebstrap", "--variant=apt", f"--include={_PACKAGES}", *leave_out]
        argv += [f"--customize-hook={hook}" for hook in hooks]
        made = subprocess.run(
            [*argv, _SUITE, tar, *_archives()], capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
        )
        assert made.returncode == 0, f"mmdebstrap failed:\n{made.stderr[-4000:]}"
        subprocess.run(
            ["docker", "import", tar, name], check=True, capture_output=True, timeout=BUILD_TIMEOUT_S
        )


def _archives() -> list[str]:
    """The files that name this machine's own archive, if it is the same release of Debian; else Debian's default."""
    folder = Path("/etc/apt")
    listed = (
        folder / "sources.list",
        *folder.glob("sources.list.d/*.list"),
        *folder.glob("sources.list.d/*.sources"),
    )
    own = re.compile(rf"^(Suites:|deb\s).*\s{_SUITE}(\s|$)", re.MULTILINE)
    return sorted(str(path) for path in listed if path.is_file() and own.search(path.read_text()))


def _present(name: str) -> bool:
    asked = ["docker", "image", "inspect", name]
    return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Lets one process of this machine at a time do `what`."""
    with (cache() / f"{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print({"base": stand_in_base, "training": training_image}[sys.argv[1]]())
