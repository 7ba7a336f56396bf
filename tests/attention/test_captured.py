"""Tensors that a score_mod carries: found wherever they hide, and never differentiated wrongly in silence."""

import functools

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import synopsis
from synopsis.attention import AttentionState
from synopsis.attention.captured import captured_tensors
from tests.attention import test_captured
from tests.attention.test_state_growth import alibi, dense, draw, problem
from tests.tolerances import FLOAT64

EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}
SLOPE = torch.tensor(0.5, requires_grad=True)
TABLES = {"slopes": [torch.tensor(0.7, requires_grad=True)]}


def scaled(score):
    return score * SLOPE


def scalar(number=0.3, wants=True):
    return torch.tensor(number, dtype=torch.float64, requires_grad=wants)


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(2))

    def forward(self, score, b, h, i, j):
        return score * self.slope[0]

    def method(self, score, b, h, i, j):
        return score * self.slope[1]


class Plain:
    def __init__(self, tensor):
        self.tensors = {"inner": [tensor]}

    def __call__(self, score, *_):
        return score * self.tensors["inner"][0]


class Narrow:
    __slots__ = ("slope",)

    def __init__(self, tensor):
        self.slope = tensor


class Keeper(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.kept = tensor * 2.0  # neither parameter nor buffer


def test_every_hiding_place_is_searched():
    tensor, module = scalar(), Held()
    narrow, keeper = Narrow(tensor), Keeper(tensor)

    def default(score, b, h, i, j, slope=tensor, *, other=tensor):
        return score * slope * other

    def by_name(score, b, h, i, j):
        return score * SLOPE

    def by_other_names(score, b, h, i, j):
        return score * TABLES["slopes"][0]

    def by_module(score, b, h, i, j):
        return score * test_captured.SLOPE

    places = {
        "called in turn": (lambda score, *_: scaled(score), SLOPE),
        "inner function": (lambda score, *_: (lambda s: scaled(s))(score), SLOPE),
        "global of containers": (by_other_names, TABLES["slopes"][0]),
        "module of globals": (by_module, SLOPE),
        "attribute of an object": (lambda score, *_: score * narrow.slope, tensor),
        "attribute of a module": (lambda score, *_: score * keeper.inner.kept, keeper.inner.kept),
        "closure": (lambda score, *_: score * tensor, tensor),
        "global": (by_name, SLOPE),
        "default": (default, tensor),
        "partial": (functools.partial(lambda t, score, *_: score * t, tensor), tensor),
        "keyword": (functools.partial(lambda score, t: score * t, t=tensor), tensor),
        "object": (Plain(tensor), tensor),
        "module": (module, module.slope),
        "method": (module.method, module.slope),
        "nested": (lambda *a: default(*a), tensor),
    }
    for name, (function, expected) in places.items():
        found = captured_tensors(function)
        assert len(found) == 1 and found[0] is expected, name


def test_a_large_surrounding_is_not_searched_for_ever():
    ring = [None] * 1000
    ring[:] = [(ring, i) for i in range(1000)]
    assert captured_tensors(lambda score, *_: score + len(ring)) == ()


def test_what_wants_no_gradient_is_no_bother():
    constant, later = torch.ones(2), None
    assert captured_tensors(lambda score, *_: score * constant + later) == ()
    assert captured_tensors(torch.abs) == ()


PROBLEM, WEIGHTS = problem(0), draw(2, 4, 4, 5, seed=5)


def attend(score_mod):
    query, key, value = PROBLEM
    return synopsis.scaled_dot_product_attention(
        query, key, value, score_mod=score_mod, enable_gqa=True
    )


def in_small_pieces(score_mod):
    query, key, value = PROBLEM
    return AttentionState.empty(query, 5).update(key, value, score_mod=score_mod).output


def in_tiles(score_mod):
    with synopsis.attention.engine("tiles"):
        return in_small_pieces(score_mod)


def in_a_stream(score_mod):
    query, key, value = PROBLEM
    blocks = list(zip(key.split(4, -2), value.split(4, -2), strict=True))
    return synopsis.streaming_attention(query, blocks, score_mod=score_mod)


def textbook(score_mod):
    return dense(*PROBLEM, lambda s, i, j: score_mod(s, None, None, i, j))[0]


engines = pytest.mark.parametrize("call", [attend, in_tiles, in_a_stream])
everywhere = pytest.mark.parametrize("call", [attend, in_small_pieces, in_tiles, in_a_stream])


def bent(slope, other):
    return lambda score, b, h, i, j: score * (1 + slope * (i - j)) + other * (i - j).abs()


@everywhere
@pytest.mark.parametrize("kind", ["one", "two leaves", "two computed", "two of one tensor"])
def test_independent_tensors_get_their_gradients(call, kind):
    def loss(attend, a, c):
        first, second = {
            "one": lambda: (a.exp(), 2.0),
            "two leaves": lambda: (a, c),
            "two computed": lambda: (a.exp(), (a * c).sin()),
            "two of one tensor": lambda: torch.stack([a, c]).square().unbind(),
        }[kind]()
        return (attend(bent(first, second)) * WEIGHTS).sum()

    inputs = scalar(), scalar(-0.7)
    found = torch.autograd.grad(loss(call, *inputs), inputs, allow_unused=True)
    expected = torch.autograd.grad(loss(textbook, *inputs), inputs, allow_unused=True)
    for mine, right in zip(found, expected, strict=True):
        assert (mine is None) == (right is None)
        if right is not None:
            torch.testing.assert_close(mine, right, **EXACT)


@engines
@pytest.mark.parametrize("distance", [1, 2])
def test_a_tensor_and_one_computed_from_it_are_refused(call, distance):
    """The way between them would be walked twice: once inside the engine, once outside."""
    base = scalar() if distance == 1 else scalar() * 2.0
    derived = base
    for _ in range(distance):
        derived = derived * 3.0  # keeps nothing, so that a second walk would not be noticed
    for pair in ((base, derived), (derived, base)):
        message = r"a tensor \(\) and one computed from it, \(\); let it hold only one of the two"
        with pytest.raises(NotImplementedError, match=message):
            call(bent(*pair)).sum().backward()


def test_small_pieces_need_no_such_care():
    base = scalar()

    def loss(attend):
        return (attend(bent(base, base * 3.0)) * WEIGHTS).sum()

    found, right = (torch.autograd.grad(loss(f), base)[0] for f in (in_small_pieces, textbook))
    torch.testing.assert_close(found, right, **EXACT)


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, 2 * x])),
    "grad of grad": lambda f, x: torch.func.grad(torch.func.grad(f))(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(torch.stack([x, 2 * x])),
    "jvp of grad": lambda f, x: torch.func.hessian(f)(x),
}


@everywhere
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_over_captured_tensors_are_right_or_refused(call, name, computed):
    def loss(attend, slope):
        return (attend(alibi(slope.exp() if computed else slope)) * WEIGHTS).sum()

    transform = TRANSFORMS[name]
    if call is in_small_pieces or (call is in_a_stream and name in ("jvp", "vmap")):
        found = transform(functools.partial(loss, call), scalar(wants=False))
        right = transform(functools.partial(loss, textbook), scalar(wants=False))
        torch.testing.assert_close(found, right, **EXACT)
    else:
        message = r"captured a tensor \(\) that torch.func transforms"
        with pytest.raises(NotImplementedError, match=message):
            transform(functools.partial(loss, call), scalar(wants=False))


def test_constants_made_inside_a_transform_are_no_bother():
    query, key, value = problem(1)

    def loss(query):
        slopes = (
            torch.arange(1.0, 5.0, dtype=torch.float64) * 0.1
        )  # wrapped by the transform, but constant

        def score_mod(score, b, h, i, j):
            return score - slopes[h] * (i - j).abs()

        return synopsis.scaled_dot_product_attention(
            query, key, value, score_mod=score_mod, enable_gqa=True
        ).sum()

    inner = query.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(inner), inner)
    torch.testing.assert_close(torch.func.grad(loss)(query), expected, **EXACT)


@engines
def test_a_tangent_without_a_gradient_is_refused_and_with_one_seen(call):
    with forward_ad.dual_level():
        mute = forward_ad.make_dual(scalar(wants=False), scalar(1.0, wants=False))
        if call is in_a_stream:  # small pieces without a gradient: plain operations, which see it
            tangent = forward_ad.unpack_dual((call(alibi(mute)) * WEIGHTS).sum()).tangent
            right = forward_ad.unpack_dual((textbook(alibi(mute)) * WEIGHTS).sum()).tangent
            torch.testing.assert_close(tangent, right, **EXACT)
            return
        with pytest.raises(NotImplementedError, match="forward-mode tangent; let it require"):
            call(alibi(mute))
        heard = forward_ad.make_dual(scalar(), scalar(1.0, wants=False))
        tangent = forward_ad.unpack_dual((call(alibi(heard)) * WEIGHTS).sum()).tangent
        right = forward_ad.unpack_dual((textbook(alibi(heard)) * WEIGHTS).sum()).tangent
    torch.testing.assert_close(tangent, right, **EXACT)


def test_a_tangent_that_the_second_pass_would_lose_is_refused():
    with forward_ad.dual_level():
        heard = forward_ad.make_dual(scalar(), scalar(1.0, wants=False))
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            in_a_stream(alibi(heard))
