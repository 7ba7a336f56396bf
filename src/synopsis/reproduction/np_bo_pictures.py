"""Pictures of Bayesian optimisation: regret over decisions. They need matplotlib (the extra ``plot``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator

from synopsis.reproduction.looks import DOTS_PER_INCH, EXACT, look, tidy
from synopsis.reproduction.np_bo import REFERENCES, Row, standard_error
from synopsis.reproduction.np_gp import KERNELS
from synopsis.tasks.oracle_table import TITLES as KERNEL_TITLES

_REFERENCES = {"exact": "-", "refitted": "--", "random": ":"}
_RULES = {True: "a place may be chosen again", False: "no place is chosen twice"}
_LEAST = 1e-3  # what a logarithmic axis shows of a regret of nothing


def draw(grid: Sequence[Row], plane: Sequence[Row], out: Path) -> list[Path]:
    """Draw regret curves beside a page.

    Args:
        grid: of one dimension; empty where it was left out.
        plane: of two; likewise.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the PNGs.
    """
    paths = []
    for what, picture in (("1d", _grid(grid)), ("2d", _plane(plane))):
        if picture is not None:
            paths.append(out.with_name(f"{out.stem}-{what}.png"))
            picture.savefig(paths[-1], dpi=DOTS_PER_INCH)
    return paths


def _grid(rows: Sequence[Row]) -> Picture | None:
    if not rows:
        return None
    picture = Picture(figsize=(12.0, 7.0), layout="constrained")
    axes = picture.subplots(len(_RULES), len(KERNELS), sharex=True, sharey=True)
    for line, (repeats, rule) in zip(axes, _RULES.items(), strict=True):
        for ax, kernel in zip(line, KERNELS, strict=True):
            _curves(ax, rows, (kernel, repeats))
            ax.set_title(KERNEL_TITLES[kernel] if repeats else "", loc="left", fontsize=10)
        line[0].set_ylabel(f"regret, {rule}")
    return _finished(
        picture, axes, "Functions of one input: mean regret ± one standard error, lower is better"
    )


def _plane(rows: Sequence[Row]) -> Picture | None:
    names = list(dict.fromkeys(cell for row in rows for cell in row.played))
    if not names:
        return None
    picture = Picture(figsize=(12.0, 4.2), layout="constrained")
    axes = picture.subplots(1, len(names), squeeze=False)
    for ax, cell in zip(axes[0], names, strict=True):
        _curves(ax, rows, cell)
        ax.set_title(cell[0], loc="left", fontsize=10)
    axes[0, 0].set_ylabel("regret, in units of the function")
    return _finished(
        picture, axes, "Functions of two inputs: mean regret ± one standard error, lower is better"
    )


def _curves(ax: Axes, rows: Sequence[Row], cell: tuple[str, bool]) -> None:
    for row in rows:
        if cell not in row.played:
            continue
        regret = row.played[cell].regret
        mean, error = regret.mean(0), standard_error(regret).nan_to_num()
        steps, style = range(len(mean)), _style(row.name)
        ax.plot(steps, mean.clamp(min=_LEAST), label=row.title, **style)
        low, high = (mean - error).clamp(min=_LEAST), (mean + error).clamp(min=_LEAST)
        ax.fill_between(steps, low, high, color=style["color"], alpha=0.1, linewidth=0)
    ax.set_yscale("log")
    tidy(ax)


def _style(name: str) -> dict[str, Any]:
    if name in REFERENCES:
        return {"color": EXACT, "linestyle": _REFERENCES[name], "linewidth": 1.4}
    found = look(name)
    return {"color": found.color, "linestyle": found.linestyle, "linewidth": 1.6}


def _finished(picture: Picture, axes: Any, heading: str) -> Picture:
    for ax in axes[-1]:
        ax.set_xlabel("decisions")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False)
    picture.suptitle(heading, fontsize=12)
    return picture
