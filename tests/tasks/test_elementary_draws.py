import pytest
import torch
from scipy import stats

from synopsis.tasks.elementary_draws import by_kind, choose, log_uniform, student_t
from tests.tolerances import UNLIKELY


@pytest.mark.parametrize("freedom", [2.5, 3.0, 10.0])
def test_student_t_follows_its_law(freedom):
    generator = torch.Generator().manual_seed(1)
    drawn = student_t(generator, torch.tensor(freedom), (20_000,))
    assert stats.kstest(drawn.numpy(), stats.t(freedom).cdf).pvalue > UNLIKELY


def test_log_uniform_is_uniform_in_the_logarithm():
    drawn = log_uniform(torch.Generator().manual_seed(0), (20_000,), 0.25, 10.0)
    assert stats.kstest(drawn.numpy(), stats.loguniform(0.25, 10.0).cdf).pvalue > UNLIKELY


def test_choose_follows_the_weights():
    drawn = choose(torch.Generator().manual_seed(0), (1, 0, 3), (100, 200))
    counts = drawn.flatten().bincount(minlength=3)
    assert counts[1] == 0
    assert stats.binomtest(int(counts[2]), 20_000, 0.75).pvalue > UNLIKELY


def test_choose_of_nothing_is_empty():
    assert choose(torch.Generator(), (1, 1), (0, 3)).shape == (0, 3)


def test_by_kind_gives_every_item_to_its_own_function():
    kinds = torch.tensor([2, 0, 2, 1, 0])
    values = torch.arange(5.0)[:, None]
    draws = [lambda _, v: v, lambda _, v: 10 * v, lambda _, v: 100 * v]
    result = by_kind(kinds, draws, torch.Generator(), values)
    assert result.squeeze(1).tolist() == [0.0, 1.0, 200.0, 30.0, 4.0]
