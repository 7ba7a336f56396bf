"""Score changes against their formulas on whole matrices."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention

from synopsis.attention.biases import (
    ALiBi,
    RelativePositionBias,
    SoftCap,
    T5Bias,
    alibi,
    alibi_slopes,
    compose,
)
from synopsis.attention.captured import captured_tensors
from synopsis.attention.choice import engine
from synopsis.attention.exact import scaled_dot_product_attention
from synopsis.attention.rules import Block, Rules
from tests.tolerances import FLOAT64

BATCH, HEADS = 2, 3
CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def indices(queries, keys, query_start=0, key_start=0):
    rules = Rules(1.0, query_offset=query_start, key_offset=key_start)
    return rules.indices(Block(slice(0, queries), slice(0, keys)), (BATCH, HEADS), CPU)


def dense(formula, queries, keys, query_start=0, key_start=0):
    """(1, heads, queries, keys) of a formula of (head, distance), entry by entry; differentiable."""
    rows = [
        [
            torch.stack([formula(h, key_start + k - query_start - q) for k in range(keys)])
            for q in range(queries)
        ]
        for h in range(HEADS)
    ]
    return torch.stack([torch.stack(row) for row in rows])[None]


def t5_bucket(distance, buckets, bidirectional, furthest):
    """From the description: half of the buckets by number, half by logarithm, and a sign."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(0, -distance)
    near = buckets // 2
    if distance < near:
        return offset + distance
    share = math.log(distance / near) / math.log(furthest / near)
    return offset + min(buckets - 1, near + math.floor(share * (buckets - near) + 1e-6))


def alibi_case():
    slopes = drawn(HEADS).abs().requires_grad_()
    return ALiBi(slopes), slopes, lambda h, d: -slopes[h] * abs(d)


def table_case():
    table = drawn(HEADS, 9).requires_grad_()
    return RelativePositionBias(table), table, lambda h, d: table[h, max(-4, min(4, d)) + 4]


def t5_case(bidirectional):
    embedding = drawn(8, HEADS).requires_grad_()

    def formula(h, d):
        return embedding[t5_bucket(d, 8, bidirectional, 20), h]

    return T5Bias(embedding, bidirectional, max_distance=20), embedding, formula


CASES = {
    "alibi": alibi_case,
    "table": table_case,
    "t5 both ways": lambda: t5_case(True),
    "t5 one way": lambda: t5_case(False),
}
sizes = st.integers(1, 7)
starts = st.integers(0, 30)


@pytest.mark.parametrize("name", CASES)
@given(queries=sizes, keys=sizes, query_start=starts, key_start=starts)
@settings(max_examples=25, deadline=None)
def test_biases_follow_their_formulas_with_gradients(name, queries, keys, query_start, key_start):
    bias, parameter, formula = CASES[name]()
    at = queries, keys, query_start, key_start
    score = drawn(BATCH, HEADS, queries, keys).requires_grad_()
    found = bias(score, *indices(*at))
    expected = score + dense(formula, *at)
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    upstream = drawn(*score.shape, seed=1)
    gradients = (torch.autograd.grad(x, (score, parameter), upstream) for x in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", CASES)
def test_indices_with_gaps_or_in_another_order_are_taken_as_they_are(name):
    bias, _, _ = CASES[name]()
    b, h, q_idx, kv_idx = indices(6, 8, 5, 2)
    score = drawn(BATCH, HEADS, 6, 8)
    whole = bias(score, b, h, q_idx, kv_idx)
    for rows, columns in (([4, 0, 1], [7, 2]), ([0, 2, 4], [0, 1, 2]), ([3, 2, 1], [4, 5, 6])):
        part = score[:, :, rows][..., columns]
        found = bias(part, b, h, q_idx[:, :, rows], kv_idx[..., columns])
        torch.testing.assert_close(
            found, whole[:, :, rows][..., columns], rtol=FLOAT64, atol=FLOAT64
        )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", CASES)
def test_flex_attention_understands_them(name):
    bias, _, _ = CASES[name]()
    query, key, value = drawn(3, BATCH, HEADS, 16, 4)
    with torch.no_grad():
        theirs = flex_attention(query, key, value, score_mod=bias)
        ours = scaled_dot_product_attention(query, key, value, score_mod=bias)
    torch.testing.assert_close(ours, theirs, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", CASES)
def test_gradients_through_attention_in_blocks(name):
    bias, parameter, formula = CASES[name]()
    query, key, value = drawn(3, BATCH, HEADS, 9, 4).unbind()
    score_mod = compose(compose(SoftCap(2.0)), compose(bias))
    with engine("tiles"):
        found = scaled_dot_product_attention(
            query, key, value, score_mod=score_mod, query_block=4, key_block=3
        )
    capped = 2.0 * torch.tanh(query @ key.mT / 4.0)  # scale ½, cap 2
    expected = torch.softmax(capped + dense(formula, 9, 9), -1) @ value
    torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    upstream = drawn(*found.shape, seed=1)
    ours, theirs = (torch.autograd.grad(x, parameter, upstream)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=100 * FLOAT64, atol=100 * FLOAT64)


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_found_however_deep(name):
    bias, parameter, _ = CASES[name]()
    nested = compose(SoftCap(1.0), compose(compose(compose(compose(bias)))))
    assert [t is parameter for t in captured_tensors(nested)] == [True]
    assert captured_tensors(lambda score, *i: nested(score, *i))[0] is parameter


@pytest.mark.parametrize("name", CASES)
def test_the_dtype_is_that_of_the_score(name):
    bias, _, _ = CASES[name]()
    score = torch.zeros(BATCH, HEADS, 3, 4, dtype=torch.float32)
    assert bias(score, *indices(3, 4)).dtype == torch.float32


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets_of_its_default_size(bidirectional):
    distances = torch.arange(-300, 301)
    expected = [t5_bucket(d, 32, bidirectional, 128) for d in distances.tolist()]
    assert T5Bias(torch.zeros(32, 1), bidirectional).bucket(distances).tolist() == expected


def test_alibi_slopes_are_those_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # twelve heads: the eight of above, then every second one of sixteen
    assert alibi_slopes(12).tolist()[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5])
    assert alibi_slopes(1).tolist() == [2.0**-8]
    assert len(alibi(6).slopes) == 6


def test_composition_applies_the_first_first():
    score, at = drawn(BATCH, HEADS, 4, 5), indices(4, 5)
    bias = ALiBi(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    cap = SoftCap(1.5)
    torch.testing.assert_close(compose(cap, bias)(score, *at), bias(cap(score, *at), *at))
    assert torch.equal(compose()(score, *at), score)
    # |tanh| < 1: capped last, nothing is below −1.5; capped first, the biases go further
    assert compose(bias, cap)(score, *at).min() >= -1.5 > compose(cap, bias)(score, *at).min()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftCap(0.0), "cap is 0.0; it must be positive"),
        (lambda: SoftCap(math.nan), "cap is nan"),
        (lambda: alibi_slopes(0), "heads is 0"),
        (lambda: RelativePositionBias(torch.zeros(2, 4)), r"table has shape \(2, 4\)"),
        (lambda: T5Bias(torch.zeros(2, 1)), "embedding has 2 buckets and max_distance is 128"),
        (lambda: T5Bias(torch.zeros(32, 1), max_distance=8), "more distance than the 8 near ones"),
    ],
)
def test_errors_show_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
