"""Image completion: an image is a function from the place of a pixel to its value.

Some pixels are the context, some others the targets. Pixel (row r, column c) of a square image of
side S is x = (2r / (S − 1) − 1, 2c / (S − 1) − 1), so −1 to 1 from top to bottom and from left to
right, and y = value / 255 − 0.5 in every channel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.gaussian_process import student_t_noise
from synopsis.tasks.image_files import (
    IMAGE_SETS,
    ImageSet,
    Pixels,
    SetName,
    SplitName,
    load_images,
)
from synopsis.tasks.laws import check_generator, check_settings, integer

STUDENT_T_LARGEST = 0.09  # of the scale drawn per value when student_t is −1


@dataclass(frozen=True)
class ImageCompletion:
    """Complete images from random pixels, as published for neural processes.

    The published law, with P = ``max_points`` and T = ``max_targets``: one number of context
    points N ~ U{3..P−4} and then of targets M ~ U{3..min(P−N, T)−1} per batch; an independent
    random set of N + M pixels for each image; images drawn at random from the split.

    Files are read at the first ``sample``, once per process, so an experiment can be built where
    the images are not; a ``folder`` that is named but not there is an error at once.

    Args:
        dataset: "fashion-mnist", "digits" (8×8, from scikit-learn), "emnist" (balanced, letters
            and digits upright) or "celeba32", "celeba64", "celeba128" (whole faces, shrunk).
        split: "train"; "seen": other images of the same classes; "unseen": images of all other
            classes. Seen are classes 0–4 of Fashion-MNIST and the digits, 0–9 of EMNIST; CelebA
            has no classes, so no "unseen".
        folder: where the files are; see ``image_files.load_images``.
        max_points: P; None for the published 200 (Fashion-MNIST, EMNIST, CelebA 32), 800 (64),
            1600 (128), and 32 for the digits, which is ours.
        max_targets: T; None for P. The published CMANP trains CelebA with 400.
        targets: None for the published law of M; a number gives every task that many targets and
            leaves the law of N alone, which trains faster: targets are cheap, their noise is not.
        min_context: fewest context points, 0 or more.
        min_targets: fewest targets, 1 or more.
        student_t: scale of additional Student-t noise of 2.1 degrees of freedom on every value;
            −1 draws each scale from U[0, 0.09); None for none.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = ImageCompletion("digits", split="unseen")    # needs scikit-learn
        >>> batch = task.sample(16, torch.Generator().manual_seed(0))
        >>> batch.xc.shape[::2], batch.yt.shape[::2]
        (torch.Size([16, 2]), torch.Size([16, 1]))

    Source: Garnelo et al., 2018 (Conditional neural processes), in the protocol of Nguyen &
    Grover, 2022, and Feng et al., 2024. Departure: training images are drawn with replacement,
    not in epochs.
    """

    dataset: SetName = "fashion-mnist"
    split: SplitName = "train"
    folder: str = ""
    max_points: int | None = None
    max_targets: int | None = None
    targets: int | None = None
    min_context: int = 3
    min_targets: int = 3
    student_t: float | None = None
    dim_x = 2  # not a field: images are flat

    def __post_init__(self) -> None:
        _check_task(self)

    @property
    def dim_y(self) -> int:
        """Number of channels."""
        return self._set.channels

    @property
    def side(self) -> int:
        """Height and width of the images, pixels."""
        return self._set.side

    def __len__(self) -> int:
        """Number of images in the split; reads the files."""
        return len(self._images)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw ``batch_size`` images, with one number of context and of target pixels for all.

        Raises:
            FileNotFoundError: the files are not there; says where it looked and how to get them.
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        check_generator(generator)
        images = torch.randint(len(self._images), (batch_size,), generator=generator)
        return self._random_pixels(images, generator)

    def in_order(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Every image of the split once, in the order of the files; the last batch may be smaller.

        Args:
            batch_size: images per batch; 16 in the published evaluation.
            seed: of the pixels and their numbers; every batch has a generator of its own.
        """
        indices = torch.arange(len(self._images)).split(batch_size)
        for number, images in enumerate(indices):
            yield self._random_pixels(images, batch_generator(seed, number))

    def whole(self, images: Sequence[int], context: int, generator: Generator) -> Batch:
        """Given images, with ``context`` random pixels each and all pixels as targets.

        For pictures: targets are row after row, so ``yt`` viewed as (batch, side, side, channels)
        is the image (plus 0.5), and a prediction viewed so is its completion.

        Args:
            images: places in the split.
            context: number of context pixels, 0 … side².
            generator: draws the context, of which smaller ones are the beginning of larger ones.

        Example:
            >>> task = ImageCompletion("digits", split="seen")
            >>> batch = task.whole([0, 3], 10, torch.Generator().manual_seed(0))
            >>> batch.yt.view(2, task.side, task.side, task.dim_y).shape
            torch.Size([2, 8, 8, 1])
        """
        pixels = self.side**2
        if not 0 <= context <= pixels:
            raise ValueError(f"context is {context}; it must lie in 0 … {pixels}")
        order = torch.rand((len(images), pixels), generator=generator).argsort(dim=-1)
        everything = torch.arange(pixels).expand(len(images), pixels)
        chosen = torch.cat([order[:, :context], everything], dim=1)
        return self._batch(torch.tensor(images), chosen, context, generator)

    @property
    def _set(self) -> ImageSet:
        return IMAGE_SETS[self.dataset]

    @property
    def _images(self) -> Pixels:
        return load_images(self.dataset, self.split, self.folder)

    def _random_pixels(self, images: Int[Tensor, " batch"], generator: Generator) -> Batch:
        context, targets = self._sizes(generator)
        # The largest of independent uniform keys are a random set in random order.
        keys = torch.rand((len(images), self.side**2), generator=generator)
        chosen = keys.topk(context + targets, dim=-1).indices
        return self._batch(images, chosen, context, generator)

    def _sizes(self, generator: Generator) -> tuple[int, int]:
        points = self.max_points or self._set.max_points
        context = integer(self.min_context, points - self.min_targets - 1, generator)
        if self.targets is not None:
            return context, self.targets
        largest = min(points - context, self.max_targets or points) - 1
        return context, integer(self.min_targets, largest, generator)

    def _batch(
        self,
        images: Int[Tensor, " batch"],
        chosen: Int[Tensor, "batch points"],
        context: int,
        generator: Generator,
    ) -> Batch:
        side = self.side
        x = 2 * torch.stack([chosen // side, chosen % side], dim=-1) / (side - 1) - 1
        values = torch.from_numpy(self._images[images.numpy()[:, None], chosen.numpy()])
        y = values.float() / self._set.largest - 0.5
        if self.student_t is not None:
            y = y + _pixel_noise(y, self.student_t, generator)
        n = context
        return Batch(xc=x[:, :n], yc=y[:, :n], xt=x[:, n:], yt=y[:, n:])


def _pixel_noise(
    y: Float[Tensor, "batch points channels"], scale: float, generator: Generator
) -> Float[Tensor, "batch points channels"]:
    if scale != -1:
        return student_t_noise(tuple(y.shape), scale, generator).float()
    noise = student_t_noise(tuple(y.shape), 1.0, generator)
    scales = torch.rand(y.shape, generator=generator, dtype=torch.float64)
    return (noise * scales * STUDENT_T_LARGEST).float()


def _check_task(task: ImageCompletion) -> None:
    sets, splits = get_args(SetName), get_args(SplitName)
    if task.dataset not in sets:
        raise ValueError(f"dataset is {task.dataset!r}; it must be one of {', '.join(sets)}")
    known = IMAGE_SETS[task.dataset]
    pixels, fewest = known.side**2, task.min_context + task.min_targets + 1
    points = known.max_points if task.max_points is None else task.max_points
    most = pixels - points + task.min_targets + 1  # targets beside the largest context
    cap = points if task.max_targets is None else task.max_targets
    rules = (
        ("split", task.split in splits, f"be one of {', '.join(splits)}"),
        ("split", bool(known.seen) or task.split != "unseen", "be train or seen: no classes here"),
        ("folder", not task.folder or Path(task.folder).expanduser().is_dir(), "be a folder"),
        ("min_context", task.min_context >= 0, "be 0 or more"),
        ("min_targets", task.min_targets >= 1, "be 1 or more"),
        ("max_points", fewest <= points <= pixels, f"lie in {fewest} … {pixels}"),
        ("max_targets", cap > task.min_targets, "be None or exceed min_targets"),
        (
            "targets",
            task.targets is None or 1 <= task.targets <= most,
            f"be None or lie in 1 … {most}",
        ),
        (
            "student_t",
            task.student_t in (None, -1) or task.student_t > 0,
            "be None, positive or -1",
        ),
    )
    check_settings(task, rules)
