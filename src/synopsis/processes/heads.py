"""Predictive distributions, and the heads that turn a target's features into one.

Both kinds have batch shape (batch, targets) and event shape (dim_y,): ``log_prob`` sums over the outputs, while
``quantile``, ``cdf`` and ``crps`` speak of each output by itself. An output that was not observed, NaN, adds nothing to
``log_prob`` and has no cdf or crps (NaN).
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from synopsis.calibration import crps_gaussian, crps_gaussian_mixture
from synopsis.processes.missing import scored

_BISECTIONS = 60  # halvings of the bracket: beyond the precision of float64
_LARGEST_LOG_STDDEV = 12.0


class Gaussian(Independent):
    """Independent Gaussians.

    Args:
        mean: of each output.
        stddev: of each output, positive.
    """

    def __init__(
        self,
        mean: Float[Tensor, "batch targets dim_y"],
        stddev: Float[Tensor, "batch targets dim_y"],
    ) -> None:
        super().__init__(Normal(mean, stddev, validate_args=False), 1, validate_args=False)

    def log_prob(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """Log-density of the observed outputs of each target, nats."""
        each, missing = scored(self.base_dist.log_prob, value, self.mean)
        return each.masked_fill(missing, 0.0).sum(-1)

    def quantile(self, q: float | Tensor) -> Float[Tensor, "batch targets dim_y"]:
        """The q-quantile of each output, 0 < q < 1."""
        quantile: Tensor = self.base_dist.icdf(
            torch.as_tensor(q, dtype=self.mean.dtype, device=self.mean.device)
        )
        return quantile

    def cdf(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """P(Y ≤ value) of each output."""
        probability: Tensor = self.base_dist.cdf(value)
        return probability

    def crps(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """Continuous ranked probability score of each output, in the units of y; 0 is perfect."""
        return crps_gaussian(self.mean, self.stddev, value)

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "Gaussian":
        """The distribution of loc + scale·Y, scale > 0."""
        return Gaussian(loc + scale * self.mean, scale * self.stddev)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Gaussian":
        """The same distribution over a larger batch."""
        shape = (*batch_shape, *self.event_shape)
        return Gaussian(self.mean.expand(shape), self.stddev.expand(shape))


class GaussianMixture(Independent):
    """Independent mixtures of Gaussians.

    Args:
        logits: of the components, on the last axis; normalised here.
        means: of the components.
        stddevs: of the components, positive.
    """

    def __init__(
        self,
        logits: Float[Tensor, "batch targets dim_y components"],
        means: Float[Tensor, "batch targets dim_y components"],
        stddevs: Float[Tensor, "batch targets dim_y components"],
    ) -> None:
        weights = Categorical(logits=logits, validate_args=False)
        parts = Normal(means, stddevs, validate_args=False)
        mixture = MixtureSameFamily(weights, parts, validate_args=False)
        super().__init__(mixture, 1, validate_args=False)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        mixture = cast(MixtureSameFamily, self.base_dist)
        parts = cast(Normal, mixture.component_distribution)
        return mixture.mixture_distribution.logits, parts.loc, parts.scale

    def log_prob(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """Log-density of the observed outputs of each target, nats."""
        each, missing = scored(self.base_dist.log_prob, value, self._parts[1][..., 0])
        return each.masked_fill(missing, 0.0).sum(-1)

    def quantile(self, q: float | Tensor) -> Float[Tensor, "batch targets dim_y"]:
        """The q-quantile of each output, 0 < q < 1, by bisection between the components' own quantiles."""
        _, means, stddevs = self._parts
        level = torch.as_tensor(q, dtype=means.dtype, device=means.device)
        each = means + stddevs * torch.special.ndtri(level)
        low, high = each.amin(-1), each.amax(-1)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            below = self.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def cdf(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """P(Y ≤ value) of each output."""
        logits, means, stddevs = self._parts
        return (logits.softmax(-1) * torch.special.ndtr((value[..., None] - means) / stddevs)).sum(
            -1
        )

    def crps(self, value: Float[Tensor, "batch targets dim_y"]) -> Tensor:
        """Continuous ranked probability score of each output, in the units of y; 0 is perfect."""
        logits, means, stddevs = self._parts
        return crps_gaussian_mixture(logits.softmax(-1), means, stddevs, value)

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "GaussianMixture":
        """The distribution of loc + scale·Y, scale > 0."""
        logits, means, stddevs = self._parts
        loc, scale = (
            v.unsqueeze(-1) if isinstance(v, Tensor) and v.dim() else v for v in (loc, scale)
        )
        means = (
            loc + scale * means
        )  # float64 units stay float64: the weights must then sum to one as well
        return GaussianMixture(logits.to(means), means, scale * stddevs)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Not offered: which component a draw comes from has no gradient; use ``sample``."""
        raise NotImplementedError("draws from a mixture have no pathwise gradient; use sample()")

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GaussianMixture":
        """The same distribution over a larger batch."""
        logits, means, stddevs = self._parts
        shape = (*batch_shape, *means.shape[-2:])
        return GaussianMixture(logits.expand(shape), means.expand(shape), stddevs.expand(shape))


PredictiveDistribution = Gaussian | GaussianMixture


class GaussianHead(nn.Module):
    """Linear, ReLU, Linear to mean and standard deviation (Feng et al., 2024).

    Args:
        dim: width of a target's features.
        dim_y: number of outputs.
        bounded: σ = 0.05 + 0.95·softplus instead of exp, as published for EMNIST.
    """

    def __init__(self, dim: int, dim_y: int, bounded: bool = False) -> None:
        super().__init__()
        self.bounded = bounded
        self.expand = nn.Linear(dim, 2 * dim)
        self.predict = nn.Linear(2 * dim, 2 * dim_y)

    def forward(self, features: Float[Tensor, "batch targets dim"]) -> Gaussian:
        """The predictive distribution of each target."""
        mean, raw = wide(self.predict(F.relu(self.expand(features)))).chunk(2, dim=-1)
        return Gaussian(mean, 0.05 + 0.95 * F.softplus(raw) if self.bounded else raw.exp())


class MixtureHead(nn.Module):
    """Linear, ReLU, Linear to a mixture of Gaussians in units that the caller chooses.

    Args:
        dim: width of a target's features.
        dim_y: number of outputs.
        components: of the mixture.
        floor: smallest standard deviation, in units of ``scale``.
    """

    def __init__(self, dim: int, dim_y: int, components: int = 5, floor: float = 1e-3) -> None:
        super().__init__()
        self.shape, self.floor = (dim_y, components, 3), floor
        self.expand = nn.Linear(dim, 2 * dim)
        self.predict = nn.Linear(2 * dim, 3 * dim_y * components)
        with torch.no_grad():  # components start spread out, so that they learn to differ
            start = torch.zeros(dim_y, components, 3)
            start[..., 1] = torch.linspace(-1.0, 1.0, components)
            self.predict.bias.copy_(start.flatten())
            self.predict.weight.mul_(0.1)

    def forward(self, features: Float[Tensor, "batch targets dim"]) -> GaussianMixture:
        """The predictive distribution of each target."""
        raw = wide(self.predict(F.relu(self.expand(features)))).unflatten(-1, self.shape)
        logits, means, log_stddevs = raw.unbind(-1)
        stddevs = self.floor + log_stddevs.clamp(max=_LARGEST_LOG_STDDEV).exp()
        return GaussianMixture(logits, means, stddevs)


def wide(raw: Tensor) -> Tensor:
    """In at least float32, so that densities are not computed in 16 bits under autocast."""
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


def build_head(name: str, dim: int, dim_y: int) -> nn.Module:
    """A head by name: ``gaussian``, ``bounded-gaussian`` or ``mixture-N`` with N components.

    Raises:
        ValueError: for any other name.
    """
    if name == "gaussian" or name == "bounded-gaussian":
        return GaussianHead(dim, dim_y, bounded=name.startswith("bounded"))
    kind, _, components = name.partition("-")
    if kind == "mixture" and components.isdigit() and int(components):
        return MixtureHead(dim, dim_y, int(components))
    raise ValueError(f"unknown head {name!r}; there are gaussian, bounded-gaussian and mixture-N")


__all__ = [
    "Gaussian",
    "GaussianHead",
    "GaussianMixture",
    "MixtureHead",
    "PredictiveDistribution",
    "build_head",
]
