"""What a task hands to a model: context, targets, and where known the exact answer."""

from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A batch of regression tasks.

    Args:
        xc: context inputs.
        yc: context outputs; NaN of a real point is an output that was not observed.
        xt: target inputs.
        yt: target outputs, likewise; what was not observed is not scored.
        context_mask: True where a context point is real; None when all are.
        target_mask: True where a target is real; None when all are.
        oracle: exact log-density of each target's observed outputs given the observed context (nats), where known.
        joint_oracle: exact joint log-density of all observed outputs, likewise.
    """

    xc: Float[Tensor, "batch context dim_x"]
    yc: Float[Tensor, "batch context dim_y"]
    xt: Float[Tensor, "batch targets dim_x"]
    yt: Float[Tensor, "batch targets dim_y"]
    context_mask: Bool[Tensor, "batch context"] | None = None
    target_mask: Bool[Tensor, "batch targets"] | None = None
    oracle: Float[Tensor, "batch targets"] | None = None
    joint_oracle: Float[Tensor, " batch"] | None = None

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **moved)

    def observed(self) -> Self:
        """The batch with points masked out that lack every output; the same batch where nothing is missing."""
        context = observed_points(self.yc, self.context_mask)
        targets = observed_points(self.yt, self.target_mask)
        if context is None and targets is None:
            return self
        return replace(self, context_mask=context, target_mask=targets)


def observed_points(
    y: Float[Tensor, "batch points dim_y"], mask: Bool[Tensor, "batch points"] | None
) -> Bool[Tensor, "batch points"] | None:
    """The mask without the points that lack every output; None when there was no mask, and nothing is missing.

    With a mask nothing is asked of the data. Without one they are looked at once, for what needs no mask is cheaper.
    """
    if mask is None and surely_complete(y):
        return None
    seen = ~y.isnan().all(-1)
    return seen if mask is None else mask & seen


def surely_complete(y: Tensor) -> bool:
    """Whether nothing is missing; inside vmap and torch.compile nobody can look."""
    try:
        return not torch.compiler.is_compiling() and not bool(y.isnan().any())
    except RuntimeError:
        return False


class Task(Protocol):
    """A distribution over batches; all randomness comes from the generator."""

    @property
    def dim_x(self) -> int:
        """Number of inputs."""
        ...

    @property
    def dim_y(self) -> int:
        """Number of outputs."""
        ...

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw ``batch_size`` tasks that share one number of context and target points."""
        ...
