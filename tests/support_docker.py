"""Images that tests of the docker target run, each made once per machine, and what they ask of the engine."""

import subprocess
import tempfile
from pathlib import Path

from tests import support_engine

ROOT = Path(__file__).resolve().parent.parent


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
