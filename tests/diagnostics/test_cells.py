"""Cosines, ranks and norms against loops; and where there is nothing to say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synopsis.diagnostics.cells import effective_rank, mean_cosine, mean_norm
from tests.diagnostics import naive
from tests.tolerances import FLOAT32, FLOAT64

SIZES = st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 7))


def drawn(sizes, seed):
    return torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(SIZES, st.integers(0, 99))
def test_as_written_out(sizes, seed):
    vectors = drawn(sizes, seed)
    for found, wanted in (
        (mean_cosine(vectors), naive.cosine),
        (mean_cosine(vectors, centred=True), naive.centred_cosine),
        (effective_rank(vectors), naive.effective_rank),
    ):
        expected = [wanted(one.numpy()) for one in vectors]
        assert found.tolist() == pytest.approx(expected, rel=1e3 * FLOAT64, abs=1e3 * FLOAT64)
    assert torch.allclose(
        mean_norm(vectors), vectors.square().sum(-1).sqrt().mean(-1), rtol=FLOAT64
    )


@given(SIZES, st.integers(0, 99), st.floats(0.1, 10))
def test_scale_and_order_do_not_matter(sizes, seed, scale):
    vectors = drawn(sizes, seed)
    other = scale * vectors.flip(1)
    for statistic in (mean_cosine, effective_rank):
        assert torch.allclose(
            statistic(vectors), statistic(other), rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
        )


def test_a_collapsed_memory_has_cosine_1_and_rank_1():
    vectors = torch.randn(2, 1, 8).expand(-1, 7, -1)
    assert torch.allclose(mean_cosine(vectors), torch.ones(2).double(), atol=FLOAT64)
    assert torch.allclose(effective_rank(vectors), torch.ones(2).double(), atol=FLOAT32)
    assert mean_cosine(vectors, centred=True).isnan().all()  # nothing but rounding is left
    nearly = vectors * (1 + torch.finfo(torch.float32).eps * torch.randint(-1, 2, (2, 7, 1)))
    assert mean_cosine(nearly, centred=True).isnan().all()


def test_an_orthogonal_memory_has_cosine_0_and_full_rank():
    vectors = torch.eye(5)[None]
    assert mean_cosine(vectors).tolist() == [0.0]
    assert mean_cosine(vectors, centred=True).item() == pytest.approx(-1 / 4, rel=FLOAT64)
    assert effective_rank(vectors).item() == pytest.approx(5, rel=FLOAT64)


def test_vectors_that_are_0_have_no_cosine():
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]])
    assert mean_cosine(vectors).item() == pytest.approx(math.sqrt(0.5), rel=FLOAT64)
    for nothing in (torch.zeros(1, 3, 2), torch.ones(1, 1, 2)):
        assert mean_cosine(nothing).isnan().all()
    assert effective_rank(torch.zeros(1, 3, 2)).isnan().all()


def test_a_memory_that_is_not_finite_leaves_the_others_alone():
    vectors = drawn((2, 3, 4), 0)
    alone = [statistic(vectors[1:]) for statistic in (mean_cosine, effective_rank, mean_norm)]
    vectors[0, 1, 2] = math.nan
    for statistic, wanted in zip((mean_cosine, effective_rank, mean_norm), alone, strict=True):
        found = statistic(vectors)
        assert found[0].isnan()
        assert torch.equal(found[1:], wanted)
