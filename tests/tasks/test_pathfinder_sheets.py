"""The sheet of Pathfinder pictures."""

import numpy as np
import pytest

from synopsis.tasks.pathfinder_images import Pictures
from synopsis.tasks.pathfinder_sheets import save_sheet

pytest.importorskip("matplotlib")


def pictures(count):
    labels = np.arange(count, dtype=np.uint8) % 2
    return Pictures(np.full((count, 8, 8), 200, np.uint8), labels)


def test_is_a_png(tmp_path):
    save_sheet(pictures(16), tmp_path / "sheet.png", rows=1)
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_are_refused(tmp_path):
    with pytest.raises(ValueError, match="8 pictures of label 1; 16 are needed"):
        save_sheet(pictures(16), tmp_path / "sheet.png")
