"""The element that attention adds up: (m, d, n) of any set of keys."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.states import State


@dataclass(frozen=True)
class SoftmaxSummary(State):
    """The monoid element (m, d, n) of any number of query rows.

    Args:
        maximum: largest score so far; −∞ where nothing was seen.
        denominator: Σ exp(s − m).
        numerator: Σ exp(s − m) v.
    """

    kind: ClassVar[str] = "softmax-summary"
    maximum: Float[Tensor, "*rows"]
    denominator: Float[Tensor, "*rows"]
    numerator: Float[Tensor, "*rows value_dim"]

    @classmethod
    def empty(cls, rows: tuple[int, ...], value_dim: int, like: Tensor) -> Self:
        """The identity of merge, (−∞, 0, 0), in the dtype and on the device of ``like``."""
        maximum = like.new_full(rows, -math.inf)
        return cls(maximum, like.new_zeros(rows), like.new_zeros(*rows, value_dim))

    @classmethod
    def of(
        cls,
        scores: Float[Tensor, "*rows keys"],
        value: Float[Tensor, "*batch keys value_dim"],
    ) -> Self:
        """The summary of one block of scores; −∞ marks pairs that may not attend.

        The maximum only stabilises: it is a constant to autograd, and outputs and lse still have exact gradients.
        """
        if scores.shape[-1] == 0:
            rows = torch.broadcast_shapes(scores.shape[:-2], value.shape[:-2])
            return cls.empty((*rows, scores.shape[-2]), value.shape[-1], scores)
        maximum = scores.detach().amax(-1)
        weights = (scores - _finite(maximum).unsqueeze(-1)).exp_()
        return cls(maximum, weights.sum(-1), weights @ value)

    @classmethod
    def from_output(
        cls, output: Float[Tensor, "*rows value_dim"], lse: Float[Tensor, "*rows"]
    ) -> Self:
        """The summary (lse, 1, output) of keys that others attended to; lse −∞ means that there were none.

        Gradients flow to both arguments.
        """
        nothing = lse == -math.inf
        maximum = lse.detach()
        denominator = (lse - maximum.masked_fill(nothing, 0.0)).exp()
        output = output.masked_fill(nothing.unsqueeze(-1), 0.0)
        return cls(maximum, denominator, denominator.unsqueeze(-1) * output)

    def merge(self, other: Self) -> Self:
        """The summary of both sets of keys; sums are kept in this summary's dtype."""
        dtype = self.denominator.dtype
        mine, theirs = self.maximum, other.maximum.to(dtype)
        maximum = torch.maximum(mine, theirs)
        pivot = _finite(maximum)  # −∞ − (−∞) would be NaN: nothing merged with nothing is nothing
        a, b = (mine - pivot).exp(), (theirs - pivot).exp()
        return type(self)(
            maximum,
            a * self.denominator + b * other.denominator,
            a.unsqueeze(-1) * self.numerator + b.unsqueeze(-1) * other.numerator,
        )

    @property
    def output(self) -> Float[Tensor, "*rows value_dim"]:
        """Σ softmax(s) v; 0 where nothing was seen."""
        empty = self.denominator == 0
        return self.numerator / self.denominator.masked_fill(empty, 1.0).unsqueeze(-1)

    @property
    def lse(self) -> Float[Tensor, "*rows"]:
        """Natural log of Σ exp(s); −∞ where nothing was seen."""
        empty = self.denominator == 0
        log = self.denominator.masked_fill(empty, 1.0).log()
        return (self.maximum + log).masked_fill(empty, -math.inf)

    @property
    def count(self) -> int:
        """A summary forgets how many keys it saw; states built on it count."""
        return 0

    def check(self) -> None:
        """Raise ValueError unless the three parts describe the same rows."""
        rows = self.maximum.shape
        if self.denominator.shape != rows or self.numerator.shape[:-1] != rows:
            raise ValueError(
                f"maximum is {tuple(rows)}, denominator {tuple(self.denominator.shape)}, "
                f"numerator {tuple(self.numerator.shape)}; their rows must agree"
            )


def _finite(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum == -math.inf, 0.0)
