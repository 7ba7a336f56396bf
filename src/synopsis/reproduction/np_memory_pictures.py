"""Memory and time of every model over the number of context points, both axes logarithmic. Needs matplotlib."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synopsis.reproduction.costs import MIB, Cost
from synopsis.reproduction.looks import DOTS_PER_INCH, look, tidy
from synopsis.reproduction.np_memory import TARGETS, Costs, lines, title

_Read = Callable[[Cost], float | None]


def draw(costs: Costs, out: Path) -> list[Path]:
    """Draw memory and time beside a page.

    Args:
        costs: as measured.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the two PNGs.
    """
    memory: dict[str, _Read] = {
        "kept of a task, bytes": lambda cost: cost.kept,
        "peak extra memory, MiB": lambda cost: None if cost.peak is None else cost.peak / MIB,
    }
    time: dict[str, _Read] = {
        f"condition and answer {TARGETS} targets, CPU-s": _first_answer,
        f"one more point and {TARGETS} targets, CPU-s": _next_answer,
    }
    paths = [out.with_name(f"{out.stem}-{what}.png") for what in ("memory", "time")]
    for path, panels in zip(paths, (memory, time), strict=True):
        _draw(path, costs, panels)
    return paths


def _first_answer(cost: Cost) -> float | None:
    if cost.conditioning is None or cost.query is None:
        return None
    return cost.conditioning.seconds + cost.query.seconds


def _next_answer(cost: Cost) -> float | None:
    if cost.update is None or cost.query is None:
        return None
    return cost.update.seconds + cost.query.seconds


def _draw(path: Path, costs: Costs, panels: dict[str, _Read]) -> None:
    picture = Figure(figsize=(11.0, 5.0), layout="constrained")
    axes = picture.subplots(1, len(panels))
    for ax, (label, read) in zip(axes, panels.items(), strict=True):
        drawn = list(lines(costs, read))
        for name, points in drawn:
            _line(ax, name, points)
        _name_together(ax, drawn)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("points in the context, N")
        ax.set_title(label, loc="left", fontsize=10)
        tidy(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False)
    picture.savefig(path, dpi=DOTS_PER_INCH)


def _line(ax: Axes, name: str, points: list[tuple[int, float]]) -> None:
    style = look(name)
    x, y = [n for n, _ in points], [value for _, value in points]
    ax.plot(
        x,
        y,
        label=title(name),
        color=style.color,
        marker=style.marker,
        linestyle=style.linestyle,
        markersize=5,
        linewidth=1.4,
    )


def _name_together(ax: Axes, drawn: list[tuple[str, list[tuple[int, float]]]]) -> None:
    """Say so where several models share a line, of which only the last is seen."""
    together: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, points in drawn:
        together.setdefault(tuple(points), []).append(name)
    for shared, names in together.items():
        if len(names) == 1 or not shared:
            continue
        n, value = shared[len(shared) // 2]
        text = " = ".join(map(title, names)) if len(names) < 4 else f"{len(names)} models in one"
        colour = look(names[-1]).color
        ax.annotate(
            text, (n, value), (6, -12), textcoords="offset points", fontsize=8, color=colour
        )
