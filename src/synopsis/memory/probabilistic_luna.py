"""Luna with chance in it: Weibull attention weights, or von Mises-Fisher memory cells. Evaluation is deterministic.

Training may add a penalty, which a layer hands out once per step and weighs more as steps go by:

    loss = task_loss + sum(layer.take_penalty() for layer in layers)

Source: the code of Yorsh, Holeňa, Bojar & Herel, "On Difficulties of Attention Factorization through Shared Memory",
ICLR 2024 Tiny Papers. Departures: directions are divided by their L2 norm (there by their sum, so that
draws surrounded something else); the penalty has a gradient (there it is cut); evaluation draws nothing; and steps are
counted in a buffer, when the penalty is taken and not when the layer is called, so that evaluation and recomputation do
not advance it and checkpoints keep it.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.conv_luna import ConvLunaLayer, Temperatures
from synopsis.memory.luna import PackUnpackLayer
from synopsis.memory.luna_attention import Projections
from synopsis.memory.sequence_filters import Filter
from synopsis.memory.von_mises_fisher import sample_von_mises_fisher
from synopsis.memory.weibull_attention import WeibullAttention

_DELAY = 6.25  # where the sigmoid of the penalty's weight begins: 0.2 %
_RATE = 1.5e-4  # how much further each step is


class Annealing(nn.Module):
    """The weight of a penalty, σ(rate·steps − 6.25), with its steps in a buffer.

    Args:
        rate: of one step.
    """

    steps: Int[Tensor, ""]

    def __init__(self, rate: float = _RATE) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, penalty: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The penalty times its weight of now; the next will weigh more."""
        weight = torch.sigmoid(self.rate * self.steps.to(penalty.dtype) - _DELAY)
        self.steps += 1
        return weight * penalty


class WeibullLunaLayer(PackUnpackLayer):
    """Luna with one set of weights for both attentions, whose attention weights are drawn in training.

    Weights of the attention are 4·dim² and a bias for each matrix; a prior is, for each of the two, a
    perceptron from a head's width to 32 to 1: 32·(width + 2) + 1.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.
        shape: k of the Weibull; the larger, the less noise.
        prior: penalise the divergence from a Gamma prior (in the published code, no).
        rate: of the penalty's annealing.

    Example:
        >>> import torch
        >>> layer = WeibullLunaLayer(dim=8, heads=2, feedforward=16, prior=True)
        >>> x, memory = layer(torch.randn(3, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape, layer.take_penalty().shape
        (torch.Size([3, 100, 8]), torch.Size([3, 4, 8]), torch.Size([]))
    """

    pack: WeibullAttention
    unpack: WeibullAttention

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        shape: float = 10.0,
        prior: bool = False,
        rate: float = _RATE,
    ) -> None:
        projections = Projections(dim)
        pack, unpack = (
            WeibullAttention(
                projections,
                heads,
                shape=shape,
                dropout=attention_dropout,
                prior=prior,
                borrowed=borrowed,
            )
            for borrowed in (False, True)
        )
        super().__init__(pack, unpack, feedforward, dropout)
        self.annealing = Annealing(rate)

    def take_penalty(self) -> Float[Tensor, ""]:
        """The weighted divergences of the last pass in training mode, once; 0 when there was none."""
        taken = [attention.take_divergence() for attention in (self.pack, self.unpack)]
        found = [divergence for divergence in taken if divergence is not None]
        if not found:
            return self.norm.weight.new_zeros(())
        return self.annealing(torch.stack(found).sum())


class VonMisesFisherLunaLayer(ConvLunaLayer):
    """ConvLuna whose packed memory is a direction for each cell, drawn around it in training (κ = 10).

    What was packed goes through a perceptron and is normalised to μ; the sequence unpacks z ~ vMF(μ, κ), or μ itself in
    evaluation. The penalty is the mean over cells of 1 − cos(z, r) + (‖r‖ − 1)², with learned prior directions r.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        cells: number of memory cells, each with a prior direction of its own.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.
        filtering: what keys and values of pack pass through.
        temperatures: of pack and of unpack.

    Example:
        >>> import torch
        >>> layer = VonMisesFisherLunaLayer(dim=8, heads=2, feedforward=16, cells=4)
        >>> x, memory = layer(torch.randn(3, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape, layer.take_penalty().shape
        (torch.Size([3, 100, 8]), torch.Size([3, 4, 8]), torch.Size([]))
    """

    concentration = 10.0

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        cells: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        filtering: Filter = Filter(),  # noqa: B008  (immutable)
        temperatures: Temperatures = Temperatures(),  # noqa: B008
    ) -> None:
        super().__init__(
            dim, heads, feedforward, dropout, attention_dropout, filtering, temperatures
        )
        self.direct = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.prior = nn.Parameter(F.normalize(torch.randn(cells, dim), dim=-1))
        self.annealing = Annealing()
        self._penalty: Tensor | None = None

    def packed(
        self,
        memory: Float[Tensor, "batch cells dim"],
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None,
    ) -> Float[Tensor, "batch cells dim"]:
        """A unit vector for each cell."""
        if memory.shape[-2] != len(self.prior):
            raise ValueError(f"memory has {memory.shape[-2]} cells, the prior {len(self.prior)}")
        mean = F.normalize(self.direct(super().packed(memory, x, mask)), dim=-1)
        if not self.training:
            return mean
        drawn = sample_von_mises_fisher(mean, self.concentration)
        away = 1.0 - F.cosine_similarity(drawn, self.prior.expand_as(drawn), dim=-1)
        self._penalty = (away + (self.prior.norm(dim=-1) - 1.0).square()).mean()
        return drawn

    def take_penalty(self) -> Float[Tensor, ""]:
        """The weighted penalty of the last pass in training mode, once; 0 when there was none."""
        taken, self._penalty = self._penalty, None
        return self.prior.new_zeros(()) if taken is None else self.annealing(taken)
