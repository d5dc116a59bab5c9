"""Publishing to a real registry (Debian's docker-registry), with and without a login."""

import base64
import json
import os
import shutil
import subprocess
import time

import pytest

from deploy.oci import Layout, unpack
from deploy.publish import missing, publish
from pipeline.errors import IntegrityError, ProgramFailed
from tests.support import context, tree
from tests.support_images import model_image
from tests.support_ports import port
from tests.support_registry import need_registry, serve

PORT, LOCKED_PORT, DEAD_PORT = port(20201), port(20202), port(20203)
REPOSITORY = f"127.0.0.1:{PORT}/team/digits"
# bcrypt of "hunter2" for the user ci; written once, since hashing anew would need a package.
HTPASSWD = "ci:$2b$05$INhuQXAedo4p8.JDFtfE/eUJAvQcLeD1cglTrwiT4vChbCmu085TK"

need_registry()


@pytest.fixture
def registry(tmp_path):
    child = serve(tmp_path / "registry", PORT)
    yield tmp_path / "registry"
    child.kill()
    child.wait()


@pytest.fixture
def locked_registry(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    child = serve(folder, LOCKED_PORT, f"auth: {{htpasswd: {{realm: r, path: {folder}/htpasswd}}}}\n")
    yield f"127.0.0.1:{LOCKED_PORT}/team/digits"
    child.kill()
    child.wait()


def push(tmp_path, name: str, seed: int, commit: str, address: str = REPOSITORY, more=None):
    layout, image = model_image(tmp_path / name, seed, more)
    made = context(tmp_path / name, {"image/layout": layout}, {"publish.registry": address}, commit=commit)
    publish(made)
    return image, json.loads((made.out / "published/published.json").read_text())


def test_image_is_pushed_tagged_and_comes_back_as_it_was(tmp_path, registry):
    image, published = push(tmp_path, "one", 1, "a" * 40)
    assert published["reference"] == f"{REPOSITORY}@{image.digest}"
    assert published["tags"] == ["a" * 40, "v1"]
    unpack(REPOSITORY, image.digest, tmp_path / "out")
    assert tree(tmp_path / "out/models/digits/1") == tree(tmp_path / "one/model-1")
    assert missing(context(tmp_path, {"publish/published": tmp_path / "one/out/published"})) is None


def test_versions_count_up_and_an_image_keeps_its_own(tmp_path, registry):
    assert push(tmp_path, "one", 1, "a" * 40)[1]["version"] == 1
    assert push(tmp_path, "two", 2, "b" * 40)[1]["version"] == 2
    assert push(tmp_path, "three", 1, "c" * 40)[1]["version"] == 1


def test_commit_that_made_another_image_is_refused(tmp_path, registry):
    image, _ = push(tmp_path, "one", 1, "a" * 40)
    with pytest.raises(IntegrityError, match="A tag never moves"):
        push(tmp_path, "two", 2, "a" * 40)
    unpack(REPOSITORY, image.digest, tmp_path / "out")


def test_large_layer_is_streamed(tmp_path, registry):
    image, _ = push(tmp_path, "one", 1, "a" * 40, more={"variables/variables.big": os.urandom(1 << 20) * 100})
    unpack(REPOSITORY, image.digest, tmp_path / "out")
    assert (tmp_path / "out/models/digits/1/variables/variables.big").stat().st_size == 100 << 20


def test_blob_that_changed_in_the_registry_is_named_when_it_is_pulled(tmp_path, registry):
    image, _ = push(tmp_path, "one", 1, "a" * 40)
    name = image.layers[0].digest.removeprefix("sha256:")
    path = registry / f"data/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(
        IntegrityError, match=f"{name}.*{REPOSITORY} keeps it damaged.*delete sha256:{name} there"
    ):
        unpack(REPOSITORY, image.digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(b"\0")
    with pytest.raises(
        IntegrityError, match=f"has 1 bytes.*though it was sent what it lacked.*delete sha256:{name}"
    ):
        push(tmp_path, "two", 1, "a" * 40)
    path.unlink()  # as the text says
    push(tmp_path, "three", 1, "a" * 40)
    unpack(REPOSITORY, image.digest, tmp_path / "out")
    assert (tmp_path / "out/models").is_dir()


def test_absent_image_is_named(tmp_path, registry):
    with pytest.raises(ProgramFailed, match="Publish it again"):
        unpack(REPOSITORY, "sha256:" + "0" * 64, tmp_path / "out")


def test_registry_that_does_not_run_is_named_within_seconds(tmp_path):
    began = time.monotonic()
    with pytest.raises(ProgramFailed, match=f"127.0.0.1:{DEAD_PORT} failed 5 times"):
        push(tmp_path, "one", 1, "a" * 40, f"127.0.0.1:{DEAD_PORT}/team/digits")
    assert time.monotonic() - began < 15


def docker_config(tmp_path, monkeypatch, password: str) -> None:
    auth = base64.b64encode(f"ci:{password}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {f"127.0.0.1:{LOCKED_PORT}": {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def test_login_of_the_docker_configuration_opens_a_locked_registry(tmp_path, locked_registry, monkeypatch):
    docker_config(tmp_path, monkeypatch, "hunter2")
    image, _ = push(tmp_path, "one", 1, "a" * 40, locked_registry)
    unpack(locked_registry, image.digest, tmp_path / "out")


@pytest.mark.parametrize("section", ["credHelpers", "credsStore"])
def test_login_of_a_credential_helper_opens_a_locked_registry(
    tmp_path, locked_registry, monkeypatch, section
):
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread server\necho "{\\"Username\\": \\"ci\\", \\"Secret\\": \\"hunter2\\"}"\n'
    )
    helper.chmod(0o755)
    named = "mine" if section == "credsStore" else {f"127.0.0.1:{LOCKED_PORT}": "mine"}
    (tmp_path / "config.json").write_text(json.dumps({section: named}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    push(tmp_path, "one", 1, "a" * 40, locked_registry)


@pytest.mark.parametrize(
    ("password", "says"), [("wrong", "did not let ci into"), (None, "the Docker configuration has none")]
)
def test_locked_registry_says_what_is_wrong_with_the_login(
    tmp_path, locked_registry, monkeypatch, password, says
):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    if password:
        docker_config(tmp_path, monkeypatch, password)
    with pytest.raises(ProgramFailed, match=says):
        push(tmp_path, "one", 1, "a" * 40, locked_registry)


@pytest.mark.skipif(
    not shutil.which("skopeo"), reason="skopeo is not on this machine; apt-get install skopeo"
)
def test_skopeo_sees_what_was_published(tmp_path, registry):
    image, published = push(tmp_path, "one", 1, "a" * 40)
    for name in published["tags"]:
        asked = ["skopeo", "inspect", "--tls-verify=false", f"docker://{REPOSITORY}:{name}"]
        seen = json.loads(
            subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
        )
        assert seen["Digest"] == image.digest
    copied = [
        "skopeo",
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--preserve-digests",
        f"docker://{published['reference']}",
    ]
    subprocess.run([*copied, f"oci:{tmp_path}/copied:x"], check=True, timeout=60)
    assert Layout(tmp_path / "copied").only() == image.digest
