"""A process whose weights are handed in: what it keeps between calls must neither enter a transform nor leave one."""

import copy
import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from synopsis.processes import CMANP
from synopsis.weights import Weights, fingerprint
from tests.tolerances import FLOAT64, PREDICTION

Weighted = dict[str, Tensor]
EXACT = {"rtol": 1000 * FLOAT64, "atol": 1000 * FLOAT64}


def process_of(seed: int, mode: bool) -> CMANP:
    torch.manual_seed(seed)
    return CMANP(dim_x=1, dim_y=1, dim=8, heads=2, blocks=2, latents=3).double().train(mode)


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Context and targets of three streams."""
    generator = torch.Generator().manual_seed(7)
    shapes = ((3, 6, 1), (3, 6, 1), (3, 4, 1), (3, 4, 1))
    draws = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return draws[0], draws[1], draws[2], draws[3]


def weights_of(process: CMANP) -> Weighted:
    return {name: weight.detach().clone() for name, weight in process.named_parameters()}


def loss_of(process: CMANP) -> Callable[..., Tensor]:
    def loss(weights: Weighted, xc: Tensor, yc: Tensor, xt: Tensor, yt: Tensor) -> Tensor:
        return -functional_call(process, weights, (xc, yc, xt)).log_prob(yt).mean()

    return loss


def by_autograd(process: CMANP, data: tuple[Tensor, ...]) -> Weighted:
    xc, yc, xt, yt = data
    loss = -process(xc, yc, xt).log_prob(yt).mean()
    found = torch.autograd.grad(loss, list(process.parameters()), allow_unused=True)
    named = zip(process.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(w) if g is None else g for (name, w), g in named}


def assert_same(found: Weighted, expected: Weighted) -> None:
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


both_modes = pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])


@both_modes
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_grad_over_handed_in_weights_is_autograds(mode, warm):
    process, data = process_of(0, mode), problem()
    if warm:  # everything that can be kept is kept
        with torch.no_grad():
            process(*data[:3])
    assert_same(grad(loss_of(process))(weights_of(process), *data), by_autograd(process, data))
    other = process_of(1, mode)
    assert_same(grad(loss_of(process))(weights_of(other), *data), by_autograd(other, data))


@both_modes
def test_gradients_of_every_stream_at_once(mode):
    process, data = process_of(0, mode), problem()
    weights, loss = weights_of(process), loss_of(process)

    def of_one(weights, *points):
        return loss(weights, *(p[None] for p in points))

    with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernel has no batching rule and warns
        found = vmap(grad(of_one), (None, 0, 0, 0, 0))(weights, *data)
    for i in range(3):
        alone = by_autograd(process, tuple(p[i : i + 1] for p in data))
        assert_same({name: g[i] for name, g in found.items()}, alone)


@both_modes
def test_an_ensemble_answers_as_its_members(mode):
    members, data = [process_of(seed, mode) for seed in (0, 1, 2)], problem()
    stacked, _ = stack_module_state(members)
    weights = {name: weight.detach() for name, weight in stacked.items()}
    with sdpa_kernel(SDPBackend.MATH):
        found = vmap(loss_of(members[0]), (0, None, None, None, None))(weights, *data)
    expected = torch.stack([-m(*data[:3]).log_prob(data[3]).mean() for m in members])
    torch.testing.assert_close(found, expected.detach(), **EXACT)


@both_modes
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_forward_mode_moves_as_the_whole_gradient_says(mode, warm):
    """In evaluation mode too: torch.no_grad holds gradients back, not tangents."""
    process, data = process_of(0, mode), problem()
    weights, loss = weights_of(process), loss_of(process)
    if warm:
        with torch.no_grad():
            process(*data[:3])
    moved = {name: torch.randn_like(weight) for name, weight in weights.items()}
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernel has no forward mode
        _, tangent = jvp(lambda w: loss(w, *data), (weights,), (moved,))
        with forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(w, moved[name]) for name, w in weights.items()}
            also = forward_ad.unpack_dual(loss(dual, *data)).tangent
    whole = by_autograd(process.train(), data)  # which sees the context as well
    expected = torch.stack([(whole[name] * moved[name]).sum() for name in weights]).sum()
    torch.testing.assert_close(tangent, expected, rtol=PREDICTION, atol=PREDICTION)
    torch.testing.assert_close(also, tangent, **EXACT)


def test_nothing_of_a_transform_is_left_behind():
    process, data = process_of(0, False), problem()
    with torch.no_grad():
        before = process(*data[:3]).mean
    digits = process.fingerprint
    other = {name: weight + 1 for name, weight in weights_of(process).items()}
    with sdpa_kernel(SDPBackend.MATH):
        grad(loss_of(process))(other, *data)
        jvp(lambda w: loss_of(process)(w, *data), (other,), (other,))
    assert process.fingerprint == digits
    with torch.no_grad():
        assert torch.equal(process(*data[:3]).mean, before)
        assert torch.equal(copy.deepcopy(process)(*data[:3]).mean, before)


def test_states_belong_to_the_numbers_of_the_weights_wherever_they_are():
    process, (xc, yc, xt, _) = process_of(0, False), problem()
    state = process.update(process.init((3,)), xc, yc)
    weights = weights_of(process)

    def answer(weights):
        class Answer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.process = process

            def forward(self):
                return self.process.predict(state, xt).mean.sum()

        return functional_call(Answer(), {f"process.{n}": w for n, w in weights.items()})

    found = grad(answer)(weights)
    expected = torch.autograd.grad(
        process.predict(state, xt).mean.sum(), list(process.parameters()), allow_unused=True
    )
    for mine, right in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(
            mine, torch.zeros_like(mine) if right is None else right, **EXACT
        )
    with pytest.raises(ValueError, match="not by this one"):
        grad(answer)({name: weight + 1 for name, weight in weights.items()})


def test_versions_within_a_transform_equal_nothing():
    module = torch.nn.Linear(2, 2)
    weights = Weights(module)
    plain, seen = weights.version(), []

    def look(handed):
        class Look(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = module

            def forward(self):
                seen.extend([weights.version(), fingerprint(self.inner, {})])
                return self.inner.weight.sum()

        return functional_call(Look(), {f"inner.{n}": w for n, w in handed.items()})

    handed = dict(module.named_parameters())
    for _ in range(2):
        grad(look)(handed)
    assert seen[0] != plain and seen[0] != seen[2]
    assert seen[1] == seen[3] == fingerprint(module, {})
    assert weights.version() == plain
    two = {name: torch.stack([w, w]).detach().movedim(0, -1) for name, w in handed.items()}
    vmap(look, (dict.fromkeys(two, -1),))(two)
    assert seen[5] != seen[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_fingerprint_is_made_of_bytes(dtype):
    """The same digits as when they were read through numpy: states on disk go on belonging."""
    module = torch.nn.Linear(3, 2).to(dtype)
    module.weight.data = module.weight.data.mT.contiguous().mT  # not in one piece
    module.register_buffer("nothing", torch.empty(0, 4))
    digest = hashlib.sha256(b"{}")
    for name in ("bias", "nothing", "weight"):
        tensor = module.state_dict()[name]
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    assert fingerprint(module, {}) == digest.hexdigest()[:16]


def test_the_weights_of_a_float32_process_learn_inside_and_outside_alike():
    """One step of gradient descent by torch.func, then the same by an optimiser."""
    process, data = process_of(3, True).float(), tuple(t.float() for t in problem())
    weights = weights_of(process)
    found = grad(loss_of(process))(weights, *data)
    optimiser = torch.optim.SGD(process.parameters(), lr=0.1)
    (-process(*data[:3]).log_prob(data[3]).mean()).backward()
    optimiser.step()
    for name, weight in process.named_parameters():
        stepped = weights[name] - 0.1 * found[name]
        torch.testing.assert_close(weight.detach(), stepped, rtol=PREDICTION, atol=PREDICTION)
