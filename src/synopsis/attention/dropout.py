"""Dropout of attention weights that depends on (seed, batch, head, query, key) only.

Whether a pair is dropped is a hash of its indices, so the same pairs are dropped whatever the blocks, threads or
machines, and the backward pass needs to remember the seed alone. The hash is a two-round multiply-xorshift mixer of
32 bits (after C. Wellons, "Prospecting for Hash Functions", 2018), applied to rows and columns first and to their
combination.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, -0x7B935975  # odd multipliers, as signed 32-bit numbers
_GOLDEN = -0x61C88647


@dataclass(frozen=True)
class Dropout:
    """Weights are kept with probability 1 − p and divided by it.

    Args:
        p: probability of dropping, 0 ≤ p < 1.
        seed: 64 bits.
    """

    p: float
    seed: int

    def factors(
        self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Float[Tensor, "batch heads queries keys"]:
        """0 or 1/(1 − p) for each pair, float32."""
        keep = self.bits(b, h, q_idx, kv_idx) >= self._threshold
        return keep.float().mul_(1.0 / (1.0 - self.p))

    def bits(
        self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Int[Tensor, "batch heads queries keys"]:
        """Uniform signed 32-bit numbers, one per pair."""
        low, high = (_signed(self.seed >> shift) for shift in (0, 32))
        rows = _mix(_mix(_mix(b.int() ^ low) + h.int() * _GOLDEN ^ high) + q_idx.int() * _GOLDEN)
        columns = _mix(kv_idx.int() * _GOLDEN ^ high)
        pairs = (rows ^ columns).mul_(_FIRST)
        pairs ^= (pairs >> 15) & 0x1FFFF
        return pairs.mul_(_SECOND)

    @property
    def _threshold(self) -> int:
        return int(self.p * 2**32) - 2**31


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which every input bit reaches every output bit."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _SECOND
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(bits: int) -> int:
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits >> 31 else bits


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """A seed from torch's global generator (or another), so that ``torch.manual_seed`` repeats it."""
    return int(torch.randint(2**63 - 1, (), generator=generator))
