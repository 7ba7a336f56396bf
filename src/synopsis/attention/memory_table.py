"""The paper's table of what attention costs, measured again: which cells it has, what was published, and its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from synopsis.attention.measurement import (
    DIM,
    MIB,
    Cell,
    Dtype,
    Figure,
    FreshProcesses,
    Method,
    is_bearable,
    methods,
)

SHORTEST, FEW_QUERIES, MOST_KEYS = 2**8, 2**8, 2**20
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
TITLES: dict[Method, str] = {
    "standard": "standard",
    "torch": "torch",
    "synopsis": "Synopsis",
    "jax": "JAX",
}
Figures = Mapping[Cell, Figure | None]
_CELL_COST = 2**25  # what starting a cell costs, in pairs


@dataclass(frozen=True)
class Published:
    """One column of the paper's tables 2 and 3.

    Args:
        standard: overhead of standard attention, MiB; None: out of memory.
        efficient: overhead of the paper's method, MiB.
        milliseconds: of the paper's method on one TPU v3.
    """

    standard: float | None
    efficient: float
    milliseconds: float


# Rabe and Staats (2021): one head, width 64, bfloat16 inputs and float32 output, on a TPU v3.
PUBLISHED: dict[bool, dict[int, Published]] = {
    False: {
        2**8: Published(270 / 1024, 270 / 1024, 0.06),
        2**10: Published(4, 4, 0.11),
        2**12: Published(64, 16, 0.7),
        2**14: Published(1024, 17, 11.3),
        2**16: Published(None, 21, 177),
        2**18: Published(None, 64, 2820),
        2**20: Published(None, 256, 45200),
    },
    True: {
        2**8: Published(532 / 1024, 532 / 1024, 0.1),
        2**10: Published(8, 8, 0.18),
        2**12: Published(128, 41, 1.4),
        2**14: Published(2048, 64, 21),
        2**16: Published(None, 257, 336),
        2**18: Published(None, 1024, 5300),
        2**20: Published(None, 4096, 85000),
    },
}
# What the paper says in words for 2¹⁴, from figures it had not rounded yet.
PUBLISHED_RATIO = {False: 59, True: 32}


def cells(largest: int) -> list[Cell]:
    """All cells of the table, the cheap ones first.

    Args:
        largest: queries and keys of the longest square cell; lengths are 256 times a power of 4. Few queries meet up to
            64 times as many keys, but no more than 2²⁰.

    Example:
        >>> len(cells(256)) // len(methods())
        8
    """
    lengths = [n for i in range(12) if (n := SHORTEST * 4**i) <= largest]
    shapes = [(n, n, differentiate) for n, differentiate in product(lengths, (False, True))]
    many = {min(factor * lengths[-1], MOST_KEYS) for factor in (16, 64)}
    shapes += [(FEW_QUERIES, keys, False) for keys in many]
    shapes.sort(key=lambda shape: shape[0] * shape[1])
    return [
        Cell(method, queries, keys, dtype, differentiate)
        for (queries, keys, differentiate), dtype, method in product(shapes, DTYPES, methods())
    ]


def cost(cell: Cell) -> int:
    """About how long a cell takes, in arbitrary units, for a progress bar."""
    return _CELL_COST + cell.pairs * (4 if cell.differentiate else 1)


def measure(
    planned: Sequence[Cell],
    repeats: int = 3,
    watch: Callable[[Cell, bool], None] = lambda *_: None,
) -> dict[Cell, Figure | None]:
    """Measure every cell that memory allows, each in a fresh process; None for the others.

    Args:
        planned: which.
        repeats: timed calls of each, 1 or more.
        watch: called with a cell before it (False) and after it (True).
    """
    figures: dict[Cell, Figure | None] = {}
    with FreshProcesses() as fresh:
        for cell in planned:
            watch(cell, False)
            figures[cell] = fresh.measure(cell, repeats) if is_bearable(cell) else None
            watch(cell, True)
    return figures


def markdown(figures: Figures, command: str, pictures: Sequence[str], versions: str) -> str:
    """The page: a table for each dtype and direction, the paper's figures beside, and the command that made it."""
    sections = []
    for differentiate, dtype in product((False, True), DTYPES):
        title = "Forward and backward" if differentiate else "Forward"
        sections += [f"## {title}, {dtype}", _square(figures, dtype, differentiate)]
    sections += ["## Few queries, many keys, forward", _few(figures)]
    shown = [f"![{name}]({name})" for name in pictures]
    parts = [_HEAD.format(dim=DIM), _headline(figures), *shown, *sections]
    return "\n\n".join([*parts, _TAIL.format(command=command, versions=versions)])


def _square(figures: Figures, dtype: Dtype, differentiate: bool) -> str:
    chosen = [c for c in figures if (c.dtype, c.differentiate) == (dtype, differentiate)]
    lengths = sorted({c.keys for c in chosen if c.queries == c.keys})
    names = _methods(figures)
    head = ["n", *(f"{TITLES[m]}, MiB" for m in names), "standard ÷ Synopsis"]
    head += ["paper: standard, MiB", "paper: theirs, MiB", "paper: ratio"]
    head += [*(f"{TITLES[m]}, CPU-ms" for m in names), "paper: theirs, TPU-ms"]
    rows = []
    for n in lengths:
        found = [figures[Cell(m, n, n, dtype, differentiate)] for m in names]
        paper = PUBLISHED[differentiate].get(n)
        row = [f"{n:,}", *map(_memory, found), _ratio(found[0], found[names.index("synopsis")])]
        row += _published(paper) + [_milliseconds(f) for f in found]
        rows.append([*row, "–" if paper is None else f"{paper.milliseconds:,g}"])
    return _table(head, rows)


def _few(figures: Figures) -> str:
    names = _methods(figures)
    chosen = {replace(c, method="standard") for c in figures if c.queries != c.keys}
    rows = []
    for cell in sorted(chosen, key=lambda c: (c.dtype != "float32", c.keys)):
        found = [figures[replace(cell, method=m)] for m in names]
        rows.append([f"{cell.queries} × {cell.keys:,}", cell.dtype, *map(_memory, found)])
        rows[-1] += [_milliseconds(f) for f in found]
    head = ["queries × keys", "dtype", *(f"{TITLES[m]}, MiB" for m in names)]
    return _table([*head, *(f"{TITLES[m]}, CPU-ms" for m in names)], rows)


def _headline(figures: Figures) -> str:
    """Standard attention's overhead over ours at the longest length that standard attention could do."""
    lines = []
    for differentiate in (False, True):
        what = "forward and backward" if differentiate else "forward"
        both = [
            (n, _ratio(figures[Cell("standard", n, n, "float32", differentiate)], ours))
            for n in sorted({c.keys for c in figures if c.queries == c.keys})
            if (ours := figures[Cell("synopsis", n, n, "float32", differentiate)])
        ]
        n, ratio = [pair for pair in both if pair[1] != "–"][-1] if len(both) > 1 else both[0]
        theirs = _published(PUBLISHED[differentiate].get(n))[2]
        theirs = f"{PUBLISHED_RATIO[differentiate]}×" if n == 2**14 else theirs
        lines.append(
            f"- {what}, n = {n:,}, float32: standard attention's overhead is **{ratio}** ours "
            f"(paper: {theirs} theirs)"
        )
    return "\n".join(lines)


def _methods(figures: Figures) -> list[Method]:
    return [m for m in TITLES if any(c.method == m for c in figures)]


def _published(paper: Published | None) -> list[str]:
    if paper is None:
        return ["–"] * 3
    standard = "out of memory" if paper.standard is None else _mebibytes(paper.standard)
    ratio = "–" if paper.standard is None else f"{paper.standard / paper.efficient:,.0f}×"
    return [standard, _mebibytes(paper.efficient), ratio]


def _memory(figure: Figure | None) -> str:
    return "–" if figure is None else _mebibytes(figure.overhead / MIB)


def _mebibytes(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}" if size >= 0.05 else "< 0.05"


def _milliseconds(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return (
        f"{figure.seconds * 1e3:,.0f}" if figure.seconds >= 0.1 else f"{figure.seconds * 1e3:.3g}"
    )


def _ratio(standard: Figure | None, ours: Figure | None) -> str:
    if standard is None or ours is None or standard.overhead < MIB:
        return "–"
    return f"{standard.overhead / max(ours.overhead, MIB // 20):,.0f}×"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_HEAD = """# What attention costs: time and memory

Batch 1, one head of width {dim}, no mask: the setting of Rabe and Staats, "Self-attention Does Not Need O(n²)
Memory" (2021). *Overhead* is counted as there: peak memory minus inputs and outputs. Backward starts from a given
gradient of the output; outputs are then the output and three gradients. *standard* is `softmax(q kᵀ/√d) v` written
out, *torch* its `scaled_dot_product_attention`, *Synopsis* ours."""

_TAIL = """- Memory is resident memory of a process of its own for each cell, after a warm-up call with 64 queries and
  keys; below about 1 MiB it is mostly code and scratch of libraries that the first larger call touches.
- Time is CPU time on one thread, the median of repeated calls; the paper's times are those of a TPU v3 chip.
- "–" was not run, or not published: standard attention is not run beyond 2²⁸ pairs, nor JAX, which stores all
  scores as well.
- The paper's inputs are bfloat16 and its output float32.

The command, with {versions}:

    {command}
"""
