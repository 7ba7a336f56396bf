"""Conditional neural processes: a context becomes an encoding, and an encoding a Gaussian at every target.

The plain process (CNP) pools, so it streams: its state is two sums of embedded points and a count, whatever the number
of points. The attentive one (CANP) lets every target read every point, and has to keep them.

Source: Garnelo et al., "Conditional Neural Processes", 2018; the attentive process and all sizes as in the code of Lee
et al., "Bootstrapping Neural Processes", 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.memory.layers import blank
from synopsis.processes.base import Process
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import Gaussian, PredictiveDistribution
from synopsis.processes.missing import filled
from synopsis.processes.pooling import (
    GP,
    AttendedEncodings,
    Decoder,
    Encodings,
    PooledEncodings,
    checked_depths,
)
from synopsis.states import State, check_streams
from synopsis.tasks import Batch


class Points(NamedTuple):
    """Points with 0 in padding and NaN for missing outputs; real is None when there is no padding."""

    x: Float[Tensor, "batch points dim_x"]
    y: Float[Tensor, "batch points dim_y"]
    real: Bool[Tensor, "batch points"] | None

    @property
    def together(self) -> Float[Tensor, "batch points dim"]:
        """Inputs and outputs side by side, 0 for what is missing."""
        return torch.cat([self.x, filled(self.y)], dim=-1)

    @property
    def number(self) -> Int[Tensor, " batch"]:
        """Real points of each task."""
        length = self.x.shape[1]
        return (
            self.x.new_full((len(self.x),), length).long()
            if self.real is None
            else self.real.sum(-1)
        )

    def mean_of(self, values: Float[Tensor, "batch points"]) -> Float[Tensor, ""]:
        """The mean over the real points of all tasks."""
        return (values if self.real is None else values[self.real]).mean()


def context_of(batch: Batch) -> Points:
    """The context of a batch."""
    mask = batch.context_mask
    return Points(blank(batch.xc, mask), blank(batch.yc, mask), mask)


def everything_of(batch: Batch) -> Points:
    """Context and targets of a batch, all of which the losses of this family are taken over."""
    x, y = torch.cat([batch.xc, batch.xt], dim=1), torch.cat([batch.yc, batch.yt], dim=1)
    if batch.context_mask is None and batch.target_mask is None:
        return Points(x, y, None)
    parts = ((batch.xc, batch.context_mask), (batch.xt, batch.target_mask))
    masks = [x.new_ones(x.shape[:2]).bool() if mask is None else mask for x, mask in parts]
    real = torch.cat(masks, dim=1)
    return Points(blank(x, real), blank(y, real), real)


@dataclass(frozen=True)
class PooledState(State):
    """What both encoders of a pooling process keep of each stream.

    Args:
        totals: sums of embedded points, of the first encoder and of the second.
        count: points seen by each stream.
        fingerprint: of the process that made it.
    """

    kind: ClassVar[str] = "pooled"
    totals: Float64[Tensor, "batch encoders dim"]
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless there are two sums for every stream that is counted."""
        if tuple(self.totals.shape[:2]) != (len(self.count), 2):
            raise ValueError(f"sums {tuple(self.totals.shape)} of {len(self.count)} streams")


@dataclass(frozen=True)
class CNPState(PooledState):
    """Sums of a conditional neural process."""

    kind: ClassVar[str] = "cnp"


class PooledProcess(Process, abstract=True):
    """Base of the processes that pool: conditioning is adding, so they stream and merge in constant memory.

    Subclasses set ``encodings`` and ``state_type`` and implement :meth:`answer`.
    """

    merges: ClassVar[Merges] = "any order"
    state_type: ClassVar[type[PooledState]]
    encodings: PooledEncodings

    def answer(
        self, encodings: Encodings, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """Predict from both encodings of a context."""
        raise NotImplementedError

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> PooledState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        device = next(self.parameters()).device
        shape = (*batch_shape, 2, self.encodings.first.dim)
        totals = torch.zeros(shape, dtype=torch.float64, device=device)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=device)
        return self.state_type(totals, count, self.fingerprint)

    def update(
        self,
        state: PooledState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PooledState:
        """The state after these points as well; mask is True where a point is real.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to other weights.
        """
        self.check_points(xc, yc)
        self.check_belongs(state)
        check_streams(state, len(xc))
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            points = blank(torch.cat([xc, yc], dim=-1), mask)
            encoders = (self.encodings.first, self.encodings.second)
            totals = torch.stack([encoder.total(points, mask) for encoder in encoders], dim=1)
            count = state.count + (xc.shape[1] if mask is None else mask.sum(-1))
            return replace(state, totals=state.totals + totals, count=count)

    def predict(
        self, state: PooledState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        means = state.totals / state.count.clamp(min=1)[:, None, None]
        first, second = means.to(next(self.parameters())).unbind(1)
        return self.answer(
            (self.encodings.first.read(first), self.encodings.second.read(second)), xt
        )

    def merge(self, a: PooledState, b: PooledState) -> PooledState:
        """The state after both parts of the data; ValueError when they belong to another process."""
        self.check_belongs(a)
        self.check_belongs(b)
        check_streams(a, len(b.count))
        return replace(a, totals=a.totals + b.totals, count=a.count + b.count)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PredictiveDistribution:
        """Condition on a context and predict; in training mode without a state in between."""
        if not self.training:
            return super().forward(xc, yc, xt, mask)
        self.check_points(xc, yc)
        self.check_points(xt)
        return self.answer(self.encodings(blank(xc, mask), blank(yc, mask), xt, mask), xt)


class CNP(PooledProcess):
    """Conditional neural process; the defaults are the published sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of hidden layers and encodings.
        depths: of its parts, see :class:`synopsis.processes.pooling.Depths`; ``pooling.EMNIST`` and
            ``pooling.CELEBA`` are the published ones for images.
        floor: smallest standard deviation; σ = floor + (1 − floor)·softplus. The published 0.1 caps the log-density
            of an output at 1.384 nats.

    Example:
        >>> import torch
        >>> process = CNP(dim=16).eval()
        >>> state = process.update(process.init(), torch.randn(1, 1000, 1), torch.randn(1, 1000, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    state_type: ClassVar[type[PooledState]] = CNPState

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 128,
        depths: Sequence[int] = GP,
        floor: float = 0.1,
    ) -> None:
        super().__init__(dim_x=dim_x, dim_y=dim_y, dim=dim, depths=list(depths), floor=floor)
        layers = checked_depths(depths)
        self.encodings = PooledEncodings(dim_x, dim_y, dim, dim, layers)
        self.decoder = Decoder(dim_x, dim_y, (dim, dim), dim, layers.decoder, floor)

    def answer(self, encodings: Encodings, xt: Float[Tensor, "batch targets dim_x"]) -> Gaussian:
        """Predict from both encodings of a context."""
        predicted: Gaussian = self.decoder(xt, encodings)
        return predicted

    def loss(self, batch: Batch) -> Tensor:
        """Negative mean log-likelihood of context and targets, nats per point."""
        return loss_everywhere(self, batch)


class CANP(ContextProcess):
    """Conditional attentive neural process; the defaults are the published sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of hidden layers and encodings, a multiple of 8.
        depths: of its parts, see :class:`synopsis.processes.pooling.Depths`.
        floor: smallest standard deviation.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 10, 1)
        >>> CANP(dim=16)(x, x.sin(), torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 128,
        depths: Sequence[int] = GP,
        floor: float = 0.1,
    ) -> None:
        super().__init__(dim_x=dim_x, dim_y=dim_y, dim=dim, depths=list(depths), floor=floor)
        layers = checked_depths(depths)
        self.encodings = AttendedEncodings(dim_x, dim_y, dim, dim, layers)
        self.decoder = Decoder(dim_x, dim_y, (dim, dim), dim, layers.decoder, floor)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Gaussian:
        """Predict from a context in one differentiable pass."""
        predicted: Gaussian = self.decoder(xt, self.encodings(xc, yc, xt, mask))
        return predicted

    def loss(self, batch: Batch) -> Tensor:
        """Negative mean log-likelihood of context and targets, nats per point."""
        return loss_everywhere(self, batch)


def loss_everywhere(process: Process, batch: Batch) -> Tensor:
    """Negative mean log-likelihood of context and targets, given the context, nats per real point."""
    points = everything_of(batch)
    predicted = process(batch.xc, batch.yc, points.x, batch.context_mask)
    return -points.mean_of(predicted.log_prob(points.y))
