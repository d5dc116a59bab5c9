"""The way of the vulnerability database from a mirror to a scan, as it goes in production; and a mirror in trouble."""

import dataclasses
import socket
from datetime import UTC, datetime, timedelta

import pytest

from deploy.oci import Layout, encode, load
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from deploy.scan import scan
from deploy.verdict import Database
from deploy.vulnerabilities import find_database
from pipeline.stages import Outcome
from tests import support_trivy
from tests.support_images import hand_image, model_image, tar
from tests.support_ports import port
from tests.support_registry import need_registry, serve
from tests.support_trivy import cache_of, given, site_package

PORT = port(20204)
REPOSITORY = f"127.0.0.1:{PORT}/mirror/trivy-db"
# As htpasswd -B writes it; nobody logs in with it here.
HTPASSWD = "reader:$2y$05$YC4ZO4GjYgMw7pVXRYSwkuQYpSNg0Uys.JnUF6jlkPZ8IDNQKQYYG\n"

need_registry()


@pytest.fixture
def mirror(tmp_path):
    child = serve(tmp_path / "registry", PORT)
    yield tmp_path
    child.kill()
    child.wait()


def offer(tmp_path, name: str = "made", **written) -> str:
    """Puts a database of ours into the registry, as an artifact of the shape that Trivy's own has; its digest."""
    support_trivy.write_database(tmp_path / name, **written)
    layout = Layout(tmp_path / f"{name}-artifact").create()
    image = load(layout, support_trivy.artifact(layout, tmp_path / name))
    put(layout, image)
    return image.layers[0].digest


def put(layout: Layout, image) -> None:
    client = Client(REPOSITORY)
    RemoteRegistry(client).push(image, layout, print)
    client.put_manifest(image.body, "2")  # a mirror's tag moves; those of published images never do


def find(tmp_path, repository: str = f"{REPOSITORY}:2", timeout_s: float = 60) -> tuple[Database, list[str]]:
    """What is found in a cache below a folder, and what was said."""
    said = []
    (tmp_path / "cache").mkdir(exist_ok=True)
    return find_database(tmp_path / "cache", repository, timeout_s, said.append), said


def test_database_is_fetched_once_by_digest_and_finds_what_it_knows(mirror):
    digest = offer(mirror)
    base = f"oci:{mirror}/base@{hand_image(mirror / 'base', tar(site_package('requests', '2.19.1')))}"
    layout, _ = model_image(mirror, base=base)
    made = given(mirror, layout, database=False, protected=True)
    options = dataclasses.replace(made.settings.scan, database=f"{REPOSITORY}:2")
    made = dataclasses.replace(made, settings=dataclasses.replace(made.settings, scan=options))
    result = scan(made)
    assert result.outcome is Outcome.FAILED
    assert "CVE-2018-18074 in requests 2.19.1" in result.sentence
    assert result.predicate["scanner"]["db"]["uri"] == f"oci://{REPOSITORY}:2"
    assert result.predicate["scanner"]["db"]["version"] == digest
    said = []
    again = find_database(cache_of(made.state, f"{REPOSITORY}:2"), f"{REPOSITORY}:2", 60, said.append)
    assert (again.digest, said) == (digest, [])


def test_database_that_is_due_is_renewed_and_not_sent_again_where_it_is_the_newest(mirror):
    old = datetime.now(UTC) - timedelta(days=2)
    first = offer(mirror, updated=old)
    assert find(mirror)[0].digest == first
    found, said = find(mirror)
    assert (found.digest, found.note, said) == (first, "", [])
    second = offer(mirror, "newer")
    found, said = find(mirror)
    assert (found.digest, found.updated_at > old.isoformat()) == (second, True)
    assert any("fetching the vulnerability database" in text for text in said)


def test_repository_without_a_database_is_as_none(mirror):
    found, _ = find(mirror)
    assert "could not be fetched from" in found.trouble
    assert "there is none under this name" in found.trouble


def test_image_in_the_place_of_a_database_is_refused(mirror):
    layout, image = model_image(mirror)
    put(Layout(layout), image)
    assert "no vulnerability database" in find(mirror)[0].trouble


@pytest.mark.parametrize("content", [b"nonsense", b"\x1f\x8b\x08\x00half"], ids=["no tar", "half of one"])
def test_artifact_that_holds_no_database_is_refused_and_leaves_the_old_one(mirror, content):
    old = datetime.now(UTC) - timedelta(days=2)
    first = offer(mirror, updated=old)
    find(mirror)
    layout = Layout(mirror / "bad").create()
    layer = layout.add(content, "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip").document()
    config = layout.add(b"{}", "application/vnd.aquasec.trivy.config.v1+json").document()
    body = {"schemaVersion": 2, "mediaType": support_trivy.MANIFEST, "config": config, "layers": [layer]}
    put(layout, load(layout, layout.add(encode(body), support_trivy.MANIFEST).digest))
    found, _ = find(mirror)
    assert (found.digest, found.trouble) == (first, "")
    assert "could not be renewed" in found.note


def test_mirror_that_is_down_is_said_at_once(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        repository = f"127.0.0.1:{closed.getsockname()[1]}/mirror/trivy-db:2"
    assert find(tmp_path, repository)[0].trouble.endswith("cannot be reached")


def test_mirror_that_is_too_slow_is_given_up(mirror):
    offer(mirror)
    assert "did not come in time" in find(mirror, timeout_s=-1)[0].trouble


def test_mirror_that_asks_for_a_login_that_nobody_has_says_how_to_give_one(tmp_path, monkeypatch):
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry/htpasswd").write_text(HTPASSWD)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    auth = f"auth: {{htpasswd: {{realm: r, path: {tmp_path}/registry/htpasswd}}}}\n"
    child = serve(tmp_path / "registry", PORT, auth)
    try:
        assert f"docker login 127.0.0.1:{PORT}" in find(tmp_path)[0].trouble
    finally:
        child.kill()
        child.wait()
