"""Names written beside the ends of curves, instead of a legend."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes


class Label(NamedTuple):
    """Text beside the end of a curve."""

    y: float
    text: str
    colour: str


def label_ends(axes: Axes, labels: Iterable[Label], gap: float = 0.055) -> None:
    """Write labels beside the right edge, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.y)
    heights = _apart([(label.y - low) / (high - low) for label in ordered], gap)
    for label, height in zip(ordered, heights, strict=True):
        axes.annotate(
            label.text,
            (1, height),
            (6, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=label.colour,
            va="center",
            fontsize=9,
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The rising heights moved as a pile so that neighbours keep the gap and all stay in [0, 1]."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else max(height, 0.0))
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
