"""Bayesian regression on random Fourier features: a Gaussian process in constant memory.

A Gaussian process with a stationary kernel is, up to a few dozen random frequencies, a Bayesian linear regression on
φ(x) = (1, x, cos ωx, sin ωx), and all that needs of the data are sums of products: a memory of the additive kind, which
merges exactly in any order. Nobody knows the length-scale of a stream in advance, nor how much of it is noise, so sums
are kept for several length-scales, and each is solved under several priors of the amplitude; the resulting experts are
averaged by their evidence, all in closed form.

Sources: Rahimi & Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007; Lázaro-Gredilla et al., "Sparse
Spectrum Gaussian Process Regression", JMLR 2010; Bishop, "Pattern Recognition and Machine Learning", 2006, section 3.5.
Departures: frequencies are a scrambled Sobol sequence, and inputs are compressed by asinh before they meet a frequency,
so that an outlier does not fall where no neighbour can be. Or else, for one input from a known interval, frequencies
are even and weighed by the kernel's spectrum, whose tail random ones lack.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.processes.base import Process
from synopsis.processes.experts import Experts
from synopsis.processes.heads import GaussianMixture
from synopsis.states import State, check_streams

_LINE = 10.0  # prior variance of intercept and slopes in units of the noise's
_SHAPE = 2.0  # of the inverse-gamma prior of the noise variance; the flattest whole one with a mean
_RESOLVED = 3.0  # highest of even frequencies, in units of the inverse length-scale, at least
_PIECE = 4096  # rows whose features exist at once


class Prior(NamedTuple):
    """What is believed of the function before anything was seen; the defaults suit standardised data of any kind.

    Args:
        features: Fourier features per length-scale, even.
        length_scales: in the units of an input, for one input.
        amplitudes: variances of the function, in units of the noise's.
        noise_variance: mean of the variance of the noise, in the units of y².
        period: None for random frequencies. For one input from an interval, about twice its length: frequencies are
            then even, and kernels those of squared-exponential functions that repeat, with the other sign, after it.

    Example:
        >>> Prior.of({"length_scales": [0.5]}).length_scales
        (0.5,)
    """

    features: int = 64
    length_scales: tuple[float, ...] = (0.25, 0.7, 2.0)
    amplitudes: tuple[float, ...] = (1.0, 30.0, 1000.0)
    noise_variance: float = 0.02
    period: float | None = None

    @classmethod
    def of(cls, beliefs: Mapping[str, Any] | None) -> "Prior":
        """The prior that differs from the default by these beliefs, as an experiment or a configuration has them.

        Raises:
            ValueError: for a name that is unknown, or a number that is not positive.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in (beliefs or {}).items()
        }
        unknown = sorted(given.keys() - set(cls._fields))
        if unknown:
            raise ValueError(f"a prior has no {unknown[0]!r}; it has {', '.join(cls._fields)}")
        prior = cls(**given)
        if prior.features < 2 or prior.features % 2:
            raise ValueError(f"features must be even and at least 2, not {prior.features}")
        for name in ("length_scales", "amplitudes"):
            values = getattr(prior, name)
            if not values or min(values) <= 0:
                raise ValueError(f"{name} must be one or more positive numbers, not {values}")
        if prior.noise_variance <= 0:
            raise ValueError(f"noise_variance must be positive, not {prior.noise_variance}")
        if prior.period is not None:
            prior._check_period(prior.period)
        return prior

    def _check_period(self, period: float) -> None:
        if period <= 0:
            raise ValueError(f"period must be positive, not {period}")
        shortest = min(self.length_scales)
        fewest = math.ceil(_RESOLVED * period / (math.pi * shortest))
        if self.features < fewest:
            raise ValueError(
                f"{self.features} features do not resolve length-scale {shortest} in a period of {period}; "
                f"it takes {fewest}"
            )

    @property
    def experts(self) -> int:
        """How many regressions there are: one for each length-scale and amplitude."""
        return len(self.length_scales) * len(self.amplitudes)


@dataclass(frozen=True)
class SpectralState(State):
    """Sums of products of the features of everything seen, float64, one set per length-scale.

    Args:
        products: Σ φ φᵀ, the lower triangle row by row.
        cross: Σ φ y.
        outputs: Σ y².
        count: points seen by each stream.
    """

    kind: ClassVar[str] = "spectral-regression"
    products: Float[Tensor, "batch scales triangle"]
    cross: Float[Tensor, "batch scales features"]
    outputs: Float[Tensor, " batch"]
    count: Int[Tensor, " batch"]

    def check(self) -> None:
        """Raise ValueError unless the sums describe the same streams and features."""
        batch, scales, features = self.cross.shape
        expected = ((batch, scales, features * (features + 1) // 2), (batch,), (batch,))
        found = tuple(tuple(t.shape) for t in (self.products, self.outputs, self.count))
        if found != expected:
            raise ValueError(f"sums are {found}; they must be {expected}")


class SpectralRegression(Process):
    """Evidence-weighted Bayesian regressions on random Fourier features, for inputs and outputs of about unit size.

    An input that is NaN is "not given". Merging is exact, in any order.

    Args:
        dim_x: number of inputs.
        dim_y: 1, for symmetry with the other processes.
        prior: departures from :class:`Prior`, by name.

    Example:
        >>> import torch
        >>> x = torch.linspace(-2, 2, 200).view(1, -1, 1)
        >>> predicted = SpectralRegression(dim_x=1)(x, (3 * x).sin(), torch.full((1, 1, 1), 0.5))
        >>> abs(predicted.mean.item() - 0.9975) < 0.02
        True
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(self, dim_x: int, dim_y: int = 1, prior: Mapping[str, Any] | None = None) -> None:
        if dim_y != 1:
            raise ValueError(f"a regression predicts one output, not {dim_y}")
        self.beliefs = Prior.of(prior)
        super().__init__(dim_x=dim_x, dim_y=dim_y, **({"prior": dict(prior)} if prior else {}))
        if self.beliefs.period is not None and dim_x != 1:
            raise ValueError(f"even frequencies are for one input, not {dim_x}; leave period out")
        features, amplitudes = self.beliefs.features, self.beliefs.amplitudes
        self.frequencies: Float[Tensor, "scales half dim_x"]
        # Even ones are the same everywhere, and are not to be rounded with the weights.
        drawn = self.beliefs.period is None
        self.register_buffer("frequencies", _frequencies(self.beliefs, dim_x), persistent=drawn)
        self.loads = _loads(self.beliefs, self.frequencies)
        size = 1 + dim_x + features
        self.rows, self.columns = torch.tril_indices(size, size)
        self.prior = torch.full((len(amplitudes), size), 1.0 / _LINE, dtype=torch.float64)
        variances = torch.tensor(amplitudes, dtype=torch.float64)
        self.prior[:, 1 + dim_x :] = 1.0 / variances.unsqueeze(-1)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> SpectralState:
        """A state that has seen nothing."""
        scales, size = len(self.frequencies), self.prior.shape[-1]
        device = self.frequencies.device
        sums = torch.zeros(*batch_shape, scales, size, dtype=torch.float64, device=device)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=device)
        triangle = sums.new_zeros(*batch_shape, scales, len(self.rows))
        return SpectralState(triangle, sums, sums.new_zeros(batch_shape), count)

    def update(
        self,
        state: SpectralState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context 1"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> SpectralState:
        """Add the points to the sums."""
        self.check_points(xc, yc)
        check_streams(state, len(xc))
        y = yc.squeeze(-1).double()
        if mask is not None:
            y = y.masked_fill(~mask, 0.0)
        products, cross = state.products, state.cross
        step = max(1, _PIECE // max(1, len(xc)))
        for start in range(0, xc.shape[1], step):
            piece = slice(start, start + step)
            features = self._features(xc[:, piece])
            if mask is not None:
                features = features.masked_fill(~mask[:, None, piece, None], 0.0)
            products = products + (features.mT @ features)[..., self.rows, self.columns]
            cross = cross + torch.einsum("bsnf,bn->bsf", features, y[:, piece])
        added = xc.shape[1] if mask is None else mask.sum(-1)
        outputs = state.outputs + y.square().sum(-1)
        return SpectralState(products, cross, outputs, state.count + added)

    def merge(self, a: SpectralState, b: SpectralState) -> SpectralState:
        """Add the sums."""
        check_streams(a, len(b.count))
        products, cross = a.products + b.products, a.cross + b.cross
        return SpectralState(products, cross, a.outputs + b.outputs, a.count + b.count)

    def predict(
        self, state: SpectralState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> GaussianMixture:
        """The experts' mixture at target inputs, float64."""
        self.check_points(xt)
        check_streams(state, len(xt))
        experts = self.experts(state, xt)
        logits = experts.log_weight[:, None, None].expand(*experts.mean[:, :, None].shape)
        return GaussianMixture(logits, experts.mean[:, :, None], experts.stddev[:, :, None])

    def experts(self, state: SpectralState, xt: Float[Tensor, "batch targets dim_x"]) -> Experts:
        """Every expert's prediction, and how probable what was seen makes it."""
        prior = self.prior.to(state.cross.device)
        factor = self._factor(state, prior)  # (batch, scales, amplitudes, features, features)
        cross = state.cross[:, :, None, :, None].expand(*factor.shape[:-1], 1)
        mean = torch.cholesky_solve(cross, factor)
        explained = (cross * mean).sum((-1, -2))
        shape = _SHAPE + state.count[:, None, None] / 2
        rate = (
            self.beliefs.noise_variance * (_SHAPE - 1.0)
            + (state.outputs[:, None, None] - explained).clamp(min=0.0) / 2
        )
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        evidence = prior.log().sum(-1) / 2 - volume - shape * rate.log()
        noise = rate / (shape - 1)
        features = self._features(xt).unsqueeze(2)
        whitened = torch.linalg.solve_triangular(
            factor, features.mT.expand(*factor.shape[:-1], -1), upper=False
        )
        variance = noise.unsqueeze(-1) * (1.0 + whitened.square().sum(-2))
        predicted = (features @ mean).squeeze(-1)
        return Experts(
            _flat(predicted),
            _flat(variance.sqrt()),
            evidence.flatten(1).log_softmax(-1),
            noise.flatten(1),
            whitened.flatten(1, 2),
        )

    def _factor(self, state: SpectralState, prior: Tensor) -> Tensor:
        size = prior.shape[-1]
        products = state.products.new_zeros(*state.products.shape[:2], size, size)
        products[..., self.rows, self.columns] = state.products
        products = products + products.tril(-1).mT
        factor: Tensor = torch.linalg.cholesky(products.unsqueeze(2) + torch.diag_embed(prior))
        return factor

    def _features(self, x: Tensor) -> Float[Tensor, "batch scales length features"]:
        given = (~x.isnan()).sum(-1, keepdim=True).clamp(min=1).double()
        x = x.double().nan_to_num(nan=0.0)
        inputs = x.asinh() / given.sqrt() if self.beliefs.period is None else x
        angle = torch.einsum("bnx,sfx->bsnf", inputs, self.frequencies.double())
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1) * self.loads.to(x.device)
        line = torch.cat([torch.ones_like(given), x], dim=-1)
        return torch.cat(
            [line.unsqueeze(1).expand(-1, len(self.frequencies), -1, -1), waves], dim=-1
        )


def _frequencies(beliefs: Prior, dim_x: int) -> Float[Tensor, "scales half dim_x"]:
    """Gaussian frequencies of squared-exponential kernels, or even ones, the same for all; the same every time."""
    if beliefs.period is not None:
        halves = torch.arange(beliefs.features // 2, dtype=torch.float64) + 0.5
        even = 2 * math.pi / beliefs.period * halves
        return even.view(1, -1, 1).repeat(len(beliefs.length_scales), 1, 1).float()
    sets = []
    for seed, length in enumerate(beliefs.length_scales):
        sobol = torch.quasirandom.SobolEngine(dim_x, scramble=True, seed=seed)
        uniform = sobol.draw(beliefs.features // 2, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        sets.append(torch.special.ndtri(uniform) / length)
    return torch.stack(sets).float()


def _loads(
    beliefs: Prior, frequencies: Float[Tensor, "scales half dim_x"]
) -> Float[Tensor, "scales 1 features"]:
    """What cosines and sines are multiplied by; the squares of either sum to 1, a kernel's value at distance 0."""
    lengths = torch.tensor(beliefs.length_scales, dtype=torch.float64).view(-1, 1, 1)
    spectrum = torch.ones(len(lengths), 1, beliefs.features // 2, dtype=torch.float64)
    if beliefs.period is not None:
        spectrum = (-0.5 * (frequencies.double().mT * lengths).square()).exp()
    loads = (spectrum / spectrum.sum(-1, keepdim=True)).sqrt()
    return torch.cat([loads, loads], dim=-1)


def _flat(values: Tensor) -> Float[Tensor, "batch targets experts"]:
    """(batch, scales, amplitudes, targets) to experts last."""
    return values.flatten(1, 2).mT
