"""The Pathfinder task: kept parts, processes, original files, what is refused."""

import numpy as np
import pytest

from synopsis.tasks import pathfinder
from synopsis.tasks.pathfinder import Pathfinder
from synopsis.tasks.token_sets import save_arrays
from tests.tasks.sequence_checks import check_task, rows
from tests.tasks.test_pathfinder_files import write
from tests.tolerances import FLOAT32


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pathfinder, "BLOCK", 12)


def small(folder, **changes):
    given = {"difficulty": "easy", "train": 24, "validation": 6, "test": 8}
    return Pathfinder(folder=str(folder), **{**given, **changes})


@pytest.mark.parametrize("pixels", ["values", "ids"])
def test_is_a_sequence_task(tmp_path, pixels):
    check_task(small(tmp_path, pixels=pixels), stand_in="")


def test_values_and_ids_are_the_same_pixels(tmp_path):
    values = next(small(tmp_path).batches("test", 8)).values
    ids = next(small(tmp_path, pixels="ids").batches("test", 8)).tokens
    assert np.allclose((values.numpy() * 0.5 + 0.5) * 255, ids.numpy(), atol=1e3 * FLOAT32)


def test_kept_parts_are_read_and_their_beginning_is_given(tmp_path):
    whole = small(tmp_path)
    told = []
    whole.prepare(lambda *progress: told.append(progress))
    assert told[:3] == [("train", 12, 24), ("train", 24, 24), ("validation", 6, 6)]
    fewer = small(tmp_path, train=10)
    assert rows(next(fewer.batches("train", 99))) == rows(next(whole.batches("train", 99)))[:10]
    with pytest.raises(ValueError, match=r"kept with difficulty easy, not hard; remove it"):
        small(tmp_path, difficulty="hard").examples("train")
    with pytest.raises(ValueError, match=r"holds 24 pictures, not 25"):
        small(tmp_path, train=25).examples("train")
    save_arrays(tmp_path / "test.safetensors", {"labels": np.zeros(1, np.uint8)}, {})
    pathfinder._load.cache_clear()
    with pytest.raises(ValueError, match="there is no images in it"):
        small(tmp_path).examples("test")


@pytest.mark.slow
def test_pictures_do_not_depend_on_the_number_of_processes(tmp_path):
    one, two = small(tmp_path / "one"), small(tmp_path / "two")
    two.prepare(processes=2)
    assert one.checksum == two.checksum
    assert small(tmp_path / "other", seed=1).checksum != one.checksum


def test_default_places(monkeypatch, tmp_path):
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    assert Pathfinder().home == tmp_path / "pathfinder32"
    assert small("", side=64, seed=3).home == tmp_path / "pathfinder64-easy-seed3"


def test_original_files_are_cut_80_10_10(tmp_path):
    write(tmp_path / "curv_baseline", {1: [(number, number % 2) for number in range(1, 21)]})
    task = Pathfinder(folder=str(tmp_path), difficulty="easy", pixels="ids")
    found = {s: next(task.batches(s, 99)).tokens[:, 0].tolist() for s in ("validation", "test")}
    assert found == {"validation": [170, 180], "test": [190, 200]}
    assert next(task.batches("train", 99)).tokens[:, 0].tolist() == [10 * n for n in range(1, 17)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 16}, "side is 16; it must be one of 32, 64, 128"),
        ({"difficulty": "harder"}, "difficulty is 'harder'; it must be one of easy"),
        ({"pixels": "bits"}, "pixels is 'bits'; it must be values or ids"),
        ({"test": 0}, "test is 0; it must be 1 or more"),
    ],
)
def test_arguments_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        small("", **changes)
