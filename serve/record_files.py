"""Files of TFRecords that grow: rotated by size and age, and whole again after a crash.

A file is named `….tfrecord.part` while it is written and `….tfrecord` when it is complete. What a killed process left
loses its torn last record, and gets its name, when the next process with the same prefix starts.
"""

import argparse
import fcntl
import glob
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from serve import log

DONE, OPEN = ".tfrecord", ".tfrecord.part"

# A record: length (8 bytes), its checksum (4), data, its checksum (4). Source: tensorflow/core/lib/io/record_writer.h.
_HEADER = struct.Struct("<Q4x")
_FOOTER_BYTES = 4

_EXAMPLE = """example:
  python -m serve.record_files --at_most=100 /logs/digits.*.tfrecord model/2/assets.extra/tf_serving_warmup_requests
"""


class RecordFile:
    """A file that records are added to. Every record that `add` returned from outlives the process."""

    def __init__(self, stem: str):
        """Makes STEM.tfrecord.part, for its owner alone: it holds what clients sent. Raises OSError."""
        self._open, self._done = Path(stem + OPEN), Path(stem + DONE)
        self._lock = os.open(self._open, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._writer = _writer(self._open)
        self.began = time.monotonic()
        self.size = 0

    def add(self, record: bytes) -> None:
        """Writes a record through to the operating system. Raises what TensorFlow does where the disk is full."""
        self._writer.write(record)
        self._writer.flush()
        self.size += _HEADER.size + len(record) + _FOOTER_BYTES

    def close(self) -> None:
        """Ends the file and gives it its name."""
        try:
            self._writer.close()
            self._open.rename(self._done)
        finally:
            os.close(self._lock)


def _writer(path: Path) -> Any:
    from tensorflow.python.framework import errors  # noqa: F401 (the writer's exceptions are looked up there)
    from tensorflow.python.lib.io import _pywrap_record_io

    return _pywrap_record_io.RecordWriter(str(path), _pywrap_record_io.RecordWriterOptions(""))


def recover(prefix: str) -> list[Path]:
    """Completes the files of this prefix whose writers are gone; returns their new names."""
    folder, name = Path(prefix).parent, Path(prefix).name
    left = sorted(folder.glob(f"{glob.escape(name)}.*{OPEN}"))
    found = (_recovered(path) for path in left)
    return [path for path in found if path]


def _recovered(path: Path) -> Path | None:
    try:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = sum(len(frame) for frame in frames(file))
            torn = path.stat().st_size - whole
            file.truncate(whole)
            done = path.with_name(path.name.removesuffix(OPEN) + DONE)
            path.rename(done)
    except BlockingIOError:
        return None  # its writer lives
    except OSError as error:
        log.warning("request log was not recovered", file=path, reason=error.strerror)
        return None
    log.info("request log recovered", file=done, torn_bytes=torn)
    return done


def frames(file: BinaryIO) -> Iterator[bytes]:
    """The whole records of a file, with their lengths and checksums as they stand there; not a torn last one."""
    while len(header := file.read(_HEADER.size)) == _HEADER.size:
        rest_bytes = _HEADER.unpack(header)[0] + _FOOTER_BYTES
        if rest_bytes > os.fstat(file.fileno()).st_size - file.tell():
            return
        yield header + file.read(rest_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Copies records of request logs into one file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.record_files",
        description="Joins the records of request logs, one file after the other; a torn last record is left out.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of a request log")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write; its folder is made")
    parser.add_argument(
        "--at_most",
        type=int,
        default=1000,
        metavar="N",
        help="records to take (%(default)s: what a model server takes for its warm-up)",
    )
    options = parser.parse_args(arguments)
    try:
        count = _join(options.files, options.out, options.at_most)
    except OSError as error:
        print(f"serve.record_files: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{count} records: {options.out}", file=sys.stderr)
    return 0


def _join(files: Sequence[Path], out: Path, at_most: int) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with out.open("wb") as target:
        for path in files:
            with path.open("rb") as source:
                for frame in frames(source):
                    if count == at_most:
                        return count
                    target.write(frame)
                    count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
