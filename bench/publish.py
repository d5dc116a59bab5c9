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
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Run:
    """One run: seconds, CPU seconds of the program alone, its peak memory in MiB, and what the work added to that."""

    seconds: float
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    added_mib: float = 0.0


def ours(address: str, model: str, layout: Path) -> Run:
    """Our own build and push; with `model` empty, the push of a layout that is finished already."""
    argv = [sys.executable, "-c", _OURS, address, model, str(layout)]
    before = cpu_s()
    done = run.run(argv, timeout_s=_TIMEOUT_S, echo=False, cwd=Path(__file__).parent.parent)
    spent = cpu_s() - before
    if model:
        shutil.rmtree(layout)
    seconds, peak, added = json.loads(done.stdout)
    return Run(seconds, spent, peak, added)


def cpu_s() -> float:
    """CPU seconds of all programs that this process started and that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def skopeo(address: str, layout: Path) -> Run:
    """skopeo with the same bytes."""
    before, begun = cpu_s(), time.perf_counter()
    to = ["--dest-tls-verify=false", "--preserve-digests", f"oci:{layout}", f"docker://{address}:bench"]
    run.run(["skopeo", "copy", "-q", *to], timeout_s=_TIMEOUT_S, echo=False)
    return Run(time.perf_counter() - begun, cpu_s() - before)


def docker(address: str, context: Path) -> Run:
    """docker build, without its cache, and docker push. The engine does the work, so its CPU seconds are not known."""
    tag = f"{address.replace('/bench/', f'/{_NAME}/')}:bench"
    (context / "Dockerfile").write_text("FROM scratch\nCOPY model /models/bench/1\n")
    build_it = ["docker", "build", "-q", "--no-cache", "-t", tag, str(context)]
    begun = time.perf_counter()
    try:
        run.run(build_it, timeout_s=_TIMEOUT_S, echo=False)
        run.run(["docker", "push", "-q", tag], timeout_s=_TIMEOUT_S, echo=False)
        return Run(time.perf_counter() - begun)
    finally:
        subprocess.run(["docker", "rmi", "-f", tag], capture_output=True, timeout=_TIMEOUT_S)


def measure(context: Path, repeat: int, room: Path) -> dict[str, list[Run]]:
    """All in turn, so that a noisy minute meets all; docker once, because it takes the longest."""
    layout, model = room / "finished", context / "model"
    build(model, layout, Recipe("bench"))
    work: dict[str, Callable[[str], Run]] = {
        BUILD_AND_PUSH: lambda address: ours(address, str(model), room / "ours"),
        PUSH: lambda address: ours(address, "", layout),
        SKOPEO: lambda address: skopeo(address, layout),
        DOCKER: lambda address: docker(address, context),
    }
    found: dict[str, list[Run]] = {name: [] for name in work}
    for number in range(repeat):
        report.story(f"round {number + 1} of {repeat}")
        for name, one in work.items():
            if not missing(name) and not (name == DOCKER and number):
                with empty_registry(room) as address:
                    found[name].append(one(address))
    return found


def missing(name: str) -> str:
    """Why one cannot be measured here; empty if it can."""
    return image_bench.cannot(name.split()[0]) if name in (SKOPEO, DOCKER) else ""


def programs(found: Mapping[str, Sequence[Run]]) -> str:
    """A table of what the programs themselves took: the median of CPU seconds, and the highest peak of memory."""
    rows = [["the program alone, without the registry", "CPU s", "peak MiB", "added by the work"]]
    for name, runs in found.items():
        if runs and name != DOCKER:
            highest = max(runs, key=lambda one: one.peak_mib)
            memory = (f"{highest.peak_mib:.0f}", f"{highest.added_mib:.0f}") if highest.peak_mib else ("", "")
            rows.append([name, f"{statistics.median(one.cpu_s for one in runs):.2f}", *memory])
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
        found = measure(context, options.repeat, Path(room))
    weights = f"{options.size_mb} MiB in {options.files} files"
    title = f"Weights of {weights} into a registry ({options.repeat} runs; docker one)"
    timings = [
        Timing(name, tuple(one.seconds for one in runs), missing(name)) for name, runs in found.items()
    ]
    report.show(title, report.timings(timings, (BUILD_AND_PUSH, SKOPEO)), programs(found), machine)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
