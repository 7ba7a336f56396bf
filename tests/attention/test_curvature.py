"""Second order and forward mode against autograd through dense float64 attention."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synopsis.attention.curvature import SecondOrder, double_backward, forward_mode
from synopsis.attention.cutting import Gradients, Inputs
from synopsis.attention.dropout import Dropout
from synopsis.attention.rules import Rules
from tests.tolerances import FLOAT32_CURVATURE, FLOAT64

SECOND_ORDER = 10 * FLOAT64  # three products deep, cancelling sums
MEBIBYTE = 2**20

# torch's own rules for forward mode are scripted when first used
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


# --- the textbook ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A whole problem; ``score`` makes a score_mod of parameters, so that the textbook may use its own."""

    inputs: Inputs
    rules: Rules  # without score_mod
    score: Callable | None = None
    parameters: tuple = ()

    @property
    def bias(self):
        return self.rules.bias

    def library_rules(self, parameters):
        score_mod = None if self.score is None else self.score(*parameters)
        return replace(self.rules, score_mod=score_mod)


def dense_allowed(problem):
    """Who may attend to whom, from the definitions."""
    rules, (query, key, _) = problem.rules, problem.inputs
    b, h, i, j = positions(problem)
    allowed = torch.ones(*query.shape[:3], key.shape[2], dtype=torch.bool)
    if rules.is_causal:
        allowed = allowed & (j <= i)
    if rules.attn_mask is not None and rules.attn_mask.dtype == torch.bool:
        allowed = allowed & rules.attn_mask
    if rules.mask_mod is not None:
        allowed = allowed & rules.mask_mod(b, h, i, j)
    return allowed


def positions(problem):
    rules, (query, key, _) = problem.rules, problem.inputs
    b = torch.arange(query.shape[0]).view(-1, 1, 1, 1)
    h = torch.arange(query.shape[1]).view(1, -1, 1, 1)
    i = torch.arange(query.shape[2]).view(1, 1, -1, 1) + rules.query_offset
    j = torch.arange(key.shape[2]).view(1, 1, 1, -1) + rules.key_offset
    return b, h, i, j


def dense(problem, query, key, value, bias, *parameters):
    """Output and log-sum-exp (0 in place of −∞) of textbook attention."""
    rules, group = problem.rules, query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = rules.scale * query @ key.transpose(-1, -2)
    if problem.score is not None:
        scores = problem.score(*parameters)(scores, *positions(problem))
    if bias is not None:
        scores = scores + bias
    allowed = dense_allowed(problem)
    dead = ~allowed.any(-1, keepdim=True)
    scores = torch.where(allowed, scores, -torch.inf).masked_fill(dead, 0.0)
    weights = torch.softmax(scores, -1).masked_fill(dead, 0.0)
    if rules.dropout is not None:
        weights = weights * rules.dropout.factors(*positions(problem))
    lse = torch.logsumexp(scores, -1) if key.shape[2] else scores.sum(-1)
    return weights @ value, lse.masked_fill(dead.squeeze(-1), 0.0)


def saved(problem):
    """Output and log-sum-exp as a forward pass keeps them."""
    with torch.no_grad():
        out, lse = dense(problem, *problem.inputs, problem.bias, *problem.parameters)
    dead = ~dense_allowed(problem).any(-1)
    return out, lse.masked_fill(dead, -torch.inf)


def variables(problem):
    """Fresh leaves of all that may have a gradient: inputs, bias or nothing, parameters."""
    bias = () if problem.bias is None else (problem.bias,)
    return [
        t.detach().clone().requires_grad_() for t in (*problem.inputs, *bias, *problem.parameters)
    ]


def textbook_second_order(problem, gradients, cotangents):
    """Gradients of Σ cotangents · gradients, by differentiating twice."""
    leaves = variables(problem)
    inputs, rest = leaves[:3], leaves[3:]
    bias, parameters = (None, rest) if problem.bias is None else (rest[0], rest[1:])
    grad_out, grad_lse = (g.detach().clone().requires_grad_() for g in gradients)
    out, lse = dense(problem, *inputs, bias, *parameters)
    loss = (out * grad_out).sum() + (lse * grad_lse).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    inner = sum((u * g).sum() for u, g in zip(cotangents, first, strict=True) if u is not None)
    wanted = [*leaves, grad_out, grad_lse]
    if not isinstance(inner, torch.Tensor) or not inner.requires_grad:
        return [torch.zeros_like(t) for t in wanted]
    return torch.autograd.grad(inner, wanted, materialize_grads=True)


# --- both sides on one problem --------------------------------------------------------------------


def as_gradients(problem, tensors):
    """A flat list, in the order of :func:`variables`, as the library's tuple."""
    has_bias = problem.bias is not None
    bias = tensors[3] if has_bias else None
    return Gradients(*tensors[:3], bias, tuple(tensors[3 + has_bias :]))


def flat(problem, found: SecondOrder):
    bias = () if problem.bias is None else (found.bias,)
    return [
        found.query,
        found.key,
        found.value,
        *bias,
        *found.captured,
        found.grad_output,
        found.grad_lse,
    ]


def library_second_order(problem, gradients, cotangents, blocks):
    leaves = variables(problem)
    bias = leaves[3] if problem.bias is not None else None
    parameters = leaves[len(leaves) - len(problem.parameters) :]
    rules = problem.library_rules(parameters).with_bias(bias)
    out, lse = saved(problem)
    cotangents = as_gradients(problem, cotangents)
    found = double_backward(Inputs(*leaves[:3]), rules, out, lse, *gradients, cotangents, blocks)
    return flat(problem, found)


def agree(found, expected, tolerance=SECOND_ORDER):
    assert len(found) == len(expected)
    for position, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape, position
        size = max(1.0, b.abs().max().item() if b.numel() else 0.0)
        error = (a.double() - b).abs().max().item() / size if b.numel() else 0.0
        assert error <= tolerance, (position, error)  # False for NaN as well


def random_like(tensors, generator):
    return [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in tensors]


def upstream(problem, generator):
    out, lse = saved(problem)
    return random_like((out, lse), generator)


def check_second_order(problem, blocks, seed=1, given_cotangents=None):
    generator = torch.Generator().manual_seed(seed)
    gradients = upstream(problem, generator)
    cotangents = random_like(variables(problem), generator)
    if given_cotangents is not None:
        pairs = zip(cotangents, given_cotangents, strict=False)
        cotangents = [u if is_given else None for u, is_given in pairs] + cotangents[
            len(given_cotangents) :
        ]
    expected = textbook_second_order(problem, gradients, cotangents)
    found = library_second_order(problem, gradients, cotangents, blocks)
    agree(found, expected)
    return found


def check_forward_mode(problem, blocks, seed=2):
    generator = torch.Generator().manual_seed(seed)
    primals = tuple(t.detach() for t in variables(problem))
    tangents = tuple(random_like(primals, generator))

    def attention(query, key, value, *rest):
        bias, parameters = (None, rest) if problem.bias is None else (rest[0], rest[1:])
        return dense(problem, query, key, value, bias, *parameters)

    _, expected = torch.func.jvp(attention, primals, tangents)
    parameters = variables(problem)[len(primals) - len(problem.parameters) :]
    rules, directions = problem.library_rules(parameters), as_gradients(problem, tangents)
    found = forward_mode(problem.inputs, rules, *saved(problem), directions, blocks)
    agree(found, expected)


# --- score changes and masks to draw from ---------------------------------------------------------


def soft_cap(cap):
    return lambda score, b, h, i, j: cap * torch.tanh(score / cap)


def alibi(slopes):
    return lambda score, b, h, i, j: score - slopes[h] * (i - j).abs()


def table(entries):
    return lambda score, b, h, i, j: score + entries[h, (i - j).clamp(-4, 4) + 4]


def positions_only(entries):
    return lambda score, b, h, i, j: entries[h, (i - j).clamp(-4, 4) + 4]  # (1, H, Q, K), no score


def capped_with_table(cap, entries):
    return lambda *score: soft_cap(cap)(table(entries)(*score), *score[1:])


def temperature_of_batch(log_temperature):
    return lambda score, b, h, i, j: score * score.sigmoid() * log_temperature[b].exp()


def constant(score, b, h, i, j):
    return torch.zeros_like(score.detach())


def cosine(score, b, h, i, j):
    return score.cos() + 0.1 * score**2


def scores_to_draw(batch, heads, generator):
    def tensor(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return {
        "none": (None, ()),
        "soft cap": (soft_cap, (tensor().abs() + 0.5,)),
        "alibi": (alibi, (tensor(heads),)),
        "table": (table, (tensor(heads, 9),)),
        "positions only": (positions_only, (tensor(heads, 9),)),
        "capped table": (capped_with_table, (tensor().abs() + 0.5, tensor(heads, 9))),
        "batch temperature": (temperature_of_batch, (tensor(batch),)),
        "constant": (lambda: constant, ()),
        "nothing captured": (lambda: cosine, ()),
    }


def window(b, h, i, j):
    return (i - j).abs() <= 2


def checkered(b, h, i, j):
    return (b + h + i + 2 * j) % 3 != 0


MASKS = {"none": None, "window": window, "checkered": checkered}


@st.composite
def problems(draw):
    size = st.integers(1, 2)
    batch, key_heads, group = draw(size), draw(size), draw(size)
    heads, queries, keys = key_heads * group, draw(st.integers(0, 7)), draw(st.integers(0, 7))
    dim, value_dim = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def tensor(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    inputs = Inputs(
        tensor(batch, heads, queries, dim),
        tensor(batch, key_heads, keys, dim),
        tensor(batch, key_heads, keys, value_dim),
    )
    mask_kind = draw(st.sampled_from(["none", "bool", "additive"]))
    shape = [n if draw(st.booleans()) else 1 for n in (batch, heads, queries, keys)]
    mask = {"none": None, "bool": tensor(*shape) > -0.5, "additive": tensor(*shape)}[mask_kind]
    rules = Rules(
        scale=draw(st.sampled_from([0.5, 1.0, -1.3])),
        is_causal=draw(st.booleans()),
        attn_mask=mask,
        mask_mod=MASKS[draw(st.sampled_from(list(MASKS)))],
        query_offset=draw(st.integers(-2, 3)),
        key_offset=draw(st.integers(-2, 3)),
        dropout=draw(st.sampled_from([None, Dropout(0.5, 7)])),
    )
    choices = scores_to_draw(batch, heads, generator)
    score, parameters = choices[draw(st.sampled_from(list(choices)))]
    return Problem(inputs, rules, score, parameters)


BLOCKS = st.tuples(st.integers(1, 8), st.integers(1, 8))
RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(problems(), BLOCKS, st.tuples(*[st.booleans()] * 4))
def test_double_backward_is_that_of_dense_attention(problem, blocks, given_cotangents):
    check_second_order(problem, blocks, given_cotangents=given_cotangents)


@RELAXED
@given(problems(), BLOCKS)
def test_forward_mode_is_that_of_dense_attention(problem, blocks):
    check_forward_mode(problem, blocks)


# --- single cases ---------------------------------------------------------------------------------


def plain(queries=9, keys=11, dim=4, value_dim=3, heads=2, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    shapes = ((queries, dim), (keys, dim), (keys, value_dim))
    inputs = (
        torch.randn(batch, heads, *s, generator=generator, dtype=torch.float64) for s in shapes
    )
    return Problem(Inputs(*(x.to(dtype) for x in inputs)), Rules(scale=dim**-0.5))


@pytest.mark.parametrize(
    "name", ["soft cap", "alibi", "table", "capped table", "batch temperature"]
)
@pytest.mark.parametrize("blocks", [(4, 3), (16, 16)])
def test_captured_parameters_get_both(name, blocks):
    problem = plain()
    score, parameters = scores_to_draw(2, 2, torch.Generator().manual_seed(0))[name]
    problem = replace(problem, score=score, parameters=parameters)
    found = check_second_order(problem, blocks)
    assert all(g.abs().max() > 1e-3 for g in found[3 : 3 + len(parameters)])
    check_forward_mode(problem, blocks)


def test_captured_tensor_that_is_also_the_mask():
    problem = plain(5, 5)
    shared = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    slope = torch.tensor(0.7, dtype=torch.float64)

    def score(both):
        return lambda s, b, h, i, j: s * (slope * both[b, h, i, j]).sin()

    textbook = replace(problem, score=score, parameters=(shared,))
    textbook = replace(textbook, rules=replace(problem.rules, attn_mask=shared.detach()))
    generator = torch.Generator().manual_seed(0)
    gradients = upstream(textbook, generator)
    cotangents = random_like(variables(textbook), generator)
    expected = textbook_second_order(textbook, gradients, cotangents)
    rules = replace(problem.rules, attn_mask=shared, score_mod=score(shared))
    directions = as_gradients(textbook, cotangents)
    found = double_backward(problem.inputs, rules, *saved(textbook), *gradients, directions, (2, 3))
    agree(flat(textbook, found), expected)


def test_rows_that_attend_to_nothing_move_and_bend_by_nothing():
    problem = plain()
    mask = torch.ones(1, 1, 9, 11, dtype=torch.bool)
    mask[:, :, [0, 5, 6]] = False
    problem = replace(problem, rules=replace(problem.rules, attn_mask=mask))
    query, _, _, grad_out, grad_lse = check_second_order(problem, (3, 4))
    for rows in (query, grad_out, grad_lse[..., None]):
        assert (rows[:, :, [0, 5, 6]] == 0).all()
        assert (rows[:, :, [1, 2, 8]] != 0).all()
    check_forward_mode(problem, (3, 4))


def test_all_rows_masked():
    problem = plain()
    rules = replace(problem.rules, attn_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    found = check_second_order(replace(problem, rules=rules), (3, 4))
    assert all((g == 0).all() for g in found)


@pytest.mark.parametrize("score", [None, soft_cap])
def test_what_is_not_a_number_in_masked_keys_stays_there(score):
    clean = plain()
    mask = torch.ones(1, 1, 1, 11, dtype=torch.bool)
    mask[..., 7:] = False
    parameters = () if score is None else (torch.tensor(2.0, dtype=torch.float64),)
    rules = replace(clean.rules, attn_mask=mask)
    clean = replace(clean, rules=rules, score=score, parameters=parameters)
    query, key, value = (t.clone() for t in clean.inputs)
    key[:, :, 7:], value[:, :, 8:] = torch.nan, torch.inf
    spoilt = replace(clean, inputs=Inputs(query, key, value))
    generator = torch.Generator().manual_seed(3)
    gradients = upstream(clean, generator)
    cotangents = random_like(variables(clean), generator)
    expected = textbook_second_order(clean, gradients, cotangents)
    leaves = [p.clone().requires_grad_() for p in parameters]
    rules, directions = spoilt.library_rules(leaves), as_gradients(clean, cotangents)
    found = double_backward(spoilt.inputs, rules, *saved(clean), *gradients, directions, (4, 3))
    agree(flat(clean, found), expected)
    moved = forward_mode(spoilt.inputs, rules, *saved(clean), directions, (4, 3))
    expected = forward_mode(
        clean.inputs, clean.library_rules(leaves), *saved(clean), directions, (9, 11)
    )
    agree(moved, expected)


def test_scores_may_be_singular_where_masked():
    """A score divided by the distance is infinite, and so is its slope, on the diagonal that is masked."""
    clean = plain(9, 9)
    rules = replace(clean.rules, mask_mod=lambda b, h, i, j: j < i)
    textbook = replace(
        clean, rules=rules, score=lambda: lambda s, b, h, i, j: s / (i - j).clamp(min=1)
    )
    generator = torch.Generator().manual_seed(0)
    gradients = upstream(textbook, generator)
    cotangents = random_like(variables(textbook), generator)
    expected = textbook_second_order(textbook, gradients, cotangents)
    rules = replace(rules, score_mod=lambda s, b, h, i, j: s / (i - j))
    directions = as_gradients(textbook, cotangents)
    found = double_backward(clean.inputs, rules, *saved(textbook), *gradients, directions, (4, 3))
    agree(flat(textbook, found), expected)


def test_score_of_positions_whose_table_has_no_cotangent():
    problem = plain()
    entries = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = replace(problem, score=positions_only, parameters=(entries,))
    check_second_order(problem, (4, 3), given_cotangents=(True, True, True, False))


def test_nothing_given_is_zero():
    problem = plain()
    out, lse = saved(problem)
    grad_out = torch.ones_like(out)
    nothing = Gradients(None, None, None)
    found = double_backward(
        problem.inputs, problem.rules, out, lse, grad_out, None, nothing, (4, 4)
    )
    assert found.bias is None
    assert found.captured == ()
    assert all((g == 0).all() for g in flat(problem, found))
    assert all(
        (t == 0).all()
        for t in forward_mode(problem.inputs, problem.rules, out, lse, nothing, (4, 4))
    )


def test_only_the_log_sum_exp_was_used():
    problem = plain()
    generator = torch.Generator().manual_seed(0)
    out_grad, lse_grad = upstream(problem, generator)
    cotangents = random_like(variables(problem), generator)
    expected = textbook_second_order(problem, (torch.zeros_like(out_grad), lse_grad), cotangents)
    directions = as_gradients(problem, cotangents)
    rules = problem.rules
    found = double_backward(
        problem.inputs, rules, *saved(problem), None, lse_grad, directions, (4, 4)
    )
    agree(flat(problem, found), expected)


def test_a_mask_that_wants_no_gradient_costs_none():
    problem = plain()
    mask = torch.randn(9, 11, dtype=torch.float64)[None, None]
    problem = replace(problem, rules=replace(problem.rules, attn_mask=mask))
    out, lse = saved(problem)
    gradients = upstream(problem, torch.Generator().manual_seed(0))
    cotangents = Gradients(*problem.inputs)
    found = double_backward(problem.inputs, problem.rules, out, lse, *gradients, cotangents, (4, 4))
    assert found.bias is None
    cotangents = Gradients(*problem.inputs, mask)
    found = double_backward(problem.inputs, problem.rules, out, lse, *gradients, cotangents, (4, 4))
    assert found.bias is not None


def test_blocks_change_nothing():
    problem = plain(33, 29)
    problem = replace(
        problem, rules=replace(problem.rules, is_causal=True, dropout=Dropout(0.3, 5))
    )
    found = [check_second_order(problem, blocks) for blocks in [(64, 64), (7, 5), (1, 29), (33, 1)]]
    for other in found[1:]:
        agree(other, found[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_numbers_are_summed_in_float32(dtype):
    problem = plain(40, 50, dtype=dtype)
    wide = replace(problem, inputs=Inputs(*(t.double() for t in problem.inputs)))
    generator = torch.Generator().manual_seed(0)
    gradients = [g.to(dtype) for g in upstream(wide, generator)]
    cotangents = [u.to(dtype) for u in random_like(variables(wide), generator)]
    wide_gradients, wide_cotangents = ([t.double() for t in ts] for ts in (gradients, cotangents))
    expected = textbook_second_order(wide, wide_gradients, wide_cotangents)
    out, lse = (t.float() for t in saved(wide))
    directions = as_gradients(problem, cotangents)
    found = double_backward(
        problem.inputs, problem.rules, out, lse, *gradients, directions, (16, 16)
    )
    assert [g.dtype for g in flat(problem, found)] == [dtype] * 4 + [torch.float32]
    agree(flat(problem, found), expected, max(FLOAT32_CURVATURE, torch.finfo(dtype).eps))


# --- memory ---------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from synopsis.attention.curvature import double_backward, forward_mode
from synopsis.attention.rules import Rules
from synopsis.attention.cutting import Gradients, Inputs

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmRSS")).split()[1]) * 1024

def problem(n):
    q, k, v, out, g = (torch.randn(1, 1, n, 64) for _ in range(5))
    lse = torch.randn(1, 1, n) + 9
    return Inputs(q, k, v), out, lse, g, Gradients(*(torch.randn(1, 1, n, 64) for _ in range(3)))

def run(which, inputs, out, lse, g, u):
    rules = Rules(scale=0.125)
    if which == "curvature":
        return double_backward(inputs, rules, out, lse, g, lse, u, (512, 512))
    return forward_mode(inputs, rules, out, lse, u, (512, 512))

torch.set_num_threads(1)
run(sys.argv[1], *problem(512))  # code pages and thread pools
tensors = problem(8192)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts here
before = resident()
found = run(sys.argv[1], *tensors)
kept = sum(t.nbytes for t in found if isinstance(t, torch.Tensor))
print(peak() - before - kept)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("which", ["curvature", "forward mode"])
def test_memory_beyond_inputs_and_results_is_a_few_tiles(which):
    """Dense, one 8,192 × 8,192 matrix alone would be 256 MiB."""
    command = [sys.executable, "-c", MEASURE, which]
    mapped = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18)}  # nothing hides in free lists
    answer = subprocess.run(command, env=mapped, capture_output=True, text=True, check=True)
    assert int(answer.stdout) <= 24 * MEBIBYTE
