"""Blobs side by side: what is said on the way, and that one failure ends all."""

import io
import threading

import pytest

from deploy import transfer
from deploy.oci import LAYER, Descriptor, of_bytes
from pipeline.errors import ProgramFailed

BLOBS = [Descriptor(LAYER, of_bytes(bytes([n])), 1 + n) for n in range(6)]


class Registry:
    """A client of a registry that has `there`, and for whose uploads `upload` stands in."""

    def __init__(self, there=()):
        self.there = set(there)

    def lacks(self, blob):
        return None if blob.digest in self.there else "not there"


class Source:
    def open(self, blob):
        return io.BytesIO(b"x" * blob.size)


def uploading(monkeypatch, work):
    """Lets `work(blob, passed)` stand for an upload."""

    class Upload:
        def __init__(self, client, blob, open_blob, *, passed):
            self.blob, self.passed = blob, passed

        def mount(self, origin):
            return origin == "base" and self.blob in BLOBS[:2]

        def run(self):
            work(self.blob, self.passed)

    monkeypatch.setattr(transfer, "Upload", Upload)


def test_blobs_that_are_there_or_can_be_mounted_are_not_sent(monkeypatch):
    sent, said = [], []
    uploading(monkeypatch, lambda blob, passed: (sent.append(blob), passed(blob.size)))
    count = transfer.push(
        Registry([BLOBS[5].digest]), [*BLOBS, BLOBS[3]], Source(), said.append, origin="base"
    )
    assert sorted(sent, key=lambda blob: blob.size) == BLOBS[2:5]
    assert count == sum(blob.size for blob in BLOBS[2:5])
    assert sum(text.startswith("mounted") for text in said) == 2


def test_several_go_at_the_same_time(monkeypatch):
    together = threading.Barrier(transfer.CONNECTIONS, timeout=10)
    uploading(monkeypatch, lambda blob, passed: together.wait())
    transfer.push(Registry(), BLOBS[: transfer.CONNECTIONS], Source(), print)
    assert not together.broken


def test_failure_of_one_ends_the_others(monkeypatch):
    started, ended = threading.Event(), []

    def work(blob, passed):
        if blob == BLOBS[5]:
            started.wait(10)
            raise ProgramFailed("no")
        started.set()
        try:
            while True:
                passed(1)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    uploading(monkeypatch, work)
    with pytest.raises(ProgramFailed, match="no"):
        transfer.push(Registry(), BLOBS, Source(), print)
    assert ended
    assert set(ended) == {"_Stopped"}


@pytest.mark.parametrize(("every_s", "lines"), [(2.0, 5), (15.0, 0)])
def test_progress_is_told_at_intervals(every_s, lines):
    said, clock = [], [0.0]
    progress = transfer.Progress(10 << 20, said.append, every_s=every_s, now=lambda: clock[0])
    for second in range(11):
        clock[0] = float(second)
        progress.tell()
        progress.add(1 << 20)
    assert len(said) == lines
    progress.tell(last=True)
    assert said[-1] == "sent 11.0 of 10.0 MiB, 1 MiB/s"


def test_what_took_a_moment_is_not_told():
    said = []
    progress = transfer.Progress(10, said.append, every_s=15, now=lambda: 0.0)
    progress.tell(last=True)
    assert said == []
