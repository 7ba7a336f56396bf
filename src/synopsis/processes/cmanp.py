"""Constant memory attentive neural processes.

The context is embedded point by point and folded into a stack of constant memory attention blocks; targets are
decoded from the blocks' answers, each target by itself. What is kept of the context is the blocks' softmax summaries,
whose size does not depend on how much was seen.

Source: Feng, Tung, Hajimirsadeghi, Bengio & Ahmed, "Memory Efficient Neural Processes via Constant Memory Attention
Block", ICML 2024, sections 3 and 4.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from synopsis.memory.base import Merges
from synopsis.memory.cmab import CMAB
from synopsis.memory.cmab_stack import CMABStack, CMABState
from synopsis.memory.layers import CrossAttention, FeedForward, Residual, blank, perceptron
from synopsis.processes.base import Process
from synopsis.processes.heads import PredictiveDistribution, build_head
from synopsis.states import State, check_streams

Initial = Literal["independent", "copies"]
_EMBEDDING_DEPTH = 4
_FEEDFORWARD = 2  # hidden width of feed-forward layers, in units of dim


@dataclass(frozen=True)
class CMANPState(State):
    """What a process keeps of each stream.

    Args:
        blocks: of the constant memory attention blocks.
        fingerprint: of the process that made it.
    """

    kind: ClassVar[str] = "cmanp"
    blocks: CMABState
    fingerprint: str

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """Points seen by each stream."""
        return self.blocks.count

    def check(self) -> None:
        """Raise ValueError unless the memory is of the right kind."""
        if not isinstance(self.blocks, CMABState):
            raise ValueError(f"found a {self.blocks.kind}, not a cmab")


class DecoderLayer(nn.Module):
    """Cross-attention from targets to one block's answer, then feed-forward; targets never see each other."""

    def __init__(self, dim: int, heads: int, residual: Residual) -> None:
        super().__init__()
        self.attend = CrossAttention(dim, heads, residual)
        self.transform = FeedForward(dim, _FEEDFORWARD * dim, residual)

    def forward(
        self,
        targets: Float[Tensor, "batch targets dim"],
        answer: Float[Tensor, "batch latents dim"],
    ) -> Float[Tensor, "batch targets dim"]:
        """Let the targets read one answer."""
        transformed: Tensor = self.transform(self.attend(targets, answer))
        return transformed


class Trunk(nn.Module):
    """The stack of blocks and the decoder that reads it, shared by the processes of this family.

    Args:
        dim: width of embeddings.
        heads: attention heads.
        blocks: number of blocks, and of decoder layers.
        latents: learned queries per block, and latents that read them.
        residual: ``"raw"`` or ``"normed"``.
    """

    def __init__(self, dim: int, heads: int, blocks: int, latents: int, residual: Residual) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        sizes = (dim, latents, heads, _FEEDFORWARD * dim, residual)
        self.stack = CMABStack([CMAB(*sizes) for _ in range(blocks)])
        self.decoder = nn.ModuleList(DecoderLayer(dim, heads, residual) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def start_alike(self) -> None:
        """Let every block, and every layer of the decoder, start from the weights of the first."""
        for layers in (self.stack.blocks, self.decoder):
            first, *others = layers
            for other in others:
                other.load_state_dict(first.state_dict())

    def read(self, state: CMABState) -> list[Float[Tensor, "batch latents dim"]]:
        """Every block's answer to the learned latents."""
        return self.stack.read(state, self._latents(len(state.count)))

    def encode(
        self,
        context: Float[Tensor, "batch context dim"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> list[Float[Tensor, "batch latents dim"]]:
        """Fold and read in one differentiable sweep."""
        return self.stack.encode(context, self._latents(len(context)), mask)

    def decode(
        self,
        targets: Float[Tensor, "batch targets dim"],
        answers: list[Float[Tensor, "batch latents dim"]],
    ) -> Float[Tensor, "batch targets dim"]:
        """Features of the targets, given the blocks' answers."""
        for layer, answer in zip(self.decoder, answers, strict=True):
            targets = layer(targets, answer)
        normed: Tensor = self.norm(targets)
        return normed

    def _latents(self, batch: int) -> Tensor:
        return self.latents.expand(batch, -1, -1)


class CMANP(Process):
    """Constant memory attentive neural process; the defaults are the paper's sizes for Gaussian-process regression.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads.
        blocks: constant memory attention blocks, and decoder layers.
        latents: learned queries per block.
        residual: ``"raw"`` (pre-norm; trains faster) or ``"normed"`` (the published code).
        head: ``"gaussian"`` (σ = exp), ``"bounded-gaussian"`` or ``"mixture-N"``.
        initial: weights of blocks and decoder layers before training: ``"independent"`` draws (train faster), or
            ``"copies"`` of one another (the published code).

    Example:
        >>> import torch
        >>> process = CMANP(dim_x=1, dim_y=1, dim=16, blocks=2, latents=8).eval()
        >>> state = process.update(process.init(), torch.randn(1, 1000, 1), torch.randn(1, 1000, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    merges: Merges = "any order"  # type: ignore[misc]

    def __init__(  # noqa: PLR0913  (every argument is a key of the configuration)
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        blocks: int = 6,
        latents: int = 128,
        residual: Residual = "raw",
        head: str = "gaussian",
        initial: Initial = "independent",
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "blocks": blocks, "latents": latents}
        # The default is left out: fingerprints of weights that were made before there was a choice stay.
        chosen = {} if initial == "independent" else {"initial": initial}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, residual=residual, head=head, **chosen)
        self.embed_context = perceptron(dim_x + dim_y, dim, dim, _EMBEDDING_DEPTH)
        self.embed_target = perceptron(dim_x, dim, dim, _EMBEDDING_DEPTH)
        self.trunk = Trunk(dim, heads, blocks, latents, residual)
        self.head = build_head(head, dim, dim_y)
        if initial == "copies":
            self.trunk.start_alike()

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> CMANPState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        return CMANPState(self.trunk.stack.init(batch_shape), self.fingerprint)

    def update(
        self,
        state: CMANPState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> CMANPState:
        """The state after these points as well; mask is True where a point is real.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to other weights.
        """
        self.check_points(xc, yc)
        self.check_belongs(state)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            points = blank(torch.cat([xc, yc], dim=-1), mask)
            blocks = self.trunk.stack.fold(
                state.blocks,
                (len(points), points.shape[1]),
                lambda piece: self.embed_context(points[:, piece]),
                mask,
            )
            return replace(state, blocks=blocks)

    def predict(
        self, state: CMANPState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs; nothing is learned and nothing changes."""
        self.check_points(xt)
        self.check_belongs(state)
        check_streams(state, len(xt))
        return self._predict(self.trunk.read(state.blocks), xt)

    def merge(self, a: CMANPState, b: CMANPState) -> CMANPState:
        """The state after both parts of the data; ValueError when they belong to another process."""
        self.check_belongs(a)
        self.check_belongs(b)
        return replace(a, blocks=self.trunk.stack.merge(a.blocks, b.blocks))

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> PredictiveDistribution:
        """Condition on a context and predict; in training mode by one fused, differentiable sweep."""
        if not self.training:
            return super().forward(xc, yc, xt, mask)
        self.check_points(xc, yc)
        context = self.embed_context(blank(torch.cat([xc, yc], dim=-1), mask))
        return self._predict(self.trunk.encode(context, mask), xt)

    def _predict(self, answers: list[Tensor], xt: Tensor) -> PredictiveDistribution:
        features = self.trunk.decode(self.embed_target(xt), answers)
        predicted: PredictiveDistribution = self.head(features)
        return predicted
