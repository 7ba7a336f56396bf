"""ConvLuna: what a memory packs has passed a filter first, and temperatures are learned.

Keys and values of the pack attention go through one filter over time, after their projection; queries, and everything
on the way back, do not. See :mod:`synopsis.memory.luna` for the layer around it.

Source: Yorsh, Holeňa, Bojar & Herel, "On Difficulties of Attention Factorization through Shared Memory", ICLR 2024 Tiny
Papers, and its code. Departures: the temperature of unpack is applied (in that code it never is, and stays 1, which is
``unpack_temperature="unit"``) and ``"sqrt"`` divides by √width there too; pads are masked, through filter and
stride (:class:`~synopsis.memory.sequence_filters.SequenceFilter`); the full form shares its weights between pack and
unpack, as was meant (as run, it shared nothing: ``shared=False``).
"""

from typing import NamedTuple

from synopsis.memory.luna import PackUnpackLayer
from synopsis.memory.luna_attention import MemoryAttention, Projections, TemperatureKind
from synopsis.memory.sequence_filters import Filter


class Temperatures(NamedTuple):
    """What the queries of each attention are divided by: ``"unit"`` 1, ``"sqrt"`` √width, ``"learn"`` a weight.

    The defaults are what ran under the published setting ``learn, learn``.
    """

    pack: TemperatureKind = "learn"
    unpack: TemperatureKind = "unit"


class ConvLunaLayer(PackUnpackLayer):
    """ConvLuna in full: queries, keys, values and outputs are projected.

    Weights of the attention are 4·dim² and a bias for each matrix, heads·kernel taps, and one weight for each learned
    temperature.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.
        filtering: what keys and values of pack pass through.
        temperatures: of pack and of unpack.
        shared: one set of matrices packs and unpacks; else there are two, 8·dim².

    Example:
        >>> import torch
        >>> layer = ConvLunaLayer(dim=8, heads=2, feedforward=16, filtering=Filter("max", 4, stride=2))
        >>> x, memory = layer(torch.randn(3, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape
        (torch.Size([3, 100, 8]), torch.Size([3, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        filtering: Filter = Filter(),  # noqa: B008  (immutable)
        temperatures: Temperatures = Temperatures(),  # noqa: B008
        shared: bool = True,
    ) -> None:
        projections = Projections(dim)
        pack = MemoryAttention(
            projections,
            heads,
            temperature=temperatures.pack,
            filtering=filtering.build(heads),
            dropout=attention_dropout,
        )
        unpack = MemoryAttention(
            projections if shared else Projections(dim),
            heads,
            temperature=temperatures.unpack,
            dropout=attention_dropout,
            borrowed=shared,
        )
        super().__init__(pack, unpack, feedforward, dropout)


class SimplifiedConvLunaLayer(PackUnpackLayer):
    """The ConvLuna of the published experiments: values are the items themselves, in both attentions.

    Weights of the attention, one set for both, are 3·dim² and a bias for each matrix, heads·kernel taps, and one weight
    for each learned temperature.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.
        filtering: what keys and values of pack pass through.
        temperatures: of pack and of unpack.

    Example:
        >>> import torch
        >>> layer = SimplifiedConvLunaLayer(dim=8, heads=2, feedforward=16)
        >>> x, memory = layer(torch.randn(3, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape
        (torch.Size([3, 100, 8]), torch.Size([3, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        filtering: Filter = Filter(),  # noqa: B008  (immutable)
        temperatures: Temperatures = Temperatures(),  # noqa: B008
    ) -> None:
        projections = Projections(dim, values="input")
        pack = MemoryAttention(
            projections,
            heads,
            temperature=temperatures.pack,
            filtering=filtering.build(heads),
            dropout=attention_dropout,
        )
        unpack = MemoryAttention(
            projections,
            heads,
            temperature=temperatures.unpack,
            dropout=attention_dropout,
            borrowed=True,
        )
        super().__init__(pack, unpack, feedforward, dropout)
