"""Bayesian linear regression as a process: exact, in constant memory, mergeable in any order.

With z = (1, x), β ~ N(0, σ² I/λ) and σ² ~ InverseGamma(a₀, b₀), all that the posterior needs of the data are the
sums Σ z zᵀ, Σ z y, Σ y² and the count (Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.3;
O'Hagan, 1994).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.processes.base import Process
from synopsis.processes.heads import Gaussian
from synopsis.states import State, check_streams


@dataclass(frozen=True)
class LinearState(State):
    """Second moments of everything seen, float64.

    Args:
        inputs: Σ z zᵀ with z = (1, x).
        cross: Σ z y.
        outputs: Σ y².
        count: points seen by each stream.
    """

    kind: ClassVar[str] = "bayesian-linear"
    inputs: Float[Tensor, "batch features features"]
    cross: Float[Tensor, "batch features dim_y"]
    outputs: Float[Tensor, "batch dim_y"]
    count: Int[Tensor, " batch"]

    def check(self) -> None:
        """Raise ValueError unless the sums describe the same streams and features."""
        batch, features, width = self.cross.shape
        expected = ((batch, features, features), (batch, width), (batch,))
        found = (tuple(self.inputs.shape), tuple(self.outputs.shape), tuple(self.count.shape))
        if found != expected:
            raise ValueError(f"moments are {found}; they must be {expected}")


class Posterior(NamedTuple):
    """The posterior of coefficients and noise.

    Args:
        mean: of the coefficients.
        factor: lower Cholesky factor of the posterior precision (in units of 1/σ²).
        noise: posterior mean of the noise variance σ².
    """

    mean: Float[Tensor, "batch features dim_y"]
    factor: Float[Tensor, "batch features features"]
    noise: Float[Tensor, "batch dim_y"]


class BayesianLinear(Process):
    """Conjugate Bayesian linear regression, for inputs and outputs of about unit size.

    An input that is NaN counts as not given (0). The predictive Student-t is reported as the Gaussian of the same mean
    and variance.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        precision: λ, prior precision of each coefficient in units of 1/σ².
        shape: a₀ > 1 of the noise prior.
        rate: b₀ of the noise prior; b₀/(a₀ − 1) is the noise variance expected before any data.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 200).view(1, -1, 1)
        >>> line = BayesianLinear(dim_x=1)
        >>> line(x, 3 * x + 1, torch.zeros(1, 1, 1)).mean.item()  # doctest: +ELLIPSIS
        0.99...
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(
        self,
        dim_x: int,
        dim_y: int = 1,
        precision: float = 0.01,
        shape: float = 2.0,
        rate: float = 0.01,
    ) -> None:
        super().__init__(dim_x=dim_x, dim_y=dim_y, precision=precision, shape=shape, rate=rate)
        self.precision, self.shape, self.rate = precision, shape, rate
        self.device_of: Tensor
        self.register_buffer("device_of", torch.empty(0), persistent=False)  # follows .to(device)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> LinearState:
        """A state that has seen nothing."""
        features, device = self.dim_x + 1, self.device_of.device
        zeros = torch.zeros(*batch_shape, features, features, dtype=torch.float64, device=device)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=device)
        cross = zeros.new_zeros(*batch_shape, features, self.dim_y)
        return LinearState(zeros, cross, cross[..., 0, :].clone(), count)

    def update(
        self,
        state: LinearState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> LinearState:
        """Add the points to the sums."""
        self.check_points(xc, yc)
        check_streams(state, len(xc))
        z, y = _features(xc), yc.double()
        if mask is not None:
            z, y = (v.masked_fill(~mask.unsqueeze(-1), 0.0) for v in (z, y))
        return LinearState(
            state.inputs + z.mT @ z,
            state.cross + z.mT @ y,
            state.outputs + (y * y).sum(1),
            state.count + (xc.shape[1] if mask is None else mask.sum(-1)),
        )

    def merge(self, a: LinearState, b: LinearState) -> LinearState:
        """Add the sums."""
        check_streams(a, len(b.count))
        sums = (a.inputs + b.inputs, a.cross + b.cross, a.outputs + b.outputs)
        return LinearState(*sums, a.count + b.count)

    def posterior(self, state: LinearState) -> Posterior:
        """Coefficients and noise, given everything seen."""
        prior = self.precision * torch.eye(self.dim_x + 1).to(state.inputs)
        factor = torch.linalg.cholesky(state.inputs + prior)
        mean = torch.cholesky_solve(state.cross, factor)
        residual = (state.outputs - (state.cross * mean).sum(1)).clamp(min=0.0)
        count = state.count.unsqueeze(-1)
        noise = (self.rate + residual / 2) / (self.shape - 1 + count / 2)
        return Posterior(mean, factor, noise)

    def predict(self, state: LinearState, xt: Float[Tensor, "batch targets dim_x"]) -> Gaussian:
        """The predictive distribution at target inputs, float64."""
        self.check_points(xt)
        check_streams(state, len(xt))
        posterior, z = self.posterior(state), _features(xt)
        whitened = torch.linalg.solve_triangular(posterior.factor, z.mT, upper=False)
        leverage = whitened.square().sum(1).unsqueeze(-1)
        variance = posterior.noise.unsqueeze(1) * (1.0 + leverage)
        return Gaussian(z @ posterior.mean, variance.sqrt())


def _features(x: Tensor) -> Tensor:
    x = x.double().nan_to_num(nan=0.0)
    return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
