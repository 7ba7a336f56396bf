"""Learning curves on the tasks of the Long Range Arena. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synopsis.reproduction.looks import DOTS_PER_INCH, tidy
from synopsis.reproduction.luna_lra import Result
from synopsis.reproduction.luna_memory_page import TITLES
from synopsis.reproduction.luna_memory_pictures import COLOURS, learning_curves, levels

_LEAST_SHOWN = 20.0  # percentage points of a panel


def draw(found: Sequence[Result], out: Path) -> list[Path]:
    """Draw one panel for each task beside a page.

    Args:
        found: of the page.
        out: of the page; the picture is named after it.

    Returns:
        The path of the PNG; none where nothing was evaluated twice on the way.
    """
    shown = [
        (result, runs)
        for result in found
        if (runs := [run for run in result.runs if len(run.curve) > 1])
    ]
    if not shown:
        return []
    picture = Figure(figsize=(1.0 + 5.0 * len(shown), 4.2), layout="constrained")
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    for ax, (result, runs) in zip(panels, shown, strict=True):
        learning_curves(ax, runs, COLOURS, TITLES)
        levels(ax, result.baselines)
        ax.set_title(result.title, loc="left", fontsize=9)
        ax.set_xlabel("steps")
        _widen(ax)
        tidy(ax)
    panels[0].set_ylabel("accuracy on validation examples, %")
    known = {  # a model may be in one panel only
        label: handle
        for ax in panels
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    place = {"loc": "outside lower center", "ncols": 3}
    picture.legend(known.values(), known.keys(), **place, frameon=False, fontsize=8)
    path = out.with_name(f"{out.stem}-learning.png")
    picture.savefig(path, dpi=DOTS_PER_INCH)
    return [path]


def _widen(ax: Axes) -> None:
    """Show at least so many points: what is at chance should look as if it were."""
    low, high = ax.get_ylim()
    missing = max(0.0, _LEAST_SHOWN - (high - low))
    ax.set_ylim(low - missing / 2, high + missing / 2)
