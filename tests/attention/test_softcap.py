"""The soft cap against torch's tanh in float64."""

import math

import pytest
import torch

from synopsis.attention.softcap import SoftCap

# torch's own forward mode compiles its decompositions with torch.jit on first use
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
INDICES = (torch.zeros(1, dtype=torch.long),) * 4  # of no consequence


@forward_mode
def test_soft_cap():
    score = (
        10 * torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()

    def capped(s):
        return SoftCap(3.0)(s, *INDICES)

    assert torch.autograd.gradcheck(capped, score, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(capped, score)
    assert torch.equal(torch.func.vmap(capped)(score[None])[0], capped(score))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_soft_cap_is_as_exact_as_tanh(dtype):
    size = torch.logspace(-30, 4, 2001, dtype=torch.float64)
    score = torch.cat([-size, torch.zeros(1), size]).to(dtype)
    score = score[score.isfinite()]
    found, expected = SoftCap(1.0)(score, *INDICES), score.double().tanh()
    error = (found.double() - expected).abs() / expected.abs().clamp_min(torch.finfo(dtype).tiny)
    assert error.max() <= 2.5 * torch.finfo(dtype).eps
    ends = torch.tensor([-math.inf, math.inf, math.nan], dtype=dtype)
    torch.testing.assert_close(SoftCap(1.0)(ends, *INDICES), ends.tanh(), equal_nan=True)
