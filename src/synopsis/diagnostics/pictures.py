"""What became of a memory in training: cosines by layer and step, and a curve of each layer for the rest.

They need matplotlib (the extra ``plot``).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from synopsis.diagnostics.report import MemoryReport

History = Sequence[tuple[int, MemoryReport]]
_Where = tuple[str, str]  # part of a layer's report, and its number
_Colour = tuple[float, float, float, float]

_DOTS_PER_INCH = 150
_FAINT = "#777777"
_GRID = "#dddddd"
_MARKED = 40  # points of a curve, beyond which its marks would touch
_READABLE = 120  # cells of the heat map, beyond which numbers do not fit into them


def draw_memory(history: History, path: Path, title: str = "") -> None:
    """Draw the reports of a training as one picture of eight panels.

    Args:
        history: steps and their reports, at least one, all of the same model.
        path: of the PNG to write.
        title: above all panels.

    Raises:
        ValueError: when there is no report.
    """
    if not history:
        raise ValueError("there are no reports of a memory to draw")
    picture = Figure(figsize=(16.0, 7.6), layout="constrained")
    axes = picture.subplots(2, 4)
    _heat(picture, axes[0, 0], history)
    for ax, panel in zip(axes.flat[1:], _PANELS, strict=True):
        _curves(ax, history, panel)
    colours = _colours(len(history[0][1].layers))
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=f"layer {i}")
        for i, colour in enumerate(colours, start=1)
    ]
    picture.legend(handles=handles, loc="outside right center", frameon=False)
    picture.suptitle(title, x=0.01, ha="left", fontsize=11)
    picture.savefig(path, dpi=_DOTS_PER_INCH)


class _Panel(NamedTuple):
    """Curves of one kind.

    Args:
        title: above them.
        span: of the axis at least, so that a change too small to matter does not fill the panel.
        solid: what is drawn of each layer.
        dashed: what is drawn dashed beside it.
    """

    title: str
    span: float
    solid: _Where
    dashed: _Where | None = None


_PANELS = (
    _Panel("effective rank of the memory", 2.0, ("memory_out", "effective_rank")),
    _Panel("cells that hold 90 % of what items ask", 2.0, ("unpack", "cells_for_90")),
    _Panel("norms: memory (dashed: packed)", 1.0, ("memory_out", "norm"), ("pack", "norm")),
    _Panel("pack: entropy / ln n", 0.1, ("pack", "entropy")),
    _Panel("pack: total variation between cells", 0.1, ("pack", "total_variation")),
    _Panel("unpack: entropy / ln m", 0.1, ("unpack", "entropy")),
    _Panel(
        "temperature of pack (dashed: unpack)",
        0.1,
        ("pack", "temperature"),
        ("unpack", "temperature"),
    ),
)


def _heat(picture: Figure, ax: Axes, history: History) -> None:
    """Cosines: a row for what enters the first layer and one for what leaves each, a column for each report."""
    columns = [
        [
            report.layers[0].number("memory_in", "cosine"),
            *(layer.number("memory_out", "cosine") for layer in report.layers),
        ]
        for _, report in history
    ]
    values = np.array(columns, dtype=np.float64).T  # NaN for None
    ax.set_title("cosine between memory vectors", loc="left", fontsize=10)
    if np.isnan(values).all():
        _nothing(ax)
        return
    lowest = min(0.0, float(np.nanmin(values)))
    mesh = ax.imshow(
        values, aspect="auto", origin="lower", cmap="viridis", vmin=lowest, vmax=1.0,
        interpolation="nearest",
    )  # fmt: skip
    picture.colorbar(mesh, ax=ax, pad=0.01)
    ax.set_yticks(range(len(values)), ["first in", *map(str, range(1, len(values)))])
    ax.set_ylabel("memory after layer")
    shown = np.unique(np.linspace(0, len(history) - 1, min(5, len(history))).round().astype(int))
    ax.set_xticks(shown, [f"{history[i][0]:,}" for i in shown])
    ax.set_xlabel("step")
    if values.size <= _READABLE:
        _write(ax, values)


def _write(ax: Axes, values: Float[np.ndarray, "rows reports"]) -> None:
    """The numbers in their cells."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _curves(ax: Axes, history: History, panel: _Panel) -> None:
    """One panel: a curve of each layer."""
    ax.set_title(panel.title, loc="left", fontsize=10)
    marked = len(history) <= _MARKED
    for where, line, mark in ((panel.solid, "-", "o"), (panel.dashed, "--", "s")):
        for steps, values, colour in _lines(history, where) if where else ():
            mark = mark if marked else ""
            ax.plot(steps, values, line, color=colour, marker=mark, markersize=3, linewidth=1.4)
    if not ax.lines:
        _nothing(ax)
        return
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    low, high = ax.get_ylim()
    if high - low < panel.span:
        ax.set_ylim((low + high - panel.span) / 2, (low + high + panel.span) / 2)
    ax.grid(color=_GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _lines(
    history: History, where: _Where
) -> Iterator[tuple[list[int], Float[np.ndarray, " reports"], _Colour]]:
    """Steps, values and colour of each layer that has any."""
    steps = [step for step, _ in history]
    for i, colour in enumerate(_colours(len(history[0][1].layers))):
        numbers = [report.layers[i].number(*where) for _, report in history]
        values = np.array(numbers, dtype=np.float64)  # NaN for None
        if np.isfinite(values).any():
            yield steps, values, colour


def _nothing(ax: Axes) -> None:
    """Say why a panel is empty."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, "not defined for this model", ha="center", color=_FAINT, fontsize=9)


def _colours(layers: int) -> list[_Colour]:
    """From light to dark with depth, none too pale to see."""
    return [colormaps["viridis_r"](0.15 + 0.85 * i / max(1, layers - 1)) for i in range(layers)]


__all__ = ["History", "draw_memory"]
