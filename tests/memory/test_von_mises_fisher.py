"""Draws against the distribution's moments, scipy's own draws, and the gradient of the reflection."""

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.nn import functional as F

from synopsis.memory.von_mises_fisher import sample_von_mises_fisher
from tests.tolerances import FLOAT32, FLOAT64

DRAWS = 20_000


def direction(dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("dim", [2, 3, 16, 128])
@pytest.mark.parametrize("concentration", [0.5, 10.0, 500.0])
def test_draws_have_the_mean_resultant_length(dim, concentration):
    torch.manual_seed(0)
    mean = direction(dim)
    drawn = sample_von_mises_fisher(mean.expand(DRAWS, dim), concentration)
    torch.testing.assert_close(
        drawn.norm(dim=-1), torch.ones(DRAWS, dtype=torch.float64), rtol=0, atol=100 * FLOAT64
    )
    length = special.ive(dim / 2, concentration) / special.ive(dim / 2 - 1, concentration)
    error = 5 * (drawn @ mean).std() / DRAWS**0.5
    assert abs((drawn @ mean).mean() - length) < error
    across = drawn - (drawn @ mean).unsqueeze(-1) * mean
    assert across.mean(0).norm() < 5 / DRAWS**0.5  # nothing is preferred around the mean


@pytest.mark.parametrize("dim", [2, 5])
def test_cosines_with_the_mean_are_distributed_as_scipy_draws_them(dim):
    torch.manual_seed(1)
    mean = direction(dim)
    found = sample_von_mises_fisher(mean.expand(DRAWS, dim), 10.0) @ mean
    theirs = stats.vonmises_fisher(mean.numpy(), 10.0).rvs(
        DRAWS, random_state=np.random.default_rng(0)
    )
    assert stats.ks_2samp(found.numpy(), theirs @ mean.numpy()).pvalue > 1e-3


def test_the_gradient_flows_through_the_direction():
    def drawn(raw):
        torch.manual_seed(3)
        return sample_von_mises_fisher(F.normalize(raw, dim=-1), 10.0)

    raw = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(drawn, raw.requires_grad_())


def test_the_first_axis_itself_is_a_direction():
    mean = torch.tensor([1.0, 0.0, 0.0])
    drawn = sample_von_mises_fisher(mean.expand(100, 3), 10.0)
    assert drawn.isfinite().all()
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(100), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("dim", "concentration"), [(1, 10.0), (3, 0.0), (3, -1.0)])
def test_what_is_no_distribution_is_refused(dim, concentration):
    with pytest.raises(ValueError, match=f"width {dim} and concentration {concentration}"):
        sample_von_mises_fisher(torch.ones(dim), concentration)
