"""ListOps expressions, grown level by level for thousands of trees at once.

A tree is an expression of prefix operators over digits, for example [MAX 2 [MIN 5 7 ] 0 ]. All
nodes of one depth are a :class:`Level`; the children of its operators, in order, are the next one.

Symbols: 0–3 are [MIN [MAX [MED [SM, 4 is the closing bracket, 5–14 are the digits 0–9, and 15 is
anything else; as token ids they are one larger.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

SYMBOLS = ("[MIN", "[MAX", "[MED", "[SM", "X", *"0123456789")
OPERATORS = 4
CLOSE = 4
DIGIT = 5  # the symbol of 0
UNKNOWN = 15
VOCABULARY = 17  # ids: pad, 15 symbols, unknown
OPERATOR_RATE = 0.25


class Law(NamedTuple):
    """What is drawn.

    Args:
        min_length: expressions are longer than this, tokens.
        max_length: and shorter than this.
        max_depth: of a leaf; the root has depth 1.
        max_arguments: of an operator, which has at least 2.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_arguments: int = 10


class Level(NamedTuple):
    """All nodes of one depth, the children of one operator next to each other."""

    tree: Int[np.ndarray, " nodes"]
    arguments: Int[np.ndarray, " nodes"]  # number of children; 0 of a leaf
    content: Int[np.ndarray, " nodes"]  # the operator, or the digit of a leaf


class Expressions(NamedTuple):
    """Expressions end to end, with their values."""

    symbols: UInt8[np.ndarray, " total"]
    lengths: Int32[np.ndarray, " expressions"]
    values: UInt8[np.ndarray, " expressions"]


def random_expressions(trees: int, law: Law, rng: np.random.Generator) -> Expressions:
    """Draw ``trees`` trees and keep those of the wanted length, in the order of drawing.

    Source: Nangia & Bowman, 2018 (ListOps), as generated for the Long Range Arena (Tay et al.,
    2021): a node above the largest depth is an operator with probability 1/4.

    Example:
        >>> drawn = random_expressions(1000, Law(4, 12), np.random.default_rng(0))
        >>> spelled(drawn.symbols[: drawn.lengths[0]])    # doctest: +SKIP
        '[MED 3 [MAX 3 2 X 8 X'
    """
    levels, lengths = _grow(trees, law, rng)
    levels = _only(levels, (lengths > law.min_length) & (lengths < law.max_length))
    return Expressions(*_written(levels), _values(levels))


def _grow(
    trees: int, law: Law, rng: np.random.Generator
) -> tuple[list[Level], Int[np.ndarray, " trees"]]:
    """Levels from the root down, and the lengths; a tree that is too long grows no further."""
    lengths = np.zeros(trees, np.int64)
    tree = np.arange(trees)
    levels: list[Level] = []
    for depth in range(1, law.max_depth + 1):
        level = _random_level(tree, depth < law.max_depth, law.max_arguments, rng)
        levels.append(level)
        lengths += _count(tree, 1 + (level.arguments > 0), trees)
        ahead = _count(tree, level.arguments, trees)  # every child is at least one token
        too_long = lengths + ahead >= law.max_length
        lengths[too_long] += ahead[too_long]  # so that it is seen to be too long
        tree = np.repeat(tree, np.where(too_long[tree], 0, level.arguments))
    return levels, lengths


def _count(
    tree: Int[np.ndarray, " nodes"], weights: Int[np.ndarray, " nodes"], trees: int
) -> Int[np.ndarray, " trees"]:
    return np.bincount(tree, weights, minlength=trees).astype(np.int64)


def _random_level(
    tree: Int[np.ndarray, " nodes"], inner: bool, most: int, rng: np.random.Generator
) -> Level:
    count = len(tree)
    operators = rng.random(count, np.float32) < OPERATOR_RATE if inner else np.zeros(count, bool)
    number = int(operators.sum())
    arguments = np.zeros(count, np.int64)
    arguments[operators] = rng.integers(2, most + 1, number)
    content = rng.integers(0, 10, count)
    content[operators] = rng.integers(0, OPERATORS, number)
    return Level(tree, arguments, content)


def _only(levels: list[Level], kept: Bool[np.ndarray, " trees"]) -> list[Level]:
    """The levels without the other trees; each of a kept tree's operators has its children."""
    chosen = [kept[level.tree] for level in levels]
    return [
        Level(*(part[rows] for part in level)) for level, rows in zip(levels, chosen, strict=True)
    ]


def _written(
    levels: list[Level],
) -> tuple[UInt8[np.ndarray, " total"], Int32[np.ndarray, " expressions"]]:
    """Symbols of all expressions end to end, and the lengths: sizes upwards, places downwards."""
    sizes = _sizes(levels)
    symbols = np.empty(int(sizes[0].sum()), np.uint8)
    places = np.cumsum(sizes[0]) - sizes[0]
    for depth, level in enumerate(levels):
        operators = level.arguments > 0
        symbols[places] = np.where(operators, level.content, level.content + DIGIT)
        symbols[(places + sizes[depth] - 1)[operators]] = CLOSE
        if depth + 1 < len(levels):
            below = sizes[depth + 1]
            before = np.cumsum(below) - below  # of all nodes to the left on that level
            first = np.cumsum(level.arguments) - level.arguments
            offset = places[operators] + 1 - before[first[operators]]
            places = before + np.repeat(offset, level.arguments[operators])
    return symbols, sizes[0].astype(np.int32)


def _sizes(levels: list[Level]) -> list[Int[np.ndarray, " nodes"]]:
    """Tokens of every subtree, level by level."""
    sizes: list[np.ndarray] = []
    for level in reversed(levels):
        size = np.where(level.arguments > 0, 2, 1)
        if sizes:
            operators = np.flatnonzero(level.arguments)
            parent = np.repeat(operators, level.arguments[operators])
            size += np.bincount(parent, weights=sizes[0], minlength=len(size)).astype(np.int64)
        sizes.insert(0, size)
    return sizes


def _values(levels: list[Level]) -> UInt8[np.ndarray, " expressions"]:
    below = np.zeros(0, np.int64)
    for level in reversed(levels):
        operators = level.arguments > 0
        value = level.content.copy()
        value[operators] = apply_operators(
            level.content[operators], level.arguments[operators], below
        )
        below = value
    return below.astype(np.uint8)


def apply_operators(
    operators: Int[np.ndarray, " calls"],
    arguments: Int[np.ndarray, " calls"],
    digits: Int[np.ndarray, " total"],
) -> Int[np.ndarray, " calls"]:
    """Apply operators to digits.

    Args:
        operators: 0 minimum, 1 maximum, 2 median (the mean of the middle two, rounded down, when
            the number is even), 3 sum modulo 10.
        arguments: how many digits each one takes, 1 or more.
        digits: the arguments of all, end to end.

    Example:
        >>> apply_operators(np.array([2, 3]), np.array([4, 2]), np.array([1, 9, 2, 4, 7, 8])).tolist()
        [3, 5]
    """
    calls = np.arange(len(operators))
    first = np.cumsum(arguments) - arguments
    table = np.full((len(operators), int(arguments.max(initial=1))), 10, np.int8)
    row = np.repeat(calls, arguments)
    table[row, np.arange(len(digits)) - np.repeat(first, arguments)] = digits
    total = np.where(table < 10, table, 0).sum(axis=1, dtype=np.int64)
    table.sort(axis=1)
    middle = (table[calls, (arguments - 1) // 2] + table[calls, arguments // 2]) // 2
    largest = table[calls, arguments - 1]
    return np.choose(operators, [table[:, 0], largest, middle, total % 10]).astype(np.int64)


def spelled(symbols: UInt8[np.ndarray, " length"]) -> str:
    """The expression in words, as the Long Range Arena writes it after preprocessing."""
    return " ".join(SYMBOLS[symbol] if symbol < UNKNOWN else "?" for symbol in symbols)
