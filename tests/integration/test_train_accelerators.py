"""The look at a machine with real programs, and the proof by work on logical CPU devices."""

import json
import os
import subprocess
import sys

import pytest

from tests import support
from train import nvidia_smi

FAKE = """#!/bin/sh
case "$1" in
  --query-gpu=*) echo "0, GPU-5d5ba0d6, NVIDIA H100 80GB HBM3, 81559, 4, 570.86.15, 0, Disabled" ;;
  --query-compute-apps=*) echo "GPU-5d5ba0d6, 4321, /opt/other, 512" ;;
esac
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a program called nvidia-smi on PATH."""

    def put(text: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_program_called_nvidia_smi_is_asked_and_read(smi):
    smi(FAKE)
    found = nvidia_smi.look()
    assert [gpu.name for gpu in found.gpus] == ["NVIDIA H100 80GB HBM3"]
    assert [process.pid for process in found.processes] == [4321]


def test_a_hanging_nvidia_smi_is_stopped_and_told(smi, monkeypatch):
    smi("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(nvidia_smi, "_TIMEOUT_S", 0.3)
    problem = nvidia_smi.look().problem
    assert "nvidia-smi did not end within 0.3 s" in problem
    assert "The driver hangs" in problem


def test_a_failing_nvidia_smi_is_told(smi):
    smi("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'\nexit 18\n")
    assert "reboot" in nvidia_smi.look().problem


def test_verify_gpu_stops_and_says_that_tensorflow_cannot_use_the_gpu_that_nvidia_smi_sees(smi):
    smi(FAKE)
    done = subprocess.run(
        [support.ROOT / "scripts" / "verify-gpu"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 5
    assert "nvidia-smi sees 1 GPU, CUDA shows 1 of them to this process, TensorFlow can use 0" in done.stderr
    assert "the CPU build of TensorFlow is installed" in done.stderr


def test_proof_by_work_runs_on_each_logical_device(smi):
    done = subprocess.run(
        [sys.executable, "-m", "train.accelerators", "--require", "cpu", "--json"],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["took"] == "cpu"
    assert [line["device"] for line in report["proof"]] == ["/cpu:0", "/cpu:1"]
