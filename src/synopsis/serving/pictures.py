"""The pictures of a report: fan, reliability and cost. They need matplotlib (the extra ``plot``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from synopsis.serving.exact_gp import GaussianProcessCost
from synopsis.serving.labels import Label, label_ends
from synopsis.serving.trace import FIELDS, Cost, Rows, Trace

# After Okabe and Ito (2008), told apart with every common kind of colour vision; dark enough to write with.
BLUE, AMBER, GREEN, VERMILION, PURPLE = "#0072B2", "#B27300", "#007F5C", "#C44E00", "#A0527A"
INK, FAINT, PALE, PALER, DIM = "#222222", "#777777", "#7fb8d8", "#d3e6f1", "#3f7f9f"
_METHOD_LOOKS = ((BLUE, "o"), (AMBER, "s"), (GREEN, "^"), (VERMILION, "D"), (PURPLE, "v"))
_DOTS_PER_INCH = 150
_NORMAL_95 = 1.96
_HEADING: dict[str, Any] = {"x": 0.02, "ha": "left", "weight": "bold", "fontsize": 11, "color": INK}


def draw_fan(path: Path, trace: Trace, name: str, horizon: int = 1) -> None:
    """Draw predicted bands, median and outcomes: the last rows large and, if there are more, the whole stream below.

    Args:
        path: of the PNG to write.
        trace: what was kept of the run.
        name: of y, with its unit if it has one.
        horizon: rows predicted before their outcomes are absorbed.
    """
    recent, whole = trace.recent.rows, trace.whole.rows
    longer = len(whole) > 0 and whole[0, 0] < recent[0, 0]
    figure = _figure(10.0, 6.4 if longer else 4.6)
    heights = [2.6, 1.0] if longer else [1.0]
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_bands(axes[0], recent, dots=3.4, line=1.1)
    ahead = "one row ahead" if horizon == 1 else f"{horizon} rows at a time"
    _title(axes[0], f"{name}, predicted {ahead}", _within(recent))
    columns = {field: recent[-1, FIELDS.index(field)] for field in FIELDS}
    label_ends(axes[0], _band_labels(columns))
    axes[0].set_ylabel(name)
    if longer:
        _draw_bands(axes[1], whole, dots=1.0, line=0.5)
        stride = "" if trace.whole.stride == 1 else f", every {trace.whole.stride}th row"
        _title(
            axes[1], "", f"the whole run{stride}; the last {len(recent)} rows, shaded, are above"
        )
        axes[1].axvspan(recent[0, 0], recent[-1, 0], color="#eeeeee", zorder=0, lw=0)
    axes[-1].set_xlabel("row")
    _save(figure, path)


def _draw_bands(axes: Axes, rows: Rows, dots: float, line: float) -> None:
    columns = dict(zip(FIELDS, rows.T, strict=True))
    x = columns["row"]
    axes.fill_between(x, columns["q05"], columns["q95"], color=PALER, lw=0)
    axes.fill_between(x, columns["q25"], columns["q75"], color=PALE, lw=0)
    axes.plot(x, columns["q50"], color=BLUE, lw=line)
    axes.plot(x, columns["y"], ".", color=INK, ms=dots, mew=0)
    axes.set_xlim(x[0], x[-1] if len(x) > 1 else x[0] + 1)
    axes.set_ylim(*_limits(columns))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _limits(columns: Mapping[str, Rows]) -> tuple[float, float]:
    """All outcomes, and all but the widest bands: the first rows know nothing yet."""
    y = columns["y"][~np.isnan(columns["y"])]
    low = min([float(np.quantile(columns["q05"], 0.02)), *y])
    high = max([float(np.quantile(columns["q95"], 0.98)), *y])
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _within(rows: Rows) -> str:
    """How many outcomes fell where they should."""
    columns = dict(zip(FIELDS, rows.T, strict=True))
    known = ~np.isnan(columns["y"])
    inside = (columns["q05"] <= columns["y"]) & (columns["y"] <= columns["q95"])
    if not known.any():
        return "no outcome is known yet"
    share = 100 * inside[known].mean()
    return f"90 % of outcomes should fall in the pale band; of these {known.sum():,} it was {share:.1f} %"


def _band_labels(last: Mapping[str, float]) -> list[Label]:
    labels = [
        Label(last["q95"], "90 % band", DIM),
        Label(last["q75"], "50 % band", BLUE),
        Label(last["q50"], "median", BLUE),
    ]
    return labels if np.isnan(last["y"]) else [*labels, Label(last["y"], "• outcome", INK)]


def draw_reliability(path: Path, pits: Mapping[str, Sequence[int]]) -> None:
    """Draw PIT histograms, which should be flat, and how often central intervals held the outcome.

    Args:
        path: of the PNG to write.
        pits: PIT counts in an even number of equal bins by method; the process first.
    """
    figure = _figure(10.0, 4.9)
    halves = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.0, 1.1], wspace=0.04)
    left, right = halves[0]
    columns = 2 if len(pits) > 1 else 1
    grid = left.subplots(-(-len(pits) // columns), columns, sharex=True, sharey=True, squeeze=False)
    highest = max(_density(counts).max() for counts in pits.values())
    for axes, (name, counts), (colour, _) in zip(
        grid.flat, pits.items(), _METHOD_LOOKS, strict=False
    ):
        _draw_pit(axes, name, np.asarray(counts), colour)
        axes.set_ylim(0, min(1.15 * max(highest, 1.6), 5.0))
    left.suptitle("Where outcomes fell; calibrated: flat, within grey", **_HEADING)
    left.supxlabel("predicted probability of a smaller outcome", fontsize=9)
    left.supylabel("outcomes, 1 = as many as expected", fontsize=9)
    right.suptitle("How often intervals held the outcome", **_HEADING)
    _draw_coverage(right.subplots(), pits)
    _save(figure, path)


def _density(counts: Sequence[int]) -> Rows:
    """Relative to a flat histogram."""
    found = np.asarray(counts, dtype=float)
    return found * len(found) / max(found.sum(), 1.0)


def _draw_pit(axes: Axes, name: str, counts: Any, colour: str) -> None:
    bins, total = len(counts), max(int(counts.sum()), 1)
    edges = np.linspace(0, 1, bins + 1)
    spread = _NORMAL_95 * np.sqrt(bins / total * (1 - 1 / bins))
    axes.axhspan(max(0.0, 1 - spread), 1 + spread, color="#e4e4e4", lw=0, zorder=0)
    axes.axhline(1.0, color=FAINT, lw=0.7, zorder=1)
    axes.stairs(_density(counts), edges, fill=True, color=colour, alpha=0.75, lw=0, zorder=2)
    axes.set_title(name, loc="left", color=colour, fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _draw_coverage(axes: Axes, pits: Mapping[str, Sequence[int]]) -> None:
    axes.plot([0, 100], [0, 100], "--", color=FAINT, lw=1.0)
    labels = [Label(90.0, "calibrated  90.0 %", FAINT)]
    drawn = list(zip(pits.items(), _METHOD_LOOKS, strict=False))
    for (name, counts), (colour, marker) in reversed(drawn):  # the process last, on top
        nominal, observed = _coverage(counts)
        width = 2.2 if colour == BLUE else 1.1
        axes.plot(nominal, observed, marker=marker, color=colour, ms=4.5, mew=0, lw=width)
        labels.append(Label(float(observed[-2]), f"{name}  {observed[-2]:.1f} %", colour))
    axes.set_xlim(0, 90)
    axes.set_ylim(0, 100)
    axes.set_xticks(range(0, 91, 10))
    axes.set_yticks(range(0, 101, 10))
    axes.grid(color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("central interval, %")
    axes.set_ylabel("outcomes inside, %")
    label_ends(axes, labels, gap=0.04)


def _coverage(counts: Sequence[int]) -> tuple[Rows, Rows]:
    """Percent nominal and observed of the central intervals that end on bin edges, from 0 to 100 %."""
    found = np.asarray(counts, dtype=float)
    half = len(found) // 2
    pairs = found[half:] + found[:half][::-1]
    observed = np.concatenate(([0.0], 100 * pairs.cumsum() / max(found.sum(), 1.0)))
    return 100 * np.arange(half + 1) / half, observed


def draw_cost(
    path: Path,
    costs: Sequence[Cost],
    nbytes: int,
    name: str,
    exact: Sequence[GaussianProcessCost],
) -> None:
    """Draw CPU time per observation and bytes against rows seen, beside an exact Gaussian process.

    Args:
        path: of the PNG to write.
        costs: of the process.
        nbytes: of its state, the same at every row.
        name: of the process.
        exact: the Gaussian process refitted at growing sizes.
    """
    figure = _figure(10.0, 4.4)
    time_axes, memory_axes = figure.subplots(1, 2)
    rows, gp_rows = [cost.rows for cost in costs], [cost.rows for cost in exact]
    _draw_costs(
        time_axes,
        (rows, [cost.milliseconds for cost in costs], f"{name}\n{{}} ms"),
        (gp_rows, [cost.milliseconds for cost in exact], "exact GP\n{} ms"),
    )
    _draw_costs(
        memory_axes,
        (rows, [nbytes / 1000] * len(rows), f"{name}\n{{}} kB"),
        (gp_rows, [cost.nbytes / 1000 for cost in exact], "exact GP\n{} kB"),
    )
    _title(
        time_axes, "CPU time per observation, ms", "predict and learn; exact GP: refit and predict"
    )
    _title(memory_axes, "Memory, kB", "state; exact GP: data and Cholesky factor")
    _save(figure, path)


def _draw_costs(axes: Axes, *curves: tuple[Sequence[float], Sequence[float], str]) -> None:
    labels = []
    for (rows, values, text), colour in zip(curves, (BLUE, VERMILION), strict=True):
        if not rows:
            continue
        axes.plot(rows, values, "o-", color=colour, ms=3.5, lw=1.8, mew=0)
        where = (rows[-1], values[-1])
        labels.append(
            (
                where,
                text.format(f"{values[-1]:,.3g}" if values[-1] < 1000 else f"{values[-1]:,.0f}"),
                colour,
            )
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for where, text, colour in labels:
        axes.annotate(
            text,
            where,
            (7, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("rows seen")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _title(axes: Axes, title: str, note: str) -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=11, weight="bold", color=INK, pad=20)
    axes.annotate(
        note,
        (0, 1),
        (0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color="#555555",
    )


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.get_axes():
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#bbbbbb")
        axes.tick_params(which="both", color="#bbbbbb", labelcolor="#444444", labelsize=9)
    figure.savefig(path, dpi=_DOTS_PER_INCH, format="png")
