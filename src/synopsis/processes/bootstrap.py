"""Bootstrapping neural processes: uncertainty about the function from resampled residuals, without a latent variable.

From S resampled copies of a context come S fits of it; their residuals, resampled and centred, make S new contexts;
and what those encode enters the decoder beside the encoding of the context itself. What is predicted is the mixture of
the S predictions.

Predictions do not depend on chance nor on the order of points: the numbers that choose are fixed by the configuration,
the same for every stream, and choose among points sorted by their values. Chance enters only the loss.

Source: Lee et al., "Bootstrapping Neural Processes", NeurIPS 2020, as in its published code. A departure: that code
draws anew at every prediction.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from synopsis.memory.layers import blank
from synopsis.processes.conditional import Points, context_of, everything_of
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import Gaussian
from synopsis.processes.latent import Ensemble, at_least_one, log_mean_exp
from synopsis.processes.missing import filled
from synopsis.processes.pooling import (
    GP,
    AttendedEncodings,
    Decoder,
    Encodings,
    PooledEncodings,
    checked_depths,
    linear_of_parts,
    pooled,
)
from synopsis.tasks import Batch

Draws = Float64[Tensor, "two copies batch points"]  # in [0, 1), for points and for residuals

_ROWS = 1 << 17  # points of all copies worked on at once in predictions: bounds memory, not results


class BootstrapDecoder(Decoder):
    """A decoder that can be given the encodings of a bootstrapped context as well.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: hidden width, and width of each of the two encodings.
        depth: number of linear layers.
        floor: smallest standard deviation.
    """

    def __init__(self, dim_x: int, dim_y: int, dim: int, depth: int, floor: float) -> None:
        super().__init__(dim_x, dim_y, (dim, dim), dim, depth, floor)
        self.enter_copies = nn.Linear(2 * dim, dim, bias=False)

    def with_copies(
        self, xt: Float[Tensor, "batch targets dim_x"], encodings: Encodings, copies: Encodings
    ) -> Gaussian:
        """The prediction at each target from each copy, (copies, batch, targets)."""
        base = linear_of_parts(self.enter, (*encodings, xt))
        return self.leave(base + linear_of_parts(self.enter_copies, copies))


class BNP(ContextProcess):
    """Bootstrapping neural process; the defaults are the published sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of hidden layers and encodings.
        depths: of its parts, see :class:`synopsis.processes.pooling.Depths`.
        floor: smallest standard deviation of a component.
        samples: bootstrapped contexts in a prediction.
        train_samples: bootstrapped contexts in the loss.
        seed: of the resampling in predictions, at least 1.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 10, 1)
        >>> BNP(dim=16)(x, x.sin(), torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    keeps_gaps: ClassVar[bool] = True  # what is missing has no residual
    encodings_type: ClassVar[type[PooledEncodings] | type[AttendedEncodings]] = PooledEncodings

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 128,
        depths: Sequence[int] = GP,
        floor: float = 0.1,
        samples: int = 50,
        train_samples: int = 4,
        seed: int = 1,
    ) -> None:
        drawing = {"samples": samples, "train_samples": train_samples, "seed": seed}
        sizes = {"dim_x": dim_x, "dim_y": dim_y, "dim": dim, "depths": list(depths)}
        super().__init__(**sizes, floor=floor, **at_least_one(drawing))
        layers = checked_depths(depths)
        self.encodings = self.encodings_type(dim_x, dim_y, dim, dim, layers)
        self.decoder = BootstrapDecoder(dim_x, dim_y, dim, layers.decoder, floor)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Ensemble:
        """Predict from a context in one differentiable pass."""
        context = in_order_of_values(Points(xc, yc, mask))
        base = self.encodings(xc, filled(yc), xt, mask)
        draws = self._fixed_draws(xc.shape[1]).to(xc.device)
        rows = max(1, len(xc) * max(xc.shape[1], xt.shape[1]))
        groups = draws.split(max(1, _ROWS // rows), dim=1)
        each = [self._bootstrapped(context, xt, base, group) for group in groups]
        means, stddevs = (
            torch.cat([getattr(g, name) for g in each]) for name in ("mean", "stddev")
        )
        return Ensemble.of(Gaussian(means, stddevs))

    def loss(self, batch: Batch) -> Tensor:
        """Negative mean log-likelihood of context and targets, twice: without and with bootstrapped contexts.

        The second is the log-mean-exp over bootstrapped contexts, point by point; both in nats per point.
        """
        context, points = context_of(batch), everything_of(batch)
        self.check_points(context.x, context.y)
        self.check_points(points.x, points.y)
        base = self.encodings(context.x, filled(context.y), points.x, context.real)
        shape = (2, self.config["train_samples"], *context.x.shape[:2])
        draws = torch.rand(shape, dtype=torch.float64, device=context.x.device)
        copies = self._bootstrapped(in_order_of_values(context), points.x, base, draws)
        alone = self.decoder(points.x, base).log_prob(points.y)
        mixed = log_mean_exp(copies.log_prob(points.y), dim=0)
        return -points.mean_of(alone) - points.mean_of(mixed)

    def _bootstrapped(self, context: Points, xt: Tensor, base: Encodings, draws: Draws) -> Gaussian:
        """The predictions from bootstrapped contexts, (copies, batch, targets)."""
        outputs = self.bootstrapped_outputs(context, draws)
        copies = Points(context.x.expand(*outputs.shape[:-1], -1), outputs, context.real)
        return self.decoder.with_copies(xt, base, self._encodings_of(copies, xt))

    @torch.no_grad()
    def bootstrapped_outputs(
        self, context: Points, draws: Draws
    ) -> Float[Tensor, "copies batch points dim_y"]:
        """New outputs for a context: the fit to a resampled context, plus resampled and centred residuals.

        Args:
            context: real points first in every stream.
            draws: the numbers that choose points and residuals.

        Returns:
            Outputs at the context's own inputs, 0 in padding and where the context lacks one. No gradient reaches them.
        """
        number, real = context.number.unsqueeze(-1), context.real
        chosen = resampled(context.together, number, draws[0])
        x, y = chosen.split((self.dim_x, self.dim_y), dim=-1)
        fit = self.decoder(context.x, self._encodings_of(Points(x, y, real), context.x))
        missing = context.y.isnan()  # as if it were where the fit has it
        residual = ((context.y - fit.mean) / fit.stddev).masked_fill(missing, 0.0)
        residual = resampled(residual, number, draws[1])
        flat = real if real is None else real.repeat(len(residual), 1)
        centre = pooled(residual.flatten(0, 1), flat).view(*residual.shape[:2], 1, -1)
        outputs = blank(fit.mean + fit.stddev * (residual - centre), real)
        return outputs.masked_fill(missing, 0.0).to(context.y)

    def _encodings_of(self, copies: Points, at: Float[Tensor, "batch targets dim_x"]) -> Encodings:
        """Encodings of (copies, batch, points) contexts, with copies and streams on axes of their own."""
        number, streams = copies.x.shape[:2]
        x, y = copies.x.flatten(0, 1), copies.y.flatten(0, 1)
        real = copies.real if copies.real is None else copies.real.repeat(number, 1)
        first, second = self.encodings(x, y, at.repeat(number, 1, 1), real)
        return first.unflatten(0, (number, streams)), second.unflatten(0, (number, streams))

    def _fixed_draws(self, points: int) -> Draws:
        """The same numbers for the n-th point of every stream, however many points follow it."""
        generator = torch.Generator().manual_seed(self.config["seed"])
        shape = (points, 2, self.config["samples"], 1)
        return torch.rand(shape, dtype=torch.float64, generator=generator).movedim(0, -1)


class BANP(BNP):
    """Bootstrapping attentive neural process: BNP with the encoders of CANP; arguments as of :class:`BNP`.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 10, 1)
        >>> BANP(dim=16)(x, x.sin(), torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    encodings_type = AttendedEncodings


def in_order_of_values(points: Points) -> Points:
    """The same points sorted by their numbers, real ones first: the order in which they came is forgotten."""
    columns = list(points.together.unbind(-1))
    if points.real is not None:
        columns.insert(0, (~points.real).to(points.x))
    order = torch.zeros_like(columns[0], dtype=torch.int64)
    order = order + torch.arange(order.shape[1], device=order.device)
    for column in reversed(columns):  # stable sorts, the least important column first
        order = order.gather(1, column.gather(1, order).argsort(dim=1, stable=True))
    x, y = (v.gather(1, order.unsqueeze(-1).expand_as(v)) for v in (points.x, points.y))
    return Points(x, y, None if points.real is None else points.real.gather(1, order))


def resampled(
    values: Float[Tensor, "*copies batch points dim"],
    number: Int[Tensor, "batch 1"],
    draws: Float64[Tensor, "copies #batch points"],
) -> Float[Tensor, "copies batch points dim"]:
    """Points drawn with replacement among the first ``number`` of each stream."""
    shape = (len(draws), *values.shape[-3:])
    chosen = (draws * number).long().expand(shape[:-1]).unsqueeze(-1)
    return values.expand(shape).gather(2, chosen.expand(shape))
