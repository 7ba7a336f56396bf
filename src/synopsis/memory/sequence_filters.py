"""What a sequence passes through before a memory meets it: one filter over time, and the rule for its pads.

A filter takes windows of ``kernel`` items, ``stride`` apart, and makes one item of each. Where items are pads, the
filter sees nothing (0; −∞ for a maximum), and a window counts as real when any item in it is.

Source: Yorsh, Holeňa, Bojar & Herel, "On Difficulties of Attention Factorization through Shared Memory", ICLR 2024 Tiny
Papers, and its code. Departures: that code loses the mask where filtering changes the length
(``pads="published"`` does so too); there an input shorter than the kernel fails, here it makes one window.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

FilterKind = Literal["convolution", "max", "mean"]
Pads = Literal["covered", "published"]

Filtered = tuple[Float[Tensor, "batch windows dim"], Bool[Tensor, "batch windows"] | None]


class SequenceFilter(nn.Module):
    """Base of all filters: geometry and masks; subclasses say what becomes of a window.

    Args:
        kernel: items in a window, at least 1.
        stride: items from one window's beginning to the next, at least 1.
        pads: ``"covered"``: a window is real when it covers a real item; ``"published"``: the mask is passed on where
            the length stays, and lost where it changes.
    """

    keeps_length: ClassVar[bool]  # at stride 1, by zeros at both ends
    blank: ClassVar[float] = 0.0  # what stands for an item that is not there

    def __init__(self, kernel: int, stride: int = 1, pads: Pads = "covered") -> None:
        super().__init__()
        if kernel < 1 or stride < 1:
            raise ValueError(f"kernel and stride must be at least 1, not {kernel} and {stride}")
        if pads not in ("covered", "published"):
            raise ValueError(f"pads must be 'covered' or 'published', not {pads!r}")
        self.kernel, self.stride, self.pads = kernel, stride, pads

    @property
    def lead(self) -> int:
        """Blank items before the first one."""
        return (self.kernel - 1) // 2 if self.keeps_length and self.stride == 1 else 0

    def trail(self, length: int) -> int:
        """Blank items after the last of so many: an even kernel has one more there than before the first."""
        if length == 0:
            return 0
        if self.keeps_length and self.stride == 1:
            return self.kernel - 1 - self.lead
        return max(0, self.kernel - length)

    def forward(
        self, x: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Filtered:
        """Filter whole sequences; ⌊(length − kernel)/stride⌋ + 1 windows, or ``length`` where that is kept."""
        length = x.shape[1]
        ends = (self.lead, self.trail(length))
        if mask is not None:
            x = self._blanked(x, mask)
        if any(ends):
            x = F.pad(x, (0, 0, *ends), value=self.blank)
        if self.pads == "published":
            filtered = self._finite(self._windows(x))
            return filtered, mask if filtered.shape[1] == length else None
        if mask is None:
            return self._windows(x), None
        return self._covered(x, F.pad(mask, ends) if any(ends) else mask)

    def windows(
        self, x: Float[Tensor, "batch length dim"], mask: Bool[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch windows dim"], Bool[Tensor, "batch windows"]]:
        """The complete windows alone, without anything added at the ends: for pieces of a stream."""
        return self._covered(self._blanked(x, mask), mask)

    def reduce(self, x: Float[Tensor, "batch dim length"]) -> Float[Tensor, "batch dim windows"]:
        """One item for each complete window; time is the last dimension."""
        raise NotImplementedError

    def _covered(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self._starts(x.shape[1]) == 0:
            return x[:, :0], mask[:, :0]
        covered = F.max_pool1d(mask.unsqueeze(1).float(), self.kernel, self.stride).squeeze(1) > 0
        return self._windows(x).masked_fill(~covered.unsqueeze(-1), 0.0), covered

    def _windows(self, x: Tensor) -> Tensor:
        if self._starts(x.shape[1]) == 0:
            return x[:, :0]
        return self.reduce(x.transpose(1, 2)).transpose(1, 2)

    def _starts(self, length: int) -> int:
        return max(0, (length - self.kernel) // self.stride + 1)

    def _blanked(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.masked_fill(~mask.unsqueeze(-1), self.blank)

    def _finite(self, x: Tensor) -> Tensor:
        return x if math.isfinite(self.blank) else x.masked_fill(x == self.blank, 0.0)

    def settings(self) -> dict[str, Any]:
        """What it computes with, beside its weights: words that files keep, and that must not change."""
        geometry = {"kernel": self.kernel, "stride": self.stride, "pads": self.pads}
        return {"kind": type(self).__name__, **geometry}

    def extra_repr(self) -> str:
        """Geometry and rule."""
        return f"kernel={self.kernel}, stride={self.stride}, pads={self.pads!r}"


class Convolution(SequenceFilter):
    """One row of taps for each head, shared by its channels, by keys and by values: heads·kernel weights, no bias.

    At stride 1 the length stays, by zeros at both ends.

    Args:
        heads: groups of channels with taps of their own.
        kernel: taps.
        stride: items from one window's beginning to the next.
        pads: see :class:`SequenceFilter`.

    Example:
        >>> import torch
        >>> filtered, _ = Convolution(heads=2, kernel=4, stride=2)(torch.randn(1, 10, 8))
        >>> filtered.shape
        torch.Size([1, 4, 8])
    """

    keeps_length: ClassVar[bool] = True

    def __init__(self, heads: int, kernel: int, stride: int = 1, pads: Pads = "covered") -> None:
        super().__init__(kernel, stride, pads)
        reach = 1.0 / math.sqrt(kernel)
        self.weight = nn.Parameter(torch.empty(heads, kernel).uniform_(-reach, reach))

    def reduce(self, x: Float[Tensor, "batch dim length"]) -> Float[Tensor, "batch dim windows"]:
        """Weighted sums of windows."""
        taps = self.weight.repeat_interleave(x.shape[1] // len(self.weight), 0).unsqueeze(1)
        return F.conv1d(x.contiguous(), taps, stride=self.stride, groups=x.shape[1])


class MaxPooling(SequenceFilter):
    """The largest of each window, channel by channel; nothing is added at the ends, also at stride 1."""

    keeps_length: ClassVar[bool] = False
    blank: ClassVar[float] = -math.inf

    def reduce(self, x: Float[Tensor, "batch dim length"]) -> Float[Tensor, "batch dim windows"]:
        """Maxima of windows."""
        return F.max_pool1d(x, self.kernel, self.stride)


class MeanPooling(SequenceFilter):
    """A convolution whose taps are all 1/kernel and never change; pads and ends count as zeros."""

    keeps_length: ClassVar[bool] = True

    def reduce(self, x: Float[Tensor, "batch dim length"]) -> Float[Tensor, "batch dim windows"]:
        """Means of windows."""
        return F.avg_pool1d(x, self.kernel, self.stride)


class Filter(NamedTuple):
    """The settings of a filter.

    Args:
        kind: ``"convolution"``, ``"max"`` or ``"mean"``.
        kernel: items in a window; with 1 there is nothing to learn or to pool, and each stride-th item stays as it is.
        stride: items from one window's beginning to the next.
        pads: see :class:`SequenceFilter`.

    Example:
        >>> Filter("max", kernel=16, stride=8).build(heads=4)
        MaxPooling(kernel=16, stride=8, pads='covered')
    """

    kind: FilterKind = "convolution"
    kernel: int = 4
    stride: int = 1
    pads: Pads = "covered"

    def build(self, heads: int) -> SequenceFilter | None:
        """The filter for so many heads; None where it would change nothing."""
        if self.kind not in ("convolution", "max", "mean"):
            raise ValueError(f"a filter is convolution, max or mean, not {self.kind!r}")
        if self.kernel == 1:  # the largest of one item is that item
            return None if self.stride == 1 else MaxPooling(1, self.stride, self.pads)
        if self.kind == "convolution":
            return Convolution(heads, self.kernel, self.stride, self.pads)
        pooling = MaxPooling if self.kind == "max" else MeanPooling
        return pooling(self.kernel, self.stride, self.pads)
