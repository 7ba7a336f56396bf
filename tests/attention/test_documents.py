"""Packed documents on every block there is, and against each document alone."""

from itertools import product

import pytest
import torch

from synopsis.attention.cutting import Inputs
from synopsis.attention.documents import DocumentIds, Documents
from synopsis.attention.masks import Causal, SlidingWindow
from synopsis.attention.rules import Block, Rules, Span
from synopsis.attention.tiles import forward


def called(mask, queries, keys):
    """(queries, keys) as an engine asks for it."""
    block = Block(slice(0, queries), slice(0, keys))
    return mask(*Rules(1.0).indices(block, (1, 1), torch.device("cpu")))[0, 0]


SMALL = {  # few positions, so that every block there is can be tried
    "documents": Documents.from_lengths([3, 0, 2, 3], [2, 3, 0, 4]),
    "with a mask": Documents.from_lengths([3, 1, 4], [2, 3, 4], Causal()),
    "numbers": DocumentIds(torch.tensor([0, 0, 0, 1, 2, 2, 0, 1, 1])),
}


@pytest.mark.parametrize("name", SMALL)
def test_bounds_of_documents_on_every_block(name):
    mask, length = SMALL[name], 9
    allowed = called(mask, length, length).numpy()
    every = [Span(a, b) for a in range(length) for b in range(a + 1, length + 1)]
    for queries, keys in product(every, every):
        block = allowed[slice(*queries), slice(*keys)]
        columns = block.any(0).nonzero()[0] + keys.start
        expected = Span(columns[0], columns[-1] + 1) if len(columns) else None
        found = mask.keys(queries, keys)
        assert found.is_empty if expected is None else found == expected, (queries, keys)
        assert mask.allows_all(queries, keys) == block.all(), (queries, keys)


def test_packed_causal_is_aligned_at_the_end_of_each_document():
    mask = Documents.from_lengths([1, 2], [3, 2], Causal())
    expected = [[1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert called(mask, 3, 5).int().tolist() == expected


def test_packed_equals_each_document_alone():
    generator = torch.Generator().manual_seed(0)
    of_queries, of_keys = [3, 0, 5], [4, 2, 5]
    query, key, value = (
        torch.randn(1, 2, n, 4, dtype=torch.float64, generator=generator) for n in (8, 11, 11)
    )
    mask = Documents.from_lengths(of_queries, of_keys, SlidingWindow(2))
    packed, _ = forward(Inputs(query, key, value), Rules(0.5, mask_mod=mask), (3, 4))
    parts = zip(
        query.split(of_queries, 2), key.split(of_keys, 2), value.split(of_keys, 2), strict=True
    )
    for found, (q, k, v) in zip(packed.split(of_queries, 2), parts, strict=True):
        rules = Rules(0.5, mask_mod=SlidingWindow(2), query_offset=k.shape[2] - q.shape[2])
        torch.testing.assert_close(found, forward(Inputs(q, k, v), rules, (8, 8))[0])
