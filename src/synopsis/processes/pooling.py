"""What conditional, latent and bootstrapping neural processes are built from: pooling, attention, a decoder.

A context is encoded twice. Without attention, both encoders embed each point by itself and take the mean, so a context
is two running sums and a count. With attention, the first lets every target read the context, and the points of the
second see each other before the mean; then nothing short of the points can be kept.

Source: Garnelo et al., "Conditional Neural Processes" and "Neural Processes", 2018; Kim et al., "Attentive Neural
Processes", 2019; sizes and details as in the code of Lee et al., "Bootstrapping Neural Processes", 2020.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.layers import blank, join_heads, perceptron, split_heads
from synopsis.processes.heads import Gaussian

_HEADS = 8
_PIECE = 4096  # points embedded at once while folding: bounds memory, not results

Encodings = tuple[Tensor, ...]  # one per encoder, (..., targets or 1, width)


class Depths(NamedTuple):
    """Linear layers of each part; processes without attention use the first three.

    Args:
        before: of pooling encoders before the mean (two fewer where self-attention follows), at least 3.
        after: of pooling encoders after the mean.
        decoder: of the decoder, at least 2.
        value: of the values of cross-attention, two of them for its self-attention, at least 3.
        query_key: of what queries and keys are made with.
    """

    before: int = 4
    after: int = 2
    decoder: int = 3
    value: int = 4
    query_key: int = 2


GP = Depths()  # the published sizes, by data set
EMNIST = Depths(5, 3, 4, 5, 3)
CELEBA = Depths(6, 3, 5, 6, 3)


def checked_depths(depths: Sequence[int]) -> Depths:
    """The five depths by name; ValueError when there are too few layers, or not five numbers."""
    if len(depths) != 5 or any(d < least for d, least in zip(depths, (3, 1, 2, 3, 1), strict=True)):
        raise ValueError(f"depths must be five numbers of at least 3, 1, 2, 3, 1, not {depths}")
    return Depths(*depths)


class FullWidthAttention(nn.Module):
    """Multi-head attention whose scores are divided by √dim, not by the square root of a head's width.

    With q, k, v linear and without bias: o = LN(q + attention), out = LN(o + ReLU(Linear(o))). Attention over nothing
    is 0.

    Args:
        dim: width of everything, a multiple of 8.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % _HEADS:
            raise ValueError(f"dim {dim} does not divide into {_HEADS} heads")
        self.scale = 1.0 / math.sqrt(dim)
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim, bias=False)
        self.norm_attended = nn.LayerNorm(dim)
        self.transform = nn.Linear(dim, dim)
        self.norm_transformed = nn.LayerNorm(dim)

    def forward(
        self,
        query: Float[Tensor, "batch queries dim"],
        key: Float[Tensor, "batch keys dim"],
        value: Float[Tensor, "batch keys dim"],
        mask: Bool[Tensor, "batch keys"] | None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend; mask is True where a key is real."""
        query = self.to_query(query)
        attended = F.scaled_dot_product_attention(
            split_heads(query, _HEADS),
            split_heads(self.to_key(key), _HEADS),
            split_heads(self.to_value(value), _HEADS),
            attn_mask=None if mask is None else mask[:, None, None, :],
            scale=self.scale,
        )
        out = self.norm_attended(query + join_heads(attended))
        transformed: Tensor = self.norm_transformed(out + F.relu(self.transform(out)))
        return transformed


class PoolingEncoder(nn.Module):
    """Embed each point by itself, take the mean, transform it; the mean of nothing is 0.

    Args:
        inputs: numbers that make up a point.
        dim: hidden width.
        outputs: width of the encoding.
        depths: its ``before`` and ``after`` are used.
    """

    def __init__(self, inputs: int, dim: int, outputs: int, depths: Depths) -> None:
        super().__init__()
        self.dim = dim
        self.before = perceptron(inputs, dim, dim, depths.before)
        self.after = perceptron(dim, dim, outputs, depths.after)

    def forward(
        self,
        points: Float[Tensor, "batch points inputs"],
        mask: Bool[Tensor, "batch points"] | None,
    ) -> Float[Tensor, "batch 1 outputs"]:
        """The encoding of a set of points; mask is True where one is real."""
        return self.read(pooled(self.before(points), mask))

    def total(
        self,
        points: Float[Tensor, "batch points inputs"],
        mask: Bool[Tensor, "batch points"] | None,
    ) -> Float64[Tensor, "batch dim"]:
        """The sum of embedded points, in memory that does not grow with their number."""
        total = points.new_zeros(len(points), self.dim, dtype=torch.float64)
        for start in range(0, points.shape[1], _PIECE):
            piece = slice(start, start + _PIECE)
            embedded = self.before(points[:, piece])
            total = total + blank(embedded, None if mask is None else mask[:, piece]).double().sum(
                1
            )
        return total

    def read(self, mean: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch 1 outputs"]:
        """The encoding of a set of points with this mean of embedded points."""
        encoding: Tensor = self.after(mean).unsqueeze(1)
        return encoding


class AttentivePoolingEncoder(nn.Module):
    """A pooling encoder whose points see each other before the mean; arguments as of :class:`PoolingEncoder`."""

    def __init__(self, inputs: int, dim: int, outputs: int, depths: Depths) -> None:
        super().__init__()
        self.before = perceptron(inputs, dim, dim, depths.before - 2)
        self.attend = FullWidthAttention(dim)
        self.after = perceptron(dim, dim, outputs, depths.after)

    def forward(
        self,
        points: Float[Tensor, "batch points inputs"],
        mask: Bool[Tensor, "batch points"] | None,
    ) -> Float[Tensor, "batch 1 outputs"]:
        """The encoding of a set of points; mask is True where one is real."""
        embedded = F.relu(self.before(points))
        encoding: Tensor = self.after(pooled(self.attend(embedded, embedded, embedded, mask), mask))
        return encoding.unsqueeze(1)


class CrossAttentionEncoder(nn.Module):
    """Every target reads the context: values see each other first, queries and keys share one perceptron.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: width.
        depths: its ``value`` and ``query_key`` are used.
    """

    def __init__(self, dim_x: int, dim_y: int, dim: int, depths: Depths) -> None:
        super().__init__()
        self.value = perceptron(dim_x + dim_y, dim, dim, depths.value - 2)
        self.attend_values = FullWidthAttention(dim)
        self.query_key = perceptron(dim_x, dim, dim, depths.query_key)
        self.attend = FullWidthAttention(dim)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Float[Tensor, "batch targets dim"]:
        """The encoding of the context at each target."""
        value = self.value(torch.cat([xc, yc], dim=-1))
        value = self.attend_values(value, value, value, mask)
        read: Tensor = self.attend(self.query_key(xt), self.query_key(xc), value, mask)
        return read


class PooledEncodings(nn.Module):
    """Two independent pooling encoders: one encoding pair for all targets, from sums that can be kept.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        dim: hidden width, and width of the first encoding.
        outputs: width of the second encoding.
        depths: of their parts.
    """

    def __init__(self, dim_x: int, dim_y: int, dim: int, outputs: int, depths: Depths) -> None:
        super().__init__()
        self.first = PoolingEncoder(dim_x + dim_y, dim, dim, depths)
        self.second = PoolingEncoder(dim_x + dim_y, dim, outputs, depths)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],  # noqa: ARG002  (the face of AttendedEncodings)
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Encodings:
        """Both encodings of a context, (batch, 1, width)."""
        points = torch.cat([xc, yc], dim=-1)
        return self.first(points, mask), self.second(points, mask)


class AttendedEncodings(nn.Module):
    """A cross-attention encoder and an attentive pooling encoder; arguments as of :class:`PooledEncodings`."""

    def __init__(self, dim_x: int, dim_y: int, dim: int, outputs: int, depths: Depths) -> None:
        super().__init__()
        self.first = CrossAttentionEncoder(dim_x, dim_y, dim, depths)
        self.second = AttentivePoolingEncoder(dim_x + dim_y, dim, outputs, depths)

    def forward(
        self,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        xt: Float[Tensor, "batch targets dim_x"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> Encodings:
        """The encoding at each target, (batch, targets, dim), and the one for all, (batch, 1, outputs)."""
        return self.first(xc, yc, xt, mask), self.second(torch.cat([xc, yc], dim=-1), mask)


class Decoder(nn.Module):
    """Encodings and a target's inputs to Gaussians with σ = floor + (1 − floor)·softplus.

    The first layer is applied to its inputs one by one and summed, so what all targets or all samples share is
    multiplied once.

    Args:
        dim_x: number of inputs.
        dim_y: number of outputs.
        widths: of the encodings.
        dim: hidden width.
        depth: number of linear layers.
        floor: smallest standard deviation, 0 < floor < 1.
    """

    def __init__(
        self, dim_x: int, dim_y: int, widths: Sequence[int], dim: int, depth: int, floor: float
    ) -> None:
        super().__init__()
        if not 0.0 < floor < 1.0:
            raise ValueError(f"floor must be between 0 and 1, not {floor}")
        self.floor = floor
        self.enter = nn.Linear(sum(widths) + dim_x, dim)
        self.transform = perceptron(dim, dim, 2 * dim_y, depth - 1)

    def forward(self, xt: Float[Tensor, "*batch targets dim_x"], encodings: Encodings) -> Gaussian:
        """The prediction at each target, over all leading axes of targets and encodings."""
        return self.leave(linear_of_parts(self.enter, (*encodings, xt)))

    def leave(self, entered: Float[Tensor, "*batch targets dim"]) -> Gaussian:
        """The prediction, from what the first layer gave."""
        raw = self.transform(F.relu(entered))
        mean, raw = raw.to(torch.promote_types(raw.dtype, torch.float32)).chunk(2, dim=-1)
        return Gaussian(mean, self.floor + (1.0 - self.floor) * F.softplus(raw))


def pooled(
    features: Float[Tensor, "batch points dim"], mask: Bool[Tensor, "batch points"] | None
) -> Float[Tensor, "batch dim"]:
    """The mean over real points; over nothing it is 0."""
    if mask is None:
        return features.sum(1) / max(features.shape[1], 1)
    return blank(features, mask).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def linear_of_parts(linear: nn.Linear, parts: Encodings) -> Tensor:
    """The layer applied to the parts side by side, without putting them there: their other axes broadcast."""
    columns = linear.weight.split([part.shape[-1] for part in parts], dim=1)
    products = [F.linear(part, weight) for part, weight in zip(parts, columns, strict=True)]
    total = products[0] if linear.bias is None else products[0] + linear.bias
    for product in products[1:]:
        total = total + product
    return total
