"""Files of TFRecords that grow: rotated by size and age, and whole again after a crash.

A file is named `….tfrecord.part` while it is written and `….tfrecord` when it is complete. What a killed process left
loses its torn last record, and gets its name, when the next process with the same prefix starts.
"""

import argparse
import contextlib
import fcntl
import glob
import itertools
import os
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from serve import log
from serve.crc32c import masked

DONE, OPEN = ".tfrecord", ".tfrecord.part"

# A record: length (8 bytes), its checksum (4), data, its checksum (4). Source: tensorflow/core/lib/io/record_writer.h.
_HEADER = struct.Struct("<Q4x")
_FOOTER_BYTES = 4

_EXAMPLE = """example:
  python -m serve.record_files --out=model/2/assets.extra/tf_serving_warmup_requests /logs/digits.*.tfrecord
"""


class RecordFile:
    """A file that records are added to. Every record that `add` returned from outlives the process."""

    def __init__(self, stem: str):
        """Makes STEM.tfrecord.part, for its owner alone: it holds what clients sent. Raises OSError."""
        self._open, self._done = Path(stem + OPEN), Path(stem + DONE)
        self._lock = os.open(self._open, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self.size = 0
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._writer = _writer(self._open)
        except Exception:
            self._name()
            raise
        self.began = time.monotonic()

    def add(self, record: bytes) -> None:
        """Writes a record through to the operating system. Raises what TensorFlow does where the disk is full."""
        self._writer.write(record)
        self._writer.flush()
        self.size += _HEADER.size + len(record) + _FOOTER_BYTES

    def close(self) -> None:
        """Ends the file and gives it its name, without what is torn. A file without a record is removed."""
        with contextlib.suppress(Exception):  # a full disk: what it did not take is no record that was added
            self._writer.close()
        self._writer = None  # closes the file in any case: what its buffer held is written before the cut
        self._name()

    def _name(self) -> None:
        try:
            if self.size:
                os.ftruncate(self._lock, self.size)
                self._open.rename(self._done)
            else:
                self._open.unlink()
        finally:
            os.close(self._lock)


def _writer(path: Path) -> Any:
    from tensorflow.python.framework import errors  # noqa: F401 (the writer's exceptions are looked up there)
    from tensorflow.python.lib.io import _pywrap_record_io

    return _pywrap_record_io.RecordWriter(str(path), _pywrap_record_io.RecordWriterOptions(""))


def recover(prefix: str) -> list[Path]:
    """Completes the files of this prefix whose writers are gone; returns their new names."""
    folder, name = os.path.split(prefix)
    left = sorted(Path(folder).glob(f"{glob.escape(name)}.*{OPEN}"))
    found = (_recovered(path) for path in left)
    return [path for path in found if path]


def _recovered(path: Path) -> Path | None:
    """The new name; None where the writer lives, no record was in the file, which is removed, or it cannot be read."""
    done = path.with_name(path.name.removesuffix(OPEN) + DONE)
    try:
        with path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            whole = sum(len(frame) for frame in frames(file))
            torn = path.stat().st_size - whole
            if not whole:
                path.unlink()
                return None
            file.truncate(whole)
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


class Refused(Exception):
    """Files that are not joined. The message names the file, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Copies records of request logs into one file; returns the exit status."""
    options = _parser().parse_args(arguments)
    out = options.out
    try:
        _check(options.files, out, options.force)
        count = _join(options.files, out, options.at_most)
    except Refused as error:
        print(f"serve.record_files: {error}. {out} was not written", file=sys.stderr)
        return 1
    except OSError as error:
        reason = f"{error.filename or out}: {error.strerror}"
        print(f"serve.record_files: {reason}. {out} was not written", file=sys.stderr)
        return 1
    print(f"{count} records: {out}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.record_files",
        description="Joins the records of request logs, one file after the other; a torn last record is left out.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of a request log")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="OUT", help="the file to write; its folder is made"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--at_most",
        type=_positive,
        default=1000,
        metavar="N",
        help="records to take (%(default)s: what a model server takes for its warm-up)",
    )
    return parser


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is no number of records; it is at least 1")
    return int(text)


def _check(files: Sequence[Path], out: Path, force: bool) -> None:
    for path in files:
        path.stat()
        if out.exists() and out.samefile(path):
            raise Refused(f"{path} is to be read, and is OUT as well: give --out another name")
    if not force and os.path.lexists(out):
        raise Refused(f"{out} is there already: give --out another name, or --force to replace it")


def _join(files: Sequence[Path], out: Path, at_most: int) -> int:
    """Writes the records beside OUT, which it becomes when all are there; returns their number."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("wb") as target:
            count = _copy(files, target, at_most)
        if not count:
            raise Refused(f"no record in {', '.join(map(str, files))}")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
    return count


def _copy(files: Sequence[Path], target: BinaryIO, at_most: int) -> int:
    count = 0
    records = itertools.chain.from_iterable(map(_checked, files))
    try:
        for record in itertools.islice(records, at_most):
            target.write(record)
            count += 1
    except Refused as error:
        remedy = "leave this file out"
        if count:
            remedy += f", or take only what comes before, with --at_most={count}"
        raise Refused(f"{error}: {remedy}") from error
    return count


def _checked(path: Path) -> Iterator[bytes]:
    """The whole records of a file; tells of a torn last one. Raises Refused where a checksum does not match."""
    at = 0
    with path.open("rb") as file:
        for frame in frames(file):
            _check_length(path, at, frame)
            if _checksum(frame, -_FOOTER_BYTES) != masked(memoryview(frame)[_HEADER.size : -_FOOTER_BYTES]):
                raise Refused(f"{path}: the record at byte {at} is broken, its checksum does not match")
            yield frame
            at += len(frame)
        file.seek(at)
        rest = file.read(_HEADER.size)
    if not rest:
        return
    if at == 0 or len(rest) == _HEADER.size:
        _check_length(path, at, rest)
    print(
        f"serve.record_files: {path}: half a record at its end, from byte {at} on, is left out",
        file=sys.stderr,
    )


def _check_length(path: Path, at: int, frame: bytes) -> None:
    if len(frame) >= _HEADER.size and _checksum(frame, 8) == masked(frame[:8]):
        return
    if at == 0:
        raise Refused(f"{path} is no file of TFRecords (the length at byte 0 has no checksum that matches)")
    raise Refused(f"{path}: the record at byte {at} is broken, the checksum of its length does not match")


def _checksum(frame: bytes, at: int) -> int:
    (found,) = struct.unpack("<I", frame[at:][:4])
    return found


if __name__ == "__main__":
    sys.exit(main())
