"""Dropout of attention weights that depends on (seed, batch, head, query, key) only.

Whether a pair is dropped is a hash of its indices, so the same pairs are dropped whatever the blocks, threads or
machines, and the backward pass needs to remember the seed alone. The hash is a two-round multiply-xorshift mixer of
32 bits (after C. Wellons, "Prospecting for Hash Functions", 2018), applied to rows and columns first and to their
combination.
"""

import math
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

    @property
    def gain(self) -> float:
        """What a kept weight is multiplied by, 1/(1 − p)."""
        return 1.0 / (1.0 - self.p)

    def factors(
        self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Float[Tensor, "batch heads queries keys"]:
        """0 or 1/(1 − p) for each pair, float32."""
        return self.kept(b, h, q_idx, kv_idx).neg_().float().mul_(self.gain)

    def kept(
        self,
        b: Tensor,
        h: Tensor,
        q_idx: Tensor,
        kv_idx: Tensor,
        scratch: Int[Tensor, "2 pairs"] | None = None,
    ) -> Int[Tensor, "batch heads queries keys"]:
        """−1, all bits set, for the pairs that are kept and 0 for the others.

        Everything is integer arithmetic in place: comparing to bool and back costs more than the whole hash.

        Args:
            b: batch indices, broadcasting with the others.
            h: head indices.
            q_idx: query indices.
            kv_idx: key indices.
            scratch: int32 memory to work and answer in.
        """
        low, high = (_signed(self.seed >> shift) for shift in (0, 32))
        rows = _mix(_mix(_mix(b.int() ^ low) + h.int() * _GOLDEN ^ high) + q_idx.int() * _GOLDEN)
        columns = _mix(kv_idx.int() * _GOLDEN ^ high)
        shape = torch.broadcast_shapes(rows.shape, columns.shape)
        size = math.prod(shape)
        if scratch is None:
            scratch = torch.empty(2, size, dtype=torch.int32, device=b.device)
        pairs, shifted = (buffer[:size].view(shape) for buffer in scratch)
        torch.bitwise_xor(rows, columns, out=pairs).mul_(_FIRST)
        torch.bitwise_right_shift(pairs, 15, out=shifted).bitwise_and_(0x1FFFF)
        pairs.bitwise_xor_(shifted).mul_(_SECOND)
        # 31 bits are enough, and their difference to a threshold has a sign
        return pairs.bitwise_right_shift_(1).neg_().add_(self._threshold).bitwise_right_shift_(31)

    @property
    def _threshold(self) -> int:
        """Bits above it are kept: p of the 2³¹ values are at most this."""
        return round(self.p * 2**31) - 2**30 - 1


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
