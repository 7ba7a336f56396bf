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
_CACHED = 1 << 17  # pairs that are hashed at once: 512 KiB, and as much to work in


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
        """0 or 1/(1 − p) for each pair, float32.

        Args:
            b: batch indices, broadcasting with the others.
            h: head indices.
            q_idx: query indices.
            kv_idx: key indices.
        """
        kept = self.kept(self.rows(b, h, q_idx), self.columns(kv_idx))
        return kept.neg_().float().mul_(self.gain)

    def rows(self, b: Tensor, h: Tensor, q_idx: Tensor) -> Int[Tensor, "batch heads queries 1"]:
        """What the hash takes from batch, head and query; indices as for :meth:`factors`."""
        low, high = (_signed(self.seed >> shift) for shift in (0, 32))
        head = _mix(_mix(b.int() ^ low) + h.int() * _GOLDEN ^ high)
        return _mix(head + q_idx.int() * _GOLDEN)

    def columns(self, kv_idx: Tensor) -> Int[Tensor, "1 1 1 keys"]:
        """What the hash takes from the key; indices as for :meth:`factors`."""
        return _mix(kv_idx.int() * _GOLDEN ^ _signed(self.seed >> 32))

    def kept(
        self, rows: Tensor, columns: Tensor, out: Int[Tensor, " pairs"] | None = None
    ) -> Int[Tensor, "batch heads queries keys"]:
        """−1, all bits set, for the pairs that are kept and 0 for the others.

        Everything is integer arithmetic in place, in a core's cache: comparing to bool and back costs more than the
        whole hash.

        Args:
            rows: from :meth:`rows`.
            columns: from :meth:`columns`.
            out: contiguous int32 memory to answer in, of at least as many numbers.
        """
        shape = torch.broadcast_shapes(rows.shape, columns.shape)
        keys, size = shape[-1], math.prod(shape)
        if out is None:
            out = torch.empty(size, dtype=torch.int32, device=rows.device)
        flat = rows.reshape(-1, 1)
        whole = out[:size].view(len(flat), keys)
        step = max(1, _CACHED // max(1, keys))
        scratch = torch.empty(min(step, len(flat)), keys, dtype=torch.int32, device=rows.device)
        threshold = torch.tensor(self._threshold, dtype=torch.int32)
        for start in range(0, len(flat), step):
            pairs, some = whole[start : start + step], flat[start : start + step]
            shifted = scratch[: len(some)]
            torch.bitwise_xor(some, columns.view(1, -1), out=pairs).mul_(_FIRST)
            pairs.bitwise_xor_(torch.bitwise_right_shift(pairs, 15, out=shifted)).mul_(_SECOND)
            # 31 bits are enough, and their difference to a threshold has a sign
            torch.sub(threshold, pairs.bitwise_right_shift_(1), out=pairs).bitwise_right_shift_(31)
        return out[:size].view(shape)

    @property
    def _threshold(self) -> int:
        """Values above it are kept: p of the 2³¹ values are at most this."""
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
