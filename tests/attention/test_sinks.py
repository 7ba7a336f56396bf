"""The sink against a softmax with one more key."""

import math

import pytest
import torch

from synopsis.attention.exact import scaled_dot_product_attention
from synopsis.attention.sinks import with_sink
from tests.tolerances import FLOAT64

BATCH, HEADS = 2, 3
# torch's own forward mode compiles its decompositions with torch.jit on first use
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def with_extra_key(score, value, sink):
    """Textbook: one more key that scores ``sink`` for its head and has value zero."""
    extra = sink[:, None, None].expand(*score.shape[:-1], 1)
    longer = torch.cat([score, extra], -1)
    zero = value.new_zeros(*value.shape[:-2], 1, value.shape[-1])
    return longer.softmax(-1) @ torch.cat([value, zero], -2), longer.logsumexp(-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 300.0])
def test_a_sink_is_one_more_key_without_value(scale):
    score = (scale * drawn(BATCH, HEADS, 5, 6)).requires_grad_()
    value, sink = drawn(BATCH, HEADS, 6, 4, seed=1), drawn(HEADS, seed=2).requires_grad_()
    found = with_sink(score.softmax(-1) @ value, score.logsumexp(-1), sink)
    expected = with_extra_key(score, value, sink)
    upstream = [drawn(*x.shape, seed=3) for x in expected]
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    gradients = (torch.autograd.grad(x, (score, sink), upstream) for x in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * FLOAT64, atol=100 * FLOAT64)


@forward_mode
def test_a_sink_has_every_derivative():
    output, lse = drawn(HEADS, 3, 2).requires_grad_(), drawn(HEADS, 3, seed=1).requires_grad_()
    inputs = output, lse, drawn(HEADS, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(with_sink, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(with_sink, inputs)


def test_a_sink_on_queries_without_keys():
    output = torch.zeros(HEADS, 2, 4, dtype=torch.float64, requires_grad=True)
    lse = torch.full((HEADS, 2), -math.inf, dtype=torch.float64, requires_grad=True)
    sink = torch.tensor([0.5, -math.inf, -2.0], dtype=torch.float64, requires_grad=True)
    found, both = with_sink(output, lse, sink)
    assert torch.equal(found, torch.zeros_like(found))
    assert torch.equal(both, sink.detach()[:, None].expand(HEADS, 2))
    gradients = torch.autograd.grad(found.sum() + both[[0, 2]].sum(), (output, lse, sink))
    assert torch.equal(gradients[1], torch.zeros_like(lse))
    assert gradients[2].tolist() == [2.0, 0.0, 2.0]
    assert bool(gradients[0].isfinite().all())


def test_no_sink_changes_nothing_and_zero_is_softmax_plus_one():
    score, value = drawn(HEADS, 3, 5), drawn(HEADS, 5, 2, seed=1)
    output, lse = score.softmax(-1) @ value, score.logsumexp(-1)
    torch.testing.assert_close(with_sink(output, lse, -math.inf), (output, lse))
    plus_one = (score.exp() / (1 + score.exp().sum(-1, keepdim=True))) @ value
    torch.testing.assert_close(with_sink(output, lse, 0.0)[0], plus_one)
    half = with_sink(output.bfloat16(), lse.float(), 0.0)
    assert (half[0].dtype, half[1].dtype) == (torch.bfloat16, torch.float32)


def test_a_sink_through_attention():
    query, key, value = (x.requires_grad_() for x in drawn(3, BATCH, HEADS, 6, 4).unbind())
    sink = drawn(HEADS, seed=1).requires_grad_()
    found = with_sink(*scaled_dot_product_attention(query, key, value, return_lse=True), sink)
    expected = with_extra_key(query @ key.mT / 2, value, sink)
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    upstream = [drawn(*x.shape, seed=3) for x in expected]
    inputs = query, key, value, sink
    gradients = (torch.autograd.grad(x, inputs, upstream) for x in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * FLOAT64, atol=100 * FLOAT64)
