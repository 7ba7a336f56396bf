"""Every mask against its rule written out pair by pair in plain Python; bounds against what that rule allows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from synopsis.attention import masks
from synopsis.attention.cutting import Inputs
from synopsis.attention.masks import (
    BlockCausal,
    Causal,
    Chunked,
    Dilated,
    DocumentIds,
    Documents,
    KeyLengths,
    PrefixLM,
    SlidingWindow,
    and_masks,
    or_masks,
)
from synopsis.attention.rules import Block, Bounded, Rules, Span
from synopsis.attention.tiles import forward

LENGTH, STREAMS, HEADS = 24, 3, 2
small = st.integers(0, 9)
positive = st.integers(1, 9)
per_stream = st.lists(st.integers(0, LENGTH), min_size=STREAMS, max_size=STREAMS)
lengths = st.lists(st.integers(0, 6), max_size=5)
ids = st.lists(st.integers(0, 4), min_size=LENGTH, max_size=LENGTH)


@st.composite
def spans(draw, first=0):
    start = draw(st.integers(first, LENGTH - 1))
    return Span(start, draw(st.integers(start + 1, LENGTH)))


def document_of(position, document_lengths):
    """(document, place in it), or None outside of all."""
    for document, length in enumerate(document_lengths):
        if 0 <= position < length:
            return document, position
        position -= length
    return None


def in_documents(of_queries, of_keys, inner):
    def rule(b, q, k):
        query, key = document_of(q, of_queries), document_of(k, of_keys)
        if query is None or key is None or query[0] != key[0]:
            return False
        document = query[0]
        return inner(b, query[1] + of_keys[document] - of_queries[document], key[1])

    return rule


@st.composite
def documents(draw, inner=None):
    count = draw(st.integers(0, 5))
    of = [draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)) for _ in range(2)]
    mask, rule = (None, lambda b, q, k: True) if inner is None else draw(inner)
    return Documents.from_lengths(*of, mask), in_documents(*of, rule)


def rule_of_window(left, right):
    return lambda b, q, k: (
        (left is None or left < 0 or k >= q - left)
        and (right is None or right < 0 or k <= q + right)
    )


ends = st.one_of(st.none(), st.integers(-1, 9))
SHAPES = {
    "causal": st.integers(-9, 9).map(lambda o: (Causal(o), lambda b, q, k: k <= q + o)),
    "window": st.tuples(ends, ends).map(lambda e: (SlidingWindow(*e), rule_of_window(*e))),
    "block causal": positive.map(lambda n: (BlockCausal(n), lambda b, q, k: k // n <= q // n)),
    "chunked": positive.map(lambda n: (Chunked(n), lambda b, q, k: k // n == q // n)),
    "dilated": positive.map(lambda n: (Dilated(n), lambda b, q, k: (q - k) % n == 0)),
}
shapes = st.one_of(*SHAPES.values())
OF_DATA = {
    "length": small.map(lambda n: (KeyLengths(n), lambda b, q, k: k < n)),
    "lengths": per_stream.map(lambda n: (KeyLengths(torch.tensor(n)), lambda b, q, k: k < n[b])),
    "prefix": small.map(lambda n: (PrefixLM(n), lambda b, q, k: k < n or k <= q)),
    "prefixes": per_stream.map(
        lambda n: (PrefixLM(torch.tensor(n)), lambda b, q, k: k < n[b] or k <= q)
    ),
    "documents": documents(),
    "documents with a mask": documents(shapes),
}
BY_NUMBER = {  # where every position must have a number
    "ids": ids.map(lambda n: (DocumentIds(torch.tensor(n)), lambda b, q, k: n[q] == n[k])),
    "ids of streams": st.lists(ids, min_size=STREAMS, max_size=STREAMS).map(
        lambda n: (DocumentIds(torch.tensor(n)), lambda b, q, k: n[b][q] == n[b][k])
    ),
    "ids of queries and of keys": st.tuples(
        ids, st.lists(ids, min_size=STREAMS, max_size=STREAMS)
    ).map(lambda n: (DocumentIds(*map(torch.tensor, n)), lambda b, q, k: n[0][q] == n[1][b][k])),
}
KINDS = SHAPES | OF_DATA | BY_NUMBER
ready_made = st.one_of(*KINDS.values())
# what a caller wrote without saying anything about its shape
unbounded = positive.map(
    lambda n: (lambda b, h, q, k: (q * k + b) % n == 0, lambda b, q, k: (q * k + b) % n == 0)
)
either = st.one_of(ready_made, unbounded)


def dense(rule, queries, keys):
    """(streams, queries, keys), asked pair by pair."""
    return torch.tensor(
        [
            [[bool(rule(b, q, k)) for k in range(*keys)] for q in range(*queries)]
            for b in range(STREAMS)
        ]
    ).view(STREAMS, queries.stop - queries.start, keys.stop - keys.start)


def called(mask, queries, keys):
    """(streams, queries, keys) as an engine asks for it."""
    rules = Rules(1.0, query_offset=queries.start, key_offset=keys.start)
    block = Block(slice(0, queries.stop - queries.start), slice(0, keys.stop - keys.start))
    found = mask(*rules.indices(block, (STREAMS, HEADS), torch.device("cpu")))
    assert found.dtype == torch.bool
    shape = (STREAMS, HEADS, block.queries.stop, block.keys.stop)
    return found.expand(shape)[:, 0]


def hull(allowed, keys):
    columns = allowed.any(0).any(0).nonzero().flatten().tolist()
    return Span(keys.start + columns[0], keys.start + columns[-1] + 1) if columns else None


def same_span(found, expected):
    return found.is_empty if expected is None else found == expected


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_ready_made_masks_follow_their_rule_and_know_their_bounds(kind, data):
    mask, rule = data.draw(KINDS[kind])
    first = 0 if kind in BY_NUMBER else -4
    queries, keys = data.draw(spans(first)), data.draw(spans(first))
    allowed = dense(rule, queries, keys)
    assert torch.equal(called(mask, queries, keys), allowed)
    assert isinstance(mask, Bounded)
    assert same_span(mask.keys(queries, keys), hull(allowed, keys))
    assert mask.allows_all(queries, keys) == bool(allowed.all())


@given(st.lists(either, max_size=3), spans(), spans(), st.sampled_from(["and", "or"]))
@settings(max_examples=120, deadline=None)
def test_combinations_follow_the_laws_and_never_cut_off_an_allowed_pair(parts, queries, keys, kind):
    combine, fold = (and_masks, all) if kind == "and" else (or_masks, any)
    mask = combine(*(mask for mask, _ in parts))
    allowed = dense(lambda b, q, k: fold(r(b, q, k) for _, r in parts), queries, keys)
    assert torch.equal(called(mask, queries, keys), allowed)
    assert isinstance(mask, Bounded)
    expected, found = hull(allowed, keys), mask.keys(queries, keys)
    assert expected is None or (found.start <= expected.start and expected.stop <= found.stop)
    assert found.is_empty or (keys.start <= found.start and found.stop <= keys.stop)
    assert not mask.allows_all(queries, keys) or bool(allowed.all())


@given(st.lists(ready_made, min_size=1, max_size=3), spans(), spans())
@settings(max_examples=50, deadline=None)
def test_or_of_ready_made_masks_is_tight(parts, queries, keys):
    mask = or_masks(*(mask for mask, _ in parts))
    allowed = dense(lambda b, q, k: any(r(b, q, k) for _, r in parts), queries, keys)
    assert same_span(mask.keys(queries, keys), hull(allowed, keys))


@given(ready_made, ready_made, spans(), spans())
@settings(max_examples=50, deadline=None)
def test_and_is_never_wider_than_its_parts(a, b, queries, keys):
    both = and_masks(a[0], b[0]).keys(queries, keys)
    for mask, _ in (a, b):
        part = mask.keys(queries, keys)
        assert both.is_empty or (part.start <= both.start and both.stop <= part.stop)


def test_combinations_without_bounds_reach_everything():
    def anything(b, h, q_idx, kv_idx):
        return q_idx == kv_idx

    asked = Span(3, 5), Span(0, 9)
    assert and_masks(anything).keys(*asked) == or_masks(anything, Causal()).keys(*asked) == (0, 9)
    assert and_masks(anything, Causal()).keys(*asked) == (0, 5)
    assert or_masks().keys(*asked).is_empty
    assert and_masks().allows_all(*asked)
    assert not and_masks(anything).allows_all(*asked)
    assert not isinstance(anything, Bounded)


FLEX = {
    "causal": masks.causal_mask,
    "window": masks.sliding_window(3, 1),
    "block causal": BlockCausal(4),
    "chunked": and_masks(Causal(), Chunked(5)),
    "dilated": Dilated(3),
    "lengths": KeyLengths(torch.tensor([2, 0, 11])),
    "prefix": masks.prefix_lm(torch.tensor([2, 0, 11])),
    "documents": masks.document_mask(torch.tensor([0, 5, 5, 9], dtype=torch.int32)),
    "packed": Documents.from_lengths([5, 3], [4, 7], Causal()),
    "ids": DocumentIds(
        torch.randint(0, 3, (STREAMS, 12), generator=torch.Generator().manual_seed(0))
    ),
    "either": or_masks(SlidingWindow(1), PrefixLM(2)),
}


@pytest.mark.parametrize("name", FLEX)
def test_flex_attention_understands_them(name):
    theirs = create_mask(FLEX[name], STREAMS, HEADS, 12, 12, device="cpu")
    assert torch.equal(theirs[:, 0], called(FLEX[name], Span(0, 12), Span(0, 12)))
    assert torch.equal(theirs[:, 0], theirs[:, 1])


def test_blocks_outside_are_never_asked_for():
    asked = []

    def counting(b, h, q_idx, kv_idx):
        asked.append((q_idx.numel(), kv_idx.numel()))
        return kv_idx <= q_idx

    mask = and_masks(SlidingWindow(16), Documents.from_lengths([64] * 16), counting)
    rules = Rules(1.0, mask_mod=mask)
    inputs = Inputs(*torch.randn(3, 1, 1, 1024, 4).unbind())
    forward(inputs, rules, (64, 64))
    assert sum(q * k for q, k in asked) <= 1024 * 64  # of 1024 · 1024 pairs


@pytest.mark.parametrize("make", [KeyLengths, PrefixLM, Documents, DocumentIds])
def test_a_mask_keeps_what_it_was_made_of(make):
    made_of = torch.tensor([0, 2, 5])
    mask, expected = make(made_of), make(made_of.clone())
    made_of.copy_(torch.tensor([0, 0, 2]))
    asked = Span(0, 3), Span(0, 3)
    assert torch.equal(called(mask, *asked), called(expected, *asked))
    assert mask.keys(*asked) == expected.keys(*asked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chunked(0), "chunk is 0; it must be at least 1"),
        (lambda: Dilated(-2), "stride is -2; it must be at least 1"),
        (lambda: BlockCausal(0), "block is 0"),
        (lambda: KeyLengths(torch.tensor([1.0])), r"shape \(1,\) and dtype torch.float32"),
        (lambda: Documents(torch.tensor([0, 3, 2])), r"cu_seqlens_q is \[0, 3, 2\]"),
        (lambda: Documents(torch.tensor([1, 3])), r"cu_seqlens_q is \[1, 3\]"),
        (lambda: Documents.from_lengths([1, 2], [3]), "has 2 boundaries but cu_seqlens_q has 3"),
        (lambda: DocumentIds(torch.zeros(1, 2, 3, dtype=torch.long)), r"shape \(1, 2, 3\)"),
        (
            lambda: DocumentIds(torch.arange(4)).keys(Span(0, 4), Span(0, 6)),
            "positions 0 to 3 but 0 to 5 were asked for",
        ),
        (
            lambda: called(KeyLengths(torch.tensor([1, 2])), Span(0, 2), Span(0, 2)),
            "lengths has 2 streams but the batch has 3",
        ),
    ],
)
def test_errors_show_what_came(make, message):
    with pytest.raises(ValueError, match=message):
        make()
