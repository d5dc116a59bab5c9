"""Everything that could be another thing tomorrow is refused, with its place."""

import dataclasses

import pytest

from pipeline import config, pins
from pipeline.errors import SettingsError

SHA = "35d3a4a3d5e42e02ab916d44513a050689f12c0533d45598d229672503fe77ca"
COMMIT = "de0fac2e4500dabe0009e67214ff5f5447ce83dd"
PINNED = f"python:3.11-bookworm@sha256:{SHA}"
WORKFLOW = ".github/workflows/a.yml"
DOCKERFILE = "docker/a.Dockerfile"


@pytest.mark.parametrize(
    ("path", "text", "line", "word"),
    [
        ("docs/a.md", "one\nrun python:latest\n", 2, "python:latest"),
        ("scripts/a", "docker pull host:5000/x:latest\n", 1, "host:5000/x:latest"),
        ("README.md", "`trivy:latest`\n", 1, "latest"),
        (".gitlab-ci.yml", "a:\n  image: python:3.11\n", 2, "python:3.11"),
        (".gitlab-ci.yml", "a:\n  image:\n    name: python\n", 3, "python"),
        (".gitlab-ci.yml", "a:\n  services:\n    - redis:7\n", 3, "redis:7"),
        (".gitlab-ci.yml", "a:\n  services:\n    - {name: redis, alias: x}\n", 3, "redis"),
        (".gitlab-ci.yml", "variables:\n  CPU_IMAGE: python:3.11\n", 2, "python:3.11"),
        (WORKFLOW, "jobs:\n  a:\n    container: node:20\n", 3, "node:20"),
        (WORKFLOW, "jobs:\n  a:\n    container:\n      image: node:20\n", 4, "node:20"),
        (WORKFLOW, "jobs:\n  a:\n    services:\n      db: {image: 'pg:16'}\n", 4, "pg:16"),
        (WORKFLOW, "x:\n  - uses: docker://alpine:3\n", 2, "alpine:3"),
        (WORKFLOW, "  - uses: actions/checkout@v6\n", 1, "not pinned"),
        (WORKFLOW, f"  - uses: actions/checkout@{COMMIT}\n", 1, "not pinned"),
        (WORKFLOW, f"  - uses: actions/checkout@{COMMIT} # v6\n", 1, "not pinned"),
        (WORKFLOW, f"  - uses: actions/checkout@{COMMIT[:12]} # v6.0.2\n", 1, "not pinned"),
        ("docker/compose.yaml", "services:\n  a:\n    image: envoy:1.40\n", 3, "envoy:1.40"),
        (DOCKERFILE, "# note\nFROM debian:12 AS base\n", 2, "debian:12"),
        (DOCKERFILE, "FROM --platform=linux/amd64 debian\n", 1, "debian"),
        (DOCKERFILE, "ARG BASE=debian:12\nFROM ${BASE}\n", 1, "debian:12"),
        (DOCKERFILE, "# syntax=docker/dockerfile:1\nFROM scratch\n", 1, "docker/dockerfile:1"),
        (DOCKERFILE, "FROM scratch\nCOPY --from=uv:1 /uv /uv\n", 2, "uv:1"),
        (DOCKERFILE, "FROM scratch\nRUN --mount=type=bind,from=uv:1 x\n", 2, "uv:1"),
        (DOCKERFILE, "FROM scratch\nRUN apt-get update \\\n && apt-get install -y git\n", 2, "git could be"),
        (DOCKERFILE, "FROM scratch\n# hadolint ignore=DL3008\nRUN apt-get install git\n", 3, "git could be"),
        (DOCKERFILE, "FROM scratch\nRUN pip install numpy\n", 2, "--require-hashes"),
        (".ci/run", "x && \\\n  pip install act\n", 1, "--require-hashes"),
        ("Makefile", "a:\n\tpython -m pip install x==1\n", 2, "--require-hashes"),
        ("scripts/a.sh", "npm install -g gitlab-ci-local\n", 1, "npm ci"),
        ("requirements.txt", "numpy==2.3.5\n", 1, "numpy has no version and hash"),
        ("requirements.txt", "# a\nnumpy>=2 \\\n    --hash=sha256:ab\n", 2, "numpy has no version"),
        ("pipeline.yaml", "image:\n  base: oci:host/x:1\n", 2, "host/x:1"),
        ("pipeline.yaml", "scan:\n  also:\n    - python:3.11\n", 3, "python:3.11"),
        (
            "pipeline.yaml",
            "target:\n  server: ${SERVER:-tensorflow/serving:2.19}\n",
            2,
            "tensorflow/serving:2.19",
        ),
    ],
)
def test_what_could_move_is_refused_with_file_and_line(path, text, line, word):
    found = pins.faults({path: text})
    assert found, "nothing was found"
    assert any(fault.startswith(f"{path}:{line}: ") and word in fault for fault in found), found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("docs/a.md", "model_version_policy=latest:2, https://example.com/docs/latest/page\n"),
        ("tests/unit/test_a.py", "'python:latest'\n"),
        (".gitlab-ci.yml", f"variables:\n  CPU_IMAGE: {PINNED}\na:\n  image: $CPU_IMAGE\n"),
        (".gitlab-ci.yml", "stages: [image, scan]\na:\n  needs: [{job: image}]\n"),
        (WORKFLOW, "jobs:\n  image:\n    environment: {name: pipeline}\n    needs: [export]\n"),
        (WORKFLOW, "jobs:\n  a:\n    container:\n      image: ${{ vars.GPU_IMAGE }}\n"),
        (WORKFLOW, f"  - uses: actions/checkout@{COMMIT} # v6.0.2\n  - uses: ./.github/actions/a\n"),
        (
            DOCKERFILE,
            f"ARG BASE\nFROM ${{BASE}} AS one\nFROM {PINNED} AS two\nCOPY --from=one /a /a\nFROM one\n",
        ),
        (
            DOCKERFILE,
            (
                "FROM scratch\n# Each site has an archive of its own.\n# hadolint ignore=DL3008\n"
                "RUN apt-get update \\\n && apt-get install --yes git make \\\n && rm -rf /var\n"
            ),
        ),
        (DOCKERFILE, "FROM scratch\nRUN apt-get install -y git=1:2.39.5-0+deb12u2\n"),
        (
            DOCKERFILE,
            "FROM scratch\nRUN python -m pip install --require-hashes \\\n --requirement lock.txt\n",
        ),
        ("scripts/a.sh", "npm ci\n# pip install is for others\n"),
        ("requirements.txt", "# by uv\nnumpy==2.3.5 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n"),
        ("pipeline.yaml", "image:\n  base: scratch\ntarget:\n  address: 127.0.0.1\n"),
        ("pipeline.yaml", f"target:\n  server: tensorflow/serving@sha256:{SHA}\n"),
        ("CONTRIBUTING.md", "pip install nothing\n"),
    ],
)
def test_what_is_pinned_and_what_is_no_pin_is_left_alone(path, text):
    assert pins.faults({path: text}) == []


LOCK = "images:\n  python: {image: docker.io/library/python, tag: 3.11-bookworm, digest: 'sha256:%s'}\n"


def test_an_image_is_the_one_that_the_lock_names():
    used = {".gitlab-ci.yml": f"variables:\n  CPU_IMAGE: {PINNED}\n"}
    assert pins.faults({**used, pins.LOCK: LOCK % SHA}) == []
    (other,) = pins.faults({**used, pins.LOCK: LOCK % ("0" * 64)})
    assert other.startswith(".gitlab-ci.yml:2: python:3.11-bookworm is sha256:35d3a4a3d5e4")
    (absent,) = pins.faults({**used, pins.LOCK: "images: {}\n"})
    assert "is not in docker/images.lock" in absent


@pytest.mark.parametrize(
    ("base", "known"),
    [
        (f"docker.io/library/python@sha256:{SHA}", True),  # without a tag the digest must be that of any
        (f"docker.io/library/python@sha256:{'0' * 64}", False),
        (f"oci:base@sha256:{'0' * 64}", True),  # a folder, in no registry that could be asked
    ],
)
def test_a_base_image_is_one_of_the_lock_or_a_folder(base, known):
    found = pins.faults({"pipeline.yaml": f"image:\n  base: {base}\n", pins.LOCK: LOCK % SHA})
    assert found == [] if known else "give both the same" in found[0]


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("python", "docker.io/library/python"),
        ("tensorflow/serving", "docker.io/tensorflow/serving"),
        ("host:5000/x", "host:5000/x"),
        ("localhost/x", "localhost/x"),
        ("ghcr.io/a/b", "ghcr.io/a/b"),
    ],
)
def test_a_name_is_filled_up_as_docker_does(short, full):
    assert pins._full(short) == full


def test_this_repository_names_nothing_that_could_move(root):
    from pipeline import lint

    paths = [*lint.files(root), *lint.rest(root)]
    assert len(paths) > 200
    assert pins.look(root, paths) == []


@pytest.mark.parametrize(
    ("base", "refused"),
    [
        ("scratch", False),
        ("", False),
        (f"oci:base@sha256:{SHA}", False),
        (f"sha256:{SHA}", False),
        ("python:3.11", True),
        ("python:latest", True),
        ("oci:base", True),
        ("python", True),
        (f"python@sha256:{SHA[:12]}", True),
    ],
)
def test_a_protected_ref_refuses_an_image_by_tag(settings_text, tmp_path, base, refused):
    path = tmp_path / "pipeline.yaml"
    path.write_text(settings_text)
    settings = config.load(path, {})
    settings = dataclasses.replace(settings, image=dataclasses.replace(settings.image, base=base))
    if not refused:
        assert pins.refuse_moving(settings) is None
        return
    with pytest.raises(
        SettingsError, match=r"^image\.base is .* on a protected ref write NAME@sha256:DIGEST$"
    ):
        pins.refuse_moving(settings)


def test_every_image_of_a_list_is_looked_at():
    @dataclasses.dataclass
    class Scan:
        also: tuple[str, ...]

    @dataclasses.dataclass
    class All:
        scan: Scan
        model: str = "digits:latest"

    assert pins.refuse_moving(All(Scan((f"a@sha256:{SHA}",)))) is None
    with pytest.raises(SettingsError, match=r"^scan\.also is b:1, "):
        pins.refuse_moving(All(Scan((f"a@sha256:{SHA}", "b:1"))))
