"""How fast a large file is hashed and kept, in a folder and in S3, as a ratio to plain sha256 and a plain copy.

`python -m bench.upload --size-mb 2048` makes a file of random bytes and starts a server of its own (SeaweedFS, on
the loopback, on the same disk and cores: what it takes is in the figures of S3). boto3's own upload_file shows what
that server lets any client have. Each upload runs in a process of its own, whose peak memory is told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.report import Timing
from pipeline import run
from pipeline.errors import ProgramFailed

CHUNK_BYTES = 1 << 20
FLOOR, FOLDER, S3, BOTO3 = "sha256 + copy", "tidegate file:", "tidegate s3://", "sha256 + boto3 upload_file"
_TIMEOUT_S = 900
# VmHWM, not getrusage: ru_maxrss of a new program begins at what its parent had.
_PEAK = """
import json, re, sys, time
from pathlib import Path
from pipeline import digest
def peak_mib():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
place, path = sys.argv[1], Path(sys.argv[2])
"""
_OURS = """
from pipeline.buckets import open_bucket
bucket = open_bucket(place, Path())
bucket.write("warm", b"")
before, begun = peak_mib(), time.perf_counter()
bucket.upload("blobs/x", path, digest.of_file(path))
print(json.dumps([time.perf_counter() - begun, peak_mib(), peak_mib() - before]))
bucket.delete("blobs/x")
"""
_PLAIN_BOTO3 = """
import boto3
bucket, _, prefix = place.removeprefix("s3://").partition("/")
client = boto3.client("s3")
client.put_object(Bucket=bucket, Key=prefix + "/warm", Body=b"")
before, begun = peak_mib(), time.perf_counter()
digest.of_file(path)
client.upload_file(str(path), bucket, prefix + "/x")
print(json.dumps([time.perf_counter() - begun, peak_mib(), peak_mib() - before]))
client.delete_object(Bucket=bucket, Key=prefix + "/x")
"""


@dataclass(frozen=True)
class Upload:
    """A run of one: seconds, and the process's peak memory in MiB, all of it and what the upload added."""

    seconds: float
    peak_mib: float = 0.0
    added_mib: float = 0.0


def make_file(path: Path, size_mb: int) -> None:
    """A file of `size_mb` MiB that no compression makes smaller."""
    with path.open("wb") as stream:
        for _ in range(size_mb):
            stream.write(os.urandom(CHUNK_BYTES))


def floor(path: Path, copy: Path) -> Upload:
    """What none can do without: each byte read and hashed, then copied and on the disk (fsync)."""
    os.sync()
    begun = time.perf_counter()
    with path.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")
    shutil.copyfile(path, copy)
    handle = os.open(copy, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    taken = time.perf_counter() - begun
    copy.unlink()
    return Upload(taken)


def in_a_child(code: str, place: str, path: Path, env: Mapping[str, str]) -> Upload:
    """The upload of a file by a process of its own. Raises ProgramFailed if it fails."""
    os.sync()
    argv = [sys.executable, "-c", _PEAK + code, place, str(path)]
    done = run.run(argv, timeout_s=_TIMEOUT_S, env=env, echo=False, cwd=Path(__file__).parent.parent)
    return Upload(*json.loads(done.stdout))


def measure(size_mb: int, repeat: int, room: Path) -> dict[str, list[Upload]]:
    """All in turn, so that a noisy minute meets all; a first round, which warms the page cache, is not counted."""
    from tests.integration.support_s3 import BUCKET, Weed, environment

    path, server = room / "file", Weed(room / "weed")
    make_file(path, size_mb)
    address, env = f"s3://{BUCKET}/bench", environment(server.endpoint)
    work: Mapping[str, Callable[[], Upload]] = {
        FLOOR: lambda: floor(path, room / "copy"),
        FOLDER: lambda: in_a_child(_OURS, f"file:{room / 'store'}", path, {}),
        S3: lambda: in_a_child(_OURS, address, path, env),
        BOTO3: lambda: in_a_child(_PLAIN_BOTO3, address, path, env),
    }
    found: dict[str, list[Upload]] = {name: [] for name in work}
    try:
        server.start()
        for number in range(repeat + 1):
            report.story(f"round {number} of {repeat}" if number else "warm-up round")
            for name, one in work.items():
                found[name].append(one())
    finally:
        server.stop()
    return {name: uploads[1:] for name, uploads in found.items()}


def memory(found: Mapping[str, Sequence[Upload]]) -> str:
    """A table of the highest peaks."""
    rows = [["peak memory of the process, MiB", "in all", "added by the upload"]]
    for name, uploads in found.items():
        if name != FLOOR:
            highest = max(uploads, key=lambda upload: upload.peak_mib)
            rows.append([name, f"{highest.peak_mib:.0f}", f"{highest.added_mib:.0f}"])
    return report.table(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints two tables: seconds with ratios to the floor, and peak memory."""
    parser = argparse.ArgumentParser(prog="python -m bench.upload", description=__doc__.splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=2048, help="MiB of the file (2048)")
    parser.add_argument("--repeat", type=int, default=3, help="counted runs of each; the median counts (3)")
    parser.add_argument(
        "--folder", type=Path, help="where to work; needs ten times the size (a temporary folder)"
    )
    options = parser.parse_args(argv)
    if options.size_mb < 1 or options.repeat < 1:
        parser.error("--size-mb and --repeat must be at least 1")
    machine = report.machine()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-upload-") as room:
        need = (
            2 * (options.repeat + 3) * options.size_mb * CHUNK_BYTES
        )  # the server frees what was deleted later
        if shutil.disk_usage(room).free < need:
            raise ProgramFailed(f"{room} has less than {need / 1e9:.0f} GB free. Name another by --folder.")
        found = measure(options.size_mb, options.repeat, Path(room))
    timings = [Timing(name, tuple(one.seconds for one in uploads)) for name, uploads in found.items()]
    report.show(
        f"Hash and upload of a file of {options.size_mb} MiB ({options.repeat} runs)",
        report.timings(timings, (FLOOR,)),
        memory(found),
        machine,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
