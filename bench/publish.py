"""How fast weights get from a SavedModel into a registry, beside docker build and push and skopeo alone.

`python -m bench.publish --size-mb 1024` starts a registry of its own (Debian's docker-registry, on the loopback: what
it takes is in all figures) and gives each run an empty one. skopeo copies a layout that is finished already, without
compressing, which is what our push alone does. Ours runs in a process of its own, whose peak memory is told.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench import image as image_bench
from bench import report
from bench.report import Timing
from deploy.image import Recipe, build
from pipeline import run
from pipeline.errors import ProgramFailed

BUILD_AND_PUSH, PUSH, SKOPEO, DOCKER = (
    "tidegate build and push",
    "tidegate push of a finished layout",
    "skopeo copy of a finished layout",
    "docker build and push",
)
_TIMEOUT_S = 900
_NAME = "tidegate-bench-publish"
# VmHWM, not getrusage: ru_maxrss of a new program begins at what its parent had.
_OURS = """
import json, re, sys, time
from pathlib import Path
from deploy.image import Recipe, build
from deploy.oci import Layout, load
from deploy.publish import RemoteRegistry
from deploy.registry import Client
def peak_mib():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
address, model, layout = sys.argv[1], sys.argv[2], Path(sys.argv[3])
registry = RemoteRegistry(Client(address))
registry.tags()
before, begun = peak_mib(), time.perf_counter()
image = build(Path(model), layout, Recipe("bench")) if model else load(Layout(layout), Layout(layout).only())
registry.push(image, Layout(layout), lambda text: None)
print(json.dumps([time.perf_counter() - begun, peak_mib(), peak_mib() - before]))
"""


def make_model(folder: Path, size_mb: int, files: int) -> None:
    """A folder shaped like a SavedModel whose weights are in several files, as a large model's are."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(os.urandom(1 << 20))
    (folder / "variables/variables.index").write_bytes(os.urandom(4096))
    for number in range(files):
        with (folder / f"variables/variables.data-{number:05}-of-{files:05}").open("wb") as stream:
            for _ in range(size_mb // files):
                stream.write(os.urandom(1 << 20))


@contextlib.contextmanager
def empty_registry(room: Path) -> Iterator[str]:
    """A registry with nothing in it; what was written before is on the disk, so that nobody waits for it."""
    from tests.support_registry import serve

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    os.sync()
    child = serve(room / "registry", port)
    try:
        yield f"127.0.0.1:{port}/bench/model"
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(room / "registry")


def ours(address: str, model: str, layout: Path) -> tuple[float, float, float]:
    """Seconds, peak memory in MiB, and what the work added to it; `model` empty: the layout is finished already."""
    argv = [sys.executable, "-c", _OURS, address, model, str(layout)]
    done = run.run(argv, timeout_s=_TIMEOUT_S, echo=False, cwd=Path(__file__).parent.parent)
    if model:
        shutil.rmtree(layout)
    seconds, peak, added = json.loads(done.stdout)
    return seconds, peak, added


def skopeo(address: str, layout: Path) -> float:
    """Seconds that skopeo takes for the same bytes."""
    begun = time.perf_counter()
    to = ["--dest-tls-verify=false", "--preserve-digests", f"oci:{layout}", f"docker://{address}:bench"]
    run.run(["skopeo", "copy", "-q", *to], timeout_s=_TIMEOUT_S, echo=False)
    return time.perf_counter() - begun


def docker(address: str, context: Path) -> float:
    """Seconds of docker build, without its cache, and docker push."""
    tag = f"{address.replace('/bench/', f'/{_NAME}/')}:bench"
    (context / "Dockerfile").write_text("FROM scratch\nCOPY model /models/bench/1\n")
    begun = time.perf_counter()
    try:
        run.run(
            ["docker", "build", "-q", "--no-cache", "-t", tag, str(context)], timeout_s=_TIMEOUT_S, echo=False
        )
        run.run(["docker", "push", "-q", tag], timeout_s=_TIMEOUT_S, echo=False)
        return time.perf_counter() - begun
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, timeout=_TIMEOUT_S)


def measure(context: Path, repeat: int, room: Path) -> tuple[list[Timing], dict[str, tuple[float, float]]]:
    """All in turn, so that a noisy minute meets all; the timings, and the highest peaks of ours in MiB."""
    layout, model = room / "finished", context / "model"
    build(model, layout, Recipe("bench"))
    taken: dict[str, list[float]] = {name: [] for name in (BUILD_AND_PUSH, PUSH, SKOPEO, DOCKER)}
    missing = {SKOPEO: image_bench.cannot("skopeo"), DOCKER: image_bench.cannot("docker")}
    peaks: dict[str, tuple[float, float]] = {}
    for number in range(repeat):
        report.story(f"round {number + 1} of {repeat}")
        for name, of, place in ((BUILD_AND_PUSH, str(model), room / "ours"), (PUSH, "", layout)):
            with empty_registry(room) as address:
                seconds, *peak = ours(address, of, place)
            taken[name].append(seconds)
            peaks[name] = max(peaks.get(name, (0.0, 0.0)), tuple(peak))
        if not missing[SKOPEO]:
            with empty_registry(room) as address:
                taken[SKOPEO].append(skopeo(address, layout))
        if not missing[DOCKER] and not number:  # once: it takes the longest, and the least care
            with empty_registry(room) as address:
                taken[DOCKER].append(docker(address, context))
    return [Timing(name, tuple(taken[name]), missing.get(name, "")) for name in taken], peaks


def memory(peaks: Mapping[str, tuple[float, float]]) -> str:
    """A table of the highest peaks."""
    rows = [["peak memory of the process, MiB", "in all", "added by the work"]]
    rows += [[name, f"{peak:.0f}", f"{added:.0f}"] for name, (peak, added) in peaks.items()]
    return report.table(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints two tables: seconds with ratios to ours and to skopeo, and peak memory."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=1024, help="MiB of weights (1024)")
    parser.add_argument("--files", type=int, default=4, help="files that the weights are in (4)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of each but docker; the median counts (3)"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs six times the size (a temporary folder)"
    )
    options = parser.parse_args(argv)
    if not 1 <= options.files <= options.size_mb or options.repeat < 1:
        parser.error("--files must be from 1 to --size-mb, and --repeat at least 1")
    if not shutil.which("docker-registry"):
        raise ProgramFailed("docker-registry is not on PATH: apt-get install docker-registry")
    machine = report.machine()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-publish-") as room:
        context = Path(room) / "context"
        make_model(context / "model", options.size_mb, options.files)
        found, peaks = measure(context, options.repeat, Path(room))
    weights = f"{options.size_mb} MiB in {options.files} files"
    title = f"Weights of {weights} into a registry ({options.repeat} runs; docker one)"
    report.show(title, report.timings(found, (BUILD_AND_PUSH, SKOPEO)), memory(peaks), machine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
