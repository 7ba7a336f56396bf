"""Luna: a sequence packed into a small memory, which then is all that the sequence attends to.

    packed = pack(memory, X)              unpacked = unpack(X, packed)
    A = LN(X + unpacked)                  memory′ = LN(memory + packed)
    X′ = LN(A + FFN(A))

The memory of the first layer is a parameter; that of later ones depends on the input.

Sources: Ma, Kong, Wang, Zhou, May, Ma & Zettlemoyer, "Luna: Linear Unified Nested Attention", NeurIPS 2021
(:class:`LunaLayer`); Yorsh, Holeňa, Bojar & Herel, "On Difficulties of Attention Factorization through Shared Memory",
ICLR 2024 Tiny Papers (:class:`SharedLunaLayer`). Departures: pads are masked always, and 0 on the way out; Luna's
memory keeps its length whatever that of the sequence ("dynamic projection" is not offered), and post-norm is the only
order.
"""

import math
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import NORM_EPSILON, PostNormFeedForward
from synopsis.memory.layers import blank
from synopsis.memory.layers_training import Dropout
from synopsis.memory.luna_attention import MemoryAttention, Projections


class PackUnpackLayer(nn.Module):
    """What all layers of the Luna family are: two attentions, a norm for each, and a feed-forward for the sequence.

    Args:
        pack: attention from the memory to the sequence.
        unpack: attention from the sequence to what was packed.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        residual_dropout: the same for what the two attentions add.
    """

    def __init__(
        self,
        pack: MemoryAttention,
        unpack: MemoryAttention,
        feedforward: int,
        dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = pack.dim
        self.heads = unpack.heads
        self.pack, self.unpack = pack, unpack
        self.norm = nn.LayerNorm(self.dim, eps=NORM_EPSILON)
        self.norm_memory = nn.LayerNorm(self.dim, eps=NORM_EPSILON)
        self.feedforward = PostNormFeedForward(self.dim, feedforward, dropout)
        self.residual_dropout = Dropout(residual_dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch cells dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch cells dim"]]:
        """The sequence and the memory for the next layer.

        Args:
            x: the sequence.
            memory: what the layer before left; a batch of 1 serves all sequences.
            mask: True where an item is real; None: all are. Pads come out as 0.
        """
        x = blank(x, mask)
        packed = self.packed(memory, x, mask)
        return blank(self.answer(x, packed), mask), self.remember(memory, packed)

    def packed(
        self,
        memory: Float[Tensor, "batch cells dim"],
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch cells dim"]:
        """What the memory finds in the sequence."""
        return self.pack(memory, x, mask)

    def answer(
        self, x: Float[Tensor, "batch length dim"], packed: Float[Tensor, "batch cells dim"]
    ) -> Float[Tensor, "batch length dim"]:
        """Each item after it has asked what was packed."""
        unpacked = self.residual_dropout(self.unpack(x, packed, None))
        answered: Tensor = self.feedforward(self.norm(x + unpacked))
        return answered

    def remember(
        self, memory: Float[Tensor, "batch cells dim"], packed: Float[Tensor, "batch cells dim"]
    ) -> Float[Tensor, "batch cells dim"]:
        """The memory for the next layer."""
        remembered: Tensor = self.norm_memory(memory + self.residual_dropout(packed))
        return remembered


class LunaLayer(PackUnpackLayer):
    """Luna as its paper has it: pack and unpack have weights of their own, and what is packed is not projected again.

    Weights of the attentions are 7·dim² (5·dim² with ``values="key"``), and a bias for each matrix.

    Args:
        dim: width of items and memory cells.
        heads: attention heads of unpack; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature in the feed-forward and of what the attentions add.
        attention_dropout: probability of dropping an attention weight.
        values: ``"own"`` matrices for values, or the ``"key"`` matrices (tied) inside each attention.
        pack_heads: heads of pack; those of unpack when None.

    Example:
        >>> import torch
        >>> layer = LunaLayer(dim=8, heads=2, feedforward=16)
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
        values: Literal["own", "key"] = "own",
        pack_heads: int | None = None,
    ) -> None:
        pack = MemoryAttention(
            Projections(dim, values, output=False), pack_heads or heads, dropout=attention_dropout
        )
        unpack = MemoryAttention(Projections(dim, values), heads, dropout=attention_dropout)
        super().__init__(pack, unpack, feedforward, dropout, residual_dropout=dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform with gain 1/√2 for what enters an attention, 1 and no bias for what leaves."""
        for attention in (self.pack, self.unpack):
            for name, weight in attention.projections.named_parameters():
                leaves = name.startswith("to_output")
                if name.endswith("weight"):
                    nn.init.xavier_uniform_(weight, gain=1.0 if leaves else 1.0 / math.sqrt(2.0))
                elif leaves:
                    nn.init.zeros_(weight)


class SharedLunaLayer(PackUnpackLayer):
    """Luna as the second paper has it: one attention with one set of weights both packs and unpacks.

    Weights of the attention are 4·dim², and a bias for each matrix.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.

    Example:
        >>> import torch
        >>> layer = SharedLunaLayer(dim=8, heads=2, feedforward=16)
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
    ) -> None:
        projections = Projections(dim)
        pack = MemoryAttention(projections, heads, dropout=attention_dropout)
        unpack = MemoryAttention(projections, heads, dropout=attention_dropout, borrowed=True)
        super().__init__(pack, unpack, feedforward, dropout)
