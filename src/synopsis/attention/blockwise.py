"""A transformer layer whose attention and feed-forward are computed together, one block of queries at a time.

A plain layer keeps some fifteen activations of the size of its input until the backward pass, eight of them inside the
feed-forward. Here the hidden layer exists for one block of queries only, and between the passes nothing is kept but the
attention's output and log-sum-exp: all else is recomputed, but attention, the costly part, never is.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from synopsis.attention.blockwise_passes import (
    Backward,
    Setup,
    Weights,
    after_attention,
    forward,
    split,
)
from synopsis.attention.exact import scaled_dot_product_attention
from synopsis.attention.rules import MaskMod, Rules, ScoreMod

_COUNT = len(Weights._fields)


class BlockwiseTransformerLayer(nn.Module):
    """A pre-norm transformer layer in bounded memory: x + attention(norm(x)), then x + feed-forward(norm(x)).

    The same function, gradients and parameter names as ``torch.nn.TransformerEncoderLayer(dim, heads, feedforward,
    dropout=0, activation="gelu", batch_first=True, norm_first=True)``, so its ``state_dict`` loads as it is.

    Args:
        dim: width of the tokens; divides into heads.
        heads: attention heads.
        feedforward: width of the hidden layer; 4 · dim unless given.
        query_block: tokens whose hidden layer exists at once; memory grows with it, results do not change.
        head_block: heads whose gradient is computed at once; None takes as many as keep all threads busy.
        is_causal: a token attends to itself and to those before it.
        eps: of the two normalisations.

    Raises:
        ValueError: when dim does not divide into heads, or a size is not positive.

    Example:
        >>> layer = BlockwiseTransformerLayer(dim=32, heads=4, is_causal=True)
        >>> layer(torch.zeros(2, 100, 32)).shape
        torch.Size([2, 100, 32])

    Source: Liu and Abbeel, "Blockwise Parallel Transformer for Large Context Models", 2023. Departures: the
    attention's output is kept, where the paper recomputes everything; backward, attention goes by heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int | None = None,
        query_block: int = 512,
        head_block: int | None = None,
        is_causal: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        feedforward = 4 * dim if feedforward is None else feedforward
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        for name, size in {"query_block": query_block, "head_block": head_block}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.dim, self.heads, self.eps = dim, heads, eps
        self.query_block, self.head_block, self.is_causal = query_block, head_block, is_causal
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)  # holds the weights
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(
        self,
        x: Float[Tensor, "*batch length dim"],
        *,
        mask_mod: MaskMod | None = None,
        score_mod: ScoreMod | None = None,
    ) -> Float[Tensor, "*batch length dim"]:
        """Attend within x, then transform each token by itself.

        Args:
            x: tokens.
            mask_mod: of (b, h, q_idx, kv_idx), True where a token may attend; b counts over all batch dimensions.
            score_mod: of (score, b, h, q_idx, kv_idx), the changed score; tensors in it may want a gradient.

        Raises:
            ValueError: when x is not as wide as the layer.
        """
        if x.dim() < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (..., length, {self.dim}), not {tuple(x.shape)}")
        scale = (self.dim // self.heads) ** -0.5
        rules = Rules(scale, self.is_causal, mask_mod=mask_mod, score_mod=score_mod)
        setup = Setup(rules, self.heads, self.query_block, self.head_block, self.eps)
        tokens = x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])
        return _layer(setup, tokens, self._weights()).view(x.shape)

    def _weights(self) -> Weights:
        attention = self.self_attn
        projections = (attention.out_proj, self.norm2, self.linear1, self.linear2)
        pairs = [(module.weight, module.bias) for module in (self.norm1, *projections)]
        pairs.insert(1, (attention.in_proj_weight, attention.in_proj_bias))
        return Weights(*(tensor for pair in pairs for tensor in pair))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # loops over blocks: one graph break
def _layer(setup: Setup, x: Tensor, weights: Weights) -> Tensor:
    captured = setup.rules.captured
    wanted = any(t.requires_grad for t in (x, *weights, *captured))
    if not (wanted and torch.is_grad_enabled()):
        return forward(setup, x, weights).output
    output: Tensor = _Blockwise.apply(setup, x, *weights, *captured)
    return output


class _Blockwise(Function):
    """(setup, x, *weights, *captured) to output."""

    @staticmethod
    def forward(ctx: Any, setup: Setup, x: Tensor, *tensors: Tensor) -> Tensor:
        found = forward(setup, x, Weights(*tensors[:_COUNT]))
        ctx.setup, ctx.autocast = setup, _autocast(x)
        ctx.save_for_backward(found.attended, found.lse, x, *tensors)
        return found.output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        attended, lse, x, *tensors = ctx.saved_tensors
        with ctx.autocast:
            if torch.is_grad_enabled():  # the gradient is itself to be differentiated
                return None, *_differentiable(ctx.setup, (x, *tensors), grad_output)
            backward = Backward(ctx.setup, x, Weights(*tensors[:_COUNT]), grad_output)
            for rows in ctx.setup.blocks(x.shape[1]):
                backward.through_feedforward(rows, attended[:, :, rows])
            for heads in ctx.setup.head_blocks(len(x)):
                backward.through_attention(heads, (attended[:, heads], lse[:, heads]))
            for rows in ctx.setup.blocks(x.shape[1]):
                backward.through_norm(rows)
        return None, *backward.found()


def _differentiable(
    setup: Setup, tensors: tuple[Tensor, ...], grad_output: Tensor
) -> Iterator[Tensor | None]:
    """The same gradients with a graph, by way of the plain layer and in its memory."""
    x, w = tensors[0], Weights(*tensors[1 : 1 + _COUNT])
    rules, everything = setup.rules, setup.part(w.project, slice(0, 3), slice(0, setup.heads))
    normed = setup.norm(x, w.norm1, w.norm1_bias)
    projected = F.linear(normed, everything.flatten(0, 2), w.project_bias)
    query, key, value = (split(t, setup.heads) for t in projected.chunk(3, dim=-1))
    attended, _ = scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=rules.is_causal,
        scale=rules.scale,
        mask_mod=rules.mask_mod,
        score_mod=rules.score_mod,
        return_lse=True,
    )
    middle = after_attention(x, attended, w)
    hidden = F.gelu(F.linear(setup.norm(middle, w.norm2, w.norm2_bias), w.expand, w.expand_bias))
    output = middle + F.linear(hidden, w.contract, w.contract_bias)
    wanted = [t for t in tensors if t.requires_grad]
    found = iter(
        torch.autograd.grad(output, wanted, grad_output, create_graph=True, allow_unused=True)
    )
    return (next(found) if t.requires_grad else None for t in tensors)


def _autocast(x: Tensor) -> torch.autocast:
    """Mixed precision as it is now, for the backward pass."""
    kind = x.device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
