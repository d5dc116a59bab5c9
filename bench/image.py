"""How fast an image is built, as a ratio to the floor: reading, hashing and writing the same bytes once.

`python -m bench.image --size-mb 1024` makes a SavedModel of random weights, builds its image with
deploy.image, and beside it with buildah and docker where they are at hand. Peers that cannot run here
are named with the reason; nothing is estimated.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deploy.image import Recipe, build

CHUNK_BYTES = 1 << 20
_PEER_TIMEOUT_S = 900
_CONTAINERFILE = "FROM scratch\nCOPY model /models/bench/1\n"


def make_model(folder: Path, size_mb: int) -> None:
    """A folder shaped like a SavedModel with `size_mb` MiB of weights that no compression makes smaller."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(os.urandom(CHUNK_BYTES))
    with (folder / "variables/variables.data-00000-of-00001").open("wb") as stream:
        for _ in range(size_mb):
            stream.write(os.urandom(CHUNK_BYTES))
    (folder / "variables/variables.index").write_bytes(os.urandom(4096))


def floor(model: Path, into: Path) -> None:
    """What no builder can do without: each byte read once, hashed once, written once."""
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        copy = into / path.relative_to(model)
        copy.parent.mkdir(parents=True, exist_ok=True)
        sha = hashlib.sha256()
        with path.open("rb") as source, copy.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                sha.update(chunk)
                target.write(chunk)


def tidegate(model: Path, into: Path) -> None:
    """Our own image, as the stage builds it."""
    build(model, into, Recipe("bench"))


def buildah(model: Path, into: Path) -> None:
    """buildah: build, then write an OCI layout without compressing, which is what ours is."""
    store = ["--root", str(into / "root"), "--runroot", str(into / "run"), "--storage-driver", "overlay"]
    context = model.parent
    (context / "Containerfile").write_text(_CONTAINERFILE)
    build_it = ["bud", "--isolation", "chroot", "--timestamp", "0", "-q", "-t", "bench", str(context)]
    _run(["buildah", *store, *build_it])
    _run(["buildah", *store, "push", "-q", "--disable-compression", "bench", f"oci:{into / 'layout'}:bench"])


def docker(model: Path, into: Path) -> None:
    """docker build, without its cache; the image stays in the engine, which is less than an OCI layout."""
    context = model.parent
    (context / "Dockerfile").write_text(_CONTAINERFILE)
    into.mkdir(parents=True, exist_ok=True)
    _run(["docker", "build", "-q", "--no-cache", "--force-rm", "-t", "tidegate-bench", str(context)])


def docker_clean() -> None:
    """Takes the image out of the engine again."""
    subprocess.run(["docker", "rmi", "-f", "tidegate-bench"], capture_output=True, timeout=_PEER_TIMEOUT_S)


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=_PEER_TIMEOUT_S)


def cannot(name: str) -> str:
    """Why a peer cannot be measured here; empty if it can."""
    if not shutil.which(name):
        return f"{name} is not on PATH"
    if (
        name == "docker"
        and subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode != 0
    ):
        return "no Docker engine answers"
    return ""


def seconds(work: Callable[[Path, Path], None], model: Path, room: Path, repeat: int) -> float:
    """The median time of some runs, each into a folder of its own, with nothing left to be written from before."""
    taken = []
    for run in range(repeat):
        into = room / f"{work.__name__}-{run}"
        os.sync()
        begun = time.perf_counter()
        work(model, into)
        taken.append(time.perf_counter() - begun)
        shutil.rmtree(into, ignore_errors=True)
    return statistics.median(taken)


def measure(size_mb: int, repeat: int, room: Path) -> dict[str, float | str]:
    """Seconds per builder, or why it could not be measured. The first run of all warms the page cache."""
    model = room / "context/model"
    make_model(model, size_mb)
    floor(model, room / "warm")
    shutil.rmtree(room / "warm")
    found: dict[str, float | str] = {
        work.__name__: seconds(work, model, room, repeat) for work in (floor, tidegate)
    }
    for peer in (buildah, docker):
        reason = cannot(peer.__name__)
        try:
            found[peer.__name__] = reason or seconds(peer, model, room, 1)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            last = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip().splitlines()
            found[peer.__name__] = f"failed: {(last or [str(error)])[-1]}"
        finally:
            if peer is docker and not reason:
                docker_clean()
    return found


def main() -> int:
    """Prints one line per builder: seconds, MiB per second, ratio to the floor and to ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=1024, help="MiB of weights (default: 1024)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of ours and of the floor; the median counts (3)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs four times the size (a temporary folder)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-image-") as room:
        found = measure(options.size_mb, options.repeat, Path(room))
    base, ours = found["floor"], found["tidegate"]
    print(f"image of a SavedModel of {options.size_mb} MiB")
    for name, taken in found.items():
        if isinstance(taken, str):
            print(f"  {name:9} not measured: {taken}")
            continue
        speed = options.size_mb / taken
        ratios = f"{taken / base:6.2f} x floor  {taken / ours:6.2f} x tidegate"
        print(f"  {name:9} {taken:7.2f} s  {speed:7.0f} MiB/s  {ratios}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
