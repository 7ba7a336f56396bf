"""Both Lunas against naive float64 twins, their published sizes, and what must not depend on what."""

import math

import numpy as np
import pytest
import torch

from synopsis.memory import LunaLayer, SharedLunaLayer
from tests import reference
from tests.memory import naive_luna
from tests.tolerances import FLOAT64

DIM, HEADS = 8, 2
LAYERS = {
    "luna": lambda: LunaLayer(DIM, HEADS, 12),
    "tied": lambda: LunaLayer(DIM, HEADS, 12, values="key"),
    "pack-heads": lambda: LunaLayer(DIM, HEADS, 12, pack_heads=4),
    "shared": lambda: SharedLunaLayer(DIM, HEADS, 12),
}
EACH = pytest.mark.parametrize("name", LAYERS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer(name: str):
    return reference.enliven(LAYERS[name]().double(), seed=5).eval()


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def naive(name, made, x, memory, mask):
    weights = reference.float64_weights(made)
    if name == "shared":
        temperatures = (math.sqrt(DIM / HEADS),) * 2
        return naive_luna.layer(weights, x, memory, HEADS, temperatures, mask)
    pack_heads = 4 if name == "pack-heads" else HEADS
    return naive_luna.luna(weights, x, memory, HEADS, pack_heads, name == "tied", mask)


def test_the_published_numbers_of_parameters():
    """Per layer at width 128 and 4 heads; 198,528 is what the model totals of the second paper's code leave for it."""
    dim, hidden = 128, 512
    around = 3 * 2 * dim + 2 * dim * hidden + hidden + dim
    assert size(SharedLunaLayer(dim, 4, hidden)) == 4 * (dim * dim + dim) + around == 198_528
    assert size(LunaLayer(dim, 4, hidden)) == 7 * (dim * dim + dim) + around
    assert size(LunaLayer(dim, 4, hidden, values="key")) == 5 * (dim * dim + dim) + around


@EACH
@pytest.mark.parametrize("length", [0, 1, 9])
@pytest.mark.parametrize("cells", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_is_the_naive_one(name, length, cells, masked):
    made, x, memory = layer(name), draw(3, length, DIM), draw(3, cells, DIM, seed=1)
    mask = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
    found = made(x, memory, mask if masked else None)
    for stream in range(3):
        expected = naive(
            name, made, x[stream].numpy(), memory[stream].numpy(), mask[stream] if masked else None
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                one[stream].detach(), other, rtol=100 * FLOAT64, atol=100 * FLOAT64
            )


def test_with_identity_projections_the_two_attentions_are_the_textbook():
    """Spec: P = X gives softmax(X Yᵀ/√d) Y with Y = softmax(X Xᵀ/√d) X, for one head."""
    made, x = LunaLayer(DIM, 1, 12).double(), draw(1, 6, DIM)
    for attention in (made.pack, made.unpack):
        for name, weight in attention.projections.named_parameters():
            (torch.nn.init.eye_ if name.endswith("weight") else torch.nn.init.zeros_)(weight)
    packed = (x @ x.mT / math.sqrt(DIM)).softmax(-1) @ x
    unpacked = (x @ packed.mT / math.sqrt(DIM)).softmax(-1) @ packed
    torch.testing.assert_close(made.pack(x, x), packed, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(made.unpack(x, packed), unpacked, rtol=FLOAT64, atol=FLOAT64)
    expected = made.feedforward(made.norm(x + unpacked)), made.norm_memory(x + packed)
    for one, other in zip(made(x, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=100 * FLOAT64, atol=100 * FLOAT64)


@EACH
def test_permuting_the_memory_permutes_it_and_changes_nothing_else(name):
    made, x, memory = layer(name), draw(2, 9, DIM), draw(2, 4, DIM, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    (x1, m1), (x2, m2) = made(x, memory), made(x, memory[:, order])
    torch.testing.assert_close(x1, x2, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    torch.testing.assert_close(m1[:, order], m2, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert not torch.allclose(m1, m2)


@EACH
def test_permuting_the_sequence_permutes_it_and_leaves_the_memory(name):
    made, x, memory = layer(name), draw(2, 9, DIM), draw(2, 4, DIM, seed=1)
    (x1, m1), (x2, m2) = made(x, memory), made(x.flip(1), memory)
    torch.testing.assert_close(x1.flip(1), x2, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    torch.testing.assert_close(m1, m2, rtol=100 * FLOAT64, atol=100 * FLOAT64)


@EACH
def test_pads_come_out_as_zero_and_might_as_well_not_be_there(name):
    made, x, memory = layer(name), draw(2, 9, DIM), draw(1, 4, DIM, seed=1)
    mask = torch.arange(9) < torch.tensor([[6], [0]])
    found, cells = made(x.masked_fill(~mask.unsqueeze(-1), torch.nan), memory, mask)
    alone, left = made(x[:1, :6], memory)
    torch.testing.assert_close(found[:1, :6], alone, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    torch.testing.assert_close(cells[:1], left, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert not found[~mask].any() and cells.isfinite().all()


@EACH
def test_gradients_are_right(name):
    made, mask = layer(name), torch.arange(4) < torch.tensor([[4], [2], [0]])
    inputs = (draw(3, 4, DIM).requires_grad_(), draw(1, 2, DIM, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, m, *w: made(x, m, mask), (*inputs, *made.parameters()), fast_mode=True
    )


@EACH
def test_a_memory_of_one_batch_entry_serves_all(name):
    made, x, memory = layer(name), draw(3, 5, DIM), draw(1, 4, DIM, seed=1)
    for one, other in zip(made(x, memory), made(x, memory.expand(3, -1, -1)), strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT64, atol=FLOAT64)


def test_luna_begins_as_published():
    made = LunaLayer(256, 4, 12)
    entering = math.sqrt(3.0 / 256) / math.sqrt(2.0)  # Xavier-uniform with gain 1/√2
    for attention in (made.pack, made.unpack):
        largest = float(attention.projections.to_query.weight.detach().abs().max())
        assert 0.99 * entering < largest <= entering
    leaving = made.unpack.projections.to_output
    assert 0.99 < float(leaving.weight.detach().abs().max()) / math.sqrt(3.0 / 256) <= 1.0
    assert not leaving.bias.any()
    assert made.pack.projections.to_output is None


def test_both_attentions_drop_in_luna_and_only_the_feed_forward_in_shared_luna():
    x, memory = draw(1, 5, DIM), draw(1, 4, DIM, seed=1)
    for kind, drops in ((LunaLayer, True), (SharedLunaLayer, False)):
        made = kind(DIM, HEADS, 12, dropout=0.5).double().train()
        cells = [made(x, memory)[1] for _ in range(2)]
        assert torch.equal(*cells) is not drops
        assert not torch.equal(*(made(x, memory)[0] for _ in range(2)))
