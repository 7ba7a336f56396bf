"""Reading ListOps as the Long Range Arena writes it."""

import numpy as np
import pytest

from synopsis.tasks.listops_files import read_tsv
from synopsis.tasks.listops_trees import UNKNOWN, spelled

LINES = (
    "Source\tTarget\r\n"
    "( ( ( ( [MAX 2 ) 9 ) ( ( ( [MIN 4 ) 7 ) ] ) ) ] )\t9\r\n"
    "( ( ( [SM 5 ) 6 ) ] )\t1\r\n"
)


def test_reads_the_published_form(tmp_path):
    (tmp_path / "basic_val.tsv").write_text(LINES, newline="")
    tokens = read_tsv(tmp_path / "basic_val.tsv", 6)
    assert spelled(tokens.sequences[0]) == "[MAX 2 9 [MIN 4 7 X X"
    assert spelled(tokens.sequences[1]) == "[SM 5 6 X"
    batch = tokens.batch(np.array([0, 1]))
    # ids: [MIN [MAX [MED [SM are 1 … 4, X is 5, digits are 6 … 15
    assert batch.tokens.tolist() == [[2, 8, 15, 1, 10, 13], [4, 11, 12, 5, 0, 0]]
    assert batch.labels.tolist() == [9, 1]


def test_other_words_are_unknown(tmp_path):
    (tmp_path / "it.tsv").write_text("Source\tTarget\n( [FIRST 3 ] )\t3\n")
    assert read_tsv(tmp_path / "it.tsv", 5).sequences[0].tolist() == [UNKNOWN, 8, 4]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[MAX 2 3 ]\t3\n", r"it\.tsv:1: the header is '\[MAX 2 3 \]\\t3'"),
        ("Source\tTarget\n[MAX 2 3 ] 3\n", r"it\.tsv:2: .* ends in no tab and digit"),
        ("Source\tTarget\n[MAX 2 3 ]\t3\n[MAX 2 3 ]\t11\n", r"it\.tsv:3: .* ends in no tab"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "it.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_tsv(tmp_path / "it.tsv", 10)
