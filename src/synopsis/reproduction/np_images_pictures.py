"""Pictures of completed images. They need matplotlib (the extra ``plot``)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from torch import Generator, Tensor

from synopsis.processes.base import Process
from synopsis.reproduction.looks import DOTS_PER_INCH
from synopsis.tasks.image_files import SetName, SplitName
from synopsis.tasks.images import ImageCompletion

SHOWN = (10, 50, 100, 300)  # given pixels
_TITLES = {"seen": "a class it was trained on", "unseen": "a class it has never seen"}
_UNKNOWN = np.array([0.62, 0.74, 0.87])  # light blue, which no grey image has
_LARGEST_STDDEV = 0.4
_SEED = 0


class Completion(NamedTuple):
    """An image that is given in part, and what a process makes of it; values are 0 to 1."""

    given: Float[np.ndarray, "side side 3"]
    mean: Float[np.ndarray, "side side 3"]
    stddev: Float[np.ndarray, "side side"]  # mean over channels


def draw(
    processes: Mapping[str, Process], dataset: SetName, splits: Sequence[SplitName], out: Path
) -> list[Path]:
    """Draw an image of each split, completed by each process from more and more pixels, beside a page.

    Args:
        processes: by the name they are shown under.
        dataset: of the images.
        splits: one image of each is shown, its first.
        out: of the page; the picture is named after it.

    Returns:
        The path of the PNG; nothing when there is no process.
    """
    if not processes:
        return []
    side = ImageCompletion(dataset).side
    counts = [*(count for count in SHOWN if count < side**2), side**2]
    picture, axes = _grid(1 + 2 * len(processes), len(splits), len(counts))
    for number, split in enumerate(splits):
        first = number * (len(counts) + 1)
        block = axes[:, first : first + len(counts)]
        _draw_image(block, ImageCompletion(dataset, split), processes, counts)
        block[0, 0].annotate(
            _TITLES[split], (0.0, 1.35), xycoords="axes fraction", fontsize=12, weight="bold"
        )
    _name_rows(axes[:, 0], list(processes))
    _explain(picture, axes)
    path = out.with_name(f"{out.stem}-completed.png")
    picture.savefig(path, dpi=DOTS_PER_INCH)
    return [path]


def _grid(height: int, images: int, counts: int) -> tuple[Picture, np.ndarray]:
    """Axes without frames; a narrow column keeps the images apart."""
    ratios = ([1.0] * counts + [0.3]) * images
    left, right, top = 1.3, 1.1, 0.75  # inches of margin
    width = sum(ratios) + left + right
    total = height + top + 0.1
    picture = Picture(figsize=(width, total))
    margins = {"left": left / width, "right": 1 - right / width, "bottom": 0.1 / total}
    gaps = {"wspace": 0.05, "hspace": 0.05, "top": 1 - top / total}
    axes = picture.subplots(
        height, len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios, **margins, **gaps}
    )
    for ax in axes.flat:
        ax.set_axis_off()
    return picture, axes


def completion(process: Process, task: ImageCompletion, image: int, given: int) -> Completion:
    """What a process makes of ``given`` random pixels of an image; more pixels contain the fewer."""
    batch = task.whole([image], given, Generator().manual_seed(_SEED))
    with torch.no_grad():
        predicted = process(batch.xc, batch.yc, batch.xt)
    predicted = getattr(predicted, "marginals", predicted)  # of joint predictions, each pixel's own
    shown = np.broadcast_to(_UNKNOWN, (task.side, task.side, 3)).copy()
    places = ((batch.xc[0] + 1) / 2 * (task.side - 1)).round().long().numpy()
    shown[places[:, 0], places[:, 1]] = (batch.yc[0] + 0.5).expand(-1, 3).numpy()
    mean = _square(predicted.mean[0] + 0.5, task.side).clip(0, 1)
    return Completion(shown, mean, _square(predicted.stddev[0], task.side).mean(-1))


def _square(values: Tensor, side: int) -> Float[np.ndarray, "side side 3"]:
    """Pixels in rows and three channels."""
    return values.expand(-1, 3).reshape(side, side, 3).numpy()


def _draw_image(
    axes: np.ndarray, task: ImageCompletion, processes: Mapping[str, Process], counts: Sequence[int]
) -> None:
    for column, given in enumerate(counts):
        whole = given == task.side**2
        axes[0, column].set_title("the image" if whole else f"{given} pixels", fontsize=10)
        for number, process in enumerate(processes.values()):
            shown = completion(process, task, image=0, given=given)
            axes[0, column].imshow(shown.given)
            if not whole:
                axes[1 + 2 * number, column].imshow(shown.mean)
                axes[2 + 2 * number, column].imshow(
                    shown.stddev, cmap="magma", vmin=0, vmax=_LARGEST_STDDEV
                )


def _name_rows(axes: Iterable[Axes], names: Sequence[str]) -> None:
    labels = [
        "given\n(blue: hidden)",
        *(f"{_narrow(name)}:\n{what}" for name in names for what in ("mean", "sd")),
    ]
    for ax, label in zip(axes, labels, strict=True):
        ax.annotate(label, (-0.15, 0.5), xycoords="axes fraction", ha="right", va="center")


def _narrow(name: str) -> str:
    """A name for the margin: what stands in brackets is left to the page, but for its last word.

    Example:
        >>> _narrow("CMANP (`fashion-cmanp`, shipped)")
        'CMANP,\\nshipped'
    """
    model, bracket, inside = name.partition(" (")
    return f"{model},\n{inside.rstrip(')').split()[-1]}" if bracket else model


def _explain(picture: Picture, axes: np.ndarray) -> None:
    low, high = axes[-1, -1].get_position(), axes[1, -1].get_position()
    place = (low.x1 + 0.005, low.y0, 0.009, high.y1 - low.y0)
    bar = picture.colorbar(axes[2, 0].images[0], cax=picture.add_axes(place))
    bar.set_label("sd: how unsure, where 0 is black and 1 white")
    bar.outline.set_visible(False)
