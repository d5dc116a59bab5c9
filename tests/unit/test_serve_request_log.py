"""The request log without TensorFlow: what is sampled and dropped, which files there are, what a crash leaves."""

import fcntl
import struct
import threading

import pytest

from serve import record_files, request_log
from serve.metrics import Metrics
from serve.record_files import frames, main, recover
from serve.request_log import RequestLog, Rotation, Sample
from serve.sampling import Sampling


class Written:
    """A PredictionLog, as far as the log knows it."""

    def __init__(self, data=b"x"):
        self.data = data
        self.log_metadata = self
        self.sampling_config = self
        self.sampling_rate = None

    def SerializeToString(self):
        return self.data


class FakeFile:
    """A file in memory; `made` holds all."""

    made: list = []  # noqa: RUF012
    fails = False

    def __init__(self, stem):
        if FakeFile.fails:
            raise OSError(28, "No space left on device")
        self.stem, self.records, self.size, self.closed, self.began = stem, [], 0, False, 0.0
        FakeFile.made.append(self)

    def add(self, record):
        self.records.append(record)
        self.size += len(record)

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def files(monkeypatch):
    monkeypatch.setattr(request_log, "RecordFile", FakeFile)
    FakeFile.made, FakeFile.fails = [], False
    return FakeFile.made


def logging(tmp_path, rate=1.0, rotation=None, **models):
    metrics = Metrics()
    made = RequestLog(metrics, rotation or Rotation(age_s=float("inf")))
    made.configure(models or {"m": Sampling(rate, str(tmp_path / "log"))})
    return made, metrics


def counted(metrics, status, model="m"):
    line = f':tensorflow:serving:request_log_count{{model_name="{model}",status="{status}"}} '
    found = [text for text in metrics.page().decode().splitlines() if text.startswith(line)]
    return int(found[0].rpartition(" ")[2]) if found else 0


# --- sampling and writing -------------------------------------------------------------------------------


def test_only_the_asked_part_of_the_asked_models_is_wanted(tmp_path):
    log, _ = logging(tmp_path, rate=0.25)
    wanted = sum(log.wants("m") for _ in range(4000))
    assert 800 < wanted < 1200
    assert not log.wants("other")
    log.configure({})
    assert not any(log.wants("m") for _ in range(100))
    log.stop()


def test_samples_are_written_by_the_log_and_counted(tmp_path, files):
    log, metrics = logging(tmp_path, rate=0.5)
    made = Written(b"one")
    log.put(Sample("m", 3, lambda: made))
    log.stop()
    (file,) = files
    assert file.stem.startswith(f"{tmp_path}/log.m.")
    assert (file.records, file.closed, made.sampling_rate) == ([b"one"], True, 0.5)
    assert counted(metrics, "OK") == 1


def test_model_name_cannot_leave_the_folder_of_its_log(tmp_path, files):
    log, _ = logging(tmp_path, **{"../../a": Sampling(1.0, str(tmp_path / "log"))})
    log.put(Sample("../../a", 1, Written))
    log.stop()
    assert files[0].stem.startswith(f"{tmp_path}/log...%2F..%2Fa.")


def test_next_file_is_begun_when_one_is_large_enough(tmp_path, files):
    log, _ = logging(tmp_path, rotation=Rotation(size_bytes=10, age_s=float("inf")))
    for _ in range(5):
        log.put(Sample("m", 6, lambda: Written(b"sixsix")))
    log.stop()
    assert [len(file.records) for file in files] == [2, 2, 1]
    assert all(file.closed for file in files)
    assert len({file.stem for file in files}) == 3


def test_next_file_is_begun_when_one_is_old_enough(tmp_path, files):
    log, _ = logging(tmp_path, rotation=Rotation(age_s=0.0))
    for _ in range(3):
        log.put(Sample("m", 1, Written))
    log.stop()
    assert [len(file.records) for file in files] == [1, 1, 1]


# --- what is dropped ------------------------------------------------------------------------------------


def test_samples_beyond_the_bound_are_dropped_at_once_counted_and_told(tmp_path, files, capsys):
    log, metrics = logging(tmp_path)
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(10)
        return Written()

    log.put(Sample("m", 1, slow))
    assert begun.wait(10)
    for _ in range(request_log._SAMPLES_AT_MOST + 20):
        log.put(Sample("m", 1, Written))
    go_on.set()
    log.stop()
    assert counted(metrics, "RESOURCE_EXHAUSTED") == 20
    assert counted(metrics, "OK") == request_log._SAMPLES_AT_MOST + 1
    assert 'samples for the request log dropped count=20 reason="the writer does not keep up"' in (
        capsys.readouterr().err
    )


def test_samples_that_wait_hold_a_bounded_number_of_bytes(tmp_path, files):
    log, metrics = logging(tmp_path)
    begun, go_on = threading.Event(), threading.Event()
    log.put(Sample("m", 1, lambda: (begun.set(), go_on.wait(10), Written())[2]))
    assert begun.wait(10)
    half = request_log._BYTES_AT_MOST // 2
    for _ in range(3):
        log.put(Sample("m", half, Written))
    assert counted(metrics, "RESOURCE_EXHAUSTED") == 1
    go_on.set()
    log.stop()
    assert counted(metrics, "OK") == 3


def test_full_disk_drops_samples_and_ends_nothing(tmp_path, files, capsys):
    log, metrics = logging(tmp_path)
    FakeFile.fails = True
    log.put(Sample("m", 1, Written))
    while not counted(metrics, "RESOURCE_EXHAUSTED"):
        threading.Event().wait(0.002)
    FakeFile.fails = False
    log.put(Sample("m", 1, Written))
    log.stop()
    assert [file.records for file in files] == [[b"x"]]
    assert "No space left on device" in capsys.readouterr().err


def test_sample_that_no_message_holds_is_dropped_alone(tmp_path, files):
    log, metrics = logging(tmp_path)
    log.put(Sample("m", 1, lambda: 1 / 0))
    log.put(Sample("m", 1, Written))
    log.stop()
    assert (counted(metrics, "RESOURCE_EXHAUSTED"), counted(metrics, "OK")) == (1, 1)


# --- files ----------------------------------------------------------------------------------------------


def frame(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + b"crc1" + data + b"crc2"


@pytest.mark.parametrize("torn", [b"", frame(b"last")[:1], frame(b"last")[:11], frame(b"last")[:-1]])
def test_files_of_a_killed_writer_lose_the_torn_record_and_get_their_name(tmp_path, torn):
    whole = frame(b"one") + frame(b"") + frame(b"three")
    (tmp_path / "log.m.1.tfrecord.part").write_bytes(whole + torn)
    (tmp_path / "other.m.1.tfrecord.part").write_bytes(torn)
    assert recover(str(tmp_path / "log")) == [tmp_path / "log.m.1.tfrecord"]
    assert (tmp_path / "log.m.1.tfrecord").read_bytes() == whole
    assert (tmp_path / "other.m.1.tfrecord.part").read_bytes() == torn


def test_file_whose_writer_lives_is_left_alone(tmp_path):
    path = tmp_path / "log.m.1.tfrecord.part"
    path.write_bytes(frame(b"one"))
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert recover(str(tmp_path / "log")) == []
    assert path.exists()


def test_length_that_lies_ends_the_reading_without_taking_memory(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(frame(b"one") + struct.pack("<Q", 2**40) + b"crc1" + b"few")
    with path.open("rb") as file:
        assert list(frames(file)) == [frame(b"one")]


def test_records_of_several_files_are_joined_up_to_a_number(tmp_path, capsys):
    (tmp_path / "a").write_bytes(frame(b"1") + frame(b"2") + b"torn")
    (tmp_path / "b").write_bytes(frame(b"3") + frame(b"4"))
    out = tmp_path / "assets.extra" / "requests"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), str(out), "--at_most=3"]) == 0
    assert out.read_bytes() == frame(b"1") + frame(b"2") + frame(b"3")
    assert capsys.readouterr().err == f"3 records: {out}\n"


def test_file_that_cannot_be_read_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "absent"), str(tmp_path / "out")]) == 1
    assert f"{tmp_path}/absent: No such file or directory" in capsys.readouterr().err


def test_names_say_whether_a_file_is_complete():
    assert record_files.OPEN.startswith(record_files.DONE)
