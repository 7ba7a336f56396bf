"""Processes that keep their context: what cannot be folded is remembered, and the state grows.

Their forward pass needs every context point anew, so the state is the points themselves. They have the face of every
process all the same, and ``nbytes`` shows what that costs.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.memory.layers import blank
from synopsis.processes.base import Process
from synopsis.processes.heads import PredictiveDistribution
from synopsis.states import State, check_streams


@dataclass(frozen=True)
class ContextState(State):
    """Every point seen, padded to the longest stream.

    Args:
        x: inputs.
        y: outputs.
        real: True where a point was seen, False in padding, where x and y are 0.
        fingerprint: of the process that made it.
    """

    kind: ClassVar[str] = "context"
    x: Float[Tensor, "batch points dim_x"]
    y: Float[Tensor, "batch points dim_y"]
    real: Bool[Tensor, "batch points"]
    fingerprint: str

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """Points seen by each stream."""
        return self.real.sum(-1)

    def check(self) -> None:
        """Raise ValueError unless inputs, outputs and padding describe the same points."""
        shapes = [tuple(t.shape[:2]) for t in (self.x, self.y, self.real)]
        if len(set(shapes)) > 1 or self.x.dim() != 3 or self.y.dim() != 3 or self.real.dim() != 2:
            raise ValueError(f"inputs, outputs and padding of different points: {shapes}")

    @property
    def mask(self) -> Bool[Tensor, "batch points"] | None:
        """True where a point is real; None when all are, which is cheaper to answer from."""
        return None if bool(self.real.all()) else self.real


class ContextProcess(Process, abstract=True):
    """Base of the processes that keep their context; subclasses implement :meth:`condition`."""

    merges: Merges = "any order"  # type: ignore[misc]
    bounded = False

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> PredictiveDistribution:
        """Predict from a context in one differentiable pass; x and y are 0 where the mask is False."""
        raise NotImplementedError

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> ContextState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        like = next(self.parameters())
        x, y = (like.new_zeros(*batch_shape, 0, dim) for dim in (self.dim_x, self.dim_y))
        real = torch.zeros(*batch_shape, 0, dtype=torch.bool, device=like.device)
        return ContextState(x.detach(), y.detach(), real, self.fingerprint)

    def update(
        self,
        state: ContextState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> ContextState:
        """The state after these points as well; mask is True where a point is real.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to other weights.
        """
        self.check_points(xc, yc)
        self.check_belongs(state)
        check_streams(state, len(xc))
        real = torch.ones_like(xc[..., 0], dtype=torch.bool) if mask is None else mask
        added = ContextState(blank(xc, mask), blank(yc, mask), real, state.fingerprint)
        return joined(state, added)

    def predict(
        self, state: ContextState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        return self.condition(state.x, state.y, xt, state.mask)

    def merge(self, a: ContextState, b: ContextState) -> ContextState:
        """The state after both parts of the data; ValueError when they belong to another process."""
        self.check_belongs(a)
        self.check_belongs(b)
        check_streams(a, len(b.real))
        return joined(a, b)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PredictiveDistribution:
        """Condition on a context and predict, without keeping it."""
        self.check_points(xc, yc)
        self.check_points(xt)
        return self.condition(blank(xc, mask), blank(yc, mask), xt, mask)


def joined(a: ContextState, b: ContextState) -> ContextState:
    """The points of both, a's first, without the columns in which no stream has a point."""
    real = torch.cat([a.real, b.real], dim=1)
    x, y = torch.cat([a.x, b.x.to(a.x)], dim=1), torch.cat([a.y, b.y.to(a.y)], dim=1)
    used = real.any(0)
    if not bool(used.all()):
        x, y, real = x[:, used], y[:, used], real[:, used]
    return replace(a, x=x, y=y, real=real)
