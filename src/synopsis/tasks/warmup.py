"""Standardise a stream by its first rows, as at use, where the rest is not yet known."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LARGEST = 1e3  # standardised values are cut there
SMALLEST_SCALE = 0.02  # of the spread of the whole stream


def location_and_scale(
    values: Float[Tensor, "tasks rows columns"], warmup: Int[Tensor, " tasks"]
) -> tuple[Float[Tensor, "tasks 1 columns"], Float[Tensor, "tasks 1 columns"]]:
    """Mean and standard deviation of every column over the first rows of each task.

    Args:
        values: the stream in its natural units.
        warmup: how many rows count, ≥ 1.

    Returns:
        The location, and the scale: at least 0.02 of the standard deviation of the whole stream;
        that deviation itself if the first rows are all equal (1 if all rows are), as nothing
        better than the unit of the column is known then.
    """
    counted = torch.arange(values.shape[1]) < warmup[:, None]
    weights = (counted.to(values.dtype) / warmup[:, None])[:, None, :]  # (tasks, 1, rows)
    location = weights @ values
    scale = (weights @ (values - location).square()).sqrt()
    whole = values.std(dim=1, correction=0, keepdim=True)
    # A constant column leaves rounding errors of its size, not zeros.
    rounding = 1e-5 * values.abs().amax(dim=1, keepdim=True)
    whole = torch.where(whole > rounding, whole, torch.ones_like(whole))
    floored = scale.maximum(SMALLEST_SCALE * whole)
    return location, torch.where(scale > rounding, floored, whole)


def standardised(
    values: Float[Tensor, "tasks rows columns"],
    location: Float[Tensor, "tasks 1 columns"],
    scale: Float[Tensor, "tasks 1 columns"],
    untouched: Bool[Tensor, "tasks columns"] | None = None,
) -> Float[Tensor, "tasks rows columns"]:
    """(values − location) / scale, cut at ±1,000, except in untouched columns."""
    scaled = ((values - location) / scale).clamp(-LARGEST, LARGEST)
    return scaled if untouched is None else torch.where(untouched[:, None, :], values, scaled)
