"""A sheet of Pathfinder pictures to look at, one half of each label."""

from pathlib import Path

import numpy as np

from synopsis.tasks.pathfinder_images import Pictures

COLUMNS = 8
INCHES = 1.2  # per picture


def save_sheet(pictures: Pictures, path: Path | str, rows: int = 2) -> None:
    """Write a PNG: ``rows`` rows of pictures whose discs are joined, then as many of the others.

    Args:
        pictures: at least ``8 × rows`` of either label.
        path: of the file.
        rows: of each label.

    Raises:
        ImportError: there is no matplotlib; it comes with the extra ``plot``.
        ValueError: there are too few pictures of a label.

    Example:
        >>> save_sheet(random_pictures(32, 32, "hard", rng), "pathfinder.png")    # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    size = (COLUMNS * INCHES, (2 * rows + 0.6) * INCHES)
    figure = Figure(figsize=size, layout="constrained")
    halves = np.asarray(figure.subfigures(2, 1))
    for half, label, title in zip(halves, (1, 0), ("joined (1)", "not joined (0)"), strict=True):
        chosen = np.flatnonzero(pictures.labels == label)[: COLUMNS * rows]
        if len(chosen) < COLUMNS * rows:
            raise ValueError(
                f"{len(chosen)} pictures of label {label}; {COLUMNS * rows} are needed"
            )
        half.suptitle(title)
        for axes, row in zip(half.subplots(rows, COLUMNS).flat, chosen, strict=True):
            axes.imshow(pictures.images[row], cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
    figure.savefig(path, dpi=100)
