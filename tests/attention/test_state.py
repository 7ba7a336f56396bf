"""AttentionState against naive float64 attention, its algebra, its gradients, and its endurance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

from synopsis.attention import AttentionState, SoftmaxSummary, fused
from tests.reference import softmax_attention
from tests.tolerances import ENDLESS_LSE, FLOAT32, FLOAT64

LAWS = settings(max_examples=150, deadline=None)
SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 6)


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def problem(seed, queries, keys, dim, width, dtype=torch.float64):
    """Two heads of queries, keys and values."""
    shapes = ((2, queries, dim), (2, keys, dim), (2, keys, width))
    return tuple(draw(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes))


def naive(query, key, value, mask=None, scale=None):
    """Naive attention of every head, and its log-sum-exp."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    heads = [
        softmax_attention(q.double().numpy() * scale, k.double().numpy(), v.double().numpy(), m)
        for q, k, v, m in zip(query, key, value, [mask] * len(query), strict=True)
    ]
    return (torch.from_numpy(np.stack(part)) for part in zip(*heads, strict=True))


def assert_attends(state, expected, tolerance=100 * FLOAT64):
    output, lse = expected
    torch.testing.assert_close(state.output.double(), output, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.lse, lse, rtol=tolerance, atol=tolerance)


@LAWS
@given(SEEDS, SIZES, st.integers(0, 9), SIZES, SIZES, st.data())
def test_any_split_is_naive_attention(seed, queries, keys, dim, width, data):
    query, key, value = problem(seed, queries, keys, dim, width)
    cuts = sorted(data.draw(st.lists(st.integers(0, keys), max_size=4)))
    state = AttentionState.empty(query, width)
    for start, end in zip([0, *cuts], [*cuts, keys], strict=True):
        state = state.update(key[:, start:end], value[:, start:end])
    assert_attends(state, naive(query, key, value))
    assert state.count == keys


@LAWS
@given(SEEDS, SIZES, st.integers(1, 9), st.data())
def test_any_order_and_any_tree_of_merges_is_naive_attention(seed, queries, keys, data):
    query, key, value = problem(seed, queries, keys, 3, 2)
    empty = AttentionState.empty(query, 2)
    parts = [
        empty.update(key[:, i : i + 1], value[:, i : i + 1])
        for i in data.draw(st.permutations(range(keys)))
    ] + [empty]
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    assert_attends(parts[0], naive(query, key, value))
    assert parts[0].count == keys


@LAWS
@given(SEEDS, SIZES, st.integers(0, 9))
def test_masks_are_naive_masks_and_rows_may_be_empty(seed, queries, keys):
    query, key, value = problem(seed, queries, keys, 3, 4)
    mask = draw(queries, keys, seed=seed + 9) > 0
    state = AttentionState.empty(query, 4)
    half = keys // 2
    state = state.update(key[:, :half], value[:, :half], mask[:, :half])
    state = state.update(key[:, half:], value[:, half:], mask[:, half:])
    assert_attends(state, naive(query, key, value, mask.numpy()))


def test_masks_broadcast_over_keys_and_queries():
    query, key, value = problem(0, 4, 6, 3, 2)
    empty = AttentionState.empty(query, 2)
    rows = torch.tensor([[True], [False], [True], [True]])
    columns = torch.tensor([[True, False, True, True, False, True]])
    for mask in (rows, columns):
        full = mask.expand(4, 6).numpy()
        assert_attends(empty.update(key, value, mask), naive(query, key, value, full))


def test_what_stands_in_masked_slots_does_not_matter():
    query, key, value = problem(15, 4, 6, 3, 2)
    mask = torch.tensor([[True, False, True, True, False, True]]).expand(4, 6)
    expected = AttentionState.empty(query, 2).update(key, value, mask)
    for filler in (math.nan, math.inf, 1e300):
        key_, value_ = (t.masked_fill(~mask[0, :, None], filler) for t in (key, value))
        found = AttentionState.empty(query, 2).update(key_, value_, mask)
        assert torch.equal(found.output, expected.output) and torch.equal(found.lse, expected.lse)


def test_blocks_longer_than_the_internal_ones_are_exact():
    query, key, value = problem(1, 3, 2500, 4, 4)
    mask = draw(3, 2500, seed=5) > 0
    state = AttentionState.empty(query, 4)
    assert_attends(state.update(key, value), naive(query, key, value))
    assert_attends(state.update(key, value, mask), naive(query, key, value, mask.numpy()))


def test_values_may_have_another_width_and_the_scale_is_the_callers():
    query, key, value = problem(2, 3, 5, 4, 7)
    state = AttentionState.empty(query, 7, scale=0.3).update(key, value)
    assert state.output.shape == (2, 3, 7)
    assert_attends(state, naive(query, key, value, scale=0.3))


def test_nothing_seen_is_zero_and_minus_infinity():
    query, key, value = problem(3, 4, 5, 3, 2)
    empty = AttentionState.empty(query, 2)
    nobody = torch.zeros(4, 5, dtype=torch.bool)
    for state in (empty, empty.merge(empty), empty.update(key, value, nobody)):
        assert torch.equal(state.output, torch.zeros(2, 4, 2, dtype=torch.float64))
        assert torch.equal(state.lse, torch.full((2, 4), -math.inf, dtype=torch.float64))
    seen = empty.update(key, value)
    for merged in (empty.merge(seen), seen.merge(empty)):
        assert torch.equal(merged.output, seen.output) and torch.equal(merged.lse, seen.lse)


@pytest.mark.parametrize(("power", "sign"), [(7, 1.0), (7, -1.0), (63, 1.0), (63, -1.0)])
def test_huge_scores_stay_finite_and_exact(power, sign):
    """Scores of ±16,384 (two apart at the nearest) and ±2¹²⁶; powers of two, so that float32 scores are exact."""
    query = torch.full((1, 2, 1), sign * 2.0**power)
    key = torch.tensor([[[1.0], [0.5], [1.0 - 2.0**-13]]]) * 2.0**power
    value = draw(1, 3, 2, seed=4, dtype=torch.float32)
    state = AttentionState.empty(query, 2, scale=1.0)
    for i in range(3):
        state = state.update(key[:, i : i + 1], value[:, i : i + 1])
    output, lse = naive(query, key, value, scale=1.0)
    torch.testing.assert_close(state.output.double(), output, rtol=FLOAT32, atol=FLOAT32)
    torch.testing.assert_close(state.lse, lse, rtol=FLOAT32, atol=0.0)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_no_worse_than_twice_torchs_own_error_in_every_dtype(dtype):
    query, key, value = problem(5, 16, 300, 8, 8, dtype)
    state = AttentionState.empty(query, 8)
    for piece in zip(key.split(64, 1), value.split(64, 1), strict=True):
        state = state.update(*piece)
    output, _ = naive(query, key, value)
    assert state.output.dtype == dtype and state.lse.dtype == torch.float64
    ours = (state.output.double() - output).abs().max()
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert ours <= 2 * (theirs.double() - output).abs().max()


def test_inputs_that_do_not_fit_are_refused_with_their_sizes():
    query, key, value = problem(6, 3, 5, 4, 2)
    state = AttentionState.empty(query, 2)
    with pytest.raises(ValueError, match="key has 3 features but query has 4"):
        state.update(key[..., :3], value)
    with pytest.raises(ValueError, match="value has 1 features; the state was made for 2"):
        state.update(key, value[..., :1])
    with pytest.raises(ValueError, match="5 keys came with 4 values"):
        state.update(key, value[:, :4])
    with pytest.raises(ValueError, match="different queries"):
        state.merge(AttentionState.empty(query + 1e-9, 2))
    with pytest.raises(ValueError, match="values have 2 features here but 3 there"):
        state.merge(AttentionState.empty(query, 3))
    with pytest.raises(ValueError, match=r"query must be .* not \(4,\)"):
        AttentionState.empty(torch.zeros(4), 2)
    with pytest.raises(ValueError, match="int64"):
        AttentionState.empty(torch.zeros(1, 2, 3, dtype=torch.int64), 2)


def test_keys_of_more_streams_than_queries_are_refused():
    query, key, value = problem(6, 3, 5, 4, 2)
    with pytest.raises(ValueError):
        AttentionState.empty(query[:1], 2).update(key, value)


def test_states_are_immutable_and_share_nothing_with_inputs():
    query, key, value = problem(7, 3, 5, 4, 2)
    empty = AttentionState.empty(query, 2)
    state = empty.update(key, value)
    before = (empty.serialize(), state.serialize())
    state.update(key, value).merge(state)
    for tensor in (query, key, value):
        tensor.zero_()
    assert (empty.serialize(), state.serialize()) == before


def through_everything(query, key, value, mask):
    """Output and lse after updates, a mask and merges."""
    empty = AttentionState.empty(query, value.shape[-1])
    left = empty.update(key[:, :2], value[:, :2], mask[:, :2])
    right = empty.update(key[:, 2:3], value[:, 2:3], mask[:, 2:3])
    state = left.merge(right).update(key[:, 3:], value[:, 3:], mask[:, 3:])
    return state.output, state.lse


def test_gradients_of_first_and_second_order():
    inputs = [tensor.requires_grad_() for tensor in problem(8, 3, 5, 2, 3)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 1], [0, 0, 0, 1, 0]]).bool()

    def attend(*tensors):
        return through_everything(*tensors, mask)

    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_rows_that_see_nothing_have_gradient_zero():
    query, key, value = (tensor.requires_grad_() for tensor in problem(9, 2, 4, 3, 3))
    mask = torch.tensor([[True], [False]]).expand(2, 4)
    output, _ = through_everything(query, key, value, mask)
    output.sum().backward()
    for tensor in (query, key, value):
        assert tensor.grad.isfinite().all()
    assert not query.grad[:, 1].any() and query.grad[:, 0].any()
    nobody = AttentionState.empty(query, 3).update(key, value, torch.zeros(2, 4, dtype=torch.bool))
    gradients = torch.autograd.grad(nobody.output.sum(), (query, key, value), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_ten_million_equal_scores_one_by_one():
    """2¹⁶ streams absorb 153 keys each, one by one; then halves of the streams merge until one is left."""
    rows, singles = 2**16, 153
    query = torch.full((rows, 1, 1), 2.0)
    state = AttentionState.empty(query, 1, scale=1.0)
    key, value = torch.full((1, 1, 1), 1.5), torch.full((1, 1, 1), 0.25)
    for _ in range(singles):
        state = state.update(key.expand(rows, -1, -1), value.expand(rows, -1, -1))
    while rows > 1:
        rows //= 2
        halves = (
            tree_map(lambda t, p=part: t[p] if t.dim() else t, state)
            for part in (slice(None, rows), slice(rows, None))
        )
        state = AttentionState.merge(*halves)
    assert 2**16 * singles > 10**7
    assert abs(state.lse.item() - 3.0 - math.log(2**16 * singles)) <= ENDLESS_LSE
    assert state.output.item() == 0.25


def test_single_keys_still_count_after_ten_million():
    """From a summary of 10⁷ equal scores on, 5,000 single keys: all of the growth, where float32 keeps none."""
    summary = SoftmaxSummary(
        torch.full((1,), 3.0, dtype=torch.float64),
        torch.full((1,), 1e7, dtype=torch.float64),
        torch.full((1, 1), 1e7, dtype=torch.float64),
    )
    empty = AttentionState.empty(torch.full((1, 1), 2.0), 1, scale=1.0)
    state = AttentionState(empty.query, summary, torch.tensor(10**7))
    key, value = torch.full((1, 1), 1.5), torch.full((1, 1), 2.0)
    for _ in range(5_000):
        state = state.update(key, value)
    assert abs(state.lse.item() - 3.0 - math.log(1e7 + 5e3)) <= ENDLESS_LSE
    expected = (1e7 + 2 * 5e3) / (1e7 + 5e3)
    assert abs(state.summary.output.item() - expected) <= ENDLESS_LSE


def test_a_state_is_a_pytree():
    query, key, value = problem(10, 3, 5, 4, 2)
    state = AttentionState.empty(query, 2).update(key, value)
    assert len(tree_leaves(state)) == 5
    assert tree_map(torch.clone, state).serialize() == state.serialize()
    half = tree_map(lambda t: t[:1] if t.dim() else t, state)
    assert isinstance(half, AttentionState)
    torch.testing.assert_close(half.output, state.output[:1], rtol=FLOAT64, atol=FLOAT64)


def test_vmap_over_queries_is_a_loop_over_them():
    query, key, value = problem(11, 3, 5, 4, 2)

    def attend(q, k, v):
        return AttentionState.empty(q, 2).update(k, v).output

    found = torch.func.vmap(attend)(query, key, value)
    expected = torch.stack([attend(*each) for each in zip(query, key, value, strict=True)])
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)


def test_compiles_as_one_graph():
    query, key, value = problem(12, 3, 5, 4, 2)
    mask = draw(3, 5, seed=3) > 0

    @torch.compile(fullgraph=True, backend="eager")
    def fold(state, key, value):
        state = state.update(key, value, mask)
        return state, state.output, state.lse

    empty = AttentionState.empty(query, 2)
    state, output, lse = fold(empty, key, value)
    expected = empty.update(key, value, mask)
    assert isinstance(state, AttentionState) and state.count == 5
    assert_attends(state, naive(query, key, value, mask.numpy()))
    assert torch.equal(output, expected.output) and torch.equal(lse, expected.lse)


@pytest.mark.parametrize("keys", [1, 16, 700, 1500])
def test_the_fused_kernel_gives_the_same_summary(keys):
    query, key, value = (t[None].float() for t in problem(13, 9, keys, 8, 8))
    assert fused.is_trustworthy(), "this torch has no usable kernel; the library works without it"
    summary = fused.fused_summary(query, key, value)
    output, lse = naive(query[0], key[0], value[0], scale=1.0)
    torch.testing.assert_close(
        summary.output[0].double(), output, rtol=10 * FLOAT32, atol=10 * FLOAT32
    )
    torch.testing.assert_close(summary.lse[0].double(), lse, rtol=FLOAT32, atol=FLOAT32)


def test_the_fused_kernel_stays_away_from_its_traps():
    query, key, value = (t[None] for t in problem(14, 3, 5, 4, 4))
    assert fused.applies(query, key, value)
    assert not fused.applies(query.requires_grad_(), key, value)
    with torch.no_grad():
        assert fused.applies(query, key, value)
        assert not fused.applies(query, key[..., :0, :], value[..., :0, :])
        assert not fused.applies(query, key, value[..., :3])
