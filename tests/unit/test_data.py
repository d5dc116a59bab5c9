"""The data stage: what it accepts, what it refuses and with which words, and that it always splits alike."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from pipeline.errors import IntegrityError, SettingsError
from pipeline.stages import Outcome
from tests.support import context, tree
from train import checks, fetch, rows
from train.data import data, held_out, load

SHAPE = {"data.row_shape": [2], "data.value_range": [0.0, 9.0], "data.classes": 2, "data.smallest_class": 0.5}


def rows_of(count: int = 40) -> list[str]:
    """Good rows: no two alike, two classes."""
    return [f"{i % 10},{i // 10},{i % 2}" for i in range(count)]


def run_on(tmp_path, content: bytes, name: str = "rows.csv", **changes):
    source = tmp_path / name
    source.write_bytes(content)
    pinned = {"data.source": str(source), "data.sha256": hashlib.sha256(content).hexdigest()}
    made = context(tmp_path, changes={**SHAPE, **pinned, **changes})
    return data(made), made


def run_on_rows(tmp_path, rows: list[str], **changes):
    return run_on(tmp_path, ("\n".join(rows) + "\n").encode(), **changes)


def test_digits_of_scikit_learn_pass_and_are_split_by_class(tmp_path):
    made = context(tmp_path)
    result = data(made)
    features, labels = load(made.out / "rows", "test")
    assert result.outcome is Outcome.PASSED
    assert features.shape == (359, 8, 8)
    assert features.dtype == np.float32
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [
        36,
        36,
        35,
        37,
        36,
        36,
        36,
        36,
        35,
        36,
    ]
    assert len(load(made.out / "rows", "train")[1]) == 1438


def test_same_settings_write_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        data(context(tmp_path / name))
    assert tree(tmp_path / "one" / "out") == tree(tmp_path / "two" / "out")


def test_record_of_the_split_names_no_folder_of_this_machine(tmp_path):
    _, made = run_on_rows(tmp_path, rows_of())
    text = (made.out / "rows" / "data.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["source"] == "rows.csv"


def test_another_seed_holds_out_other_rows_and_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [50, 30, 5])
    one, two = held_out(labels, 0.2, 1), held_out(labels, 0.2, 2)
    assert (one != two).any()
    assert np.bincount(labels[one]).tolist() == np.bincount(labels[two]).tolist() == [10, 6, 1]


def test_each_class_keeps_a_row_on_both_sides_whatever_the_fraction():
    labels = np.repeat([0, 1], [2, 2])
    for fraction in (0.01, 0.9):
        mask = held_out(labels, fraction, 0)
        assert np.bincount(labels[mask]).tolist() == [1, 1]


POISON = {
    "ragged rows": (["1,2"], "not 3 columns (data.row_shape and the class): line 41 has 2"),
    "a blank line": (["", "9,9,1"], "not 3 columns (data.row_shape and the class): line 41 has 0"),
    "a word": (["1,x,0"], "not a number: line 41 column 2 'x'"),
    "an empty cell": (["1,,0"], "not a number: line 41 column 2 ''"),
    "NaN": (["1,nan,0"], "NaN or infinite: line 41 column 2 (nan)"),
    "infinity": (["inf,8,0"], "NaN or infinite: line 41 column 1 (inf)"),
    "out of range": (["1,17,0"], "outside of data.value_range [0, 9]: line 41 column 2 (17)"),
    "below the range": (["-1,8,0"], "outside of data.value_range [0, 9]: line 41 column 1 (-1)"),
    "half a class": (["1,8,0.5"], "the class is not a whole number from 0 to 1: line 41 (0.5)"),
    "an unknown class": (["1,8,2"], "the class is not a whole number from 0 to 1: line 41 (2)"),
    "a class that is NaN": (["1,8,nan"], "the class is not a whole number from 0 to 1: line 41 (nan)"),
    "two classes for a row": (
        ["3,0,0"],
        "the same row with different classes: line 4 (class 1) and line 41 (class 0)",
    ),
}


@pytest.mark.parametrize(("extra", "finding"), POISON.values(), ids=POISON)
def test_poison_is_refused_with_its_place(tmp_path, extra, finding):
    result, made = run_on_rows(tmp_path, rows_of() + extra)
    assert result.outcome is Outcome.FAILED
    assert finding in result.sentence
    assert [path.name for path in (made.out / "rows").iterdir()] == ["data.json"]


def test_all_findings_come_at_once_with_the_first_few_places(tmp_path):
    result, made = run_on_rows(tmp_path, [*rows_of(), *["1,nan,0"] * 7, "1,99,7"])
    faults = json.loads((made.out / "rows" / "data.json").read_text())["faults"]
    assert result.numbers["faults"] == len(faults) == 3
    assert "… (7 in all)" in faults[0]
    assert "line 48 column 2 (99)" in faults[1]
    assert "line 48 (7)" in faults[2]


def test_a_header_is_recognised(tmp_path):
    result, _ = run_on_rows(tmp_path, ["a,b,class", *rows_of()])
    assert "line 1 looks like a header" in result.sentence


def test_a_class_without_rows_and_one_with_too_few_are_refused(tmp_path):
    rows = [row[:-1] + "0" for row in rows_of()]
    rows[5] = rows[5][:-1] + "1"
    result, _ = run_on_rows(tmp_path, rows, **{"data.classes": 3})
    assert "no row of class 2" in result.sentence
    assert "too few rows of class 1 (1); data.smallest_class asks for 7 each" in result.sentence


def test_a_row_in_both_train_and_test_is_refused_with_both_lines(tmp_path):
    rows = rows_of()
    labels = np.array([int(row[-1]) for row in rows] + [0, 1])
    test = held_out(labels, 0.2, 20)
    twin = next(i for i in range(40) if test[i] != test[40] and labels[i] == 0)
    other = next(i for i in range(40) if test[i] == test[41] and labels[i] == 1)
    result, _ = run_on_rows(tmp_path, [*rows, rows[twin], rows[other]])
    assert f"the same row in train and test: line {twin + 1} = line 41; keep one of each" in result.sentence
    assert "line 42" not in result.sentence


def test_negative_zero_is_the_same_row_as_zero():
    table = rows.Table(np.array([[0.0, 1.0], [-0.0, 1.0]]), np.array([0.0, 0.0]))
    assert checks.leaks(table, np.array([True, False])) != []


def test_npz_rows_are_read_and_their_faults_counted_from_zero(tmp_path):
    features = np.array([[i % 10, i // 10] for i in range(40)], np.float32)
    features[7, 1] = np.nan
    np.savez(tmp_path / "made.npz", features=features, labels=np.arange(40) % 2)
    result, _ = run_on(tmp_path, (tmp_path / "made.npz").read_bytes(), "rows.npz")
    assert "NaN or infinite: row 7 column 2 (nan)" in result.sentence


def test_npz_with_objects_is_refused_and_not_unpickled(tmp_path):
    np.savez(tmp_path / "made.npz", features=np.array([[1, 2], None], object), labels=np.arange(2))
    result, _ = run_on(tmp_path, (tmp_path / "made.npz").read_bytes(), "rows.npz")
    assert result.outcome is Outcome.FAILED
    assert "allow_pickle=False" in result.sentence


BROKEN = {
    "truncated gzip": (gzip.compress(b"1,2,0\n" * 999)[:-20], "rows.csv.gz", "it is not a whole gzip file"),
    "not gzip": (b"1,2,0\n", "rows.csv.gz", "it is not a whole gzip file"),
    "not text": (b"\xff\xfe1,2", "rows.csv", "it is not text: byte 0 is 0xff"),
    "not a zip": (b"1,2,0\n", "rows.npz", "it is not an npz file of plain arrays"),
    "empty": (b"", "rows.csv", "the file has no rows"),
    "a page of HTML": (b"<html>\n<p>Sign in</p>\n", "rows.csv", "not 3 columns"),
}


@pytest.mark.parametrize(("content", "name", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_with_the_right_digest_fails_with_the_reason(tmp_path, content, name, words):
    result, _ = run_on(tmp_path, content, name)
    assert result.outcome is Outcome.FAILED
    assert words in result.sentence


def test_another_digest_is_told_with_both_and_the_remedy(tmp_path):
    with pytest.raises(IntegrityError) as caught:
        run_on_rows(tmp_path, rows_of(), **{"data.sha256": "0" * 64})
    found = hashlib.sha256(("\n".join(rows_of()) + "\n").encode()).hexdigest()
    assert found in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "set data.sha256" in str(caught.value)
    assert not (tmp_path / "out" / "rows").exists()


SOURCES = {
    "nowhere/rows.csv": "nowhere/rows.csv, which is not a file here",
    "rows.parquet": "the formats that can be read are .csv, .csv.gz, .npz",
    "sklearn:digit": "Did you mean sklearn:digits?",
    "ftp://host/rows.csv": "must be sklearn:digits, a path, https://… or s3://bucket/key",
    "s3:///rows.csv": "must be s3://bucket/key",
}


@pytest.mark.parametrize(("source", "words"), SOURCES.items())
def test_a_source_that_cannot_be_is_a_settings_error(tmp_path, source, words):
    with pytest.raises(SettingsError, match=r"data\.source") as caught:
        data(context(tmp_path, changes={"data.source": source}))
    assert words in str(caught.value)


def test_a_name_for_records_carries_no_credentials_and_no_folder():
    assert fetch.public_name("https://me:word@host:8/a/rows.csv?token=1") == "https://host:8/a/rows.csv"
    assert fetch.public_name("/home/me/rows.csv") == "rows.csv"
    assert fetch.public_name("data/rows.csv") == "data/rows.csv"
