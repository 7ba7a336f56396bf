"""AttentionState under every rule, with grouped heads, in bounded memory, and exchanged with others."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.attention import AttentionState, folding
from synopsis.attention.rules import Rules
from synopsis.attention.summary import SoftmaxSummary
from synopsis.states import StateFormatError
from tests.tolerances import FLOAT32, FLOAT64

LAWS = settings(max_examples=60, deadline=None)
EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}


@pytest.fixture(params=["plain", "engine"])
def path(request, monkeypatch):
    """Both ways a piece can take: plain operations, and the engines that large ones go to."""
    if request.param == "engine":
        monkeypatch.setattr(folding, "_PLAIN_SCORES", 0)
    return request.param


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def problem(seed=0, queries=4, keys=9, heads=(4, 2), batch=2):
    shapes = ((heads[0], queries, 3), (heads[1], keys, 3), (heads[1], keys, 5))
    return tuple(draw(batch, *shape, seed=seed + i) for i, shape in enumerate(shapes))


def dense(query, key, value, change=lambda s, i, j: s, allowed=None, scale=None):
    """Textbook attention in float64, heads repeated, and its log-sum-exp."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = (t.double().repeat_interleave(groups, -3) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.double() @ key.mT * scale
    i, j = (torch.arange(n) for n in scores.shape[-2:])
    scores = change(scores, i[:, None], j[None])
    if allowed is not None:
        scores = scores.masked_fill(~allowed(i[:, None], j[None]), -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    return weights @ value, scores.logsumexp(-1)


def assert_attends(state, expected, **tolerance):
    tolerance = tolerance or EXACT
    torch.testing.assert_close(state.output.double(), expected[0], **tolerance)
    torch.testing.assert_close(state.lse, expected[1], **tolerance)


def alibi(slope):
    return lambda score, b, h, i, j: score - slope * (i - j).abs()


def sparse(b, h, i, j):
    return (i + 2 * j) % 3 > 0


@LAWS
@given(st.integers(0, 99), st.integers(0, 12), st.integers(-4, 12), st.booleans(), st.data())
def test_rules_hold_across_any_split(seed, keys, offset, is_causal, data):
    query, key, value = problem(seed, keys=keys)
    cuts = sorted(data.draw(st.lists(st.integers(0, keys), max_size=3)))
    state = AttentionState.empty(query, 5)
    for a, b in zip([0, *cuts], [*cuts, keys], strict=True):
        state = state.update(
            key[:, :, a:b],
            value[:, :, a:b],
            mask_mod=sparse,
            score_mod=alibi(0.3),
            is_causal=is_causal,
            query_offset=offset,
        )

    def allowed(i, j):
        return ((i + offset + 2 * j) % 3 > 0) & ((j <= i + offset) if is_causal else True)

    expected = dense(query, key, value, lambda s, i, j: s - 0.3 * (i + offset - j).abs(), allowed)
    assert_attends(state, expected)
    assert state.count == keys


def test_both_paths_agree_with_the_textbook_on_every_mask(path):
    query, key, value = problem(1)
    keep, bias = draw(2, 1, 4, 9, seed=5) > 0, draw(4, 1, 9, seed=6)
    bias[1, 0, 3] = -math.inf
    empty = AttentionState.empty(query, 5)
    expected = dense(query, key, value, lambda s, i, j: s + bias, lambda i, j: keep)
    assert_attends(empty.update(key, value, keep, attn_mask=bias), expected)
    both = keep & (bias != -math.inf)
    expected = dense(query, key, value, allowed=lambda i, j: both)
    assert_attends(empty.update(key, value, keep, attn_mask=bias != -math.inf), expected)
    causal = dense(query, key, value, allowed=lambda i, j: j + 2 <= i + 5)
    state = empty.update(key, value, is_causal=True, key_offset=2, query_offset=5)
    assert_attends(state, causal)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("leading", ["all", "one", "none"])
def test_grouped_heads_and_shared_keys_are_repetition(path, heads, leading):
    query, key, value = problem(2, heads=heads)
    if leading != "all":
        key, value = key[:1], value[:1]
    expected = dense(query, key, value)
    masked = dense(query, key, value, allowed=lambda i, j: (i + 2 * j) % 3 > 0)
    if leading == "none":
        key, value = key[0], value[0]
    assert_attends(AttentionState.empty(query, 5).update(key, value), expected)
    assert_attends(AttentionState.empty(query, 5).update(key, value, mask_mod=sparse), masked)


def test_any_number_of_leading_dimensions_and_none():
    query, key, value = problem(3, batch=6)
    expected = dense(query, key, value)
    shaped = [t.view(2, 3, *t.shape[1:]) for t in (query, key, value)]
    state = AttentionState.empty(shaped[0], 5).update(*shaped[1:])
    assert torch.equal(state.output.flatten(0, 1), state.output.view(6, 4, 4, 5))
    torch.testing.assert_close(state.output.flatten(0, 1), expected[0], **EXACT)
    shared = AttentionState.empty(shaped[0], 5).update(key[0], value[0])
    torch.testing.assert_close(
        shared.output.flatten(0, 1), dense(query, key[:1], value[:1])[0], **EXACT
    )
    keep = draw(2, 1, 1, 4, 9, seed=9) > 0
    masked = AttentionState.empty(shaped[0], 5).update(*shaped[1:], keep)
    rows = keep.expand(2, 3, 1, 4, 9).flatten(0, 1)
    expected = dense(query, key, value, allowed=lambda i, j: rows)
    torch.testing.assert_close(masked.output.flatten(0, 1), expected[0], **EXACT)
    one = [t[0, 0] for t in (query, key, value)]
    alone = AttentionState.empty(one[0], 5).update(*one[1:])
    torch.testing.assert_close(alone.output, dense(*(t[None] for t in one))[0][0], **EXACT)


def test_gradients_of_first_and_second_order_under_rules(path):
    shapes = ((1, 2, 2, 2), (1, 1, 3, 2), (1, 1, 3, 1))
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    bias = draw(2, 3, seed=7).requires_grad_()
    slope = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def attend(query, key, value, bias, slope):
        state = AttentionState.empty(query, 1)
        for keys in (slice(0, 1), slice(1, 3)):
            state = state.update(
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=bias[:, keys],
                mask_mod=sparse,
                score_mod=alibi(slope),
            )
        return state.output, state.lse.masked_fill(state.lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(attend, (*inputs, bias, slope))
    assert torch.autograd.gradgradcheck(attend, (*inputs, bias, slope))


def test_gradients_flow_through_exchanged_results_and_merges():
    query, key, value = (
        t.requires_grad_() for t in problem(5, queries=2, keys=3, batch=1, heads=(2, 1))
    )

    def attend(query, key, value):
        empty = AttentionState.empty(query, 5)
        parts = [empty.update(key[:, :, i::3], value[:, :, i::3]) for i in range(3)]
        foreign = AttentionState.from_output(*parts[0].partial(), query)
        merged = foreign.merge(*parts[1:], empty)
        return merged.output, merged.lse

    expected = dense(query, key, value)
    for found, right in zip(attend(query, key, value), expected, strict=True):
        torch.testing.assert_close(found, right, **EXACT)
    assert torch.autograd.gradcheck(attend, (query, key, value))
    assert torch.autograd.gradgradcheck(attend, (query, key, value))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", ["mask", "bias", "mod", "causal"])
def test_what_stands_in_masked_slots_never_leaks(path, poison, how):
    query, key, value = (t.requires_grad_() for t in problem(6))
    spoilt = torch.zeros(9, dtype=torch.bool)
    spoilt[6:] = True
    bad_key, bad_value = (t.masked_fill(spoilt[:, None], poison) for t in (key, value))
    options = {
        "mask": {"mask": ~spoilt},
        "bias": {"attn_mask": torch.zeros(9, dtype=torch.float64).masked_fill(spoilt, -math.inf)},
        "mod": {"mask_mod": lambda b, h, i, j: j < 6},
        "causal": {"is_causal": True, "query_offset": 2},
    }[how]
    empty = AttentionState.empty(query, 5)
    results = []
    for k, v in ((key, value), (bad_key, bad_value)):
        state = empty.update(k, v, **options)
        loss = state.output.square().sum() + state.lse.sum()
        results.append((state.output, state.lse, *torch.autograd.grad(loss, (query, key, value))))
    for clean, found in zip(*results, strict=True):
        torch.testing.assert_close(found, clean, **EXACT)


def test_rows_that_may_attend_to_nan_are_nan_and_only_they(path):
    query, key, value = problem(7)
    for spoil in ("key", "value"):
        bad_key, bad_value = key.clone(), value.clone()
        (bad_key if spoil == "key" else bad_value)[:, :, 5] = math.nan
        mask = torch.ones(4, 9, dtype=torch.bool)
        mask[1:, 5] = False
        output = AttentionState.empty(query, 5).update(bad_key, bad_value, mask).output
        assert output[:, :, 0].isnan().all()
        clean = dense(query, key, value, allowed=lambda i, j, m=mask: m)[0]
        torch.testing.assert_close(output[:, :, 1:], clean[:, :, 1:], **EXACT)


def test_merge_takes_many_and_none():
    query, key, value = problem(8)
    empty = AttentionState.empty(query, 5)
    parts = [empty.update(key[:, :, i : i + 1], value[:, :, i : i + 1]) for i in range(9)]
    merged = parts[4].merge(*parts[:4], *parts[5:])
    assert_attends(merged, dense(query, key, value))
    assert merged.count == 9
    assert parts[0].merge() is parts[0]


def test_results_of_torchs_own_kernel_merge():
    query, key, value = (draw(1, 2, n, 8, seed=n, dtype=torch.float32) for n in (16, 70, 71))
    value = value[:, :, :70]
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    parts = [
        AttentionState.from_output(*kernel(query, k, v), count=k.shape[2])
        for k, v in zip(key.split(30, 2), value.split(30, 2), strict=True)
    ]
    merged = parts[0].merge(*parts[1:])
    assert merged.count == 70 and merged.output.dtype == torch.float32
    assert_attends(merged, dense(query, key, value), rtol=10 * FLOAT32, atol=10 * FLOAT32)


def test_foreign_rows_that_saw_nothing_are_empty_whatever_they_hold():
    output, lse = torch.full((1, 2, 3), math.nan), torch.tensor([[-math.inf, 0.5]])
    output[:, 1] = 2.0
    state = AttentionState.from_output(output, lse)
    assert state.output.tolist() == [[[0.0] * 3, [2.0] * 3]]
    assert state.lse.tolist() == [[-math.inf, 0.5]]
    assert state.merge(state).output.tolist() == state.output.tolist()


def test_outputs_alone_merge_but_learn_nothing():
    query, key, value = problem(9)
    known = AttentionState.empty(query, 5).update(key, value)
    foreign = AttentionState.from_output(*known.partial(), count=9)
    with pytest.raises(ValueError, match="made from outputs alone"):
        foreign.update(key, value)
    for merged in (foreign.merge(known), known.merge(foreign)):
        assert torch.equal(merged.query, query) and merged.count == 18
        torch.testing.assert_close(merged.output, known.output, **EXACT)
        torch.testing.assert_close(merged.lse, known.lse + math.log(2.0), **EXACT)
    with pytest.raises(ValueError, match="different queries: rows are"):
        foreign.merge(AttentionState.from_output(torch.ones(1, 2, 5), torch.zeros(1, 2)))
    with pytest.raises(ValueError, match=r"needs an lse of \(1, 2\), not \(2,\)"):
        AttentionState.from_output(torch.ones(1, 2, 5), torch.zeros(2))


def test_another_scale_is_another_question():
    query, key, value = problem(10)
    a, b = (AttentionState.empty(query, 5, scale).update(key, value) for scale in (0.5, 0.25))
    with pytest.raises(ValueError, match="different queries"):
        a.merge(b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_only_rounded_at_the_end(path, dtype):
    """Inputs are halves; everything else is not: a scale that is no power of two, too."""
    query, key, value = (draw(1, 2, n, 8, seed=n, dtype=dtype) for n in (16, 900, 901))
    value = value[:, :, :900]
    state = AttentionState.empty(query, 8, scale=0.3)
    for k, v in zip(key.split(300, 2), value.split(300, 2), strict=True):
        state = state.update(k, v)
    expected = dense(query, key, value, scale=0.3)
    torch.testing.assert_close(state.summary.output, expected[0], rtol=10 * FLOAT32, atol=FLOAT32)
    torch.testing.assert_close(state.lse, expected[1], rtol=FLOAT32, atol=FLOAT32)
    assert state.output.dtype == dtype


def test_conversion_in_pieces_keeps_positions_and_masks(path, monkeypatch):
    monkeypatch.setattr(folding, "_CONVERTED", 4)
    query, key, value = problem(11)
    keep, bias = draw(4, 9, seed=5) > 0, draw(4, 1, seed=6)
    state = AttentionState.empty(query, 5).update(
        key.float(), value, keep, attn_mask=bias, score_mod=alibi(0.2), mask_mod=sparse
    )

    def allowed(i, j):
        return keep & ((i + 2 * j) % 3 > 0)

    def change(scores, i, j):
        return scores - 0.2 * (i - j).abs() + bias

    assert_attends(state, dense(query, key.float(), value, change, allowed))


def test_large_pieces_go_to_the_engines_and_agree():
    query, key, value = (draw(1, 2, n, 8, seed=n, dtype=torch.float32) for n in (64, 5000, 5001))
    value = value[:, :, :5000]
    assert query.shape[1] * 64 * 5000 > folding._PLAIN_SCORES
    empty = AttentionState.empty(query, 8)
    tolerance = {"rtol": 10 * FLOAT32, "atol": 10 * FLOAT32}
    assert_attends(empty.update(key, value), dense(query, key, value), **tolerance)
    causal = dense(query, key, value, allowed=lambda i, j: j <= i + 2000)
    state = empty.update(key, value, is_causal=True, query_offset=2000)
    assert_attends(state, causal, **tolerance)


def test_a_large_update_keeps_no_weights_for_its_gradient():
    """What autograd saves of 256 × 5,000 scores is the inputs and the result, not the scores."""
    query, key, value = (draw(1, 1, n, 8, seed=n, dtype=torch.float32) for n in (256, 5000, 5001))
    key.requires_grad_()
    saved = []

    def count(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        state = AttentionState.empty(query, 8).update(key, value[:, :, :5000])
    assert max(t.numel() for t in saved) <= key.numel() < 256 * 5000
    state.output.sum().backward()
    assert key.grad.isfinite().all() and key.grad.any()


def test_states_come_back_from_bytes_with_their_scale():
    query, key, value = problem(12)
    state = AttentionState.empty(query, 5, scale=0.3).update(key, value)
    back = AttentionState.deserialize(state.serialize())
    assert back.scale == 0.3 and torch.equal(back.output, state.output)
    more = (s.update(key, value, score_mod=alibi(0.1)) for s in (state, back))
    assert len({s.serialize() for s in more}) == 1


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_any_number_of_leading_dimensions_comes_back_from_bytes(dims):
    query, key, value = (draw(*(1,) * (dims - 2), n, 3, seed=n) for n in (2, 4, 5))
    state = AttentionState.empty(query, 3).update(key, value[..., :4, :])
    back = AttentionState.deserialize(state.serialize())
    assert torch.equal(back.output, state.output) and torch.equal(back.query, query)
    assert back.merge(state).count == 8


def test_a_scale_that_is_no_number_is_refused():
    state = AttentionState.empty(torch.ones(1, 2, 3), 2)
    summary = SoftmaxSummary.empty((1, 2), 2, torch.empty(0, dtype=torch.float64))
    strange = AttentionState(state.query, summary, state.count, json.loads('"2"'))
    with pytest.raises(StateFormatError, match="scale of a 'attention' cannot be '2'"):
        AttentionState.deserialize(strange.serialize())


def test_shapes_that_do_not_fit_are_refused_with_their_sizes():
    query, key, value = problem(13)
    state = AttentionState.empty(query, 5)
    with pytest.raises(ValueError, match="query has 4 heads, key 3, value 3"):
        state.update(draw(3, 9, 3), draw(3, 9, 5))
    with pytest.raises(ValueError, match="query has 4 heads, key 2, value 1"):
        state.update(key, value[:, :1])
    with pytest.raises(ValueError, match=r"\(3,\) of keys or values do not broadcast"):
        state.update(draw(3, 2, 9, 3), draw(3, 2, 9, 5))
    with pytest.raises(ValueError, match=r"\(4, 8\) does not broadcast to \(2, 4, 4, 9\)"):
        state.update(key, value, torch.ones(4, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match="int64"):
        state.update(key, value, attn_mask=torch.ones(4, 9, dtype=torch.int64))


def test_what_makes_no_sense_is_refused_with_its_value():
    query, key, value = problem(14)
    state = AttentionState.empty(query, 5)
    with pytest.raises(ValueError, match=r"key must be .* not \(3,\) of torch.float64"):
        state.update(key[0, 0, 0], value)
    with pytest.raises(ValueError, match=r"value must be .* of torch.int64"):
        state.update(key, value.long())
    with pytest.raises(ValueError, match="value_dim must be at least 0, not -1"):
        AttentionState.empty(query, -1)
    with pytest.raises(ValueError, match="scale must be a finite number, not nan"):
        AttentionState.empty(query, 5, scale=math.nan)
    with pytest.raises(ValueError, match="0 features, from which no scale follows"):
        AttentionState.empty(query[..., :0], 5)
    with pytest.raises(ValueError, match="count must be at least 0, not -3"):
        AttentionState.from_output(query, query[..., 0], count=-3)
    with pytest.raises(ValueError, match=r"rules have scale 1.0, the state 0.57735"):
        state.fold(key, value, Rules(scale=1.0))


def test_states_that_do_not_merge_say_what_differs():
    query = draw(1, 2, 3)
    state = AttentionState.empty(query, 5)
    with pytest.raises(ValueError, match=r"scales are 0.57735.* and 0.25"):
        state.merge(AttentionState.empty(query, 5, scale=0.25))
    with pytest.raises(ValueError, match=r"shapes are \(1, 2, 3\) and \(1, 2, 4\)"):
        state.merge(AttentionState.empty(draw(1, 2, 4), 5, scale=state.scale))
    with pytest.raises(ValueError, match=r"they are up to 0.5 apart"):
        state.merge(AttentionState.empty(query + 0.5, 5))
    with pytest.raises(ValueError, match=r"dtypes are torch.float64 and torch.float32"):
        state.merge(AttentionState.empty(query.float(), 5))
