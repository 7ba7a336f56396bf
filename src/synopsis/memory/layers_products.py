"""Products of tall matrices with small ones in at least 16 bits, as fast as a processor can.

Half of a training step of small networks is such products. torch hands those in float32 to MKL, which on processors
other than Intel's leaves half of their vector units idle; oneDNN, which torch brings too, does not, but torch has no
switch for it. So it is called by an operator that torch's compiler uses. The operator is private: it is probed before
its first use, and left alone where it is absent or wrong.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_FEWEST_ROWS = 256  # below, calling costs more than multiplying
_PROBE_ERROR = 1e-5


def product(
    x: Float[Tensor, "rows inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, " outputs"] | None = None,
) -> Float[Tensor, "rows outputs"]:
    """``x @ weightᵀ + bias``; the weight may be a transposed view. There is no gradient.

    Example:
        >>> import torch
        >>> product(torch.ones(2, 3), torch.ones(1, 3))
        tensor([[3.],
                [3.]])
    """
    return _onednn(x, weight, bias) if _is_fast(x) else F.linear(x, weight, bias)


def product_of_rows(
    a: Float[Tensor, "rows left"], b: Float[Tensor, "rows right"]
) -> Float[Tensor, "left right"]:
    """``aᵀ @ b``, the gradient of a weight. There is no gradient of it.

    Example:
        >>> import torch
        >>> product_of_rows(torch.ones(5, 1), torch.ones(5, 2))
        tensor([[5., 5.]])
    """
    if not _is_fast(a):
        return a.t() @ b
    if a.shape[1] <= b.shape[1]:  # the left factor is copied: the narrower one
        return _onednn(a.t(), b.t(), None)
    return _onednn(b.t(), a.t(), None).t()


def _is_fast(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and len(x) >= _FEWEST_ROWS
        and torch.backends.mkldnn.enabled
        and is_trustworthy(x.dtype)
    )


@cache
def is_trustworthy(dtype: torch.dtype) -> bool:
    """Whether this torch has the operator, wide vectors for it, and its answers are those of the textbook."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # elsewhere it was not measured
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*n, generator=generator).to(dtype) for n in ((300, 33), (17, 33), (17,)))
    try:
        found = (_onednn(x, weight, bias), _onednn(x, weight.t().contiguous().t(), None))
    except (AttributeError, RuntimeError, TypeError):
        return False
    exact = x.double() @ weight.double().t()
    errors = ((found[0] - exact - bias.double()).abs().max(), (found[1] - exact).abs().max())
    allowed = _PROBE_ERROR if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    return all(bool(error < allowed * exact.abs().max()) for error in errors)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


__all__ = ["is_trustworthy", "product", "product_of_rows"]
