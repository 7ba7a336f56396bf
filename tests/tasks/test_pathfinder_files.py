"""Reading Pathfinder from folders as the Long Range Arena has them, made here."""

import numpy as np
import pytest

from synopsis.tasks.pathfinder_files import original_folder, read_pictures

Image = pytest.importorskip("PIL.Image")


def write(home, lists, side=32):
    """Lists of (file number, label); pictures are grey of ten times their number, 0 is empty."""
    for number, entries in lists.items():
        (home / "imgs" / str(number)).mkdir(parents=True)
        (home / "metadata").mkdir(exist_ok=True)
        lines = []
        for sample, label in entries:
            path = home / "imgs" / str(number) / f"sample_{sample}.png"
            Image.fromarray(np.full((side, side), 10 * sample, np.uint8)).save(path)
            if sample == 0:
                path.write_bytes(b"")
            lines.append(f"imgs/{number} sample_{sample}.png {sample} {label} 1.0 14 4 2 0.5 1 1\n")
        (home / "metadata" / f"{number}.npy").write_text("".join(lines))


def test_reads_lists_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path, {2: [(1, 0), (0, 1), (2, 1)], 10: [(3, 1)], 1: [(4, 0)]})
    pictures = read_pictures(tmp_path, 32)
    assert pictures.images[:, 5, 7].tolist() == [40, 10, 20, 30]
    assert pictures.labels.tolist() == [0, 0, 1, 1]


def test_finds_the_folder_of_a_difficulty(tmp_path):
    home = tmp_path / "pathfinder32" / "curv_contour_length_14"
    write(home, {1: [(1, 0)]})
    assert original_folder(tmp_path, 32, "hard") == home
    assert original_folder(tmp_path / "pathfinder32", 32, "hard") == home
    assert original_folder(tmp_path, 32, "easy") is None
    assert original_folder(tmp_path, 64, "hard") is None


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no lists"):
        read_pictures(tmp_path, 32)
    write(tmp_path, {1: [(1, 0)]}, side=16)
    with pytest.raises(ValueError, match=r"sample_1\.png: is 16×16, not 32×32"):
        read_pictures(tmp_path, 32)
    (tmp_path / "imgs/1/sample_1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"sample_1\.png: no readable picture"):
        read_pictures(tmp_path, 32)
    (tmp_path / "metadata/1.npy").write_text("imgs/1 sample_1.png 1 seven\n")
    with pytest.raises(ValueError, match=r"1\.npy:1: .* has no label 0 or 1 as word 4"):
        read_pictures(tmp_path, 32)
