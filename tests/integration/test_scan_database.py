"""The way of the vulnerability database from a registry to a scan, as it goes in production."""

import io
import tarfile

import pytest

from deploy.oci import MANIFEST, Layout, encode, load
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from deploy.scan import scan
from pipeline.stages import Outcome
from tests import support_trivy
from tests.support import context
from tests.support_images import hand_image, model_image, tar
from tests.support_registry import need_registry, serve

PORT = 20204
REPOSITORY = f"127.0.0.1:{PORT}/mirror/trivy-db"
LAYER_TYPE = "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.aquasec.trivy.config.v1+json"

need_registry()


@pytest.fixture
def mirror(tmp_path):
    child = serve(tmp_path / "registry", PORT)
    yield tmp_path
    child.kill()
    child.wait()


def offer_database(tmp_path) -> None:
    """Puts a database of ours into the registry, as an artifact of the shape that Trivy's own has."""
    support_trivy.write_database(tmp_path / "made")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("trivy.db", "metadata.json"):
            archive.add(tmp_path / "made/db" / name, arcname=name)
    layout = Layout(tmp_path / "artifact").create()
    layer = layout.add(packed.getvalue(), LAYER_TYPE).document()
    layer["annotations"] = {"org.opencontainers.image.title": "db.tar.gz"}
    config = layout.add(b"{}", CONFIG_TYPE).document()
    body = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]})
    image = load(layout, layout.add(body, MANIFEST).digest)
    registry = RemoteRegistry(Client(REPOSITORY))
    registry.push(image, layout, print)
    registry.tag("2", image)


def test_database_is_fetched_once_and_finds_what_it_knows(mirror, capfd):
    offer_database(mirror)
    metadata = b"Metadata-Version: 2.1\nName: requests\nVersion: 2.19.1\nLicense: Apache 2.0\n"
    files = tar({"usr/lib/python3/site-packages/requests-2.19.1.dist-info/METADATA": metadata})
    base = f"oci:{mirror}/base@{hand_image(mirror / 'base', files)}"
    named = {"scan.database": f"{REPOSITORY}:2", "scan.ignore_file": "/dev/null"}
    for run in ("first", "second"):
        layout, _ = model_image(mirror / run, base=base)
        made = context(mirror / run, {"image/layout": layout}, named, protected=True)
        if run == "second":
            (mirror / "second/state").rmdir()
            (mirror / "second/state").symlink_to(mirror / "first/state")
        assert scan(made).outcome is Outcome.FAILED
        assert ("--download-db-only" in capfd.readouterr().err) is (run == "first")


def test_repository_without_a_database_is_as_none(mirror):
    layout, _ = model_image(mirror)
    made = context(mirror, {"image/layout": layout}, {"scan.database": f"{REPOSITORY}:2"}, protected=True)
    result = scan(made)
    assert result.outcome is Outcome.NO_DATA
    assert "could not be fetched" in result.sentence
