"""The image stage in processes of its own, and its layout in the hands of others."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from deploy.oci import Layout
from pipeline.errors import ProgramFailed
from tests.support import ROOT, finish_stage, run_stage, start_stage, tree
from tests.support_images import savedmodel


def test_two_processes_with_other_settings_of_the_machine_make_the_same_image(tmp_path):
    model = savedmodel(tmp_path / "model")
    old = os.umask(0o022)
    made = []
    try:
        for name, mask, environment in (
            ("one", 0o022, {"TZ": "UTC", "LC_ALL": "C"}),
            ("two", 0o077, {"TZ": "Asia/Tokyo"}),
        ):
            os.umask(mask)
            child = start_stage(
                "deploy.image.image", tmp_path / name, {"export/savedmodel": model}, env=environment
            )
            code, result, said = finish_stage(child)
            assert code == 0, said
            made.append((result["digest"], tree(tmp_path / name / "out")))
    finally:
        os.umask(old)
    assert made[0] == made[1]


def test_full_disk_is_said_and_no_layout_is_left(tmp_path):
    model = savedmodel(tmp_path / "model")
    child = subprocess.run(
        ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", sys.executable, str(ROOT / "tests/support.py"),
         "deploy.image.image", str(case(tmp_path, model))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert child.returncode == ProgramFailed.exit_code, child.stderr
    assert "could not be written: File too large" in child.stderr
    assert list((tmp_path / "out").glob("layout")) == []


def case(tmp_path, model):
    """What tests/support.py is told; a limit on the size of files stands in for a full disk."""
    path = tmp_path / "case.json"
    path.write_text(
        json.dumps({"tmp_path": str(tmp_path), "inputs": {"export/savedmodel": str(model)}, "changes": {}})
    )
    return path


@pytest.mark.skipif(
    not shutil.which("skopeo"), reason="skopeo is not on this machine; apt-get install skopeo"
)
def test_skopeo_reads_the_image(tmp_path):
    code, result, said = run_stage(
        "deploy.image.image", tmp_path, inputs={"export/savedmodel": savedmodel(tmp_path / "m")}
    )
    assert code == 0, said
    layout = tmp_path / "out/layout"
    asked = ["skopeo", "inspect", "--override-os=linux", "--override-arch=amd64", f"oci:{layout}"]
    seen = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert seen["Digest"] == result["digest"]
    assert seen["Layers"] == [
        layer["digest"] for layer in json.loads(Layout(layout).manifest(result["digest"]))["layers"]
    ]
    copied = tmp_path / "copied"
    subprocess.run(
        ["skopeo", "copy", "--preserve-digests", "--quiet", f"oci:{layout}", f"oci:{copied}:x"],
        check=True,
        timeout=60,
    )
    assert Layout(copied).only() == result["digest"]
