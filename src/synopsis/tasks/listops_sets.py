"""Sets of different ListOps expressions, and the answers that need no composition."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt8

from synopsis.tasks.listops_trees import (
    CLOSE,
    DIGIT,
    OPERATORS,
    Expressions,
    Law,
    apply_operators,
    random_expressions,
)
from synopsis.tasks.token_sets import Sequences, TokenSet

BLOCK = 8192  # trees at once; part of what a seed means
IDLE_BLOCKS = 200  # this many blocks, 1.6 million trees, with nothing new: there is no more


def different_expressions(
    law: Law,
    count: int,
    seed: tuple[int, ...],
    taken: set[bytes] | None = None,
    progress: Callable[[int], object] | None = None,
) -> TokenSet:
    """Draw ``count`` expressions of which no two are alike.

    Args:
        law: what is drawn.
        count: how many; a smaller number gives the first of a larger one.
        seed: integers, 0 or more, that name the sequence of draws.
        taken: digests of expressions that are not wanted; those drawn are added.
        progress: called with the number so far.

    Raises:
        ValueError: there are hardly so many, as with very short ones.

    Example:
        >>> len(different_expressions(Law(4, 12), 20, seed=(0,)))
        20
    """
    taken = set() if taken is None else taken
    pieces: list[bytes] = []
    values: list[int] = []
    idle = block = 0
    while len(pieces) < count:
        drawn = random_expressions(BLOCK, law, np.random.default_rng([*seed, block]))
        before = len(pieces)
        for piece, value in _new(drawn, taken, count - before):
            pieces.append(piece)
            values.append(value)
        block += 1
        idle = 0 if len(pieces) > before else idle + 1
        if idle == IDLE_BLOCKS:
            raise ValueError(
                f"found {len(pieces)} different expressions of {law.min_length + 1} … "
                f"{law.max_length - 1} tokens, not {count}"
            )
        if progress is not None:
            progress(len(pieces))
    return TokenSet(Sequences.joined(pieces), np.array(values, np.uint8), law.max_length)


def _new(drawn: Expressions, taken: set[bytes], most: int) -> Iterator[tuple[bytes, int]]:
    """The first ``most`` expressions not taken yet, with their values; takes them."""
    sequences = Sequences.end_to_end(drawn.symbols, drawn.lengths)
    for row, value in enumerate(drawn.values):
        piece = sequences[row].tobytes()
        digest = hashlib.blake2b(piece, digest_size=16).digest()
        if most and digest not in taken:
            taken.add(digest)
            most -= 1
            yield piece, int(value)


# --- what needs no composition


def trivial_answers(train: TokenSet, test: TokenSet) -> dict[str, float]:
    """Accuracy of reading little of an expression.

    Args:
        train: fits the table from root operator to most frequent label.
        test: is measured.

    Returns:
        ``root operator``: the table; ``root over digits``: the root operator applied to those of
        its arguments that are digits, or the table where there are none.
    """
    table = _table(train)
    root = _roots(test)
    guess = table[root]
    operators, arguments, digits = _direct_digits(test.sequences)
    some = arguments > 0
    composed = guess.copy()
    composed[some] = apply_operators(operators[some], arguments[some], digits)
    return {
        "root operator": float((guess == test.labels).mean()),
        "root over digits": float((composed == test.labels).mean()),
    }


def _roots(tokens: TokenSet) -> UInt8[np.ndarray, " examples"]:
    return tokens.sequences.symbols[tokens.sequences.starts]


def _table(train: TokenSet) -> Int[np.ndarray, " symbols"]:
    """The most frequent label of every first symbol."""
    counts = np.zeros((256, 10), np.int64)
    np.add.at(counts, (_roots(train), train.labels), 1)
    return counts.argmax(axis=1)


def _direct_digits(
    sequences: Sequences,
) -> tuple[Int[np.ndarray, " examples"], Int[np.ndarray, " examples"], Int[np.ndarray, " digits"]]:
    """Root operators, how many of their arguments are digits, and these digits end to end."""
    operators = np.zeros(len(sequences), np.int64)
    counts = np.zeros(len(sequences), np.int64)
    found: list[np.ndarray] = []
    for row in range(len(sequences)):
        symbols = sequences[row]
        depth = np.cumsum((symbols < OPERATORS).astype(np.int64) - (symbols == CLOSE))
        direct = symbols[(symbols >= DIGIT) & (symbols < DIGIT + 10) & (depth == 1)]
        operators[row], counts[row] = min(int(symbols[0]), OPERATORS - 1), len(direct)
        found.append(direct.astype(np.int64) - DIGIT)
    return operators, counts, np.concatenate(found) if found else np.zeros(0, np.int64)
