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
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import report
from bench.report import Timing
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


def timed(work: Callable[[Path, Path], None], model: Path, room: Path, repeat: int) -> Timing:
    """The time of some runs, each into a folder of its own, with nothing left to be written from before."""
    taken = []
    for run in range(repeat):
        into = room / f"{work.__name__}-{run}"
        os.sync()
        begun = time.perf_counter()
        work(model, into)
        taken.append(time.perf_counter() - begun)
        shutil.rmtree(into, ignore_errors=True)
    return Timing(work.__name__, tuple(taken))


def peer(work: Callable[[Path, Path], None], model: Path, room: Path) -> Timing:
    """A peer's time of one run, or why it could not be measured."""
    reason = cannot(work.__name__)
    if reason:
        return Timing(work.__name__, reason=reason)
    try:
        return timed(work, model, room, 1)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        last = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip().splitlines()
        return Timing(work.__name__, reason=f"it failed: {(last or [str(error)])[-1]}")
    finally:
        if work is docker:
            docker_clean()


def measure(size_mb: int, repeat: int, room: Path) -> list[Timing]:
    """Floor, ours and the peers. The first run of all warms the page cache."""
    model = room / "context/model"
    make_model(model, size_mb)
    floor(model, room / "warm")
    shutil.rmtree(room / "warm")
    ours = [timed(work, model, room, repeat) for work in (floor, tidegate)]
    return ours + [peer(work, model, room) for work in (buildah, docker)]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table: seconds per builder, and ratios to the floor and to ours."""
    parser = argparse.ArgumentParser(prog="python -m bench.image", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=1024, help="MiB of weights (1024)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of ours and of the floor; the median counts (3)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs four times the size (a temporary folder)"
    )
    options = parser.parse_args(argv)
    machine = report.machine()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-image-") as room:
        found = measure(options.size_mb, options.repeat, Path(room))
    report.show(
        f"Image of a SavedModel of {options.size_mb} MiB ({options.repeat} runs; peers one)",
        report.timings(found, ("floor", "tidegate")),
        machine,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
