"""How models learn ListOps, and what becomes of their memories on the way. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from synopsis.reproduction.looks import DOTS_PER_INCH, EXACT, tidy
from synopsis.reproduction.luna_memory import Results
from synopsis.reproduction.luna_memory_page import TITLES
from synopsis.reproduction.memory_columns import COLUMNS, Column
from synopsis.reproduction.sequence_runs import SequenceRun

COLOURS = {"Luna": "#D55E00", "ConvLuna": "#0072B2", "Vanilla": "#009E73"}
_LINES = ("-", "--", ":")  # of the first seeds
_CURVES = ("effective rank", "pack entropy", "pack TV", "unpack entropy")  # of the last layer


def draw(found: Results, out: Path) -> list[Path]:
    """Draw learning curves and memories beside a page.

    Args:
        found: of the table.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the PNGs, without one for which there is nothing to show.
    """
    drawn = []
    for what, make in (("learning", _learning), ("memory", _memory)):
        picture = make(found)
        if picture is not None:
            drawn.append(out.with_name(f"{out.stem}-{what}.png"))
            picture.savefig(drawn[-1], dpi=DOTS_PER_INCH)
    return drawn


def _learning(found: Results) -> Figure | None:
    runs = [run for run in found.main if len(run.curve) > 1]
    if not runs:
        return None
    picture = Figure(figsize=(11.0, 4.4), layout="constrained")
    left, right = picture.subplots(1, 2)
    learning_curves(left, runs, COLOURS, TITLES)
    levels(left, found.baselines)
    for run in runs:
        steps, losses = zip(*run.losses, strict=True)
        right.plot(steps, losses, color=COLOURS[run.name], linestyle=_line(run), linewidth=1.2)
    for ax in (left, right):
        ax.set_xlabel("steps")
        tidy(ax)
    left.set_ylabel("accuracy on validation examples, %")
    right.set_ylabel("training loss, nats")
    picture.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return picture


def learning_curves(
    ax: Axes,
    runs: Sequence[SequenceRun],
    colours: Mapping[str, str],
    titles: Mapping[str, str],
) -> None:
    """Validation accuracy, percent, against steps; a colour for each model, a line for each seed."""
    for run in runs:
        points = [(point.step, 100 * point.accuracy) for point in run.curve]
        label = titles.get(run.name, run.name) if run.seed == 0 else None
        (drawn,) = ax.plot(*zip(*points, strict=True), label=label, linewidth=1.4)
        drawn.set(color=colours[run.name], linestyle=_line(run))


def levels(ax: Axes, baselines: Mapping[str, float]) -> None:
    """Horizontal lines where what needs no model stands."""
    for name, accuracy in baselines.items():
        ax.axhline(100 * accuracy, color=EXACT, linewidth=0.8, linestyle=":")
        text = ax.text(1.01, 100 * accuracy, name.replace(" ", "\n"), color=EXACT, fontsize=7)
        text.set(ha="left", va="center", transform=ax.get_yaxis_transform())


def _memory(found: Results) -> Figure | None:
    shown = {run.name: run for run in found.main if run.seed == 0 and len(run.memories) > 1}
    if not shown:
        return None
    picture = Figure(figsize=(12.0, 6.4), layout="constrained")
    grid = picture.add_gridspec(2, 1)
    above, below = picture.add_subfigure(grid[0]), picture.add_subfigure(grid[1])
    _heat_maps(above, shown)
    for ax, name in zip(below.subplots(1, len(_CURVES)), _CURVES, strict=True):
        for run in shown.values():
            points = _series(run, COLUMNS[name])
            if points:
                label = TITLES[run.name] if name == _CURVES[0] else None
                ax.plot(*zip(*points, strict=True), color=COLOURS[run.name], label=label)
        ax.set_title(f"{name}, last layer", loc="left", fontsize=9)
        ax.set_xlabel("steps")
        tidy(ax)
    below.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return picture


def _heat_maps(picture: SubFigure, shown: Mapping[str, SequenceRun]) -> None:
    """Cosine between cells, by layer and step, on one scale."""
    find = COLUMNS["cosine"].of
    maps = {
        name: [[find(layer) or 0.0 for layer in report.layers] for _, report in run.memories]
        for name, run in shown.items()
    }
    widest = max(abs(value) for rows in maps.values() for row in rows for value in row) or 1.0
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    image = None
    for ax, (name, rows) in zip(panels, maps.items(), strict=True):
        steps = [step for step, _ in shown[name].memories]
        values = list(zip(*rows, strict=True))
        layers = range(1, len(values) + 1)
        scale = {"cmap": "RdBu_r", "vmin": -widest, "vmax": widest}
        image = ax.pcolormesh(steps, layers, values, shading="nearest", **scale)
        ax.set_title(f"{TITLES[name]}: cosine between cells", loc="left", fontsize=9)
        ax.set_yticks(list(layers))
        ax.set_xlabel("steps")
    panels[0].set_ylabel("layer")
    assert image is not None  # there was something to show
    picture.colorbar(image, ax=list(panels))


def _series(run: SequenceRun, column: Column) -> list[tuple[int, float]]:
    points = ((step, column.of(report.layers[-1])) for step, report in run.memories)
    return [(step, value) for step, value in points if value is not None]


def _line(run: SequenceRun) -> str:
    return _LINES[run.seed % len(_LINES)]
