"""Which engine computes a call, and on tiles of what size.

Torch's fused kernels where they may be trusted, and tiles of plain torch operations, which can do everything and are
the reference.

| engine | takes | leaves to the tiles |
|---|---|---|
| fused | plain and causal attention, boolean and additive masks, ``mask_mod``, grouped heads; float16 to float64 | gradients of masks and of the log-sum-exp, ``score_mod``, dropout, value width ≠ key width, NaN and infinities behind masks |
| fused, CUDA | plain attention, and causal attention of equally many queries and keys; grouped heads; float32, float16, bfloat16 | every other mask, float64, widths above 256 or not a multiple of 8 |
| tiles | everything | nothing |

No figure of this library was measured on a GPU. The CUDA kernels are compared with the textbook before their first use,
output, log-sum-exp and gradients, and left alone where they differ.
"""  # noqa: E501

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal

import torch

from synopsis.attention import fused, fused_cuda, tiles
from synopsis.attention.cutting import Inputs
from synopsis.attention.differentiation import Engine, workspace
from synopsis.attention.rules import Rules

EngineName = Literal["auto", "tiles", "fused"]
_ENGINE: ContextVar[EngineName] = ContextVar("engine", default="auto")
_TILE_BYTES = 1 << 24  # scores held at once by default: 16 MiB
_BLOCKS = (512, 256)  # queries and keys of a tile, where that fits
_MASKED = (256, 256)  # the same where blocks at an edge are computed whole
_SMALLEST = (16, 16)


@contextmanager
def engine(name: EngineName) -> Iterator[None]:
    """Force an engine inside a ``with`` block.

    Args:
        name: ``"tiles"``, ``"fused"`` (ValueError from a call that it cannot take) or ``"auto"``.
    """
    if name not in ("auto", "tiles", "fused"):
        raise ValueError(f"unknown engine {name!r}; there are auto, tiles and fused")
    token = _ENGINE.set(name)
    try:
        yield
    finally:
        _ENGINE.reset(token)


def present() -> Callable[[Inputs, Rules], Engine]:
    """What chooses the engine of calls made here and now."""
    return partial(_choose, _ENGINE.get())


def is_forced() -> bool:
    """Whether a ``with engine(…)`` block names the engine."""
    return _ENGINE.get() != "auto"


def _choose(name: EngineName, inputs: Inputs, rules: Rules) -> Engine:
    """Chosen where the tensors are plain: inside autograd's and torch.func's functions, not around them."""
    if name != "tiles" and fused.suits(inputs, rules):
        return fused
    if name != "tiles" and fused_cuda.suits(inputs, rules):
        return fused_cuda
    if name == "fused":
        raise ValueError("the fused engine cannot take this call; use auto or tiles")
    return tiles


def plan(
    inputs: Inputs, rules: Rules, asked: tuple[int | None, int | None], max_bytes: int | None
) -> tuple[int, int]:
    """Queries and keys of a tile: as asked, else as large as the budget allows."""
    for name, size in zip(("query_block", "key_block"), asked, strict=True):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    rows = inputs.query.shape[0] * inputs.query.shape[1]
    itemsize = torch.promote_types(inputs.query.dtype, torch.float32).itemsize
    most = _MASKED if rules.is_causal or rules.mask_mod is not None else _BLOCKS
    blocks = [size or default for size, default in zip(asked, most, strict=True)]
    blocks = [max(1, min(b, n)) for b, n in zip(blocks, _lengths(inputs), strict=True)]
    budget = max_bytes if max_bytes is not None else 2 * _TILE_BYTES
    while workspace(rules, rows, (blocks[0], blocks[1]), itemsize) > budget:
        free = [i for i in (1, 0) if asked[i] is None and blocks[i] > _SMALLEST[i]]
        if not free:
            break
        largest = max(free, key=lambda i: blocks[i] / most[i])
        blocks[largest] = max(_SMALLEST[largest], blocks[largest] // 2)
    needed = workspace(rules, rows, (blocks[0], blocks[1]), itemsize)
    if max_bytes is not None and needed > max_bytes:
        raise ValueError(
            f"tiles of {blocks[0]} × {blocks[1]} for {rows} heads take {needed} bytes; "
            f"max_bytes is {max_bytes}"
        )
    return blocks[0], blocks[1]


def _lengths(inputs: Inputs) -> tuple[int, int]:
    return inputs.query.shape[2], inputs.key.shape[2]
