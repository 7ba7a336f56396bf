"""A constant memory process anchored at Bayesian linear regression.

Streams of the real world are mostly linear, and a line is learned exactly by a handful of sums. So this process keeps
both memories: the exact posterior of a linear regression, and constant memory attention blocks for everything a line
misses. The head describes y in units of the linear prediction, (y − m(x)) / s(x): at the start of training the process
*is* the linear regression, whatever the scale of the data, and the network learns where to leave it. Both memories are
folds that merge in any order, so the whole is one.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.memory.cmab import CMABState
from synopsis.memory.layers import perceptron
from synopsis.processes.base import Process
from synopsis.processes.cmanp import Trunk
from synopsis.processes.heads import MixtureHead, PredictiveDistribution
from synopsis.processes.linear import BayesianLinear, LinearState
from synopsis.states import State

_EMBEDDING_DEPTH = 4
_ANCHOR_FEATURES = 4
_FAMILIAR_COUNT = 2000.0  # contexts in training are no longer; beyond, the count says "many"


@dataclass(frozen=True)
class AnchoredState(State):
    """Both memories of what was seen.

    Args:
        blocks: of the constant memory attention blocks.
        line: of the linear regression.
        fingerprint: of the process that made it.
    """

    kind: ClassVar[str] = "anchored-cmanp"
    blocks: CMABState
    line: LinearState
    fingerprint: str

    @property
    def count(self) -> Int[Tensor, " batch"]:  # type: ignore[override]
        """Points seen by each stream."""
        return self.blocks.count


class AnchoredCMANP(Process):
    """Constant memory neural process for streams of one output, anchored at Bayesian linear regression.

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
    ) -> None:
        if dim_y != 1:
            raise ValueError(f"an anchored process predicts one output, not {dim_y}")
        sizes = {"dim": dim, "heads": heads, "blocks": blocks, "latents": latents}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, components=components)
        self.line = BayesianLinear(dim_x)
        self.embed_context = perceptron(2 * dim_x + 1, dim, dim, _EMBEDDING_DEPTH)
        self.embed_target = perceptron(2 * dim_x + _ANCHOR_FEATURES, dim, dim, _EMBEDDING_DEPTH)
        self.trunk = Trunk(dim, heads, blocks, latents, residual="raw")
        self.head = MixtureHead(dim, 1, components)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> AnchoredState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        blocks, line = self.trunk.stack.init(batch_shape), self.line.init(batch_shape)
        return AnchoredState(blocks, line, self.fingerprint)

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
        self._check_belongs(state)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            blocks = self.trunk.stack.fold(
                state.blocks,
                xc.shape[1],
                lambda piece: self._embed(
                    xc[:, piece], yc[:, piece], None if mask is None else mask[:, piece]
                ),
                mask,
            )
            return replace(state, blocks=blocks, line=self.line.update(state.line, xc, yc, mask))

    def predict(
        self, state: AnchoredState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        self.check_points(xt)
        self._check_belongs(state)
        return self._predict(state.line, self.trunk.read(state.blocks), xt)

    def merge(self, a: AnchoredState, b: AnchoredState) -> AnchoredState:
        """The state after both parts of the data; ValueError when they belong to another process."""
        self._check_belongs(a)
        self._check_belongs(b)
        blocks = self.trunk.stack.merge(a.blocks, b.blocks)
        return replace(a, blocks=blocks, line=self.line.merge(a.line, b.line))

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
        self.check_points(xc, yc)
        answers = self.trunk.encode(self._embed(xc, yc, mask), mask)
        with torch.no_grad():
            line = self.line.update(self.line.init((len(xc),)), xc, yc, mask)
        return self._predict(line, answers, xt)

    def _embed(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        features = torch.cat([_inputs(x), _compress(y)], dim=-1)
        if mask is not None:
            features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
        embedded: Tensor = self.embed_context(features)
        return embedded

    def _predict(
        self, line: LinearState, answers: list[Tensor], xt: Tensor
    ) -> PredictiveDistribution:
        anchor = self.line.predict(line, xt)
        mean, stddev = anchor.mean.float(), anchor.stddev.float()
        evidence = self._evidence(line).expand(-1, xt.shape[1], -1)
        features = torch.cat([_inputs(xt), _compress(mean), stddev.log(), evidence], dim=-1)
        residual = self.head(self.trunk.decode(self.embed_target(features), answers))
        anchored: PredictiveDistribution = residual.affine(mean, stddev)
        return anchored

    def _evidence(self, line: LinearState) -> Float[Tensor, "batch 1 2"]:
        """How much was seen, and how much of it a line leaves unexplained."""
        count = line.count.clamp(max=_FAMILIAR_COUNT).float().log1p() / 4.0
        noise = self.line.posterior(line).noise.float().log() / 2.0
        return torch.cat([count.unsqueeze(-1), noise], dim=-1).unsqueeze(1)

    def _check_belongs(self, state: AnchoredState) -> None:
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"the state was made by process {state.fingerprint}, not by this one ({self.fingerprint})"
            )


def _inputs(x: Tensor) -> Tensor:
    """Compressed inputs, 0 where not given, and which of them are given."""
    given = ~x.isnan()
    return torch.cat([_compress(x.masked_fill(~given, 0.0)), given.to(x.dtype)], dim=-1)


def _compress(values: Tensor) -> Tensor:
    return values.asinh()
