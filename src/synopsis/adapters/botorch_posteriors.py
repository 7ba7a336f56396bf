"""What a process predicts, in BoTorch's forms (extra ``botorch``)."""

from typing import Any

import torch
from botorch.posteriors import GPyTorchPosterior, Posterior
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import GetSampler
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from jaxtyping import Float
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from synopsis.processes.heads import Gaussian, GaussianMixture
from synopsis.processes.joint_gaussians import JointGaussian

_HALVINGS = 20  # of a bracket around a quantile
_NEWTON = 3  # steps from there to the precision of float64


class MixturePosterior(Posterior):  # type: ignore[misc]  # BoTorch is untyped for mypy
    """Mixtures of Gaussians, each output of each point by itself.

    Mean and variance are those of the mixture. Samples are exact: a standard normal number ε stands for the mixture's
    quantile at Φ(ε), which is found by bisection, and whose gradient is −∂F/∂θ / p by implicit differentiation of
    F(y; θ) = Φ(ε). Points are drawn independently of each other.

    Args:
        mixture: of batch shape (\\*batch, q) and event shape (outputs,).

    Source: Figurnov, Mohamed & Mnih, "Implicit Reparameterization Gradients", 2018.
    """

    def __init__(self, mixture: GaussianMixture) -> None:
        self.mixture = mixture

    @property
    def device(self) -> torch.device:
        """Of the prediction."""
        return self.mixture.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the prediction."""
        return self.mixture.mean.dtype

    @property
    def mean(self) -> Float[Tensor, "*batch q outputs"]:
        """Of the mixture."""
        return self.mixture.mean

    @property
    def variance(self) -> Float[Tensor, "*batch q outputs"]:
        """Of the mixture: the components' mean variance and the variance of their means."""
        return self.mixture.variance

    @property
    def base_sample_shape(self) -> torch.Size:
        """One standard normal number for every output."""
        return self._extended_shape()

    @property
    def batch_range(self) -> tuple[int, int]:
        """All but points and outputs."""
        return (0, -2)

    def quantile(self, value: Tensor) -> Tensor:
        """The quantile of each output at one level."""
        return self.mixture.quantile(value)

    def rsample(self, sample_shape: torch.Size | None = None) -> Tensor:
        """Draws, differentiable with respect to the prediction."""
        shape = torch.Size() if sample_shape is None else sample_shape
        like = self.mixture.mean
        noise = torch.randn(self._extended_shape(shape), dtype=like.dtype, device=like.device)
        return self.rsample_from_base_samples(shape, noise)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        """The draws that these standard normal numbers stand for."""
        if base_samples.shape[: len(sample_shape)] != sample_shape:
            shapes = tuple(base_samples.shape), tuple(sample_shape)
            raise ValueError("base_samples {} do not begin with {}".format(*shapes))
        wide = self.mixture.affine(0.0, torch.ones_like(self.mixture.mean, dtype=torch.float64))
        drawn = _quantiles(wide, base_samples.double())
        level = wide.cdf(drawn)
        moved = (level - level.detach()) / _density(wide, drawn).detach()
        return (drawn - moved).to(self.dtype)

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:  # noqa: B008
        return torch.Size((*sample_shape, *self.mixture.mean.shape))


@GetSampler.register(MixturePosterior)  # type: ignore[untyped-decorator]
def _sampler(
    posterior: MixturePosterior,  # noqa: ARG001
    sample_shape: torch.Size,
    *,
    seed: int | None = None,
) -> Any:
    return SobolQMCNormalSampler(sample_shape, seed=seed)


def posterior_of(
    predicted: Gaussian | GaussianMixture | JointGaussian,
    streams: tuple[int, int],
    shape: tuple[int, ...],
    outputs: list[int],
    like: Tensor,
) -> Posterior:
    """BoTorch's form of a prediction, points that shared a stream put where they belong.

    Args:
        predicted: for the points of each stream.
        streams: how many there were, and how many batches of points shared each.
        shape: of the result, points included.
        outputs: which are wanted.
        like: has the result's precision and device.
    """

    def restored(values: Tensor) -> Tensor:  # (streams, shared·q, dim_y, …) to (*shape, outputs, …)
        apart = values.unflatten(1, (streams[1], -1)).transpose(0, 1)
        return apart.reshape(*shape, *values.shape[2:])[..., outputs, :].to(like)

    if isinstance(predicted, GaussianMixture):
        return MixturePosterior(GaussianMixture(*map(restored, predicted._parts)))
    mean = restored(predicted.mean.unsqueeze(-1)).squeeze(-1)
    if isinstance(predicted, JointGaussian):
        # In float64 from here on: float32 rounding may leave a matrix that has no Cholesky factor.
        wide = predicted.affine(0.0, torch.ones_like(predicted.mean, dtype=torch.float64))
        points, numbers = predicted.event_shape
        pairs = wide.covariance_matrix.reshape(*shape, numbers, points, numbers)
        chosen = pairs[..., outputs][..., outputs, :, :].flatten(-2).flatten(-3, -2)
        return _gaussian(mean, chosen.to(like))
    variance = restored(predicted.variance.unsqueeze(-1)).squeeze(-1)
    return _gaussian(mean, DiagLinearOperator(variance.flatten(-2)))


def _gaussian(mean: Tensor, covariance: Any) -> Posterior:
    """Over all outputs of all points, in the order of the points."""
    if mean.shape[-1] == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), covariance))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, covariance))


def _quantiles(mixture: GaussianMixture, normal: Tensor) -> Tensor:
    """The mixture's quantiles at Φ(normal), between those of its components; no gradient."""
    with torch.no_grad():
        _, means, stddevs = mixture._parts
        each, level = means + stddevs * normal.unsqueeze(-1), torch.special.ndtr(normal)
        low, high = each.amin(-1), each.amax(-1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = mixture.cdf(middle) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        found = (low + high) / 2
        for _ in range(_NEWTON):
            step = (mixture.cdf(found) - level) / _density(mixture, found)
            found = torch.minimum(torch.maximum(found - step, low), high)
        return found


def _density(mixture: GaussianMixture, values: Tensor) -> Tensor:
    """Of each output by itself, positive."""
    density: Tensor = mixture.base_dist.log_prob(values).exp()
    return density.clamp(min=torch.finfo(density.dtype).tiny)


__all__ = ["MixturePosterior", "posterior_of"]
