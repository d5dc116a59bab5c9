"""`python -m deploy.pins` against a real registry, one that does not run, and one that lies."""

import subprocess
import sys

import pytest

from deploy.oci import Layout
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from tests.conftest import ROOT
from tests.support_faults import Fault, FaultyProxy
from tests.support_images import model_image
from tests.support_registry import free_port, need_registry, serve

need_registry()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = free_port()
    child = serve(tmp_path_factory.mktemp("registry"), port)
    yield port
    child.kill()
    child.wait()


def offer(tmp_path, port: int, name: str, tag: str, seed: int) -> str:
    """An image under a tag, which moves if it is there already, as tags do; returns its digest."""
    layout, image = model_image(tmp_path / f"{name}-{seed}", seed)
    client = Client(f"127.0.0.1:{port}/{name}")
    RemoteRegistry(client).push(image, Layout(layout), print)
    client.put_manifest(image.body, tag)
    return image.digest


def lock(tmp_path, address: str, digest: str = "", tag: str = "1.0"):
    path = tmp_path / "images.lock"
    path.write_text(
        f"# Kept.\nimages:\n  one: {{image: {address}, tag: '{tag}', digest: \"{digest}\"}}  # Kept too.\n"
    )
    return path


def pins(path, *more: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "deploy.pins", "--lock", str(path), *more]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_tag_is_resolved_and_its_move_is_noticed(tmp_path, port):
    first = offer(tmp_path, port, "moves", "1.0", 1)
    path = lock(tmp_path, f"127.0.0.1:{port}/moves")
    before = path.read_text()
    code, said = pins(path, "--check")
    assert (code, path.read_text()) == (3, before)
    assert f"was not pinned, is {first}" in said
    assert pins(path)[0] == 0
    assert path.read_text() == before.replace('""', f'"{first}"')
    assert pins(path, "--check")[0] == 0
    second = offer(tmp_path, port, "moves", "1.0", 2)
    code, said = pins(path, "--check")
    assert code == 3
    assert f"was {first}, is {second}" in said


def test_tag_that_is_not_there_is_named_and_nothing_changes(tmp_path, port):
    offer(tmp_path, port, "lacks", "1.0", 1)
    path = lock(tmp_path, f"127.0.0.1:{port}/lacks", tag="9.9")
    before = path.read_text()
    code, said = pins(path)
    assert (code, path.read_text()) == (5, before)
    assert "has no tag 9.9" in said


def test_offline_it_fails_and_changes_nothing(tmp_path):
    path = lock(tmp_path, f"127.0.0.1:{free_port()}/x")
    before = path.read_text()
    code, said = pins(path)
    assert (code, path.read_text()) == (5, before)
    assert "failed 5 times" in said
    assert "was not changed" in said


def test_digest_that_the_registry_cannot_show_is_not_written(tmp_path, port):
    offer(tmp_path, port, "lies", "1.0", 1)
    lie = Fault(changed={"Docker-Content-Digest": "sha256:" + "0" * 64})
    with FaultyProxy(port, lambda asked: lie if asked.method == "HEAD" else None) as proxy:
        path = lock(tmp_path, f"{proxy.host}/lies")
        before = path.read_text()
        code, said = pins(path)
    assert (code, path.read_text()) == (5, before)
    assert "sha256:000" in said
