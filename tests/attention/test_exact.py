import functools
import math
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import synopsis
from synopsis.attention import cutting, engine, fused
from synopsis.attention.dropout import Dropout
from tests.attention.dense import dense_attention
from tests.tolerances import FLOAT32, FLOAT64, GRADIENT

attention = synopsis.scaled_dot_product_attention
MEMORY_MIB = 24.0  # beyond inputs, output and gradients, at any length


def tensors(shape_q, shape_k, width, dtype=torch.float64, seed=0, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape_q, shape_k, (*shape_k[:-1], width))
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [t.requires_grad_(requires_grad) for t in made]


def sliding(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx).abs() <= 3 + h


def capped(score, b, h, q_idx, kv_idx):
    return 2.0 * torch.tanh(score / 2.0) - 0.1 * (h + 1) * (q_idx - kv_idx).abs()


@st.composite
def calls(draw):
    """Everything a user can combine, on shapes that do not divide the blocks."""
    batch, key_heads, groups = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
    )
    queries, keys = draw(st.integers(0, 19)), draw(st.integers(0, 23))
    dim, width = draw(st.sampled_from([(4, 4), (4, 3), (1, 2)]))
    heads = key_heads * groups
    size = [draw(st.sampled_from([1, n])) for n in (batch, heads, queries, keys)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    mask = draw(st.sampled_from([None, "bool", "bias"]))
    if mask == "bool":
        mask = torch.rand(size, generator=generator) > 0.4
    elif mask == "bias":
        never = torch.rand(size, generator=generator) > 0.7
        mask = torch.randn(size, generator=generator, dtype=torch.float64)
        mask = mask.masked_fill(never, -math.inf).requires_grad_()
    options = {
        "attn_mask": mask,
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.3])),
        "mask_mod": draw(st.sampled_from([None, sliding])),
        "score_mod": draw(st.sampled_from([None, capped])),
        "query_offset": draw(st.integers(-5, 8)),
    }
    shapes = (batch, heads, queries, dim), (batch, key_heads, keys, dim)
    blocks = {"query_block": draw(st.integers(1, 20)), "key_block": draw(st.integers(1, 24))}
    return tensors(*shapes, width, seed=draw(st.integers(0, 99))), options, blocks


@contextmanager
def heads_at_once(heads, blocks):
    """So many heads go through a tile together, instead of all that a core's cache can hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_CACHED", heads * 4 * math.prod(blocks.values()))
        yield


@given(calls(), st.sampled_from(["auto", "tiles"]), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_every_combination_is_the_textbook_forward_and_backward(call, name, heads):
    inputs, options, blocks = call
    with engine(name), heads_at_once(heads, blocks):
        output, lse = attention(*inputs, **options, **blocks, enable_gqa=True, return_lse=True)
    expected, expected_lse = dense_attention(*inputs, **options)
    torch.testing.assert_close(output, expected, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(lse, expected_lse, rtol=FLOAT64, atol=FLOAT64)
    bias = options["attn_mask"]
    leaves = [*inputs, *([bias] if bias is not None and bias.requires_grad else [])]
    upstream = torch.randn_like(expected)
    weight = torch.randn_like(expected_lse).masked_fill(expected_lse == -math.inf, 0.0)
    with heads_at_once(heads, blocks):
        ours, theirs = (
            torch.autograd.grad(
                [o, s.masked_fill(s == -math.inf, 0.0)],
                leaves,
                [upstream, weight],
                allow_unused=True,
            )
            for o, s in ((output, lse), (expected, expected_lse))
        )
    for a, b in zip(ours, theirs, strict=True):
        zero = torch.zeros(()) if b is None else torch.zeros_like(b)
        torch.testing.assert_close(
            zero if a is None else a, zero if b is None else b, rtol=GRADIENT, atol=GRADIENT
        )


slopes = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)


def alibi(score, b, h, q_idx, kv_idx):
    return 3.0 * torch.tanh(score / 3.0) - slopes[h] * (q_idx - kv_idx).abs()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "query_offset": -2},
        {"mask_mod": sliding},
        {"score_mod": capped},
        {"dropout_p": 0.3, "dropout_seed": 5},
        {"attn_mask": torch.tensor([[True] * 6] * 4 + [[False] * 6])},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("name", ["auto", "tiles"])
def test_gradients_of_both_orders_are_those_of_finite_differences(options, name):
    inputs = tensors((1, 2, 5, 3), (1, 1, 6, 3), 3)

    def call(query, key, value):
        with engine(name):
            output, lse = attention(
                query,
                key,
                value,
                **options,
                enable_gqa=True,
                return_lse=True,
                query_block=2,
                key_block=4,
            )
        return output, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_masks_and_captured_tensors_have_gradients_of_both_orders():
    inputs = tensors((1, 2, 5, 3), (1, 2, 6, 3), 2)
    bias = torch.randn(2, 1, 6, dtype=torch.float64, requires_grad=True)

    def call(query, key, value, bias, slopes):
        def score_mod(score, b, h, q_idx, kv_idx):
            return 3.0 * torch.tanh(score / 3.0) - slopes[h] * (q_idx - kv_idx).abs()

        return attention(query, key, value, bias, score_mod=score_mod, query_block=2, key_block=4)

    assert torch.autograd.gradcheck(call, (*inputs, bias, slopes))
    assert torch.autograd.gradgradcheck(call, (*inputs, bias, slopes))


def test_a_mask_that_a_score_mod_holds_as_well_counts_once_in_each_place():
    query, key, value = tensors((1, 1, 5, 4), (1, 1, 5, 4), 4)
    mask = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    both = attention(query, key, value, mask, score_mod=lambda s, b, h, i, j: s * mask[b, h, i, j])
    scores = query @ key.mT / 2
    expected = (scores * mask + mask).softmax(-1) @ value
    found, wanted = (torch.autograd.grad(o.square().sum(), mask)[0] for o in (both, expected))
    torch.testing.assert_close(found, wanted, rtol=GRADIENT, atol=GRADIENT)


def test_tensors_named_by_a_score_mod_are_found():
    inputs = tensors((1, 2, 7, 3), (1, 2, 9, 3), 3)
    ours = torch.autograd.grad(attention(*inputs, score_mod=alibi).sum(), slopes)[0]
    theirs = torch.autograd.grad(dense_attention(*inputs, score_mod=alibi)[0].sum(), slopes)[0]
    torch.testing.assert_close(ours, theirs, rtol=GRADIENT, atol=GRADIENT)


@pytest.mark.parametrize("name", ["auto", "tiles"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_the_error_is_at_most_twice_torchs_own(dtype, causal, name):
    inputs = tensors((1, 4, 300, 64), (1, 4, 300, 64), 64, dtype, requires_grad=False)
    exact = dense_attention(*[t.double() for t in inputs], is_causal=causal)[0]
    with engine(name):
        ours = attention(*inputs, is_causal=causal)
    theirs = F.scaled_dot_product_attention(*inputs, is_causal=causal)
    assert ours.dtype == dtype
    assert (ours - exact).square().mean().sqrt() <= 2 * (theirs - exact).square().mean().sqrt()


@pytest.mark.parametrize("name", ["auto", "tiles"])
def test_rows_that_may_attend_to_nothing(name):
    inputs = tensors((2, 2, 40, 4), (2, 2, 40, 4), 4)
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[[0, 7, 8, 39]] = False  # at every block boundary of 8
    with engine(name):
        output, lse = attention(*inputs, mask, return_lse=True, query_block=8, key_block=8)
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert (output[:, :, [0, 7, 8, 39]] == 0).all()
    assert (lse[:, :, [0, 7, 8, 39]] == -math.inf).all()
    assert (gradients[0][:, :, [0, 7, 8, 39]] == 0).all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", ["auto", "tiles"])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("kind", ["bool", "additive", "dense additive"])
def test_nan_behind_a_mask_reaches_nothing(name, where, kind):
    inputs = tensors((1, 2, 20, 4), (1, 2, 20, 4), 4)
    clean = [t.detach().clone().requires_grad_() for t in inputs]
    with torch.no_grad():
        inputs[where][:, :, 13] = math.nan
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[13], mask[:, 13] = False, False
    if kind != "bool":
        mask = torch.zeros(20, 20, dtype=torch.float64).masked_fill(~mask, -math.inf)
        mask = mask[None, None] if kind == "additive" else mask.expand(1, 2, 20, 20)
    results = []
    for leaves in (inputs, clean):
        with engine(name):
            output = attention(*leaves, mask, query_block=6, key_block=5)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=GRADIENT, atol=GRADIENT)


def test_nan_in_sight_is_seen():
    query, key, value = tensors((1, 1, 6, 4), (1, 1, 6, 4), 4, requires_grad=False)
    value[:, :, 3] = math.nan
    output = attention(query, key, value, is_causal=True)
    assert output[:, :, :3].isfinite().all()
    assert output[:, :, 3:].isnan().all()


def test_huge_scores_stay_finite():
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value = tensors((1, 1, 9, 4), (1, 1, 50, 4), 4, dtype, requires_grad=False)
        for name in ("auto", "tiles"):
            with engine(name):
                output = attention(1e2 * query, 1e2 * key, value, scale=1.0)
            assert output.isfinite().all()
            assert output.abs().max() <= value.abs().max()


def test_queries_and_keys_of_every_odd_shape():
    for queries, keys in ((0, 5), (5, 0), (0, 0), (1, 1), (1, 300), (300, 1), (257, 513)):
        inputs = tensors((1, 2, queries, 4), (1, 2, keys, 4), 4)
        output, lse = attention(*inputs, return_lse=True)
        expected, expected_lse = dense_attention(*inputs)
        torch.testing.assert_close(output, expected, rtol=FLOAT64, atol=FLOAT64)
        torch.testing.assert_close(lse, expected_lse, rtol=FLOAT64, atol=FLOAT64)


def test_an_empty_batch_is_an_empty_answer():
    for name in ("auto", "tiles"):
        with engine(name):
            assert attention(*torch.zeros(3, 0, 4, 5, 8)).shape == (0, 4, 5, 8)


def test_leading_dimensions_broadcast_as_torch_broadcasts_them():
    query = torch.randn(3, 2, 4, 10, 8)
    key, value = torch.randn(2, 1, 4, 12, 8)
    mask = torch.rand(3, 1, 1, 10, 12) > 0.3
    ours = attention(query, key, value, mask)
    whole = [t.expand(3, 2, 4, -1, -1) for t in (key, value)]
    theirs = F.scaled_dot_product_attention(query, *whole, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=10 * FLOAT32, atol=10 * FLOAT32)
    flat = attention(query[0, 0, 0], key[0, 0], value[0, 0])
    assert flat.shape == (10, 8)


def test_dropout_depends_on_indices_alone():
    query, key, value = tensors((2, 2, 30, 4), (2, 2, 40, 4), 40, requires_grad=False)
    value = torch.eye(40, dtype=torch.float64).expand(
        2, 2, 40, 40
    )  # so that the output is the weights
    shown = [
        attention(query, key, value, dropout_p=0.4, dropout_seed=7, query_block=a, key_block=b) != 0
        for a, b in ((30, 40), (7, 11), (1, 1))
    ]
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])
    other = attention(query, key, value, dropout_p=0.4, dropout_seed=8) != 0
    assert not torch.equal(shown[0], other)
    torch.manual_seed(3)
    first = attention(query, key, value, dropout_p=0.4)
    torch.manual_seed(3)
    assert torch.equal(first, attention(query, key, value, dropout_p=0.4))


def test_dropout_has_the_standard_semantics():
    query, key, value = tensors((1, 2, 300, 4), (1, 2, 400, 4), 4, requires_grad=False)
    ones = torch.ones_like(value)
    output = attention(query, key, ones, dropout_p=0.25, dropout_seed=1)
    assert output.std() > 0.01  # the denominator is not dropped, so weights do not renormalise
    assert abs(output.mean() - 1.0) < 0.01


def test_dropped_shares_are_uniform_and_independent():
    index = torch.arange(400)
    views = [
        index[:2].view(-1, 1, 1, 1),
        index[:2].view(1, -1, 1, 1),
        index.view(1, 1, -1, 1),
        index.view(1, 1, 1, -1),
    ]
    factors = Dropout(0.3, 12345).factors(*views)
    kept = factors > 0
    sigma = math.sqrt(0.3 * 0.7)
    assert abs(kept.float().mean() - 0.7) < 5 * sigma / math.sqrt(kept.numel())
    for dim in (-1, -2):
        shares = kept.float().mean(dim)
        assert (shares - 0.7).abs().max() < 6 * sigma / math.sqrt(400)
    for a, b in (
        (kept[..., 1:], kept[..., :-1]),
        (kept[..., 1:, :], kept[..., :-1, :]),
        (kept[:1], kept[1:]),
    ):
        covariance = (a.float() - 0.7).mul(b.float() - 0.7).mean()
        assert abs(covariance) < 5 * sigma**2 / math.sqrt(a.numel())
    centred = (kept[0, 0].double() - 0.7) / sigma
    # of all pairs of queries, and of keys, none goes together
    for several in (centred, centred.mT):
        together = (several @ several.mT / math.sqrt(several.shape[1])).fill_diagonal_(0.0)
        assert together.abs().max() < 6.5 and abs(together.var() - 1.0) < 0.1
    first, second = centred[:200, :200], centred[:200, 200:]
    rectangles = first * second * centred[200:, :200] * centred[200:, 200:]
    assert abs(rectangles.mean()) < 5 / math.sqrt(rectangles.numel())


@pytest.mark.parametrize("p", [0.0, 1e-4, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dropping_in_place_is_multiplying_by_factors(p, dtype):
    dropout, index = Dropout(p, 7), torch.arange(600)
    views = [index[:1].view(1, 1, 1, 1)] * 2 + [index.view(1, 1, -1, 1), index.view(1, 1, 1, -1)]
    factors = dropout.factors(*views)
    assert abs((factors == 0).double().mean() - p) <= 5 * math.sqrt(p * (1 - p) / 600**2)
    x = torch.randn(factors.shape, dtype=dtype)
    x[..., :3] = torch.tensor([math.nan, -math.inf, 0.0], dtype=dtype)
    dropped = x.clone()
    dropout.drop_(dropped, dropout.rows(*views[:3]) * dropout.columns(views[3]))
    expected = x.where(factors > 0, 0.0)
    torch.testing.assert_close(dropped, expected, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"mask_mod": sliding}, {"score_mod": capped}]
)
def test_transforms_of_torch_func(options):
    query, key, value = tensors((3, 2, 9, 4), (3, 2, 11, 4), 4, requires_grad=False)
    ours = functools.partial(attention, **options, query_block=4, key_block=5)

    def theirs(*inputs):
        return dense_attention(*inputs, **options)[0]

    # Inside vmap every sample is a batch of one, so a rule's batch index is 0.
    mapped = torch.func.vmap(lambda *t: ours(*(x.unsqueeze(0) for x in t)), in_dims=(0, 0, None))
    expected = torch.stack([theirs(query[i : i + 1], key[i : i + 1], value[:1]) for i in range(3)])
    torch.testing.assert_close(mapped(query, key, value[0]), expected, rtol=GRADIENT, atol=GRADIENT)
    for function in (
        lambda f: torch.func.grad(lambda q: f(q, key, value).square().sum())(query),
        lambda f: torch.func.jvp(
            f, (query, key, value), (key[:, :, :9], query.repeat(1, 1, 2, 1)[:, :, :11], value)
        )[1],
    ):
        torch.testing.assert_close(function(ours), function(theirs), rtol=GRADIENT, atol=GRADIENT)
    per_sample = torch.func.vmap(
        torch.func.grad(lambda q, k, v: ours(q[None], k[None], v[None]).square().sum())
    )(query, key, value)
    whole = torch.func.grad(lambda q: theirs(q, key, value).square().sum())(query)
    torch.testing.assert_close(per_sample, whole, rtol=GRADIENT, atol=GRADIENT)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"score_mod": capped}])
def test_hessians_by_every_road_agree(options):
    query, key, value = tensors((1, 2, 3, 2), (1, 2, 4, 2), 2, requires_grad=False)

    def ours(q):
        return attention(q, key, value, **options, query_block=2, key_block=3).pow(3).sum()

    def theirs(q):
        return dense_attention(q, key, value, **options)[0].pow(3).sum()

    expected = torch.func.hessian(theirs)(query)
    roads = (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f)))
    for road in roads:
        torch.testing.assert_close(road(ours)(query), expected, rtol=GRADIENT, atol=GRADIENT)
    inputs = tensors((1, 2, 3, 2), (1, 2, 4, 2), 2)
    assert torch.autograd.gradgradcheck(
        functools.partial(attention, **options), inputs, check_fwd_over_rev=True
    )


def test_third_derivatives_are_refused():
    query, key, value = tensors((1, 1, 3, 2), (1, 1, 4, 2), 2)
    (first,) = torch.autograd.grad(
        attention(query, key, value).pow(4).sum(), query, create_graph=True
    )
    (second,) = torch.autograd.grad(first.pow(2).sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="not of third"):
        torch.autograd.grad(second.sum(), query)


def test_checkpointing_changes_nothing():
    inputs = tensors((1, 2, 9, 4), (1, 2, 11, 4), 4)
    ours = torch.autograd.grad(attention(*inputs, is_causal=True).square().sum(), inputs)
    again = torch.autograd.grad(
        checkpoint(attention, *inputs, is_causal=True, use_reentrant=False).square().sum(), inputs
    )
    for a, b in zip(ours, again, strict=True):
        assert torch.equal(a, b)


def test_repeats_to_the_bit():
    inputs = tensors((1, 2, 90, 8), (1, 2, 110, 8), 8, torch.float32)
    runs = []
    for _ in range(2):
        output = attention(*inputs, score_mod=capped)
        runs.append([output, *torch.autograd.grad(output.sum(), inputs)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_budget_is_kept_or_refused():
    inputs = tensors((1, 2, 64, 8), (1, 2, 64, 8), 8, requires_grad=False)
    small = attention(*inputs, score_mod=capped, max_bytes=100_000)
    torch.testing.assert_close(
        small, attention(*inputs, score_mod=capped), rtol=FLOAT64, atol=FLOAT64
    )
    with pytest.raises(ValueError, match="max_bytes is 1000"):
        attention(*inputs, score_mod=capped, max_bytes=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(1, 2, 5, 7)}, "key has 7 features but query has 4"),
        ({"value": torch.zeros(1, 2, 6, 4)}, "5 keys came with 6 values"),
        (
            {"key": torch.zeros(1, 3, 5, 4), "value": torch.zeros(1, 3, 5, 4)},
            "query has 2 heads, key 3",
        ),
        ({"attn_mask": torch.zeros(7)}, r"attn_mask \(7,\) does not broadcast to \(1, 2, 3, 5\)"),
        (
            {"attn_mask": torch.zeros(5, dtype=torch.int64)},
            "bool or floating point, not torch.int64",
        ),
        ({"dropout_p": 1.0}, r"dropout_p must lie in \[0, 1\), not 1.0"),
        ({"key": torch.zeros(1, 2, 5, 4).double()}, "query is torch.float32, key torch.float64"),
        ({"query": torch.zeros(4)}, r"query must be .* not \(4,\)"),
        ({"query_block": 0}, "query_block must be at least 1, not 0"),
        ({"query": torch.zeros(2, 2, 3, 4), "key": torch.zeros(3, 2, 5, 4)}, "do not broadcast"),
    ],
)
def test_mistakes_are_named_with_their_values(change, message):
    call = {
        "query": torch.zeros(1, 2, 3, 4),
        "key": torch.zeros(1, 2, 5, 4),
        "value": torch.zeros(1, 2, 5, 4),
    }
    with pytest.raises(ValueError, match=message):
        attention(**{**call, **change})


def test_an_engine_can_be_forced_and_refuses_what_it_cannot_do():
    inputs = tensors((1, 2, 9, 4), (1, 2, 11, 4), 4, torch.float32, requires_grad=False)
    with engine("fused"), pytest.raises(ValueError, match="cannot take this call"):
        attention(*inputs, score_mod=capped)
    with pytest.raises(ValueError, match="unknown engine 'fast'"), engine("fast"):
        pass
    assert fused.is_trustworthy()


def test_a_kernel_that_lies_is_not_trusted(monkeypatch):
    def lie(inputs, scale, piece):
        return torch.zeros_like(inputs.query), torch.zeros(inputs.query.shape[:-1])

    fused.is_trustworthy.cache_clear()
    monkeypatch.setattr(fused, "_forward", lie)
    try:
        assert not fused.is_trustworthy()
    finally:
        monkeypatch.undo()
        fused.is_trustworthy.cache_clear()


SCRIPT = """
import torch, synopsis
from synopsis.attention.resident_memory import measured_call
torch.set_num_threads(1)
call = {call!r}
def run(n):
    query, key, value = (torch.randn(1, 1, n, 64, requires_grad=True) for _ in range(3))
    table = torch.zeros(1, requires_grad=True)
    options = eval(call, {{"torch": torch, "table": table, "n": n}})
    output = synopsis.scaled_dot_product_attention(query, key, value, **options)
    output.backward(torch.ones_like(output))
run(600)
extra = measured_call(lambda: run({n}))[0] / 2**20
print(extra - 8 * {n} * 64 * 4 / 2**20)  # query, key, value, output, its gradient, three gradients
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "{}",
        "{'is_causal': True}",
        "{'dropout_p': 0.1}",
        "{'attn_mask': torch.zeros(n, requires_grad=True)}",
        "{'score_mod': lambda s, b, h, q, k: s - table * (q - k).abs()}",
        "{'mask_mod': lambda b, h, q, k: (q - k).abs() < 100}",
    ],
)
def test_memory_does_not_grow_with_the_square(call):
    code = SCRIPT.format(call=call, n=4096)  # all scores would be 64 MiB, with gradients 128
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < MEMORY_MIB
