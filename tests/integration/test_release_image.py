"""scripts/build-image for real: the same commit gives the same bits, pushed by digest; and trouble.

The push, and what is refused, are shown with a Dockerfile of two lines on a base of one file, so that seconds suffice.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support_engine as engine
from tests import support_registry
from tests.support_ports import port

pytestmark = engine.SLOW
PORT = port(20980)
HOST = f"127.0.0.1:{PORT}"
ID = r"sha256:[0-9a-f]{64}"


@pytest.fixture(scope="module")
def storage() -> Iterator[dict[str, str]]:
    """The environment of a buildah with images of its own, which are gone in the end."""
    if not shutil.which("buildah"):
        lacks = "buildah is not on PATH; apt-get install buildah"
        assert not os.environ.get("CI"), f"{lacks} (CI must run these tests)"
        pytest.skip(lacks)
    with tempfile.TemporaryDirectory(dir=engine.cache(), ignore_cleanup_errors=True) as folder:
        conf = Path(folder) / "storage.conf"
        conf.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        environment = {"CONTAINERS_STORAGE_CONF": str(conf), "NO_CACHE": "1"}
        if engine.CERTIFICATES.exists():
            environment["PIP_CERT"] = str(engine.CERTIFICATES)
        yield environment
        buildah(environment, "rm", "--all")


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Iterator[str]:
    support_registry.need_registry()
    child = support_registry.serve(tmp_path_factory.mktemp("registry"), PORT)
    yield HOST
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def base(storage, registry, tmp_path_factory) -> str:
    """A base image of one file in the registry, by digest."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "Containerfile").write_text("FROM scratch\nCOPY Containerfile /\n")
    done = buildah(storage, "bud", "--quiet", "--timestamp", "0", str(folder))
    name, digest = f"{registry}/base", folder / "digest"
    image = done.stdout.split()[-1]
    buildah(storage, "push", "--tls-verify=false", "--digestfile", str(digest), image, f"docker://{name}:1")
    return f"{name}@{digest.read_text()}"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A commit of the repository whose Dockerfile adds the code to its base, and nothing else."""
    folder = engine.copy_tree(tmp_path / "checkout")
    (folder / "docker/train.Dockerfile").write_text("ARG BASE\nFROM ${BASE}\nCOPY . .\n")
    return commit(folder)


def commit(folder: Path) -> Path:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
    for argv in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "A model"]):
        subprocess.run(["git", *argv], cwd=folder, check=True, capture_output=True)
    return folder


def buildah(environment, *argv: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        ["buildah", *argv], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done


def build(folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [folder / "scripts/build-image", *argv],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=engine.BUILD_TIMEOUT_S,
    )  # fmt: skip


def test_the_same_commit_is_pushed_twice_with_one_digest_whatever_lies_in_the_work_tree(
    checkout, base, storage
):
    first = build(checkout, base, f"{HOST}/train", **storage)
    assert first.returncode == 0, first.stderr
    assert re.fullmatch(rf"{re.escape(HOST)}/train@{ID}\n", first.stdout)
    (checkout / "train/never_committed.py").write_text("secret = 1\n")
    (checkout / "Makefile").chmod(0o600)
    (checkout / "train/model.py").write_text("changed, not committed\n")
    os.utime(checkout / "pipeline.yaml", (1, 1))
    second = build(checkout, base, f"{HOST}/train", **storage)
    assert second.stdout == first.stdout
    tags = subprocess.run(
        ["skopeo", "list-tags", "--tls-verify=false", f"docker://{HOST}/train"],
        capture_output=True,
        text=True,
    ).stdout
    assert len(re.findall(r'"[0-9a-f]{12}-[0-9a-f]{12}"', tags)) == 1


def test_a_clone_by_ssh_and_one_by_https_with_a_login_give_one_image(checkout, base, storage):
    made = []
    for origin in ("git@git.example:team/digits.git", "https://ci:secret@git.example/team/digits"):
        subprocess.run(["git", "remote", "remove", "origin"], cwd=checkout, capture_output=True)
        subprocess.run(["git", "remote", "add", "origin", origin], cwd=checkout, check=True)
        made.append(build(checkout, base, **storage))
        assert "secret" not in made[-1].stderr
    assert re.fullmatch(f"{ID}\n", made[0].stdout), made[0].stderr
    assert made[0].stdout == made[1].stdout


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("", 2, "make train-image BASE="),
        ("tensorflow/tensorflow:2.20.0", 2, "has no digest, and a tag moves"),
        (f"{HOST}/base@sha256:{'0' * 64}", 5, "If its digest is gone, choose the one that its tag names now"),
    ],
    ids=["none", "a tag alone", "a digest that is gone"],
)
def test_a_base_that_is_not_pinned_or_not_there_is_refused(checkout, registry, storage, name, status, says):
    done = build(checkout, name, **storage)
    assert (done.returncode, done.stdout) == (status, "")
    assert says in done.stderr


def test_without_buildah_the_remedy_is_named(checkout, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "bash", "dirname", "env"):
        (programs / name).symlink_to(shutil.which(name))
    done = build(checkout, "some@sha256:" + "0" * 64, PATH=str(programs))
    assert done.returncode == 5
    assert "buildah is not on PATH" in done.stderr
    assert "apt-get install git buildah" in done.stderr


def test_a_registry_that_is_down_fails_the_push_and_names_the_registry(checkout, base, storage):
    done = build(checkout, base, "127.0.0.1:1/train", **storage)
    assert (done.returncode, done.stdout) == (5, "")
    assert "could not be pushed to 127.0.0.1:1/train" in done.stderr


def test_two_builds_of_the_training_image_without_a_cache_are_the_same_bits(storage, tmp_path):
    """The Dockerfile as it is, with a lock of a few packages; the second time after a build that was killed."""
    folder = engine.copy_tree(tmp_path / "checkout")
    engine.little_lock(folder)
    commit(folder)
    base = f"docker-daemon:{engine.stand_in_base()}"
    first = build(folder, base, **storage)
    assert re.fullmatch(f"{ID}\n", first.stdout), first.stderr[-4000:]
    child = subprocess.Popen(
        [folder / "scripts/build-image", base], env={**os.environ, **storage}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert any("Collecting" in line for line in child.stderr), "it ended before pip began"
    os.killpg(child.pid, 9)
    child.wait()
    child.stderr.close()
    second = build(folder, base, **storage)
    assert second.stdout == first.stdout, second.stderr[-4000:]
