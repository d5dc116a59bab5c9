"""Other programs read what we wrote to a registry: docker by digest, and Trivy (skopeo: test_publish_registry)."""

import json
import subprocess

import pytest

from deploy.oci import Layout
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from pipeline.run import find
from tests.support_images import model_image
from tests.support_registry import free_port, need_program, need_registry, serve

need_registry()


@pytest.fixture
def reference(tmp_path):
    """A published image, by digest."""
    port = free_port()
    child = serve(tmp_path / "registry", port)
    layout, image = model_image(tmp_path)
    address = f"127.0.0.1:{port}/tidegate-registry-test/digits"
    registry = RemoteRegistry(Client(address))
    registry.push(image, Layout(layout), print)
    yield f"{address}@{image.digest}", image
    child.kill()
    child.wait()


def answered(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout


def need_engine() -> str:
    docker = need_program("docker")
    if subprocess.run([docker, "info"], capture_output=True, timeout=60).returncode != 0:
        need_program("a Docker engine")
    return docker


def test_docker_pulls_it_by_digest(reference):
    docker, (address, image) = need_engine(), reference
    try:
        answered(docker, "pull", "-q", address)
        seen = json.loads(answered(docker, "image", "inspect", address))[0]
    finally:
        subprocess.run([docker, "rmi", address], capture_output=True, timeout=120)
    assert seen["Id"] == image.config.digest
    assert seen["RootFS"]["Layers"] == [layer.digest for layer in image.layers]


def test_trivy_reads_it(reference, tmp_path):
    address, image = reference
    cache = ["--cache-dir", str(tmp_path / "cache"), "--skip-db-update", "--offline-scan"]
    report = json.loads(answered(find("trivy"), *cache, "image", "-q", "--format", "cyclonedx", address))
    properties = report["metadata"]["component"]["properties"]
    found = {entry["value"] for entry in properties if entry["name"].endswith(":DiffID")}
    assert found == {layer.digest for layer in image.layers}
