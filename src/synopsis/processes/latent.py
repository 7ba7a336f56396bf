"""Latent neural processes: one random vector per function, so that its targets vary together.

The second encoding of a context is a Gaussian over z; every z gives a Gaussian at every target. What is predicted is
the mixture over draws of z, and the draws are fixed by the configuration: the same for every stream, every target and
every split of a context. Chance enters only the loss.

Source: Garnelo et al., "Neural Processes", 2018; Kim et al., "Attentive Neural Processes", 2019; the
importance-weighted bound and all sizes as in the code of Lee et al., "Bootstrapping Neural Processes", 2020.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn import functional as F

from synopsis.processes.conditional import (
    PooledProcess,
    PooledState,
    context_of,
    everything_of,
)
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import Gaussian, GaussianMixture
from synopsis.processes.missing import filled, scored
from synopsis.processes.pooling import (
    GP,
    AttendedEncodings,
    Decoder,
    Encodings,
    PooledEncodings,
    checked_depths,
)
from synopsis.tasks import Batch


class Ensemble(GaussianMixture):
    """An equal-weight mixture of predictions, point by point; the outputs of one point come from one component.

    ``log_prob`` is the published metric of sampling processes: log-mean-exp, per point, of densities of all outputs
    together. Quantiles, cdf and crps speak of each output by itself and are those of :class:`GaussianMixture`.

    Args:
        means: of the components.
        stddevs: of the components, positive.

    Example:
        >>> import torch
        >>> two = Ensemble(torch.tensor([[[[-1.0, 1.0]]]]), torch.ones(1, 1, 1, 2))
        >>> two.mean.item(), round(two.stddev.item(), 4)
        (0.0, 1.4142)
    """

    def __init__(
        self,
        means: Float[Tensor, "batch targets dim_y components"],
        stddevs: Float[Tensor, "batch targets dim_y components"],
    ) -> None:
        super().__init__(torch.zeros_like(means), means, stddevs)

    @classmethod
    def of(cls, samples: Gaussian) -> "Ensemble":
        """The mixture of predictions along their first axis."""
        return cls(samples.mean.movedim(0, -1), samples.stddev.movedim(0, -1))

    def log_prob(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """Log-density of the observed outputs of a point together, nats."""
        _, means, stddevs = self._parts
        parts = Normal(means, stddevs, validate_args=False)
        each, missing = scored(lambda y: parts.log_prob(y.unsqueeze(-1)), value, means[..., 0])
        return log_mean_exp(each.masked_fill(missing.unsqueeze(-1), 0.0).sum(-2), dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws; the outputs of a point are drawn from the same component."""
        _, means, stddevs = self._parts
        shape = self._extended_shape(torch.Size(sample_shape))
        which = torch.randint(means.shape[-1], (*shape[:-1], 1, 1), device=means.device)
        which = which.expand(*shape, 1)
        full = (*shape, means.shape[-1])
        mean, stddev = (t.detach().expand(full).gather(-1, which) for t in (means, stddevs))
        return torch.normal(mean, stddev).squeeze(-1)

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "Ensemble":
        """The distribution of loc + scale·Y, scale > 0."""
        return Ensemble(*super().affine(loc, scale)._parts[1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Ensemble":
        """The same distribution over a larger batch."""
        return Ensemble(*super().expand(batch_shape)._parts[1:])


@dataclass(frozen=True)
class NPState(PooledState):
    """Sums of a neural process: of its deterministic encoder and of its latent one."""

    kind: ClassVar[str] = "np"


class NP(PooledProcess):
    """Neural process; the defaults are the published sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of hidden layers, of the encoding and of z.
        depths: of its parts, see :class:`synopsis.processes.pooling.Depths`.
        floor: smallest standard deviation of a component.
        samples: draws of z in a prediction.
        train_samples: draws of z in the loss; 1 gives the plain evidence bound.
        seed: of the draws in predictions, at least 1.

    Example:
        >>> import torch
        >>> process = NP(dim=16).eval()
        >>> state = process.update(process.init(), torch.randn(1, 1000, 1), torch.randn(1, 1000, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    state_type: ClassVar[type[PooledState]] = NPState

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
        self.encodings = PooledEncodings(dim_x, dim_y, dim, 2 * dim, layers)
        self.decoder = Decoder(dim_x, dim_y, (dim, dim), dim, layers.decoder, floor)

    def answer(self, encodings: Encodings, xt: Float[Tensor, "batch targets dim_x"]) -> Ensemble:
        """Predict from the deterministic and the latent encoding of a context."""
        return predict_with_latents(self, encodings, xt)

    def loss(self, batch: Batch) -> Tensor:
        """The negative importance-weighted bound, nats per point of context and targets."""
        return bound(self, batch)


class ANP(ContextProcess):
    """Attentive neural process; the defaults are the published sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of hidden layers, of the encoding and of z; a multiple of 8.
        depths: of its parts, see :class:`synopsis.processes.pooling.Depths`.
        floor: smallest standard deviation of a component.
        samples: draws of z in a prediction.
        train_samples: draws of z in the loss; 1 gives the plain evidence bound.
        seed: of the draws in predictions, at least 1.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 10, 1)
        >>> ANP(dim=16)(x, x.sin(), torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

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
        self.encodings = AttendedEncodings(dim_x, dim_y, dim, 2 * dim, layers)
        self.decoder = Decoder(dim_x, dim_y, (dim, dim), dim, layers.decoder, floor)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Ensemble:
        """Predict from a context in one differentiable pass."""
        return predict_with_latents(self, self.encodings(xc, yc, xt, mask), xt)

    def loss(self, batch: Batch) -> Tensor:
        """The negative importance-weighted bound, nats per point of context and targets."""
        return bound(self, batch)


def predict_with_latents(
    process: NP | ANP, encodings: Encodings, xt: Float[Tensor, "batch targets dim_x"]
) -> Ensemble:
    """The mixture over the draws of z that the process's configuration fixes."""
    path, second = encodings
    latent, config = latent_of(second), process.config
    generator = torch.Generator().manual_seed(config["seed"])
    shape = (config["samples"], 1, 1, config["dim"])  # one draw for all streams and targets
    noise = torch.randn(shape, generator=generator).to(latent.mean)
    return Ensemble.of(process.decoder(xt, (path, latent.mean + latent.stddev * noise)))


def bound(process: NP | ANP, batch: Batch) -> Tensor:
    """The negative bound on the log-likelihood of context and targets given the context, nats per real point.

    With z drawn from q(z | context and targets) and w = Σ log p(y | z) + log p(z | context) − log q(z): minus the
    log-mean-exp of w over draws, divided by the task's number of points, and averaged over tasks. One draw alone gives
    the plain bound with its Kullback-Leibler divergence in closed form.
    """
    context, points = context_of(batch), everything_of(batch)
    process.check_points(context.x, context.y)
    process.check_points(points.x, points.y)
    path, second = process.encodings(context.x, filled(context.y), points.x, context.real)
    prior = latent_of(second)
    posterior = latent_of(process.encodings.second(points.together, points.real))
    draws = posterior.rsample((process.config["train_samples"],))
    log_likelihood = process.decoder(points.x, (path, draws)).log_prob(points.y)
    fit = summed(log_likelihood, points.real)
    if len(draws) == 1:
        gain = fit[0] - kl_divergence(posterior, prior).squeeze(-1)
    else:
        correction = prior.log_prob(draws) - posterior.log_prob(draws)
        gain = log_mean_exp(fit + correction.squeeze(-1), dim=0)
    return -(gain / points.number.clamp(min=1)).mean()


def latent_of(encoding: Float[Tensor, "batch 1 two_dim"]) -> Independent:
    """The Gaussian over z that a latent encoding stands for, σ = 0.1 + 0.9·sigmoid."""
    mean, raw = encoding.to(torch.promote_types(encoding.dtype, torch.float32)).chunk(2, dim=-1)
    normal = Normal(mean, 0.1 + 0.9 * F.sigmoid(raw), validate_args=False)
    return Independent(normal, 1, validate_args=False)


def summed(values: Float[Tensor, "*batch points"], real: Tensor | None) -> Float[Tensor, "*batch"]:
    """The sum over real points."""
    return (values if real is None else values.masked_fill(~real, 0.0)).sum(-1)


def at_least_one(counts: dict[str, int]) -> dict[str, int]:
    """The same numbers; ValueError when one is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    return counts


def log_mean_exp(values: Tensor, dim: int) -> Tensor:
    """Log of the mean of exponentials, along one axis."""
    return values.logsumexp(dim) - math.log(values.shape[dim])
