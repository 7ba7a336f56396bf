"""What the laws of tasks have in common: their settings are checked, and draws come from a generator on the CPU."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def check_settings(task: object, rules: Sequence[tuple[str, bool, str]]) -> None:
    """Raise ValueError for the first rule that does not hold.

    Args:
        task: whose attributes are spoken of.
        rules: attribute, whether it is as it must be, and what it must be.

    Example:
        >>> from types import SimpleNamespace
        >>> check_settings(SimpleNamespace(points=-1), [("points", False, "be 0 or more")])
        Traceback (most recent call last):
        ValueError: points is -1; it must be 0 or more
    """
    for name, holds, wanted in rules:
        if not holds:
            raise ValueError(f"{name} is {getattr(task, name)!r}; it must {wanted}")


def check_generator(generator: Generator) -> None:
    """Raise ValueError unless it is on the CPU, where seeds mean the same everywhere."""
    if generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}; it must be on the cpu")


def uniform(
    shape: tuple[int, ...], interval: tuple[float, float], generator: Generator
) -> Float[Tensor, "..."]:
    """Float64 draws from [low, high)."""
    low, high = interval
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def integer(low: int, high: int, generator: Generator) -> int:
    """Uniform over low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


__all__ = ["check_generator", "check_settings", "integer", "uniform"]
