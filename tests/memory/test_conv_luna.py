"""ConvLuna, full and simplified, against naive float64 twins; sizes; and what the filter does and does not see."""

import math

import numpy as np
import pytest
import torch

from synopsis.memory import (
    ConvLunaLayer,
    Filter,
    SharedLunaLayer,
    SimplifiedConvLunaLayer,
    Temperatures,
)
from tests import reference
from tests.memory import naive_luna
from tests.tolerances import FLOAT64

DIM, HEADS = 8, 2
KINDS = pytest.mark.parametrize("kind", [ConvLunaLayer, SimplifiedConvLunaLayer])
FILTERS = pytest.mark.parametrize(
    "filtering",
    [
        Filter(),
        Filter("convolution", 5, 3),
        Filter("max", 4, 2),
        Filter("mean", 3),
        Filter("max", 1, 2),
    ],
    ids=str,
)
BOTH = Temperatures("learn", "learn")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer(kind, **settings):
    made = reference.enliven(kind(DIM, HEADS, 12, **settings).double(), seed=5).eval()
    for attention, temperature in ((made.pack, 0.7), (made.unpack, 1.9)):
        if attention.temperature.log is not None:
            torch.nn.init.constant_(attention.temperature.log, math.log(temperature))
    return made


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def naive(made, filtering, x, memory, temperatures, mask):
    sieve = {"kind": filtering.kind, "kernel": filtering.kernel, "stride": filtering.stride}
    weights = reference.float64_weights(made)
    if filtering.kind == "convolution":
        sieve["taps"] = weights["pack.filtering.weight"]
    return naive_luna.layer(weights, x, memory, HEADS, temperatures, mask, sieve)


def close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_the_published_numbers_of_parameters():
    """Per layer at width 128, 4 heads, kernel 4, both temperatures learned: what the published model totals leave."""
    dim, hidden = 128, 512
    around = 3 * 2 * dim + 2 * dim * hidden + hidden + dim
    simplified = SimplifiedConvLunaLayer(dim, 4, hidden, temperatures=BOTH)
    assert size(simplified) == 3 * (dim * dim + dim) + 4 * 4 + 2 + around == 182_034
    full = ConvLunaLayer(dim, 4, hidden, temperatures=BOTH)
    assert size(full) == 4 * (dim * dim + dim) + 4 * 4 + 2 + around
    apart = ConvLunaLayer(dim, 4, hidden, temperatures=BOTH, shared=False)
    assert size(apart) - size(full) == 4 * (dim * dim + dim)


def test_published_model_totals():
    """Text, ListOps, retrieval at memory 256: embeddings, positions, CLS, memory, head, and these layers."""
    dim, mlp = 128, 512
    blocks = {"luna": SharedLunaLayer(dim, 4, mlp)}
    blocks["conv"] = SimplifiedConvLunaLayer(dim, 4, mlp, temperatures=BOTH)
    head = 2 * dim + dim * mlp + mlp
    for ids, length, layers, classes, published in (
        (257, 4000, 4, 2, {"luna": 1_439_234, "conv": 1_373_258}),
        (17, 2000, 6, 10, {"luna": 1_553_674, "conv": 1_454_710}),
    ):
        outside = (ids + length + 1 + 256) * dim + head + mlp * classes + classes
        for name, block in blocks.items():
            assert outside + layers * size(block) == published[name]


@KINDS
@FILTERS
@pytest.mark.parametrize("length", [0, 1, 3, 10])
@pytest.mark.parametrize("cells", [1, 4])
def test_a_layer_is_the_naive_one(kind, filtering, length, cells):
    made = layer(kind, filtering=filtering, temperatures=BOTH)
    x, memory = draw(3, length, DIM), draw(3, cells, DIM, seed=1)
    mask = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
    for seen in (None, mask):
        found = made(x, memory, seen)
        for stream in range(3):
            real = None if seen is None else seen[stream]
            inputs = x[stream].numpy(), memory[stream].numpy()
            expected = naive(made, filtering, *inputs, (0.7, 1.9), real)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(
                    one[stream].detach(), other, rtol=100 * FLOAT64, atol=100 * FLOAT64
                )


@KINDS
@pytest.mark.parametrize("pack", ["unit", "sqrt", "learn"])
@pytest.mark.parametrize("unpack", ["unit", "sqrt", "learn"])
def test_both_temperatures_apply(kind, pack, unpack):
    made = layer(kind, temperatures=Temperatures(pack, unpack))
    divided = {"unit": (1.0, 1.0), "sqrt": (2.0, 2.0), "learn": (0.7, 1.9)}
    x, memory = draw(1, 6, DIM), draw(1, 3, DIM, seed=1)
    temperatures = (divided[pack][0], divided[unpack][1])
    expected = naive(made, Filter(), x[0].numpy(), memory[0].numpy(), temperatures, None)
    for one, other in zip(made(x, memory), expected, strict=True):
        np.testing.assert_allclose(one[0].detach(), other, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_the_default_is_what_ran():
    for kind in (ConvLunaLayer, SimplifiedConvLunaLayer):
        made = kind(DIM, HEADS, 12)
        assert made.pack.temperature.kind == "learn" and made.unpack.temperature.kind == "unit"
        assert (made.pack.filtering.kernel, made.pack.filtering.stride) == (4, 1)
        assert made.unpack.filtering is None


@pytest.mark.parametrize("temperature", ["sqrt", "unit", "learn"])
def test_without_a_filter_it_is_luna_at_that_temperature(temperature):
    settings = {
        "filtering": Filter(kernel=1),
        "temperatures": Temperatures(temperature, temperature),
    }
    conv = ConvLunaLayer(DIM, HEADS, 12, **settings).double()
    luna = SharedLunaLayer(DIM, HEADS, 12).double()
    luna.load_state_dict(
        {k: v for k, v in conv.state_dict().items() if "temperature" not in k}, strict=True
    )
    if temperature != "sqrt":  # Luna divides by √width: give it queries that are larger by as much
        with torch.no_grad():
            for weight in luna.pack.projections.to_query.parameters():
                weight.mul_(math.sqrt(DIM / HEADS))
    x, memory = draw(2, 7, DIM), draw(2, 3, DIM, seed=1)
    close(conv(x, memory), luna(x, memory))


def test_simplified_is_full_with_identity_values():
    conv = layer(ConvLunaLayer)
    simplified = SimplifiedConvLunaLayer(DIM, HEADS, 12).double()
    values = conv.pack.projections.to_value
    torch.nn.init.eye_(values.weight)
    torch.nn.init.zeros_(values.bias)
    simplified.load_state_dict({k: v for k, v in conv.state_dict().items() if "to_value" not in k})
    x, memory = draw(2, 7, DIM), draw(2, 3, DIM, seed=1)
    close(conv(x, memory), simplified(x, memory))


@KINDS
def test_a_delta_filter_is_no_filter(kind):
    delta, none = layer(kind), layer(kind, filtering=Filter(kernel=1))
    with torch.no_grad():
        delta.pack.filtering.weight.zero_()[:, 1] = 1.0
    none.load_state_dict({k: v for k, v in delta.state_dict().items() if "filtering" not in k})
    x, memory = draw(2, 7, DIM), draw(2, 3, DIM, seed=1)
    close(delta(x, memory), none(x, memory))


@KINDS
def test_order_matters_to_the_memory_only_through_the_filter(kind):
    x, memory = draw(2, 9, DIM), draw(2, 4, DIM, seed=1)
    for kernel in (1, 4):
        made = layer(kind, filtering=Filter(kernel=kernel))
        same = torch.allclose(made(x, memory)[1], made(x.flip(1), memory)[1], atol=100 * FLOAT64)
        assert same is (kernel == 1)


@KINDS
@FILTERS
def test_permuting_the_memory_permutes_it_and_changes_nothing_else(kind, filtering):
    made, x, memory = layer(kind, filtering=filtering), draw(2, 9, DIM), draw(2, 4, DIM, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    (x1, m1), (x2, m2) = made(x, memory), made(x, memory[:, order])
    close((x1, m1[:, order]), (x2, m2))


@KINDS
@FILTERS
def test_pads_come_out_as_zero_and_their_contents_do_not_matter(kind, filtering):
    made, x, memory = layer(kind, filtering=filtering), draw(2, 9, DIM), draw(1, 4, DIM, seed=1)
    mask = torch.arange(9) < torch.tensor([[6], [0]])
    found, cells = made(x.masked_fill(~mask.unsqueeze(-1), torch.nan), memory, mask)
    close((found, cells), made(x, memory, mask))
    assert not found[~mask].any() and cells.isfinite().all()


@KINDS
def test_with_one_cell_every_item_receives_the_same(kind):
    made, x, memory = layer(kind), draw(2, 9, DIM), draw(2, 1, DIM, seed=1)
    received = made.unpack(x, made.pack(memory, x))
    close((received,), (received[:, :1].expand_as(received),))


@KINDS
@FILTERS
def test_gradients_are_right(kind, filtering):
    made = layer(kind, filtering=filtering, temperatures=BOTH)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    inputs = (draw(3, 6, DIM).requires_grad_(), draw(1, 2, DIM, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, m, *w: made(x, m, mask), (*inputs, *made.parameters()), fast_mode=True
    )
