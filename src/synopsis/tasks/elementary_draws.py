"""Elementary random draws; all randomness comes from the generator handed in."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniform(
    generator: torch.Generator, shape: Sequence[int], low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform draws between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(tuple(shape), generator=generator)


def log_uniform(
    generator: torch.Generator, shape: Sequence[int], low: float, high: float
) -> Tensor:
    """Draws whose logarithm is uniform between those of ``low`` and ``high`` (both > 0)."""
    return uniform(generator, shape, math.log(low), math.log(high)).exp()


def normal(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """Standard normal draws."""
    return torch.randn(tuple(shape), generator=generator)


def coin(generator: torch.Generator, shape: Sequence[int], probability: float = 0.5) -> Tensor:
    """True with the given probability."""
    return torch.rand(tuple(shape), generator=generator) < probability


def sign(generator: torch.Generator, shape: Sequence[int]) -> Tensor:
    """−1 or +1, each half of the time."""
    return coin(generator, shape).float() * 2 - 1


def choose(
    generator: torch.Generator, weights: Sequence[float], shape: Sequence[int]
) -> Int[Tensor, "..."]:
    """Indices drawn in proportion to ``weights`` (≥ 0, need not sum to 1)."""
    count = math.prod(shape)
    if count == 0:
        return torch.zeros(tuple(shape), dtype=torch.int64)
    probabilities = torch.tensor(weights, dtype=torch.float64)
    return torch.multinomial(probabilities, count, True, generator=generator).view(tuple(shape))


def student_t(
    generator: torch.Generator, freedom: Float[Tensor, "..."], shape: Sequence[int]
) -> Tensor:
    """Student-t draws; ``freedom`` (> 0) broadcasts against ``shape``.

    Source: Bailey 1994, "Polar generation of random variates with the t-distribution": with
    U and V uniform, √(ν (U^(−2/ν) − 1)) cos(2πV) has exactly this law for every real ν.
    """
    radius = 1 - torch.rand(tuple(shape), generator=generator)  # (0, 1]: no division by zero
    angle = torch.rand(tuple(shape), generator=generator)
    squared = freedom * torch.expm1(-2 / freedom * radius.log())
    return squared.sqrt() * (2 * math.pi * angle).cos()


def by_kind(
    kinds: Int[Tensor, " items"],
    draws: Sequence[Callable[..., Tensor]],
    generator: torch.Generator,
    *arguments: Tensor,
) -> Tensor:
    """Let each item be drawn by the function of its kind, all items of a kind at once.

    Args:
        kinds: index into ``draws`` for each item.
        draws: functions ``(generator, *arguments) -> (items, ...)`` working on any number of items.
        generator: where randomness comes from.
        arguments: tensors with one leading entry per item; the result has the dtype of the first
            one and, per item, the shape the functions return.

    Returns:
        The results, in the order of the items.
    """
    results: list[tuple[Tensor, Tensor]] = []
    for kind, draw in enumerate(draws):
        chosen = (kinds == kind).nonzero().squeeze(-1)
        if len(chosen) > 0:
            results.append((chosen, draw(generator, *(given[chosen] for given in arguments))))
    order = torch.cat([chosen for chosen, _ in results])
    return torch.cat([values for _, values in results])[order.argsort()]
