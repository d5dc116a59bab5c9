"""docker/serve.Dockerfile stands in for tensorflow/serving's image: variables, arguments, programs, health, the end."""

import json
import socket
import subprocess
import time

import pytest

from tests import support_docker, support_engine, support_serve
from tests.support_docker import docker
from tests.support_serve import call, half_plus, predict, write_version

pytestmark = support_engine.SLOW
support_engine.need_engine()

_NAME = "tidegate-test-serve-image"


@pytest.fixture(scope="module")
def image():
    return support_docker.image_of("serve.Dockerfile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder above models, which anyone may read."""
    base = tmp_path_factory.mktemp("models")
    for name in ("model", "other"):
        write_version(base / name / "1", half_plus(1 if name == "model" else 2))
    for path in (*base.parents[:2], base, *base.rglob("*")):
        path.chmod(0o755)
    return base


@pytest.fixture
def run(image, folder):
    """Starts the image as an operator would who confines it; gives the REST port."""
    names = []

    def start(*arguments: str, options=(), to="/models") -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        name = f"{_NAME}-{port}"
        names.append(name)
        docker(
            "run", "--detach", "--name", name, "--read-only", "--cap-drop=ALL", f"--publish=127.0.0.1:{port}:8501",
            f"--volume={folder}:{to}:ro", *options, image, *arguments,
        )  # fmt: skip
        return name, port

    yield start
    for name in names:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, timeout=60)


def healthy(name: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while (state := json.loads(docker("inspect", "--format", "{{json .State}}", name)))["Health"][
        "Status"
    ] != "healthy":
        assert state["Running"], docker("logs", name)
        assert time.monotonic() < deadline, state
        time.sleep(0.2)


def test_model_is_served_from_the_default_place_by_nobody_special(run, image):
    name, port = run()
    healthy(name)
    assert predict("model", {"instances": [1.0]}, port).json == {"predictions": [1.5]}
    assert docker("exec", name, "id", "-u") == "65532"
    docker("stop", "--time", "20", name)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", name) == "0"
    assert (
        "stopped"
        in subprocess.run(["docker", "logs", name], capture_output=True, text=True, timeout=60).stderr
    )


def test_variables_and_arguments_are_those_of_tf_serving(run):
    options = ["--env=MODEL_NAME=other", "--env=MODEL_BASE_PATH=/elsewhere"]
    name, port = run("--log_format=json", "--rest_api_enable_cors_support", options=options, to="/elsewhere")
    healthy(name)
    assert predict("other", {"instances": [1.0]}, port).json == {"predictions": [2.5]}
    said = subprocess.run(["docker", "logs", name], capture_output=True, text=True, timeout=60).stderr
    assert '"event": "ready"' in said


def test_server_of_several_models_is_healthy_too(run, folder):
    path = support_serve.config(folder, ("other", ""))
    config = folder / "models.config"
    config.write_text(config.read_text().replace(str(folder), "/models"))
    config.chmod(0o644)
    assert path == str(config)
    name, port = run("--model_config_file=/models/models.config")
    healthy(name)
    assert call("GET", "/v1/models/other", port=port).status == 200
    assert call("GET", "/v1/models/model", port=port).status == 404


def test_program_has_the_name_that_it_has_in_tf_servings_image(image):
    told = docker("run", "--rm", "--entrypoint", "tensorflow_model_server", image, "--version")
    assert told.startswith("TensorFlow ModelServer: ")
