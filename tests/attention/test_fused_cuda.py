"""The CUDA kernels' calls, without memory behind them where there is no GPU; their values where there is one."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from synopsis.attention import choice, fused_cuda
from synopsis.attention.cutting import Inputs, Wanted
from synopsis.attention.rules import Rules

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def inputs(dtype=torch.float32, device="cuda", queries=70, keys=70, heads=(4, 2), width=16):
    return Inputs(
        torch.empty(2, heads[0], queries, width, dtype=dtype, device=device),
        torch.empty(2, heads[1], keys, width, dtype=dtype, device=device),
        torch.empty(2, heads[1], keys, width, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_calls_fit_torchs_operators_and_give_the_promised_shapes(dtype, causal):
    rules = Rules(scale=0.25, is_causal=causal)
    tensors = inputs(dtype, device="meta")
    output, lse = fused_cuda.forward(tensors, rules, (0, 0))
    found = (output, lse), (output, None)
    gradients = fused_cuda.backward(tensors, rules, (0, 0), *found, Wanted())
    assert output.shape == tensors.query.shape and output.dtype == dtype
    assert lse.shape == tensors.query.shape[:3] and lse.dtype == torch.float32
    assert [g.shape for g in gradients[:3]] == [t.shape for t in tensors]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({}, Rules(scale=1.0)),
        ({}, Rules(scale=1.0, is_causal=True)),
        ({"queries": 7}, Rules(scale=1.0)),
    ],
    ids=["plain", "causal", "cross"],
)
def test_what_the_kernels_take(change, rules, monkeypatch):
    monkeypatch.setattr(fused_cuda, "is_trustworthy", lambda dtype, device: True)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True, raising=False)
    with FakeTensorMode():
        tensors = inputs(**change)
        assert fused_cuda.suits(tensors, rules)
        assert choice.present()(tensors, rules) is fused_cuda


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"device": "cpu"}, Rules(scale=1.0)),
        ({"dtype": torch.float64}, Rules(scale=1.0)),
        ({"width": 12}, Rules(scale=1.0)),
        ({"width": 264}, Rules(scale=1.0)),
        ({"keys": 0}, Rules(scale=1.0)),
        ({"queries": 7}, Rules(scale=1.0, is_causal=True)),
        ({}, Rules(scale=1.0, is_causal=True, query_offset=1)),
        ({}, Rules(scale=1.0, mask_mod=lambda b, h, i, j: i >= j)),
    ],
    ids=["processor", "float64", "12 wide", "264 wide", "no keys", "ragged", "shifted", "mask"],
)
def test_what_the_kernels_leave_to_the_tiles(change, rules, monkeypatch):
    monkeypatch.setattr(fused_cuda, "is_trustworthy", lambda dtype, device: True)
    with FakeTensorMode():
        assert not fused_cuda.suits(inputs(**change), rules)


def test_a_kernel_that_lies_or_fails_is_not_trusted(monkeypatch):
    """On the processor the CUDA operators are missing: the probe says no instead of raising."""
    fused_cuda.is_trustworthy.cache_clear()
    assert not fused_cuda.is_trustworthy(torch.float32, torch.device("cpu"))
    wrong = lambda tensors, rules, blocks: (tensors.query, tensors.query[..., 0])  # noqa: E731
    monkeypatch.setattr(fused_cuda, "forward", wrong)
    monkeypatch.setattr(fused_cuda, "backward", lambda tensors, *_: fused_cuda.Gradients(*tensors))
    fused_cuda.is_trustworthy.cache_clear()
    assert not fused_cuda.is_trustworthy(torch.float32, torch.device("cpu"))
    fused_cuda.is_trustworthy.cache_clear()


@NEEDS_GPU
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_are_right_on_a_gpu(dtype):
    assert fused_cuda.is_trustworthy(dtype, torch.device("cuda"))
