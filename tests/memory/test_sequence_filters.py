"""Filters against windows counted one by one, and their rule for pads."""

import numpy as np
import pytest
import torch

from synopsis.memory.sequence_filters import Convolution, Filter, MaxPooling, MeanPooling
from tests.memory import naive_luna
from tests.tolerances import FLOAT64

HEADS, DIM = 2, 6
KINDS = pytest.mark.parametrize("kind", ["convolution", "max", "mean"])
SHAPES = pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (1, 3), (2, 1), (3, 1), (4, 1), (4, 2), (3, 3), (2, 5)]
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def made(kind, kernel, stride, pads="covered"):
    """The filter, and the naive one's settings; None stands for one that changes nothing."""
    sieve = Filter(kind, kernel, stride, pads).build(HEADS)
    naive = {"kind": kind, "kernel": kernel, "stride": stride}
    if kernel == 1:
        naive["kind"] = "max"
    elif kind == "convolution":
        naive["taps"] = sieve.double().weight.detach().numpy()
    return MaxPooling(1) if sieve is None else sieve, naive


@KINDS
@SHAPES
@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_windows_are_those_counted_one_by_one(kind, kernel, stride, length, masked):
    sieve, naive = made(kind, kernel, stride)
    x = draw(3, length, DIM)
    mask = draw(3, length, seed=1) > -0.3
    mask[1] = False
    found, seen = sieve(x, mask if masked else None)
    for stream in range(3):
        real = mask[stream] if masked else None
        expected, valid = naive_luna.filtered(x[stream].numpy(), HEADS, mask=real, **naive)
        np.testing.assert_allclose(found[stream].detach(), expected, rtol=FLOAT64, atol=FLOAT64)
        if masked:
            assert seen[stream].tolist() == valid.tolist()
    assert masked or seen is None


@pytest.mark.parametrize(("length", "kernel", "stride"), [(2000, 16, 8), (10, 4, 3), (7, 4, 4)])
def test_the_published_number_of_windows(length, kernel, stride):
    sieve = Convolution(HEADS, kernel, stride)
    assert sieve(torch.randn(1, length, DIM))[0].shape[1] == (length - kernel) // stride + 1
    assert Convolution(HEADS, 4)(torch.randn(1, 9, DIM))[0].shape[1] == 9
    assert MaxPooling(4)(torch.randn(1, 9, DIM))[0].shape[1] == 9 - 4 + 1


def test_taps_are_one_row_for_each_head_and_start_as_published():
    sieve = Convolution(heads=400, kernel=16)
    assert [w.shape for w in sieve.parameters()] == [(400, 16)]
    assert 0.24 < float(sieve.weight.detach().abs().max()) <= 0.25  # U(−1/√k, 1/√k)


def test_a_delta_changes_nothing():
    sieve, x = Convolution(HEADS, 4).double(), draw(2, 9, DIM)
    with torch.no_grad():
        sieve.weight.zero_()[:, 1] = 1.0  # an even kernel has one more item to its right
    assert torch.equal(sieve(x)[0], x)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("length", [2, 9])
def test_a_mean_is_a_uniform_convolution(stride, length):
    uniform = Convolution(HEADS, 4, stride).double()
    torch.nn.init.constant_(uniform.weight, 0.25)
    x, mask = draw(2, length, DIM), torch.arange(length) < torch.tensor([[length], [1]])
    for found, expected in zip(MeanPooling(4, stride)(x, mask), uniform(x, mask), strict=True):
        torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)


@KINDS
@SHAPES
def test_what_stands_in_pads_does_not_matter(kind, kernel, stride):
    sieve, _ = made(kind, kernel, stride)
    x, mask = draw(2, 8, DIM), torch.arange(8) < torch.tensor([[5], [0]])
    expected, seen = sieve(x, mask)
    found, _ = sieve(x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask)
    assert torch.equal(found, expected) and found.isfinite().all()
    assert not expected[~seen].any()


@KINDS
def test_the_published_rule_passes_masks_on_or_loses_them(kind):
    x, mask = draw(2, 8, DIM), torch.arange(8) < torch.tensor([[5], [0]])
    shorter, _ = made(kind, 4, 2, pads="published")
    assert shorter(x, mask)[1] is None
    assert shorter(x, mask)[0].isfinite().all()
    same, _ = made("mean", 4, 1, pads="published")
    assert torch.equal(same(x, mask)[1], mask)
    torch.testing.assert_close(same(x, mask)[0], same(x * mask.unsqueeze(-1), None)[0])


@KINDS
@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (4, 2), (3, 5)])
def test_gradients_are_right_under_a_mask(kind, kernel, stride):
    sieve, _ = made(kind, kernel, stride)
    x, mask = draw(2, 6, DIM).requires_grad_(), torch.arange(6) < torch.tensor([[4], [0]])
    assert torch.autograd.gradcheck(lambda x, *w: sieve(x, mask)[0] * 1.0, (x, *sieve.parameters()))


@pytest.mark.parametrize(
    "settings", [{"kernel": 0}, {"stride": 0}, {"kind": "median"}, {"pads": "ignored"}]
)
def test_what_is_no_filter_is_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings.values()))!r}"[:8]):
        Filter(**settings).build(HEADS)
