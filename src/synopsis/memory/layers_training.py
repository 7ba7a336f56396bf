"""Linear layers, dropout and attention as training runs them on a processor.

Half of a training step of these small networks is products of a tall matrix with a small one. torch hands those in
float32 to MKL, which on processors other than Intel's leaves half of their vector units idle; oneDNN, which torch
brings too, does not, but torch has no switch for it. So the product and its two gradients are written out here, on an
operator that torch's compiler uses. The operator is private: it is probed before its first use, and left alone where it
is absent or wrong. It is for one backward pass: under ``torch.func``, forward mode and ``torch.compile``, on other
devices, in other dtypes and outside training, torch's own product does the work.

Dropout draws from torch's generator number after number, which takes longer than a layer normalisation; here it draws
one seed and hashes.
"""

import math
from functools import cache
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from synopsis.attention.dropout import Dropout as Hashed
from synopsis.attention.dropout import fresh_seed

_FEWEST_ROWS = 256  # below, calling costs more than multiplying
_PROBE_ERROR = 1e-5
_SCORES = 1 << 23  # scores held at once, 16 MiB of bfloat16: more are not worth storing
_Context: TypeAlias = Any  # of an autograd.Function


class Linear(nn.Linear):
    """torch's linear layer, with the same weights; in training on a processor by the faster product.

    Example:
        >>> import torch
        >>> Linear(4, 3)(torch.randn(2, 5, 4)).shape
        torch.Size([2, 5, 3])
    """

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """``x @ weightᵀ + bias``."""
        return linear(x, self.weight, self.bias) if self.training else super().forward(x)


class Dropout(nn.Dropout):
    """torch's dropout; in training on a processor by hashing, from one number of torch's generator.

    Example:
        >>> import torch
        >>> dropped = Dropout(0.25)(torch.ones(100, 100))
        >>> dropped.unique().tolist(), 0.7 < dropped.count_nonzero().item() / 10_000 < 0.8
        ([0.0, 1.3333333730697632], True)
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """x with some numbers 0 and the others divided by 1 − p."""
        hashed = self.training and 0.0 < self.p < 1.0 and x.numel() > 0 and x.dim() > 0
        if not (hashed and x.device.type == "cpu" and _is_plain()):
            return super().forward(x)
        dropped: Tensor = _Dropped.apply(x, Hashed(self.p, fresh_seed()))
        return dropped


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, dropout: Hashed) -> Tensor:
        ctx.dropout = dropout
        return dropout.of_features(x.reshape(-1, x.shape[-1])).view(x.shape)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return _Dropped.apply(grad, ctx.dropout), None  # the gradient of a factor is that factor


def linear(
    x: Float[Tensor, "*batch inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "*batch outputs"]:
    """``x @ weightᵀ + bias``, for a training step.

    Example:
        >>> import torch
        >>> weight = torch.ones(3, 4, requires_grad=True)
        >>> linear(torch.ones(300, 4), weight).sum().item()
        3600.0
    """
    if not (_learns(x, weight) and _is_fast(x, weight)):
        return F.linear(x, weight, bias)
    product: Tensor = _Product.apply(x, weight, bias)
    return product


def softmax_attention(
    query: Float[Tensor, "*batch heads queries width"],
    key: Float[Tensor, "*batch heads keys width"],
    value: Float[Tensor, "*batch heads keys width"],
    mask: Bool[Tensor, "*batch #heads #queries keys"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch heads queries width"]:
    """torch's attention, but for autocast on a processor, where its kernel is four times slower than in 32 bits.

    There few scores are stored in 16 bits, by the textbook; for many, or with a mask, the kernel works in 32 bits.
    """
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if mask is None and query.shape[:-1].numel() * key.shape[-2] <= _SCORES:
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        query = query if scale == 1.0 else query * scale
        return (query @ key.transpose(-2, -1)).softmax(-1) @ value
    with torch.autocast("cpu", enabled=False):
        query, key, value = (
            t.to(torch.promote_types(t.dtype, torch.float32)) for t in (query, key, value)
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _learns(*tensors: Tensor) -> bool:
    """Whether one ordinary backward pass is all that will be asked."""
    return _is_plain() and torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _is_plain() -> bool:
    """Whether nothing watches but autograd's tape."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def _is_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes the product and MKL would else; in 16 bits torch goes to oneDNN by itself."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= _FEWEST_ROWS * x.shape[-1] > 0
        and bool(torch.backends.mkldnn.enabled)
        and is_trustworthy()
    )


@cache
def is_trustworthy() -> bool:
    """Whether this torch has the operator, wide vectors for it, and its answers are those of the textbook."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # elsewhere it was not measured
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*n, generator=generator) for n in ((300, 33), (17, 33), (17,)))
    try:
        found = (_product(x, weight, bias), _product(x, weight.t().contiguous().t(), None))
    except (AttributeError, RuntimeError, TypeError):
        return False
    exact = x.double() @ weight.double().t()
    errors = ((found[0] - exact - bias.double()).abs().max(), (found[1] - exact).abs().max())
    return all(bool(error < _PROBE_ERROR * exact.abs().max()) for error in errors)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weightᵀ + bias``; the weight may be a transposed view, which is not copied."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _product(grad, weight.t(), None) if of_x else None,
            _of_rows(rows, x.reshape(-1, x.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _of_rows(a: Tensor, b: Tensor) -> Tensor:
    """``aᵀ @ b`` of two tall matrices. The left factor of a product is copied: let that be the narrower one."""
    if a.shape[1] == b.shape[1]:
        return a.t() @ b  # both copies are large for what they give
    if a.shape[1] < b.shape[1]:
        return _product(a.t(), b.t(), None)
    return _product(b.t(), a.t(), None).t()


__all__ = ["Dropout", "Linear", "linear", "softmax_attention"]
