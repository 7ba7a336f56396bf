"""The constant memory attention block: a stream folded into the attention of queries that are parameters.

A block has two rows of attention. The *data row* asks the stream with learned queries; because those queries never
change, the softmax summary (m, d, n) of each is all that must be kept of the stream. The *latent row* lets the caller's
latents ask the data row:

    data row    L_B ─ CA(· , stream) ─ FF ─ SA ─ FF ─→ L_B′
    latent row  L_in ─ CA(· , L_B′)  ─ FF ─ SA ─ FF ─→ L_out

Source: Feng, Tung, Hajimirsadeghi, Bengio & Ahmed, "Memory Efficient Neural Processes via Constant Memory Attention
Block", ICML 2024. Departures from their code: the summary is (m, d, n) with float64 sums instead of a float32
log-sum-exp recursion, which stops learning after 10⁶–10⁷ items; the latent row runs only when it is read; a stack of
blocks takes one pass over the data; every block starts from weights of its own; and the skip carries the input itself
by default (``residual="normed"`` gives theirs).
"""

import math
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.base import Merges
from synopsis.memory.cmab_stack import CMABStack, CMABState
from synopsis.memory.layers import (
    CrossAttention,
    FeedForward,
    Residual,
    SelfAttention,
    join_heads,
    split_heads,
)


class CMAB(nn.Module):
    """One constant memory attention block.

    Args:
        dim: width of items and latents.
        latents: number of learned queries L_B.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the gated feed-forward layers.
        residual: ``"raw"`` (pre-norm) or ``"normed"`` (the published code).

    Example:
        >>> import torch
        >>> memory = CMAB(dim=8, latents=4, heads=2, feedforward=16)
        >>> state = memory.update(memory.init((1,)), torch.randn(1, 100, 8))
        >>> memory.read(state, torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(
        self,
        dim: int = 64,
        latents: int = 128,
        heads: int = 4,
        feedforward: int = 128,
        residual: Residual = "raw",
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.absorb = CrossAttention(dim, heads, residual)
        self.digest = _row(dim, heads, feedforward, residual)
        self.retrieve = CrossAttention(dim, heads, residual)
        self.compose = _row(dim, heads, feedforward, residual)
        # in a tuple: a module must not contain its own container
        self._stack = (CMABStack([self]),)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> CMABState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        return self._stack[0].init(batch_shape)

    def update(
        self,
        state: CMABState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> CMABState:
        """Fold items in; ValueError when the state belongs to other weights."""
        return self._stack[0].update(state, x, mask)

    def merge(self, a: CMABState, b: CMABState) -> CMABState:
        """The state after both sets of items; ValueError when they belong to other weights."""
        return self._stack[0].merge(a, b)

    def read(
        self, state: CMABState, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What the block answers to these latents; reading changes nothing."""
        return self._stack[0].read(state, latents)[0]

    def answer(
        self,
        attended: Float[Tensor, "batch heads latents width"],
        latents: Float[Tensor, "batch queries dim"],
    ) -> Float[Tensor, "batch queries dim"]:
        """Both rows after the first attention: heads joined, projected, added to the learned queries, and read."""
        raw = self.absorb.residual == "raw"
        skip = self.latents if raw else self.absorb.norm(self.latents)
        data = self.digest(skip + self.absorb.attention.to_output(join_heads(attended)))
        answer: Tensor = self.compose(self.retrieve(latents, data))
        return answer

    def query(self) -> Float[Tensor, "heads latents width"]:
        """The learned queries as the stream meets them: normalised, projected, scaled."""
        attention = self.absorb.attention
        query = split_heads(attention.to_query(self.absorb.norm(self.latents)), attention.heads)
        return query / math.sqrt(query.shape[-1])

    def train(self, mode: bool = True) -> Self:
        """Change mode, and forget what was derived from the weights: fused optimisers change them unseen."""
        self._stack[0].forget()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Shape of the learned queries."""
        return f"latents={tuple(self.latents.shape)}, residual={self.absorb.residual!r}"


def _row(dim: int, heads: int, feedforward: int, residual: Residual) -> nn.Sequential:
    return nn.Sequential(
        FeedForward(dim, feedforward, residual),
        SelfAttention(dim, heads, residual),
        FeedForward(dim, feedforward, residual),
    )
