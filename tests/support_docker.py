"""Images that tests of the docker target run, each made once per machine, and what they ask of the engine."""

import functools
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests import support_engine
from tests.support_images import hand_image

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def settings() -> dict[str, object]:
    """What makes the tests' settings use the docker target: fake servers, and Envoy in a container."""
    support_engine.need_engine()
    router = image_of("router.Dockerfile")
    named = {"target.kind": "docker", "target.server": fake_image(), "target.router": router}
    return named | {"canary.slow_ms": 5000.0}  # how busy this machine is must not decide


@functools.cache
def fake_image() -> str:
    """The id of an image whose server is tests/support_server.py."""
    server = ROOT / "tests/support_server.py"
    recipe = f"FROM {support_engine.stand_in_base()}\nCOPY {server.name} /fake.py\n"
    recipe += 'ENTRYPOINT ["python3", "-B", "/fake.py", "image"]\n'
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        (context / server.name).write_bytes(server.read_bytes())
        (context / "Dockerfile").write_text(recipe)
        return _built(context, "--file", str(context / "Dockerfile"))


@functools.cache
def image_of(dockerfile: str) -> str:
    """The id of the image of docker/`dockerfile` of this tree, on the stand-in for TensorFlow's image."""
    base = f"BASE={support_engine.stand_in_base()}"
    return _built(ROOT, "--file", str(ROOT / "docker" / dockerfile), "--build-arg", base)


def _built(context: Path, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = support_engine.build("--iidfile", f"{folder}/id", *arguments, context=context)
        assert done.returncode == 0, f"{arguments} cannot be built:\n{done.stderr[-4000:]}"
        return (Path(folder) / "id").read_text().strip()


def docker(*arguments: str) -> str:
    """What a `docker` command prints."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


# A server in as few bytes as may be: it answers a model's status with the version that it finds.
_STATUS_SERVER = """
import http.server, json, os
name = os.environ["MODEL_NAME"]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state = {"version": os.listdir(f"/models/{name}")[0], "state": "AVAILABLE"}
        body = json.dumps({"model_version_status": [state]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
print("a server of its own", flush=True)
http.server.ThreadingHTTPServer(("0.0.0.0", 8501), Handler).serve_forever()
"""


def serving_base(layout: Path) -> str:
    """A base image with a server, in a layout; as image.base names it."""
    python, prefix = Path(sys.executable).resolve(), Path(sys.base_prefix)
    config = {
        "Entrypoint": [str(python), "-c", _STATUS_SERVER],
        "Env": ["MODEL_NAME=model", f"PYTHONHOME={prefix}"],
    }
    return f"oci:{layout}@{hand_image(layout, _python_layer(), config=config)}"


def fake_and_envoy(layout: Path) -> str:
    """An image with both tests/support_server.py and Envoy, without Docker's help; its digest in the layout."""
    import envoy
    import grpc
    import typing_extensions

    python, prefix = Path(sys.executable).resolve(), Path(sys.base_prefix)
    program = Path(envoy.__file__).parent / "_bin/envoy"
    more = {
        "/usr/local/bin/envoy": program,
        "/fake/server.py": ROOT / "tests/support_server.py",
        "/fake/typing_extensions.py": Path(typing_extensions.__file__),
        "/fake/grpc": Path(grpc.__file__).parent,
    }
    config = {
        "Entrypoint": [str(python), "-B", "/fake/server.py", "image"],
        "Env": [f"PYTHONHOME={prefix}", "PATH=/usr/local/bin"],
    }
    return hand_image(layout, _python_layer(more), config=config)


def _python_layer(more: Mapping[str, Path] | None = None) -> bytes:
    """A layer with this machine's own Python and the libraries that it needs; `more` are further files and folders."""
    python, prefix = Path(sys.executable).resolve(), Path(sys.base_prefix)
    library = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    left_out = ("site-packages", "dist-packages", "test", "__pycache__", "idlelib", "tkinter", "ensurepip")
    files = [python, *(more or {}).values()]
    body = io.BytesIO()

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(entry.name).name
        return None if name in left_out or name.startswith("config-") else entry

    with tarfile.open(fileobj=body, mode="w", dereference=True) as archive:
        for file in {python, *_libraries(*files, library / "lib-dynload"), library}:
            archive.add(file, str(file), filter=kept)
        for name, file in (more or {}).items():
            archive.add(file, name, filter=kept)
    return body.getvalue()


def _libraries(*roots: Path) -> set[Path]:
    """The shared libraries of programs and of all extension modules below folders, as ldd(1) names them."""
    files = [file for root in roots for file in (root.rglob("*.so") if root.is_dir() else [root])]
    said = subprocess.run(
        ["ldd", *map(str, files)], capture_output=True, text=True, timeout=60, check=False
    ).stdout
    return {Path(path) for path in re.findall(r"(/\S+\.so\S*) \(0x", said)}
