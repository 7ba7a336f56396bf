"""Pictures of what attention costs, both axes logarithmic. They need matplotlib (the extra ``plot``)."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from synopsis.attention.measurement import MIB, Cell, Figure, Method
from synopsis.attention.memory_table import PUBLISHED, TITLES, Figures, Published

# After Okabe and Ito (2008), told apart with every common kind of colour vision.
_LOOKS: dict[Method, tuple[str, str]] = {
    "standard": ("#C44E00", "s"),
    "torch": ("#007F5C", "^"),
    "jax": ("#A0527A", "v"),
    "synopsis": ("#0072B2", "o"),
}
_FAINT, _DOTS_PER_INCH = "#777777", 150


def draw(figures: Figures, out: Path) -> list[Path]:
    """Draw overhead and time over length beside a page.

    Args:
        figures: as measured.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the two PNGs.
    """
    paths = [out.with_name(f"{out.stem}-{what}.png") for what in ("overhead", "time")]
    _draw(paths[0], figures, "overhead, MiB", lambda f: f.overhead / MIB, _published_overhead)
    _draw(paths[1], figures, "CPU time of one call, s", lambda f: f.seconds, None)
    return paths


def _draw(
    path: Path,
    figures: Figures,
    label: str,
    read: Callable[[Figure], float],
    published: Callable[[Axes, bool], None] | None,
) -> None:
    picture = Picture(figsize=(10.0, 4.6), layout="constrained")
    axes = picture.subplots(1, 2, sharey=True)
    for ax, differentiate in zip(axes, (False, True), strict=True):
        if published is not None:
            published(ax, differentiate)
        for method, dtype in _lines(figures):
            points = _points(figures, method, dtype, differentiate, read)
            colour, marker = _LOOKS[method]
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "markersize": 5,
                "linewidth": 1.4,
            }
            hollow = dtype == "bfloat16"
            style |= {"linestyle": "--", "markerfacecolor": "none"} if hollow else {}
            ax.plot(*zip(*points, strict=True), label=f"{TITLES[method]}, {dtype}", **style)
        ax.set_title("forward and backward" if differentiate else "forward", loc="left")
        _finish(ax)
    axes[0].set_ylabel(label)
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    picture.savefig(path, dpi=_DOTS_PER_INCH)


def _lines(figures: Figures) -> Iterable[tuple[Method, str]]:
    return list(dict.fromkeys((cell.method, cell.dtype) for cell in figures))


def _points(
    figures: Figures,
    method: Method,
    dtype: str,
    differentiate: bool,
    read: Callable[[Figure], float],
) -> list[tuple[int, float]]:
    wanted = (method, dtype, differentiate)
    return sorted(
        (cell.keys, read(figure))
        for cell, figure in figures.items()
        if figure is not None and _square(cell) and _key(cell) == wanted and read(figure) > 0
    )


def _square(cell: Cell) -> bool:
    return cell.queries == cell.keys


def _key(cell: Cell) -> tuple[Method, str, bool]:
    return cell.method, cell.dtype, cell.differentiate


def _published_overhead(ax: Axes, differentiate: bool) -> None:
    columns = PUBLISHED[differentiate]
    lines: dict[str, Callable[[Published], float | None]] = {
        "standard (paper)": lambda p: p.standard,
        "memory-efficient (paper)": lambda p: p.efficient,
    }
    for (label, read), marker in zip(lines.items(), ("s", "D"), strict=True):
        points = [(n, size) for n, p in columns.items() if (size := read(p)) is not None]
        style: dict[str, Any] = {
            "color": _FAINT,
            "marker": marker,
            "markersize": 3.5,
            "linewidth": 1.0,
        }
        ax.plot(*zip(*points, strict=True), label=label, linestyle=":", **style)


def _finish(ax: Axes) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("queries and keys")
    ax.grid(which="major", color="#dddddd", linewidth=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
