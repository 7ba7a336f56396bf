"""Attention whose weights are drawn: normalised Weibull variables with the softmax's exponentials as their means.

With z the scores, S_ij = λ_ij E^{1/k} for exponential E and λ_ij = exp(z_ij) / Γ(1 + 1/k) has mean exp(z_ij), and
weights are S over their row's sum. As ln S = z − ln Γ(1 + 1/k) + ln(E)/k, and a softmax does not see the constant, that
is ordinary attention with noise added to its scores. The noise is a hash of (seed, batch, head, query, key), so no
score is ever stored, and the backward pass draws it again.

Source: Fan, Zhang, Chen & Zhou, "Bayesian Attention Modules", NeurIPS 2020; as in the code of Yorsh et al., ICLR 2024
Tiny Papers, where the divergence from the prior is written but never used. It is exact here, and as cheap as attention:
its sums over pairs fall apart into sums over keys and the log-sum-exp of each query.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.attention import scaled_dot_product_attention
from synopsis.memory.luna_attention import MemoryAttention, Projections

_SQUEEZE = 1e-5  # uniform draws keep this far from 0 and 1
_RATE = 1e-4  # β of the prior
_HIDDEN = 32  # width of the perceptron that says where the prior expects weight
_EULER = 0.57721566490153286
_WORD = 0xFFFFFFFF


class WeibullAttention(MemoryAttention):
    """Attention between a memory and a sequence, with drawn weights in training and plain softmax in evaluation.

    Args:
        projections: its linear maps.
        heads: attention heads; must divide the width.
        shape: k of the Weibull; the larger, the less noise.
        dropout: probability of dropping an attention weight, 0 ≤ p < 1.
        prior: whether training also computes the divergence from a Gamma prior that depends on the keys.
        borrowed: the projections are another attention's.
    """

    def __init__(
        self,
        projections: Projections,
        heads: int,
        *,
        shape: float = 10.0,
        dropout: float = 0.0,
        prior: bool = False,
        borrowed: bool = False,
    ) -> None:
        super().__init__(projections, heads, dropout=dropout, borrowed=borrowed)
        if not shape > 0:
            raise ValueError(f"the shape of a Weibull is positive, not {shape}")
        self.shape = shape
        width = self.dim // heads
        self.prior = (
            nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))
            if prior
            else None
        )
        self._divergence: Tensor | None = None

    def attend(
        self,
        query: Float[Tensor, "batch heads queries width"],
        key: Float[Tensor, "batch heads keys width"],
        value: Float[Tensor, "batch heads keys width"],
        mask: Bool[Tensor, "batch keys"] | None,
    ) -> Float[Tensor, "batch heads queries width"]:
        """Attention with drawn weights; without, and plain, in evaluation."""
        if not self.training:
            return super().attend(query, key, value, mask)
        if self.prior is not None:
            self._divergence = self.divergence(query, key, mask)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout,
            scale=1.0,
            score_mod=WeibullNoise(int(torch.randint(1 << 62, ())), self.shape),
        )

    def take_divergence(self) -> Float[Tensor, ""] | None:
        """The divergence of the last pass in training mode, once."""
        taken, self._divergence = self._divergence, None
        return taken

    def divergence(
        self,
        query: Float[Tensor, "batch heads queries width"],
        key: Float[Tensor, "batch heads keys width"],
        mask: Bool[Tensor, "batch keys"] | None,
    ) -> Float[Tensor, ""]:
        """KL(Weibull ‖ Gamma), a mean over all real pairs, in memory that does not grow with their number.

        The Gamma of key j has shape α_j = β·softmax_j(perceptron(key)) and rate β.
        """
        if self.prior is None:
            raise ValueError("this attention has no prior to diverge from")
        real = torch.ones_like(key[..., 0], dtype=torch.bool)
        real = real if mask is None else mask[:, None, :].expand_as(real)
        alpha = self._alpha(key, real)
        pairs = (real.sum() * query.shape[2]).clamp(min=1)
        # Σ_ij α_j z_ij = Σ_j α_j (Σ_i q_i)·k_j, and Σ_ij exp(z_ij) = Σ_i exp(lse_i)
        scores = (key @ query.sum(2).expand(len(key), -1, -1).unsqueeze(-1)).squeeze(-1)
        allowed = None if mask is None else mask[:, None, None, :]
        _, lse = scaled_dot_product_attention(
            query, key, key, attn_mask=allowed, scale=1.0, return_lse=True
        )
        constant = _EULER / self.shape + math.lgamma(1.0 + 1.0 / self.shape) - math.log(_RATE)
        linear = (alpha * (query.shape[2] * constant - scores)).sum()
        gamma = torch.lgamma(alpha.masked_fill(~real, 1.0)).sum() * query.shape[2]
        mean = (linear + gamma + _RATE * lse.exp().sum()) / pairs
        return mean + (math.log(self.shape) - _EULER - 1.0) * real.any()

    def _alpha(self, key: Tensor, real: Tensor) -> Tensor:
        """Shapes of the prior; 0 where a key is not real."""
        assert self.prior is not None
        tiny = torch.finfo(key.dtype).tiny
        expected = self.prior(key).squeeze(-1).masked_fill(~real, torch.finfo(key.dtype).min)
        share = expected.softmax(-1).clamp(min=tiny / _RATE)
        return (_RATE * share).masked_fill(~real, 0.0)


class WeibullNoise:
    """ln(E)/k for exponential E: a ``score_mod`` that adds the same noise to the same pair at every call.

    Args:
        seed: 62 bits.
        shape: k of the Weibull.
    """

    def __init__(self, seed: int, shape: float) -> None:
        self.seed, self.shape = seed, shape

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        """Scores with their noise."""
        bits = self._bits(*(t.long() for t in (b, h, q_idx, kv_idx)))
        uniform = _SQUEEZE + (1.0 - 2.0 * _SQUEEZE) * (bits.double() + 0.5) / (_WORD + 1)
        return score + ((-uniform.log()).log() / self.shape).to(score.dtype)

    def _bits(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """32 bits for each pair: rows and columns are hashed by themselves, and then together."""
        low, high = self.seed & _WORD, self.seed >> 32
        rows = _mixed(_mixed(_mixed(b ^ low) ^ h ^ high) ^ q_idx)
        return _mixed(rows ^ _mixed(_mixed(kv_idx ^ high) ^ low))


def _mixed(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which every input bit reaches every output bit (C. Wellons, "lowbias32", 2018)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _WORD
    x = (x ^ (x >> 15)) * 0x846CA68B & _WORD
    return x ^ (x >> 16)
