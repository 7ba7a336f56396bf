"""Synopsis as an attention implementation of Hugging Face transformers (extra ``transformers``).

Importing this module registers the name: ``AutoModel.from_pretrained(…, attn_implementation="synopsis")``. Both halves
of the interface are registered, since an attention without a mask of the same name loses its padding silently. The mask
stays transformers' own rule and is evaluated one block of scores at a time, so that padding or a sliding window costs
no tensor of (batch, 1, queries, keys).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from synopsis.attention import scaled_dot_product_attention
from synopsis.attention.combinations import and_masks
from synopsis.attention.rules import MaskMod, Span
from synopsis.attention.sinks import with_sink
from synopsis.attention.softcap import SoftCap

NAME = "synopsis"
_REFUSED = {  # what models hand to attention and exactness forbids to ignore
    "output_attentions": "attention weights are never formed; attn_implementation='eager' forms them",
    "cache": "a paged cache is not supported",
    "indices": "attention to chosen keys only is not supported",
    "block_indices": "attention to chosen blocks only is not supported",
}


def register() -> None:
    """Make transformers know the name ``"synopsis"``; importing this module does."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


@dataclass(frozen=True, eq=False)
class LazyMask:
    """Which token may attend to which, to be asked for one block at a time.

    Args:
        shape: (batch, 1, queries, keys) of the mask if it were formed.
        starts: positions of the first query and the first key.
        rule: transformers' function of positions (batch, head, query, key); None when causality says it all.
        padding: True where a key is real, or None.
        is_causal: no query attends beyond its own position.
        window: a causal query's keys lie less than this many positions behind it; None: no such bound.
        device: of the mask if it were formed.
    """

    shape: tuple[int, int, int, int]
    starts: tuple[int, int]
    rule: MaskMod | None
    padding: Bool[Tensor, "batch keys"] | None
    is_causal: bool
    window: int | None
    device: torch.device

    ndim: ClassVar[int] = 4
    dtype: ClassVar[torch.dtype] = torch.bool

    @property
    def query_offset(self) -> int:
        """Position of the first query when the first key stands at 0."""
        return self.starts[0] - self.starts[1]

    @cached_property
    def mask_mod(self) -> MaskMod | None:
        """The rule and the padding, over keys that begin at 0; None when causality says it all."""
        parts: list[MaskMod] = []
        if self.rule is not None:
            window = self.window if self.is_causal else None
            parts.append(_Shifted(self.rule, self.starts[1], window))
        if self.padding is not None:
            parts.append(_Padding(self.padding))
        return and_masks(*parts) if parts else None

    def dense(self) -> Bool[Tensor, "batch 1 queries keys"]:
        """The mask as a tensor, for code that must see it whole."""
        sizes = (self.shape[0], 1, *self.shape[2:])
        b, h, q, kv = (
            torch.arange(n, device=self.device).view([-1 if d == i else 1 for d in range(4)])
            for i, n in enumerate(sizes)
        )
        q = q + self.query_offset
        allowed = (kv <= q) if self.is_causal else torch.ones_like(kv, dtype=torch.bool)
        if self.mask_mod is not None:
            allowed = allowed & self.mask_mod(b, h, q, kv)
        return allowed.expand(sizes)

    def __getitem__(self, index: Any) -> Tensor:
        """A part of the mask as a tensor, for models that cut it."""
        return self.dense()[index]

    def contiguous(self) -> "LazyMask":
        """Itself; generation asks for it."""
        return self


@dataclass(frozen=True, eq=False)
class _Shifted:
    """A rule of positions for keys whose first stands at ``start``; a window bounds the keys it can reach."""

    rule: MaskMod
    start: int
    window: int | None

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.rule(b, h, q_idx + self.start, kv_idx + self.start)

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the first query's window on."""
        if self.window is None:
            return keys
        return keys & Span(queries.start - self.window + 1, keys.stop)

    def allows_all(self, queries: Span, keys: Span) -> bool:  # noqa: ARG002
        """Never known."""
        return False


@dataclass(frozen=True, eq=False)
class _Padding:
    """Keys that are real; a block of real keys needs no mask, and a margin that is padding everywhere is skipped."""

    real: Bool[Tensor, "batch keys"]

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:  # noqa: ARG002
        return self.real[b, kv_idx]

    def keys(self, queries: Span, keys: Span) -> Span:  # noqa: ARG002
        """From the first real key to the last."""
        return keys & self._extent

    def allows_all(self, queries: Span, keys: Span) -> bool:  # noqa: ARG002
        """Whether all of these keys are real."""
        return bool(self.real[:, keys.start : keys.stop].all())

    @cached_property
    def _extent(self) -> Span:
        found = self.real.any(0).nonzero()
        return Span(int(found[0]), int(found[-1]) + 1) if len(found) else Span(0, 0)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Bool[Tensor, "batch seen"] | LazyMask | None = None,
    **settings: Any,
) -> LazyMask | Tensor:
    """transformers' mask function: the rule instead of a tensor.

    Args:
        batch_size: streams.
        q_length: queries.
        kv_length: keys.
        q_offset: position of the first query.
        kv_offset: position of the first key.
        mask_function: of positions (batch, head, query, key), True where it may attend.
        attention_mask: True where a token is real, from position 0; a mask made before is given back.
        settings: ``allow_is_causal_skip`` is transformers' word that the rule is causal and reaches no further back
            than ``local_size``; with ``use_vmap`` the rule takes one position at a time and the mask is formed.
    """
    if isinstance(attention_mask, LazyMask):
        return attention_mask
    if settings.get("use_vmap"):
        settings |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        sizes = (batch_size, q_length, kv_length, int(q_offset), int(kv_offset))
        return cast(Tensor, sdpa_mask(*sizes, mask_function, attention_mask, **settings))
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    padding = None if padding is None else padding[:, kv_offset : kv_offset + kv_length]
    causal = mask_function is causal_mask_function
    plain = causal or mask_function is bidirectional_mask_function
    return LazyMask(
        shape=(batch_size, 1, q_length, kv_length),
        starts=(int(q_offset), int(kv_offset)),
        rule=None if plain else mask_function,
        padding=None if padding is None or bool(padding.all()) else padding,
        is_causal=causal or (not plain and settings.get("allow_is_causal_skip", False)),
        window=settings.get("local_size"),
        device=torch.device(settings.get("device", "cpu")),
    )


def attention(  # noqa: PLR0913  (transformers' interface)
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch key_heads keys dim"],
    value: Float[Tensor, "batch key_heads keys value_dim"],
    attention_mask: LazyMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    position_bias: Float[Tensor, "#batch #heads #queries #keys"] | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "batch queries heads value_dim"], None]:
    """transformers' attention function.

    Args:
        module: the model's attention module; tells whether it is causal when nothing else does.
        query: after rotary embedding.
        key: heads may be fewer than those of the query.
        value: likewise.
        attention_mask: from :func:`mask`, or a tensor: bool (True may attend) or added to the scores.
        dropout: probability of dropping a weight.
        scaling: factor on query · key; 1/√dim when None.
        is_causal: whether to be causal where there is no mask.
        softcap: scores are kept inside ± this.
        s_aux: score of each head's sink.
        position_bias: added to the scores; may want a gradient.
        settings: refused where they ask for something else than attention over all keys, otherwise of no meaning here.

    Returns:
        Output, and None for the weights, which are never formed.

    Raises:
        ValueError: when weights, a paged cache or sparse indices are asked for.
    """
    for name, reason in _REFUSED.items():
        if settings.get(name) is not None and settings[name] is not False:
            raise ValueError(f"{name} was given to attn_implementation='{NAME}': {reason}")
    where = _where(attention_mask, position_bias, _is_causal(module, query, is_causal))
    output, lse = scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        score_mod=None if softcap is None else SoftCap(softcap),
        return_lse=True,
        **where,
    )
    if s_aux is not None:
        output, _ = with_sink(output, lse, s_aux)
    return output.transpose(1, 2).contiguous(), None


def _where(mask: LazyMask | Tensor | None, bias: Tensor | None, causal: bool) -> dict[str, Any]:
    """The masks, as arguments of :func:`synopsis.scaled_dot_product_attention`."""
    if isinstance(mask, LazyMask):
        rules = {"mask_mod": mask.mask_mod, "query_offset": mask.query_offset}
        return {"attn_mask": bias, "is_causal": mask.is_causal, **rules}
    if mask is None:
        return {"attn_mask": bias, "is_causal": causal}
    if bias is not None and mask.dtype == torch.bool:
        return {"attn_mask": bias.masked_fill(~mask, -math.inf)}
    return {"attn_mask": mask if bias is None else mask + bias}


def _is_causal(module: nn.Module, query: Tensor, asked: bool | None) -> bool:
    """What transformers means where there is no mask: a single query is the last one and sees all."""
    causal = getattr(module, "is_causal", True) if asked is None else asked
    return bool(causal) and query.shape[2] > 1


register()
