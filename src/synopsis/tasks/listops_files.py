"""ListOps in the files of the Long Range Arena: one expression and its value per line."""

from pathlib import Path

import numpy as np

from synopsis.tasks.listops_trees import SYMBOLS, UNKNOWN
from synopsis.tasks.sequences import Split
from synopsis.tasks.token_sets import Sequences, TokenSet

LRA_FILES: dict[Split, str] = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}
HEADER = "Source\tTarget"

_CODES = {word: code for code, word in enumerate(SYMBOLS)} | {"]": SYMBOLS.index("X")}
_PARENTHESES = str.maketrans("", "", "()")


def read_tsv(path: Path, length: int) -> TokenSet:
    """Read expressions; parentheses are dropped, words that are no ListOps become unknown.

    Args:
        path: such as ``basic_train.tsv``.
        length: places of a batch; longer expressions are cut there.

    Raises:
        ValueError: the file is something else; the message names the line.

    Example:
        >>> read_tsv(Path("basic_val.tsv"), 2000).batch(np.arange(32)).tokens.shape  # doctest: +SKIP
        torch.Size([32, 2000])
    """
    pieces: list[bytes] = []
    labels: list[int] = []
    with path.open(encoding="utf-8") as file:
        if (header := file.readline().rstrip("\r\n")) != HEADER:
            raise ValueError(f"{path}:1: the header is {header[:40]!r}; it must be {HEADER!r}")
        for number, line in enumerate(file, start=2):
            source, _, target = line.rstrip("\r\n").rpartition("\t")
            if target not in SYMBOLS[5:] or not source:
                raise ValueError(f"{path}:{number}: {line[-40:]!r} ends in no tab and digit")
            labels.append(int(target))
            words = source.translate(_PARENTHESES).split()
            pieces.append(bytes(_CODES.get(word, UNKNOWN) for word in words))
    return TokenSet(Sequences.joined(pieces), np.array(labels, np.uint8), length)
