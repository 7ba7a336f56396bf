"""The ListOps task: kept parts, original files, what is refused."""

import pytest

from synopsis.tasks.listops import ListOps
from synopsis.tasks.sequences import SPLITS
from tests.tasks.sequence_checks import check_task, rows
from tests.tasks.test_listops_files import LINES


def small(folder, **changes):
    given = {"min_length": 4, "max_length": 24, "train": 60, "validation": 10, "test": 20}
    return ListOps(folder=str(folder), **{**given, **changes})


def test_is_a_sequence_task(tmp_path):
    task = small(tmp_path)
    check_task(task, stand_in="")
    assert set(task.baselines()) == {"majority", "root operator", "root over digits"}


def test_parts_share_nothing(tmp_path):
    task = small(tmp_path, max_length=8, train=500, test=200)
    found = [row for split in SPLITS for batch in task.batches(split, 50) for row in rows(batch)]
    assert len(set(found)) == len(found) == 710


def test_kept_parts_are_read_and_their_beginning_is_given(tmp_path):
    whole = small(tmp_path)
    told = []
    whole.prepare(lambda *progress: told.append(progress))
    assert told == [("validation", 10, 10), ("test", 20, 20), ("train", 60, 60)]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    fewer = small(tmp_path, train=30, test=5)
    assert rows(next(fewer.batches("train", 100))) == rows(next(whole.batches("train", 100)))[:30]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_what_was_kept_must_be_what_is_wanted(tmp_path):
    small(tmp_path).prepare()
    with pytest.raises(ValueError, match=r"kept with seed 0, not 1; remove it or give another"):
        small(tmp_path, seed=1).examples("train")
    with pytest.raises(ValueError, match=r"kept with max_length 24, not 25"):
        small(tmp_path, max_length=25).examples("test")
    with pytest.raises(ValueError, match=r"holds 60 examples, not 61"):
        small(tmp_path, train=61).examples("train")


def test_a_seed_means_the_same_everywhere(tmp_path):
    sums = {small(tmp_path / name).checksum for name in "ab"}
    assert len(sums) == 1
    # Guards the meaning of seeds: whoever changes the generator raises GENERATOR and this.
    assert sums == {SMALL_CHECKSUM}
    assert small(tmp_path / "c", seed=1).checksum not in sums


SMALL_CHECKSUM = "3aa1f20b539c50ae3b03da9f5b67f8bc380fb714f0bda580dc97dd33736fb36c"


def test_default_places(monkeypatch, tmp_path):
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    assert ListOps().home == tmp_path / "listops"
    assert ListOps(min_length=32, max_length=128, seed=2).home == tmp_path / "listops-32-128-seed2"


def test_original_files_are_read(tmp_path):
    for name in ("basic_train.tsv", "basic_val.tsv"):
        (tmp_path / name).write_text(LINES, newline="")
    task = ListOps(folder=str(tmp_path))
    assert next(task.batches("validation", 8)).labels.tolist() == [9, 1]
    assert next(task.batches("train", 8)).tokens.shape == (2, 2000)
    with pytest.raises(FileNotFoundError, match=r"basic_test\.tsv"):
        task.examples("test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_length": -1}, "min_length is -1; it must be 0 or more"),
        ({"max_length": 5}, "max_length is 5; it must exceed min_length by 2 or more"),
        ({"train": 0}, "train is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        small("", **changes)
