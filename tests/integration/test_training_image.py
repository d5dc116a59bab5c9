"""docker/train.Dockerfile for real, by BuildKit: what is in it, what a change rebuilds, training inside it, trouble.

The base is a stand-in for tensorflow/tensorflow:2.20.0 (tests/support_engine.py), on the CPU; -gpu is another BASE.
"""

import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from pipeline import record
from pipeline.store import open_store
from tests import support_engine as engine
from tests.e2e.conftest import make_walk

pytestmark = engine.SLOW
ROOT = engine.ROOT
SENT = ("Makefile", "deploy",
        "docker/verify_lock.py", "docker/tf_serving_entrypoint.sh", "docker/tensorflow_model_server",
        "pipeline", "pipeline.yaml", "requirements.txt",
        "scripts", "serve", "train")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _engine():
    engine.need_engine()


@pytest.fixture(scope="module")
def image() -> str:
    return engine.training_image()


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the repository to change."""
    return engine.copy_tree(tmp_path / "tree")


def inspect(image: str) -> dict:
    asked = ["docker", "image", "inspect", image]
    return json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=60).stdout)[0]


def steps(said: str) -> dict[str, bool]:
    """Each step of the Dockerfile that a build went through, and whether it came from the cache."""
    lines = said.splitlines()
    named = dict(line.split(" ", 1) for line in lines if line.startswith("#") and "] " in line)
    cached = {line.split(" ", 1)[0] for line in lines if line.endswith(" CACHED")}
    return {name.partition("] ")[2]: number in cached for number, name in named.items() if "/" in name}


def test_the_image_belongs_to_no_root_and_says_what_it_is(image):
    made = inspect(image)["Config"]
    assert made["User"] == str(engine.user())
    assert list(made["Volumes"]) == ["/var/lib/tidegate"]
    assert made["Labels"]["org.opencontainers.image.title"] == "tidegate-train"
    assert "org.opencontainers.image.revision" in made["Labels"]


def test_training_passes_in_the_image_without_root_and_without_a_network(image, tmp_path):
    walk = make_walk(tmp_path / "clone", 20970)
    walk.edit("pipeline.yaml", "epochs: 30", "epochs: 1")
    walk.commit("One epoch")
    if os.getuid() == 0:
        for path in (walk.folder, *walk.folder.rglob("*")):
            os.chown(path, engine.user(), engine.user(), follow_symlinks=False)
    argv = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
    ]
    done = subprocess.run(
        [*argv, "--volume", f"{walk.folder}:/workspace", image, "make", "train"],
        capture_output=True, text=True, timeout=engine.BUILD_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skew" not in done.stderr, "make doubts the times of the image's environment"
    assert {name: row["outcome"] for name, row in walk.rows().items()} == dict.fromkeys(
        ("check", "data", "train"), "passed"
    )
    store = open_store(f"file:{walk.folder}/.tidegate/store", walk.folder)
    made = record.read(store.fetch_bytes(store.newest_record("train")))
    assert made.outcome == "passed"
    assert (walk.folder / "build/train/model").is_dir()


def test_an_environment_made_from_another_lock_is_refused_in_the_image(image, tree):
    with (tree / "requirements.txt").open("a") as lock:
        lock.write("# another\n")
    tree.chmod(0o755)
    argv = ["docker", "run", "--rm", "--network", "none", "--volume", f"{tree}:/workspace:ro", image]
    done = subprocess.run([*argv, "make", "status"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2  # make's own, for any failure
    assert "/opt/tidegate was made from another requirements.txt than this checkout's" in done.stderr


def test_only_what_training_runs_from_is_sent_and_no_secret_goes_along(tree, tmp_path):
    secrets = (
        ".env", "train/.env", "deploy/.env.production", ".tidegate/keys/ci.pem", "train/ci.pem", "pipeline/a/tls.key",
        "serve/id.p12", "scripts/.netrc", "docker/.docker/config.json", "id_ed25519",
    )  # fmt: skip
    for name in secrets:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("secret\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . .\n")
    out = tmp_path / "context.tar"
    done = engine.build(
        "--file", str(tmp_path / "Dockerfile"), "--output", f"type=tar,dest={out}", context=tree
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(out) as archive:
        sent = {name.removeprefix("./") for name in archive.getnames() if archive.getmember(name).isfile()}
    tracked = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()} - set(secrets)
    assert sent == {name for name in tracked if any(f"{name}/".startswith(f"{top}/") for top in SENT)}


def test_a_change_of_docs_or_tests_leaves_the_image_as_it_is(image, tree):
    for name in (
        "docs/operate.md",
        "README.md",
        "CHANGELOG.md",
        "tests/conftest.py",
        ".gitlab-ci.yml",
        "bench/noop.py",
    ):
        with (tree / name).open("a") as file:
            file.write("\n# a change\n")
    (tree / ".github/new.yml").write_text("a: change\n")
    (tree / "docs/new.md").write_text("# A change\n")
    made, said = engine.build_training(engine.stand_in_base(), tree)
    assert made == inspect(image)["Id"]
    assert all(cached for name, cached in steps(said).items() if name.startswith(("RUN", "COPY")))


def test_a_change_of_code_rebuilds_the_last_layer_and_no_other(image, tree):
    with (tree / "train/model.py").open("a") as file:
        file.write("\n# a change\n")
    made, said = engine.build_training(engine.stand_in_base(), tree)
    try:
        went = {name: cached for name, cached in steps(said).items() if name.startswith(("RUN", "COPY"))}
        assert [name for name, cached in went.items() if not cached] == ["COPY --chown=tidegate:tidegate . ."]
        before, after = inspect(image)["RootFS"]["Layers"], inspect(made)["RootFS"]["Layers"]
        assert (before[:-1], before[-1] != after[-1]) == (after[:-1], True)
    finally:
        subprocess.run(["docker", "rmi", made], capture_output=True)


# --- trouble ------------------------------------------------------------------------------------------


def arguments(tree: Path) -> list[str]:
    base = f"BASE={engine.stand_in_base()}"
    return ["--file", str(tree / "docker/train.Dockerfile"), "--build-arg", base]


def test_a_base_whose_tensorflow_is_not_the_locked_one_ends_the_build(tree):
    lock = engine.little_lock(tree).replace("tensorflow-cpu==2.20.0", "tensorflow-cpu==2.19.1")
    (tree / "requirements.txt").write_text(lock)
    done = engine.build(*arguments(tree), context=tree)
    assert done.returncode != 0
    assert "tensorflow-cpu: the lock says 2.19.1, installed is 2.20.0" in done.stderr


def test_a_base_that_is_gone_ends_the_build_at_once(tree, free_port):
    gone = f"127.0.0.1:{free_port}/tensorflow@sha256:{'0' * 64}"
    done = engine.build(
        "--build-arg", f"BASE={gone}", "--file", str(tree / "docker/train.Dockerfile"), context=tree
    )
    assert done.returncode != 0
    assert gone in done.stderr
    assert "pip install" not in done.stderr


def test_a_build_that_was_killed_half_way_is_finished_by_the_next(tree):
    engine.little_lock(tree)
    with (tree / "docker/verify_lock.py").open("a") as file:
        file.write(f"# {os.urandom(8).hex()}: never built before\n")
    argv = engine.build_command(*arguments(tree), context=tree)
    child = subprocess.Popen(
        argv, env={**os.environ, "DOCKER_BUILDKIT": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert any("Collecting" in line for line in child.stderr), "it ended before pip began"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stderr.close()
    done = engine.build("--iidfile", str(tree / ".id"), *arguments(tree), context=tree)
    assert done.returncode == 0, done.stderr
    assert "packages are what /opt/tidegate/requirements.txt locks" in done.stderr
    subprocess.run(["docker", "rmi", (tree / ".id").read_text()], capture_output=True)


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
