"""The efficient-query Transformer neural process: the context attends to itself, targets read every layer of it.

Self-attention over the context is done once; targets are then decoded one by one from the context as each layer left
it, so a query costs no more than the context is long.

Source: the EQTNP of Feng, Hajimirsadeghi, Bengio & Ahmed, "Latent Bottlenecked Attentive Neural Processes", ICLR 2023,
and its code. Departures from it: layers are initialised independently, where the code starts from copies of one, and
``residual="raw"`` is the default.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.layers import FeedForward, Residual, SelfAttention, perceptron
from synopsis.processes.cmanp import DecoderLayer
from synopsis.processes.context import ContextProcess
from synopsis.processes.heads import PredictiveDistribution, build_head

_EMBEDDING_DEPTH = 4
_FEEDFORWARD = 2  # hidden width of feed-forward layers, in units of dim


class TargetDecoder(nn.Module):
    """Embeds targets and lets layer k of them read set k; targets never see each other.

    Args:
        dim_x: number of inputs.
        dim: width of embeddings.
        heads: attention heads.
        layers: of the decoder, one per set.
        residual: ``"raw"`` or ``"normed"``.
    """

    def __init__(self, dim_x: int, dim: int, heads: int, layers: int, residual: Residual) -> None:
        super().__init__()
        self.embed = perceptron(dim_x, dim, dim, _EMBEDDING_DEPTH)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, residual) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        xt: Float[Tensor, "batch targets dim_x"],
        sets: Sequence[Float[Tensor, "batch items dim"]],
        mask: Bool[Tensor, "batch items"] | None = None,
    ) -> Float[Tensor, "batch targets dim"]:
        """Features of the targets; mask is True where an item of the sets is real."""
        targets = self.embed(xt)
        layers = cast("list[DecoderLayer]", list(self.layers))
        for layer, items in zip(layers, sets, strict=True):
            targets = layer.transform(layer.attend(targets, items, mask))
        features: Tensor = self.norm(targets)
        return features


class ContextLayer(nn.Module):
    """Self-attention of the context, then feed-forward."""

    def __init__(self, dim: int, heads: int, residual: Residual) -> None:
        super().__init__()
        self.attend = SelfAttention(dim, heads, residual)
        self.transform = FeedForward(dim, _FEEDFORWARD * dim, residual)

    def forward(
        self,
        context: Float[Tensor, "batch context dim"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch context dim"]:
        """The context after it attended to itself; mask is True where a point is real."""
        transformed: Tensor = self.transform(self.attend(context, mask))
        return transformed


class EQTNP(ContextProcess):
    """Efficient-query Transformer neural process; the defaults are the published sizes.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width of embeddings.
        heads: attention heads.
        layers: of the decoder, at least 1; the context has one layer less, its embedding being the first set.
        residual: ``"raw"`` (pre-norm) or ``"normed"`` (the published code).
        head: ``"gaussian"`` (σ = exp), ``"bounded-gaussian"`` or ``"mixture-N"``.

    Example:
        >>> import torch
        >>> process = EQTNP(dim_x=1, dim_y=1, dim=16, layers=2).eval()
        >>> state = process.update(process.init(), torch.randn(1, 20, 1), torch.randn(1, 20, 1))
        >>> process.predict(state, torch.zeros(1, 5, 1)).mean.shape
        torch.Size([1, 5, 1])
    """

    def __init__(
        self,
        dim_x: int = 1,
        dim_y: int = 1,
        dim: int = 64,
        heads: int = 4,
        layers: int = 6,
        residual: Residual = "raw",
        head: str = "gaussian",
    ) -> None:
        sizes = {"dim": dim, "heads": heads, "layers": layers}
        super().__init__(dim_x=dim_x, dim_y=dim_y, **sizes, residual=residual, head=head)
        self.embed = perceptron(dim_x + dim_y, dim, dim, _EMBEDDING_DEPTH)
        self.layers = nn.ModuleList(ContextLayer(dim, heads, residual) for _ in range(layers - 1))
        self.decoder = TargetDecoder(dim_x, dim, heads, layers, residual)
        self.head = build_head(head, dim, dim_y)

    def condition(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> PredictiveDistribution:
        """Predict from a context in one differentiable pass; x and y are 0 where the mask is False."""
        sets = [self.embed(torch.cat([xc, yc], dim=-1))]
        for layer in self.layers:
            sets.append(layer(sets[-1], mask))
        predicted: PredictiveDistribution = self.head(self.decoder(xt, sets, mask))
        return predicted


__all__ = ["EQTNP", "ContextLayer", "TargetDecoder"]
