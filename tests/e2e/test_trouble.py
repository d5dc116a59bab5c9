"""Bad input and trouble: a clear message, the right exit code, nothing half-done, and a next run that ends well."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.stages import BY_NAME

FIRST_PORT = 20520
ALL = list(BY_NAME)


@pytest.fixture(scope="module", autouse=True)
def _first_model(walk):
    """A first model in production, so that trouble has something to spoil."""
    walk("run", "--all")


@pytest.fixture
def changed(walk):
    """Changes files of the clone for one test, and puts them back."""
    kept: dict[str, bytes] = {}

    def change(name: str, old: str, new: str) -> None:
        kept.setdefault(name, (walk.folder / name).read_bytes())
        walk.edit(name, old, new)

    yield change
    for name, content in kept.items():
        (walk.folder / name).write_bytes(content)


@pytest.fixture
def without(walk, tmp_path):
    """Takes a program away: a Python environment like ours, without that program beside it."""

    def take(*names: str) -> None:
        environment = tmp_path / "environment"
        (environment / "bin").mkdir(parents=True)
        real = Path(sys.prefix)
        shutil.copy(real / "pyvenv.cfg", environment)
        (environment / "lib").symlink_to(real / "lib")
        for program in (real / "bin").iterdir():
            if program.name not in names:
                (environment / "bin" / program.name).symlink_to(program)
        walk.command = [str(environment / "bin" / "python"), "-m", "pipeline"]

    usual = walk.command
    yield take
    walk.command = usual


def unharmed(walk) -> None:
    """Production still serves version 1, and the files as they are have nothing left to do."""
    assert walk.live()["version"] == 1
    assert "Nothing to do" in walk("run", "--all")
    rows = np.load(walk.folder / "build/data/rows/test_features.npy")[:1]
    assert walk.predict(rows.tolist())["predictions"]


@pytest.mark.parametrize(
    ("old", "new", "stage", "code", "said"),
    [
        ("source: sklearn:digits", "source: no/such.csv", "data", 2, "no/such.csv"),
        ("source: sklearn:digits", "source: sklearn:diggits", "data", 2, "sklearn:diggits"),
        (
            'sha256: "09',
            'sha256: "19',
            "data",
            6,
            "19f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
        ),
        ("value_range: [0, 16]", "value_range: [0, 15]", "data", 3, "16"),
        ("classes: 10", "classes: 11", "data", 3, "class"),
        (
            "accuracy: {at_least: 0.95}",
            "accuracy: {at_least: 0.9999}",
            "evaluate",
            3,
            "the gate asks at least 0.9999",
        ),
        ("latency_ms: {at_most: 250}", "latency_ms: {at_most: 0.001}", "staging", 3, "latency"),
        ("requests_at_least: 50", "requests_at_least: 1000000", "canary", 4, "request"),
        (
            "registry: ${TIDEGATE_REGISTRY:-oci:.tidegate/registry}",
            "registry: 127.0.0.1:1/x",
            "publish",
            5,
            "127.0.0.1:1",
        ),
    ],
)
def test_bad_input_stops_with_its_code_and_the_run_after_it_ends_well(
    walk, changed, old, new, stage, code, said
):
    changed("pipeline.yaml", old, new)
    if stage == "canary":
        changed("pipeline.yaml", "step_timeout_s: 60", "step_timeout_s: 3")
    output = walk("run", "--all", expect=code)
    assert said in output
    assert walk.rows()[stage]["outcome"] != "passed"
    assert walk.rows()["promote"]["outcome"] == "not reached"
    shutil.copy(walk.folder / ".tidegate" / "good.yaml", walk.folder / "pipeline.yaml")
    unharmed(walk)


@pytest.fixture(scope="module", autouse=True)
def _good_settings(walk, _first_model):
    shutil.copy(walk.folder / "pipeline.yaml", walk.folder / ".tidegate" / "good.yaml")


def test_settings_faults_come_at_once_and_touch_nothing(walk, changed):
    changed("pipeline.yaml", "  steps:", "  stpes:")
    changed("pipeline.yaml", "kind: ${TIDEGATE_TARGET:-local}", "kind: locl")
    output = walk("run", "--all", expect=2)
    assert "canary.stpes is not an option. Did you mean canary.steps?" in output
    assert "target.kind: is 'locl'" in output


def test_a_stage_that_does_not_exist_is_refused_with_the_nearest(walk):
    assert "Did you mean evaluate?" in walk("run", "evalute", expect=2)


def test_a_changed_signature_is_refused_naming_what_changed(walk, changed):
    changed(
        "train/export.py",
        '_CLASS = "pixels", "probabilities", "class"',
        '_CLASS = "pixels", "probabilities", "label"',
    )
    changed("pipeline.yaml", "  seed: 7", "  seed: 9")
    output = walk("run", "--all", expect=3)
    assert walk.rows()["export"]["outcome"] == "failed"
    assert "label" in output
    assert "signature_may_change" in output


@pytest.mark.parametrize("program", ["trivy", "envoy"])
def test_an_absent_program_is_named_with_the_remedy(walk, changed, without, program):
    walk("down")
    without(program)
    stages = {"trivy": ["--force", "scan", "scan"], "envoy": ["--all"]}
    output = walk("run", *stages[program], expect=5)
    assert f"{program} is not on PATH" in output
    assert "make setup" in output


def test_a_taken_port_is_named_and_the_other_version_is_left_alone(walk):
    walk("down")
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", walk.ports["production_rest"]))
        holder.listen()
        output = walk("run", "--all", expect=5)
    assert str(walk.ports["production_rest"]) in output
    assert "production.rest_port" in output
    walk("run", "--all")
    unharmed(walk)


def test_a_version_that_does_not_become_ready_is_stopped_and_shown_with_its_log(walk, changed):
    walk("down")
    changed("pipeline.yaml", "ready_timeout_s: 120", "ready_timeout_s: 1")
    output = walk("run", "--all", expect=5)
    assert "ready" in output
    shutil.copy(walk.folder / ".tidegate" / "good.yaml", walk.folder / "pipeline.yaml")
    walk("run", "--all")
    unharmed(walk)


def test_a_full_disk_is_said_and_nothing_half_written_counts(walk):
    limited = [
        "bash",
        "-c",
        'ulimit -f 40; exec "$@"',
        "bash",
        *walk.command,
        "run",
        "--force",
        "image",
        "image",
    ]
    done = subprocess.run(limited, cwd=walk.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    unharmed(walk)


def test_a_damaged_artifact_in_the_store_is_never_used(walk):
    shutil.rmtree(walk.folder / "build" / "export")
    tree = json.loads(walk("history", "--json"))[0]["savedmodel"]
    store = walk.folder / ".tidegate" / "store" / "blobs" / "sha256"
    leaf = next(
        row for row in json.loads((store / tree[:2] / tree).read_bytes()) if row[0] == "saved_model.pb"
    )
    blob = store / leaf[2][:2] / leaf[2]
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert leaf[2] in walk("run", "--all", expect=6)
    blob.unlink()
    walk("run", "--all")
    assert "export" in walk.ran()
    unharmed(walk)


MOMENTS = {
    "train": lambda folder: any((folder / ".tidegate" / "work").glob("train-*/*")),
    "export": lambda folder: any((folder / "build" / ".work" / "export").glob("**/variables*")),
    "publish": lambda folder: (folder / "build" / ".work" / "publish").exists(),
    "canary": lambda folder: _candidate_has_traffic(folder),
}


def _candidate_has_traffic(folder: Path) -> bool:
    judged = any(version["role"] == "candidate" for version in _production(folder))
    return judged and (folder / "build/.work/canary").exists()


def _production(folder: Path) -> list[dict]:
    """The versions that the state on disk names."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / ".tidegate" / "run" / "production.json").read_text())["versions"]
    return []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("stage", MOMENTS)
def test_a_run_that_was_killed_in_a_stage_ends_well_when_run_again(walk, stage, sign):
    before = walk.live()
    seed = 100 + 2 * list(MOMENTS).index(stage) + (sign == signal.SIGINT)
    text = (walk.folder / ".tidegate" / "good.yaml").read_text()
    (walk.folder / "pipeline.yaml").write_text(text.replace("  seed: 7", f"  seed: {seed}"))
    status, output = walk.kill_when(sign, lambda: MOMENTS[stage](walk.folder), "run", "--all")
    assert status == (-signal.SIGKILL if sign == signal.SIGKILL else 130), output
    if sign == signal.SIGINT:
        assert walk.rows()[stage]["outcome"] == "stopped"
    assert walk.live() == before, "a run that was killed changed the production channel"
    rows = np.load(walk.folder / "build/data/rows/test_features.npy")[:1]
    assert walk.predict(rows.tolist())["predictions"]
    walk("run", "--all")
    after = walk.live()
    assert after["version"] > before["version"]
    assert after["left"] == before["image"]
    assert "Nothing to do" in walk("run", "--all")


def test_of_two_runs_at_once_one_is_told_and_the_other_ends_well(walk):
    first = walk.start("run", "--force", "evaluate", "--all")
    second = ""
    while first.poll() is None and not second:
        if (walk.folder / "build" / ".work" / "evaluate").exists():
            second = walk("run", "--all", expect=7)
    output, _ = first.communicate()
    assert first.returncode == 0, output
    assert "another run is at work in this folder" in second


def test_of_two_pipelines_that_deploy_at_once_the_second_is_told_and_loses_nothing(walk, tmp_path):
    """Two checkouts share what lasts on a host, as two pipelines' jobs do where nothing queues them."""
    shared = {
        "TIDEGATE_STATE": str(walk.folder / ".tidegate"),
        "TIDEGATE_STORE": f"file:{walk.folder}/.tidegate/store",
        "TIDEGATE_REGISTRY": f"oci:{walk.folder}/.tidegate/registry",
    }
    deploy = ("run", "--force", "staging", "staging")
    subprocess.run(["git", "clone", "-q", str(walk.folder), str(tmp_path / "second")], check=True)
    shutil.copy(walk.folder / "pipeline.yaml", tmp_path / "second")
    second = type(walk)(tmp_path / "second", walk.ports)
    walk(*deploy, **shared)
    before, serves = walk.live("staging"), walk.live()
    first, told = walk.start(*deploy, **shared), ""
    lock = Path(shared["TIDEGATE_STATE"], "run", ".lock")
    while first.poll() is None and not told:
        if lock.read_text() == f"process {first.pid}":
            told = second(*deploy, expect=7, **shared)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert f"a deployment is going on here (process {first.pid}). Wait for it" in told
    second(*deploy, **shared)
    assert walk.live("staging")["image"] == before["image"]
    assert walk.live() == serves


def test_killed_canary_is_taken_back_and_a_killed_rollback_is_not_undone(walk):
    before = walk.live()
    text = (walk.folder / ".tidegate" / "good.yaml").read_text()
    (walk.folder / "pipeline.yaml").write_text(text.replace("  seed: 7", "  seed: 200"))
    walk.kill_when(signal.SIGKILL, lambda: _candidate_has_traffic(walk.folder), "run", "--all")
    assert "is being judged, and no canary is at work" in walk("status")
    walk("rollback")
    weights = {one["role"]: one["weight"] for one in _production(walk.folder)}
    assert (weights["stable"], sum(weights.values()), "candidate" in weights) == (100, 100, False)
    taken = walk.live()
    assert (taken["image"], taken["why"]) == (before["image"], "rollback")
    assert "was rolled back by" in walk("run", "--all", expect=3)

    walk("approve")
    walk("run", "--all")
    after = walk.live()
    assert after["image"] == taken["left"]

    def switched() -> bool:
        return any(
            one["role"] == "stable" and one["digest"] == before["image"] for one in _production(walk.folder)
        )

    walk.kill_when(signal.SIGKILL, switched, "rollback")
    assert walk.live() == after
    finishes = f"python -m pipeline rollback v{before['version']}"
    assert f"and is not finished; `{finishes}` finishes it" in walk("status")
    assert f"that was not finished: `{finishes}` finishes it" in walk("run", "--all", expect=3)
    assert switched(), "a run undid what a person wanted"
    walk("rollback", f"v{before['version']}")
    assert walk.live()["why"] == "rollback"
    assert "not finished" not in walk("status")
