"""Dropout of attention weights that depends on (seed, batch, head, query, key) only.

Whether a pair is dropped is a hash of its indices, so the same pairs are dropped whatever the blocks, threads or
machines, and the backward pass needs to remember the seed alone. Query and key are hashed to one odd number each, by
a two-round multiply-xorshift mixer of 32 bits (after C. Wellons, "Prospecting for Hash Functions", 2018), and a pair is
dropped when the product of the two, modulo 2³², is at most a threshold: multiply-shift hashing (Dietzfelbinger et al.,
1997). So the many pairs cost one multiplication and one comparison each, and the mixing is left to the few indices.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, -0x7B935975  # odd multipliers, as signed 32-bit numbers
_GOLDEN = -0x61C88647
_CACHED = 1 << 17  # features that are dropped at once: their noise is 512 KiB
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers of so many bytes


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
        noise = self.rows(b, h, q_idx) * self.columns(kv_idx)
        return (noise > self._threshold).float().mul_(self.gain)

    def rows(self, b: Tensor, h: Tensor, q_idx: Tensor) -> Int[Tensor, "batch heads queries 1"]:
        """The factor of noise that is batch's, head's and query's; indices as for :meth:`factors`."""
        low, high = (_signed(self.seed >> shift) for shift in (0, 32))
        head = _mix(_mix(b.int() ^ low) + h.int() * _GOLDEN ^ high)
        return _mix(head + q_idx.int() * _GOLDEN) | 1  # odd: no other factor loses bits by it

    def columns(self, kv_idx: Tensor) -> Int[Tensor, "1 1 1 keys"]:
        """The factor of noise that is the key's; indices as for :meth:`factors`."""
        return _mix(kv_idx.int() * _GOLDEN ^ _signed(self.seed >> 32)) | 1

    def drop_(self, x: Float[Tensor, "*shape"], noise: Int[Tensor, "*shape"]) -> None:
        """Write 0 where a pair is dropped; what is kept stays as it is.

        Args:
            x: one number for each pair, of any floating dtype.
            noise: :meth:`rows` times :meth:`columns`, of as many numbers in the same order.
        """
        bits = x.view(_BITS[x.dtype.itemsize])
        # "bits where noise > threshold, else 0" in one pass; a comparison kept as bool would take several
        torch.ops.aten.threshold_backward.grad_input(
            bits, noise.view_as(bits), self._threshold, grad_input=bits
        )

    def of_features(self, x: Float[Tensor, "rows features"]) -> Float[Tensor, "rows features"]:
        """x with some numbers 0 and the others divided by 1 − p; which, by row and feature."""
        length, width = x.shape
        zero, index = x.new_zeros(1, dtype=torch.int32), torch.arange(max(x.shape), device=x.device)
        rows = self.rows(zero, zero, index[:length].unsqueeze(1))
        columns, step = self.columns(index[:width]), max(1, _CACHED // max(1, width))
        noise, dropped = rows.new_empty(min(step, length), width), x * self.gain
        for start in range(0, length, step):
            some = dropped[start : start + step]
            its_noise = noise[: len(some)]
            torch.mul(rows[start : start + step], columns, out=its_noise)
            self.drop_(some, its_noise)
        return dropped

    @property
    def _threshold(self) -> int:
        """Noise up to it drops: p of the 2³² values, none of which is the smallest, since all are odd."""
        return max(-(2**31), round(self.p * 2**32) - 2**31 - 1)


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
