"""The request log without TensorFlow: what is sampled and dropped, which files there are, what a crash leaves."""

import fcntl
import struct
import threading

import pytest

from serve import record_files, request_log
from serve.crc32c import crc32c, masked
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
    fails = fails_to_add = False

    def __init__(self, stem):
        if FakeFile.fails:
            raise OSError(28, "No space left on device", f"{stem}.tfrecord.part")
        self.stem, self.records, self.size, self.closed, self.began = stem, [], 0, False, 0.0
        FakeFile.made.append(self)

    def add(self, record):
        if FakeFile.fails_to_add:
            raise RuntimeError(f"{self.stem}.tfrecord.part; No space left on device")
        self.records.append(record)
        self.size += len(record)

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def files(monkeypatch):
    monkeypatch.setattr(request_log, "RecordFile", FakeFile)
    FakeFile.made, FakeFile.fails, FakeFile.fails_to_add = [], False, False
    return FakeFile.made


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the log takes for now."""
    seconds = [1000.0]
    monkeypatch.setattr(request_log, "_now", lambda: seconds[0])
    return seconds


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


def put_and_wait(log, metrics):
    """Puts one sample, and waits until it is written or dropped."""

    def done():
        return counted(metrics, "OK") + counted(metrics, "RESOURCE_EXHAUSTED")

    before = done()
    log.put(Sample("m", 1, Written))
    while done() == before:
        threading.Event().wait(0.001)


def test_full_disk_drops_samples_and_ends_nothing(tmp_path, files, clock, capsys):
    log, metrics = logging(tmp_path)
    FakeFile.fails = True
    put_and_wait(log, metrics)
    FakeFile.fails = False
    clock[0] += 1
    put_and_wait(log, metrics)
    log.stop()
    assert [file.records for file in files] == [[b"x"]]
    assert f'count=1 reason="{tmp_path}: No space left on device"' in capsys.readouterr().err


def test_no_file_is_begun_for_a_while_after_a_failure_and_longer_after_each_further_one(
    tmp_path, files, clock
):
    log, metrics = logging(tmp_path)
    FakeFile.fails_to_add = True
    begun = []
    for _ in range(1, 200):
        put_and_wait(log, metrics)
        if len(files) > len(begun):
            begun.append(clock[0] - 1000)
        clock[0] += 1
    log.stop()
    assert begun == [0, 1, 3, 7, 15, 31, 63, 123, 183]
    assert all(file.closed for file in files)
    assert counted(metrics, "RESOURCE_EXHAUSTED") == 199


def test_wait_is_short_again_when_writing_went_well_for_long(tmp_path, files, clock):
    log, metrics = logging(tmp_path)
    for seconds in (0, 1, 2, 100, 1):
        clock[0] += seconds
        FakeFile.fails_to_add = True
        put_and_wait(log, metrics)
    assert len(files) == 5
    log.stop()


def test_each_cause_is_told_once_with_its_number_and_without_the_files_names(tmp_path, files, clock, capsys):
    log, metrics = logging(tmp_path)
    FakeFile.fails_to_add = True
    for _ in range(3):
        put_and_wait(log, metrics)  # the first one is told at once, the others at the end
    clock[0] += 1
    put_and_wait(log, metrics)
    log.stop()
    told = [line.partition(" W ")[2] for line in capsys.readouterr().err.splitlines()]
    event = "samples for the request log dropped"
    cause = f'reason="RuntimeError: {tmp_path}; No space left on device"'
    assert told == [f"{event} count=1 {cause}", f"{event} count=3 {cause}"]
    assert len(files) == 2


def test_folder_that_cannot_be_written_is_warned_of_when_it_is_configured(tmp_path, capsys):
    log, _ = logging(tmp_path, m=Sampling(1.0, str(tmp_path / "absent" / "log")))
    log.stop()
    assert f'request log cannot be written prefix={tmp_path}/absent/log reason="there is no folder' in (
        capsys.readouterr().err
    )


def test_sample_that_no_message_holds_is_dropped_alone(tmp_path, files):
    log, metrics = logging(tmp_path)
    log.put(Sample("m", 1, lambda: 1 / 0))
    log.put(Sample("m", 1, Written))
    log.stop()
    assert (counted(metrics, "RESOURCE_EXHAUSTED"), counted(metrics, "OK")) == (1, 1)


# --- files ----------------------------------------------------------------------------------------------


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def frame(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksum_is_that_of_the_standard(data, crc):
    """RFC 3720, appendix B.4; and the usual check value of CRC-32C."""
    assert crc32c(data) == crc


def test_record_is_framed_as_tensorflow_does():
    assert frame(b"one").hex() == "0300000000000000" + "b099490e" + "6f6e65" + "01405508"


class FakeWriter:
    """Writes what it is given; `torn`: and fails then."""

    torn = b""

    def __init__(self, path):
        self.file = path.open("wb")

    def write(self, record):
        self.file.write(FakeWriter.torn or frame(record))

    def flush(self):
        self.file.flush()
        if FakeWriter.torn:
            raise RuntimeError("No space left on device")

    def close(self):
        self.file.close()
        if FakeWriter.torn:
            raise RuntimeError("No space left on device")


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setattr(record_files, "_writer", FakeWriter)
    monkeypatch.setattr(FakeWriter, "torn", b"")
    return FakeWriter


def test_file_that_no_record_came_to_be_in_is_removed(tmp_path, writer):
    file = record_files.RecordFile(str(tmp_path / "log.m.1"))
    assert names(tmp_path) == ["log.m.1.tfrecord.part"]
    writer.torn = b"half"
    with pytest.raises(RuntimeError):
        file.add(b"one")
    file.close()
    assert names(tmp_path) == []


def test_file_whose_last_record_failed_is_completed_without_it(tmp_path, writer):
    file = record_files.RecordFile(str(tmp_path / "log.m.1"))
    file.add(b"one")
    writer.torn = b"half"
    with pytest.raises(RuntimeError):
        file.add(b"two")
    file.close()
    assert names(tmp_path) == ["log.m.1.tfrecord"]
    assert (tmp_path / "log.m.1.tfrecord").read_bytes() == frame(b"one")


def test_file_that_cannot_be_begun_leaves_none(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "_writer", lambda path: path.joinpath("x").open())
    with pytest.raises(NotADirectoryError):
        record_files.RecordFile(str(tmp_path / "log.m.1"))
    assert names(tmp_path) == []


@pytest.mark.parametrize("torn", [b"", frame(b"one")[:-1]])
def test_file_of_a_killed_writer_that_has_no_record_is_removed(tmp_path, torn):
    (tmp_path / "log.m.1.tfrecord.part").write_bytes(torn)
    assert recover(str(tmp_path / "log")) == []
    assert names(tmp_path) == []


def test_files_of_a_prefix_that_is_a_folder_are_recovered(tmp_path):
    (tmp_path / ".m.1.tfrecord.part").write_bytes(frame(b"one"))
    assert recover(f"{tmp_path}/") == [tmp_path / ".m.1.tfrecord"]


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


# --- joining --------------------------------------------------------------------------------------------


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "a").write_bytes(frame(b"1") + frame(b"2"))
    (tmp_path / "b").write_bytes(frame(b"3") + frame(b"4"))
    return tmp_path


def joined(folder, *arguments, out="out"):
    """The exit status of a join that runs in a folder."""
    shown = [each if each.startswith("-") else str(folder / each) for each in arguments]
    return main([*shown, f"--out={folder / out}"])


def test_records_of_several_files_are_joined_up_to_a_number(logs, capsys):
    assert joined(logs, "a", "b", "--at_most=3", out="assets.extra/requests") == 0
    out = logs / "assets.extra" / "requests"
    assert out.read_bytes() == frame(b"1") + frame(b"2") + frame(b"3")
    assert capsys.readouterr().err == f"3 records: {out}\n"
    assert names(out.parent) == ["requests"]


def test_out_must_be_named(logs):
    with pytest.raises(SystemExit) as ended:
        main([str(logs / "a"), str(logs / "b")])
    assert ended.value.code == 2
    assert (logs / "b").read_bytes() == frame(b"3") + frame(b"4")


def test_out_that_is_there_is_replaced_only_by_force(logs, capsys):
    (logs / "out").write_bytes(b"precious")
    assert joined(logs, "a") == 1
    assert f"{logs}/out is there already: give --out another name, or --force" in capsys.readouterr().err
    assert (logs / "out").read_bytes() == b"precious"
    assert joined(logs, "a", "--force") == 0
    assert (logs / "out").read_bytes() == frame(b"1") + frame(b"2")


def test_out_is_none_of_the_files_read_under_any_name(logs, capsys):
    (logs / "link").symlink_to(logs / "a")
    for out in ("a", "link"):
        assert joined(logs, "a", "b", "--force", out=out) == 1
        assert f"{logs}/a is to be read, and is OUT as well" in capsys.readouterr().err
    assert (logs / "a").read_bytes() == frame(b"1") + frame(b"2")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"lines of text, and more of them\n", "is no file of TFRecords"),
        (b"short\n", "is no file of TFRecords"),
        (frame(b"1") + b"lines of text", "the record at byte 17 is broken, the checksum of its length"),
        (
            frame(b"1") + frame(b"two")[:-5] + b"x" + frame(b"two")[-4:],
            "the record at byte 17 is broken, its",
        ),
        (frame(b"1") + frame(b"2")[:8] + b"crc1" + frame(b"2")[12:], "the record at byte 17 is broken, the"),
        (frame(b"1") + bytes(64), "the record at byte 17 is broken, the checksum of its length"),
        (b"", "no record in"),
    ],
)
def test_file_that_is_broken_is_named_and_out_stays_as_it_was(tmp_path, content, reason, capsys):
    (tmp_path / "bad").write_bytes(content)
    (tmp_path / "out").write_bytes(b"precious")
    assert joined(tmp_path, "bad", "--force") == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "bad") in said
    assert reason in said
    assert said.endswith(f"{tmp_path}/out was not written\n")
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert names(tmp_path) == ["bad", "out"]


def test_what_stands_before_a_broken_record_can_be_taken_as_the_message_says(logs, capsys):
    (logs / "bad").write_bytes(frame(b"5") + frame(b"6")[:-1] + b"x")
    assert joined(logs, "a", "bad") == 1
    assert "with --at_most=3" in capsys.readouterr().err
    assert joined(logs, "a", "bad", "--at_most=3") == 0
    assert (logs / "out").read_bytes() == frame(b"1") + frame(b"2") + frame(b"5")


@pytest.mark.parametrize("torn", [b"x", frame(b"last")[:11], frame(b"last")[:12], frame(b"last")[:-1]])
def test_half_a_record_at_the_end_is_left_out_and_told(logs, torn, capsys):
    (logs / "a").write_bytes(frame(b"1") + torn)
    assert joined(logs, "a", "b") == 0
    assert (logs / "out").read_bytes() == frame(b"1") + frame(b"3") + frame(b"4")
    assert f"{logs}/a: half a record at its end, from byte 17 on, is left out" in capsys.readouterr().err


def test_file_that_cannot_be_read_is_named_and_out_stays_as_it_was(logs, capsys):
    (logs / "out").write_bytes(b"precious")
    assert joined(logs, "a", "absent", "--force") == 1
    assert f"{logs}/absent: No such file or directory" in capsys.readouterr().err
    assert (logs / "out").read_bytes() == b"precious"


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_number_of_records_is_one_or_more(logs, number):
    with pytest.raises(SystemExit):
        joined(logs, "a", f"--at_most={number}")
    assert not (logs / "out").exists()


def test_names_say_whether_a_file_is_complete():
    assert record_files.OPEN.startswith(record_files.DONE)
