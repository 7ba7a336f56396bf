"""The training step's own product, dropout and attention against torch's, gradients, and where they step aside."""

import pytest
import torch
from torch.nn import functional as F

from synopsis.memory import layers_training
from synopsis.memory.layers import FeedForward, SelfAttention
from synopsis.memory.layers_training import (
    Dropout,
    Linear,
    is_trustworthy,
    linear,
    softmax_attention,
)
from synopsis.processes import CMANP
from tests.tolerances import FLOAT32, FLOAT64

BFLOAT16 = 2.0**-7  # a few roundings to eight bits, relative to the largest value
SUMS = 10 * FLOAT32  # float32 sums of some thousand products, relative to the largest value
ROWS = 300
# torch warns of a flag of Intel's graphics cards whenever oneDNN is switched off.
SWITCHED = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.double().abs().max()


@pytest.fixture
def counted(monkeypatch):
    """How often the operator was called."""
    if not is_trustworthy():
        pytest.skip("this processor multiplies by torch's own product")
    calls = []
    product = layers_training._product
    monkeypatch.setattr(layers_training, "_product", lambda *a: calls.append(1) or product(*a))
    return calls


@pytest.mark.parametrize("sizes", [(8, 8), (8, 24), (24, 8), (5, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("batch", [(ROWS,), (3, 100), (2, 2, 75)], ids=str)
def test_the_product_and_its_gradients_are_torchs(counted, sizes, bias, batch):
    x, weight = draw(*batch, sizes[0]), draw(*sizes[::-1], seed=1)
    shift, outer = draw(sizes[1], seed=2), draw(*batch, sizes[1], seed=3)
    leaves = [t.requires_grad_() for t in ((x, weight, shift) if bias else (x, weight))]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    found, expected = linear(*leaves), F.linear(*exact)
    close(found, expected.float(), SUMS)
    gradients = torch.autograd.grad(found, leaves, outer)
    for a, b in zip(gradients, torch.autograd.grad(expected, exact, outer.double()), strict=True):
        close(a, b.float(), SUMS)
    assert len(counted) >= 2


def test_gradients_that_do_not_lie_in_a_row_are_read_rightly(counted):
    """What comes back from heads that were split is transposed, from a sum it is expanded."""
    x, weight = draw(2, 200, 8).requires_grad_(), draw(6, 8, seed=1).requires_grad_()
    for reduce in (lambda y: (y.transpose(1, 2) * draw(2, 6, 200, seed=4)).sum(), torch.sum):
        found = torch.autograd.grad(reduce(linear(x, weight)), (x, weight))
        expected = torch.autograd.grad(reduce(F.linear(x, weight)), (x, weight))
        for a, b in zip(found, expected, strict=True):
            close(a, b, SUMS)


def test_what_is_frozen_costs_nothing_and_gets_nothing(counted):
    x, weight = draw(ROWS, 8), draw(6, 8, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None
    assert len(counted) == 2  # forward, and the gradient of the weight
    x.requires_grad_()
    linear(x, weight.detach()).sum().backward()
    close(x.grad, weight.detach().sum(0).expand(ROWS, -1), SUMS)


@SWITCHED
def test_other_work_is_left_to_torch(counted):
    layer, x = Linear(8, 6), draw(ROWS, 8)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    layer.train()(x[:10])
    layer.double()(x.double())
    layer.float()
    with torch.backends.mkldnn.flags(enabled=False):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not counted


def test_higher_derivatives_and_transforms_still_work(counted):
    weight, x, tangent = draw(6, 8), draw(ROWS, 8, seed=1), draw(6, 8, seed=2)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return linear(x, w).square().sum()

    expected = 2 * (x.t() @ (x @ weight.t())).t()
    close(torch.func.grad(loss)(weight.requires_grad_()), expected.detach(), SUMS)
    _, slope = torch.func.jvp(loss, (weight.detach(),), (tangent,))
    close(slope, (expected * tangent).sum().detach(), SUMS)
    assert not counted


def test_a_torch_without_the_operator_or_with_a_wrong_one_is_noticed(monkeypatch):
    if not is_trustworthy():
        pytest.skip("this processor multiplies by torch's own product")
    product = layers_training._product

    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    for broken in (missing, lambda x, w, b: product(x, w, None), lambda *a: 1.001 * product(*a)):
        is_trustworthy.cache_clear()
        monkeypatch.setattr(layers_training, "_product", broken)
        assert not is_trustworthy()
        weight = draw(6, 8).requires_grad_()
        close(linear(draw(ROWS, 8), weight), F.linear(draw(ROWS, 8), weight), FLOAT64)
    is_trustworthy.cache_clear()
    monkeypatch.undo()
    assert is_trustworthy()


@SWITCHED
@pytest.mark.parametrize("residual", ["raw", "normed"])
def test_a_training_step_has_the_gradients_of_torchs_own_product(counted, residual):
    torch.manual_seed(0)
    process = CMANP(dim=16, heads=2, blocks=2, latents=80, residual=residual).train()
    points = [draw(4, n, 1, seed=n) for n in (9, 9, 70)]

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss = -process(*points).log_prob(draw(4, 70, 1)).mean()
        return loss.detach(), list(torch.autograd.grad(loss, list(process.parameters())))

    loss, gradients = step()
    assert counted
    with torch.backends.mkldnn.flags(enabled=False):
        expected, slopes = step()
    assert abs(loss - expected) <= FLOAT32 * abs(expected)
    largest = max(g.abs().max() for g in slopes)
    assert all(
        (a - b).abs().max() <= SUMS * largest for a, b in zip(gradients, slopes, strict=True)
    )


def test_training_and_evaluation_are_the_same_function(counted):
    x = draw(4, 80, 16)
    for layer in (SelfAttention(16, 2), FeedForward(16, 24)):
        trained = layer.train()(x)
        close(trained, layer.eval()(x), SUMS)
    assert counted


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_attention_is_torchs_outside_autocast(scale):
    query, key, value = (draw(2, 3, n, 8, seed=n) for n in (4, 5, 5))
    expected = F.scaled_dot_product_attention(query, key, value, scale=scale)
    assert torch.equal(softmax_attention(query, key, value, scale=scale), expected)


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("route", ["stored", "many scores", "masked"])
def test_attention_under_autocast_is_exact_up_to_its_rounding(monkeypatch, scale, route):
    if route == "many scores":
        monkeypatch.setattr(layers_training, "_SCORES", 10)
    query, key, value = (draw(2, 3, n, 8, seed=n, dtype=torch.bfloat16) for n in (4, 5, 5))
    mask = torch.tensor([[True, True, False, True, False]]) if route == "masked" else None
    leaves = [t.requires_grad_() for t in (query, key, value)]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=mask, scale=scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = softmax_attention(*leaves, mask, scale)
    assert found.dtype == (torch.bfloat16 if route == "stored" else torch.float32)
    close(found, expected, BFLOAT16)
    gradients = torch.autograd.grad(found.double().square().sum(), leaves)
    slopes = torch.autograd.grad(expected.square().sum(), exact)
    for a, b in zip(gradients, slopes, strict=True):
        close(a, b, 4 * BFLOAT16)


def test_a_step_in_sixteen_bits_points_where_one_in_32_does():
    torch.manual_seed(0)
    process = CMANP(dim=16, heads=2, blocks=2, latents=8).train()
    points = [draw(8, n, 1, seed=n) for n in (9, 9, 20)]

    def gradient(bf16: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = -process(*points).log_prob(draw(8, 20, 1)).mean()
        found = torch.autograd.grad(loss, list(process.parameters()))
        assert all(g.dtype == torch.float32 for g in found)
        return torch.cat([g.flatten() for g in found])

    found, expected = gradient(True), gradient(False)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99


def drop(p: float, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    dropped: torch.Tensor = Dropout(p)(x)
    return dropped


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(2000, 64), (3, 400, 130), (128_000,), (1, 200_000)])
def test_dropout_drops_the_share_it_should_in_every_direction(p, shape):
    kept = drop(p, torch.ones(shape)) > 0
    assert abs(kept.float().mean() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    rows = kept.float().reshape(-1, shape[-1])
    if min(rows.shape) > 1:
        for dim in (0, 1):
            spread = (p * (1 - p) / rows.shape[dim]) ** 0.5
            assert (rows.mean(dim) - (1 - p)).abs().max() < 6 * spread
        for a, b in ((rows[1:], rows[:-1]), (rows[:, 1:], rows[:, :-1])):
            covariance = (a - (1 - p)).mul(b - (1 - p)).mean()
            assert abs(covariance) < 5 * p * (1 - p) / a.numel() ** 0.5


def test_dropout_repeats_with_the_seed_and_differs_from_call_to_call():
    x = draw(50, 20)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(x), Dropout(0.5)(x)
    assert torch.equal(drop(0.5, x, seed=3), first)
    assert not torch.equal(first, second)
    assert torch.equal(first[first != 0], 2 * x[first != 0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_dropout_is_what_was_kept(dtype):
    x = draw(40, 30, dtype=dtype).requires_grad_()
    dropped = drop(0.25, x)
    dropped.backward(torch.ones_like(dropped))
    assert dropped.dtype == x.grad.dtype == dtype
    kept = dropped != 0
    assert torch.equal(x.grad, torch.full_like(x, 4 / 3).where(kept, 0.0))
    assert torch.equal(dropped, (x.detach() * (4 / 3)).where(kept, 0.0))


def test_dropout_has_derivatives_of_every_order():
    x = draw(6, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: drop(0.4, t), x)
    assert torch.autograd.gradgradcheck(lambda t: drop(0.4, t) ** 2, x)


def test_dropout_keeps_a_seed_and_not_its_factors():
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        drop(0.4, draw(6, 5).requires_grad_())
    assert not saved


def test_dropout_is_torchs_where_nothing_is_dropped_everything_is_or_there_is_nothing():
    x = draw(5, 4)
    assert drop(0.0, x) is x or torch.equal(drop(0.0, x), x)
    assert torch.equal(drop(1.0, x), torch.zeros_like(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert drop(0.5, torch.ones(0, 4)).shape == (0, 4)
    assert drop(0.5, torch.ones(3, 0)).shape == (3, 0)
    assert drop(0.5, torch.tensor(1.0)).item() in (0.0, 2.0)
    with pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.5"):
        Dropout(1.5)


def test_dropout_steps_aside_for_torch_func(monkeypatch):
    monkeypatch.setattr(layers_training, "_Dropped", None)  # would not be callable
    x = draw(4, 5, 6)
    mapped = torch.func.vmap(Dropout(0.5), randomness="different")(x)
    assert not torch.equal(mapped[0] != 0, mapped[1] != 0)
    gradient = torch.func.grad(lambda t: Dropout(0.5)(t).sum())(x)
    assert sorted(gradient.unique().tolist()) == [0.0, 2.0]


def test_dropout_works_in_pieces(monkeypatch):
    x = draw(37, 11)
    whole = drop(0.4, x)
    monkeypatch.setattr("synopsis.attention.dropout._CACHED", 23)
    assert torch.equal(drop(0.4, x), whole)
