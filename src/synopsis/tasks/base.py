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
        yc: context outputs.
        xt: target inputs.
        yt: target outputs.
        context_mask: True where a context point is real; None when all are.
        target_mask: True where a target is real; None when all are.
        oracle: exact log-density of each target given the context (nats), where known.
        joint_oracle: exact joint log-density of all targets given the context, where known.
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
