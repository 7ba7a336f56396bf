"""A constant memory process anchored at a Bayesian regression.

Smooth and linear functions need no attention: a few dozen sums learn them exactly, and say how sure they are. So this
process keeps two memories: Bayesian regressions on random Fourier features, and constant memory attention blocks for
everything those get wrong: steps, tails, noise that depends on the inputs, drift, priors when data are few. The head
describes y in units of the regressions' prediction, (y − m(x)) / s(x): at the start of training the process *is* the
regression, whatever the scale of the data, and the network learns where to leave it. Both memories are folds that merge
in any order, so the whole is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.memory.cmab_stack import CMABState
from synopsis.memory.layers import perceptron
from synopsis.processes.base import Process
from synopsis.processes.cmanp import Trunk
from synopsis.processes.experts import Experts
from synopsis.processes.heads import Gaussian, MixtureHead, PredictiveDistribution
from synopsis.processes.spectral import SpectralRegression, SpectralState
from synopsis.states import State, check_streams

_EMBEDDING_DEPTH = 4
_FAMILIAR_COUNT = 2000.0  # contexts in training are no longer; beyond, the count says "many"


@dataclass(frozen=True)
class AnchoredState(State):
    """Both memories of what was seen.

    Args:
        blocks: of the constant memory attention blocks.
        regression: of the Bayesian regressions.
        fingerprint: of the process that made it.
    """

    kind: ClassVar[str] = "anchored-cmanp"
    blocks: CMABState
    regression: SpectralState
    fingerprint: str

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """Points seen by each stream."""
        return self.blocks.count

    def check(self) -> None:
        """Raise ValueError unless both memories are of the right kind and of the same streams."""
        if not (isinstance(self.blocks, CMABState) and isinstance(self.regression, SpectralState)):
            raise ValueError(
                f"found {self.blocks.kind} and {self.regression.kind}, not cmab and spectral-regression"
            )
        check_streams(self.blocks, len(self.regression.count))


class AnchoredCMANP(Process):
    """Constant memory neural process for streams of one output, anchored at a Bayesian regression.

    An input that is NaN is "not given", so one process serves any number of inputs up to ``dim_x``. Inputs and outputs
    are expected standardised; large values are compressed, not cut.

    Args:
        dim_x: most inputs it takes.
        dim: width of embeddings.
        heads: attention heads.
        blocks: constant memory attention blocks, and decoder layers.
        latents: learned queries per block.
        components: of the predictive mixture of Gaussians.
        dim_y: 1, for symmetry with the other processes.
        prior: of the regressions: departures from :class:`synopsis.processes.spectral.Prior`, by name.

    Example:
        >>> import torch
        >>> process = AnchoredCMANP(dim_x=2, dim=16, blocks=2, latents=8).eval()
        >>> x = torch.randn(1, 500, 2)
        >>> process(x, x.sum(-1, keepdim=True), x[:, :5]).mean.shape
        torch.Size([1, 5, 1])
    """

    merges: Merges = "any order"  # type: ignore[misc]

    def __init__(
        self,
        dim_x: int = 8,
        dim: int = 64,
        heads: int = 4,
        blocks: int = 4,
        latents: int = 32,
        components: int = 5,
        dim_y: int = 1,
        prior: Mapping[str, Any] | None = None,
    ) -> None:
        if dim_y != 1:
            raise ValueError(f"an anchored process predicts one output, not {dim_y}")
        sizes = {"dim": dim, "heads": heads, "blocks": blocks, "latents": latents}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, components=components)
        if prior:  # not otherwise: states name their process by its configuration
            self.config["prior"] = dict(prior)
        self.regression = SpectralRegression(dim_x, prior=prior)
        opinions = 4 + 3 * self.regression.beliefs.experts
        self.embed_context = perceptron(2 * dim_x + 1, dim, dim, _EMBEDDING_DEPTH)
        self.embed_target = perceptron(2 * dim_x + opinions, dim, dim, _EMBEDDING_DEPTH)
        self.trunk = Trunk(dim, heads, blocks, latents, residual="raw")
        self.head = MixtureHead(dim, 1, components)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> AnchoredState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        blocks, sums = self.trunk.stack.init(batch_shape), self.regression.init(batch_shape)
        return AnchoredState(blocks, sums, self.fingerprint)

    def update(
        self,
        state: AnchoredState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context 1"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> AnchoredState:
        """The state after these points as well; mask is True where a point is real.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to another process.
        """
        self.check_points(xc, yc)
        self.check_belongs(state)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            blocks = self.trunk.stack.fold(
                state.blocks,
                (len(xc), xc.shape[1]),
                lambda piece: self._embed(
                    xc[:, piece], yc[:, piece], None if mask is None else mask[:, piece]
                ),
                mask,
            )
            sums = self.regression.update(state.regression, xc, yc, mask)
            return replace(state, blocks=blocks, regression=sums)

    def predict(
        self, state: AnchoredState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        return self._predict(state.regression, self.trunk.read(state.blocks), xt)

    def merge(self, a: AnchoredState, b: AnchoredState) -> AnchoredState:
        """The state after both parts of the data; ValueError when they belong to another process."""
        self.check_belongs(a)
        self.check_belongs(b)
        blocks = self.trunk.stack.merge(a.blocks, b.blocks)
        sums = self.regression.merge(a.regression, b.regression)
        return replace(a, blocks=blocks, regression=sums)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context 1"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PredictiveDistribution:
        """Condition on a context and predict; in training mode by one fused, differentiable sweep."""
        if not self.training:
            return super().forward(xc, yc, xt, mask)
        return self._predict(*self._sweep(xc, yc, mask), xt)

    def _sweep(
        self, xc: Tensor, yc: Tensor, mask: Tensor | None
    ) -> tuple[SpectralState, list[Tensor]]:
        """The regressions' sums and the blocks' answers, in one differentiable sweep."""
        self.check_points(xc, yc)
        answers = self.trunk.encode(self._embed(xc, yc, mask), mask)
        with torch.no_grad():
            sums = self.regression.update(self.regression.init((len(xc),)), xc, yc, mask)
        return sums, answers

    def _embed(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        features = torch.cat([_inputs(x), _compress(y)], dim=-1)
        if mask is not None:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        embedded: Tensor = self.embed_context(features)
        return embedded

    def _predict(
        self, sums: SpectralState, answers: list[Tensor], xt: Tensor
    ) -> PredictiveDistribution:
        experts = self.regression.experts(sums, xt)
        anchor = experts.moments()
        described = self._describe(xt, experts, anchor, sums.count)
        residual = self.head(self.trunk.decode(described, answers))
        anchored: PredictiveDistribution = residual.affine(anchor.mean, anchor.stddev)
        return anchored

    def _describe(self, xt: Tensor, experts: Experts, anchor: Gaussian, count: Tensor) -> Tensor:
        """Targets for the decoder: their inputs, what the regressions say of them, and how much was seen."""
        opinion = _opinion(experts, anchor).to(xt.dtype)
        seen = (count.clamp(max=_FAMILIAR_COUNT).to(xt.dtype).log1p() / 4.0)[:, None, None]
        features = torch.cat([_inputs(xt), opinion, seen.expand(-1, xt.shape[1], -1)], dim=-1)
        described: Tensor = self.embed_target(features)
        return described


def _opinion(experts: Experts, anchor: Gaussian) -> Float[Tensor, "batch targets features"]:
    """What the regressions say of a target, in numbers of unit size: together, and where each differs."""
    mean, stddev = anchor.mean, anchor.stddev
    weight = experts.log_weight.exp().unsqueeze(1).expand_as(experts.mean)
    noise = (experts.noise.log() * weight[:, 0]).sum(-1)[:, None, None] / 2.0
    together = [_compress(mean), stddev.log(), noise.expand_as(mean)]
    apart = [_compress((experts.mean - mean) / stddev), (experts.stddev / stddev).log(), weight]
    return torch.cat([*together, *apart], dim=-1)


def _inputs(x: Tensor) -> Tensor:
    """Compressed inputs, 0 where not given, and which of them are given."""
    given = ~x.isnan()
    return torch.cat([_compress(x.masked_fill(~given, 0.0)), given.to(x.dtype)], dim=-1)


def _compress(values: Tensor) -> Tensor:
    return values.asinh()
