"""The anchored constant memory process with a joint distribution over targets, block by block.

The regressions of an anchored process know the covariance of any targets in closed form. So the head starts from it:
the joint distribution of the targets is a low-rank Gaussian whose factor is the regressions' own, and the network says
where to leave it: it moves the mean, turns each target's part in the shared uncertainty up or down, rescales the noise,
and adds a few columns of its own. At the start of training the process *is* the regressions' joint posterior, nearly.

Source: see ``anchored.py``, ``spectral.py`` and ``autoregressive.py``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.memory.layers import perceptron
from synopsis.processes.anchored import AnchoredCMANP, AnchoredState
from synopsis.processes.autoregressive import BlockAutoregressive
from synopsis.processes.experts import Covariance
from synopsis.processes.heads import Gaussian, wide
from synopsis.processes.joint import JointHead
from synopsis.processes.joint_gaussians import LowRankGaussian
from synopsis.processes.spectral import SpectralState

_DEPTH = 4  # linear layers that turn features into gate and noise
_START = 0.01  # by which the last layers' weights are smaller than usual when training starts
_FLOOR = 1e-3  # of an output's own standard deviation, in units of the anchor's
_LARGEST_LOG = 12.0  # of gate and noise, whose exponentials must stay finite


class AnchoredHead(JointHead):
    """Residual mean, gate, noise and factor, each in units of the anchor, of features that have seen each other.

    y = m + s·r, with m and s the anchor's mean and standard deviation; the covariance is F Fᵀ + diag(own²), where
    F = [gate·A, s·V] with A the anchor's factor, and own² = (noise·exp(h))² + (floor·s)².

    Args:
        dim: width of a target's features.
        heads: attention heads of the layers in which targets see each other.
        floor: standard deviation below which no output falls by itself, in units of s.
    """

    def __init__(self, dim: int, heads: int, floor: float = _FLOOR) -> None:
        super().__init__(dim, 1, heads)
        self.floor = floor
        self.scales = perceptron(dim, 2 * dim, 2, _DEPTH)
        with torch.no_grad():  # r ≈ 0, gate ≈ 1, h ≈ 0, V ≈ 0, and yet with gradients
            for layers in (self.mean, self.project, self.scales):
                for parameter in layers[-1].parameters():
                    parameter.mul_(_START)

    def forward(  # type: ignore[override]  # in units of an anchor
        self,
        features: Float[Tensor, "batch targets dim"],
        anchor: Gaussian,
        covariance: Covariance,
        real: Bool[Tensor, "batch targets"] | None = None,
    ) -> LowRankGaussian:
        """The joint distribution of the targets, among which only the real ones count."""
        pairs = None if real is None else real[:, None, None, :]
        for layer in self.interact:
            features = layer(features, features.shape[1], pairs)
        gate, scale = wide(self.scales(features)).clamp(max=_LARGEST_LOG).exp().split(1, dim=-1)
        mean = anchor.mean + anchor.stddev * wide(self.mean(features))
        own = (covariance.noise[:, None, None] * scale).hypot(self.floor * anchor.stddev)
        added = anchor.stddev * wide(self.project(features))
        return LowRankGaussian(mean, torch.cat([gate * covariance.factor, added], -1), own, real)


class AnchoredCMANPAND(BlockAutoregressive, AnchoredCMANP):  # type: ignore[misc]  # predicts a joint distribution
    """AnchoredCMANP with a joint head, autoregressive over blocks of targets.

    An input that is NaN is "not given". Targets of one block may come in any order.

    Args:
        dim_x: most inputs it takes.
        dim: width of embeddings.
        heads: attention heads, everywhere.
        blocks: constant memory attention blocks, and decoder layers.
        latents: learned queries per block.
        dim_y: 1, for symmetry with the other processes.
        target_block: targets predicted jointly in :meth:`score` and :meth:`sample`; None for all.
        train_splits: train the autoregression too, on splits of the targets in two blocks, half of them in a sweep.
        per_target: divide the loss by the number of targets; see :func:`synopsis.processes.joint.joint_loss`.
        prior: of the regressions: departures from :class:`synopsis.processes.spectral.Prior`, by name.

    Example:
        >>> import torch
        >>> process = AnchoredCMANPAND(dim_x=1, dim=16, blocks=2, latents=8).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.sample(state, torch.linspace(-1, 1, 50).reshape(1, 50, 1), target_block=10).shape
        torch.Size([1, 1, 50, 1])
    """

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        dim_x: int = 8,
        dim: int = 64,
        heads: int = 4,
        blocks: int = 4,
        latents: int = 32,
        dim_y: int = 1,
        target_block: int | None = None,
        train_splits: bool = True,
        per_target: bool = True,
        prior: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(dim_x, dim, heads, blocks, latents, dim_y=dim_y, prior=prior)
        del self.config["components"]
        options = {"train_splits": train_splits, "per_target": per_target}
        self.config |= {"target_block": target_block, **options}
        self.head = AnchoredHead(dim, heads)  # type: ignore[assignment]  # in place of the mixture
        self.target_block, self.train_splits = target_block, train_splits
        self.per_target = per_target

    def answered(self, state: AnchoredState, xt: Tensor, real: Tensor | None) -> LowRankGaussian:
        """The head on what both memories answer."""
        return self._predict(state.regression, self.trunk.read(state.blocks), xt, real)

    def swept(
        self, xc: Tensor, yc: Tensor, xt: Tensor, mask: Tensor | None, real: Tensor | None
    ) -> LowRankGaussian:
        """The head after one sweep over the context."""
        return self._predict(*self._sweep(xc, yc, mask), xt, real)

    def _predict(  # type: ignore[override]  # a joint distribution
        self,
        sums: SpectralState,
        answers: list[Tensor],
        xt: Tensor,
        real: Tensor | None = None,
    ) -> LowRankGaussian:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            experts = self.regression.experts(sums, xt)
            anchor, covariance = experts.moments(), experts.covariance()
        described = self._describe(xt, experts, anchor, sums.count)
        predicted: LowRankGaussian = self.head(
            self.trunk.decode(described, answers), anchor, covariance, real
        )
        return predicted


__all__ = ["AnchoredCMANPAND", "AnchoredHead"]
