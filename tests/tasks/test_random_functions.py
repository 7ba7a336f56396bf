import math

import pytest
import torch

from synopsis.tasks.gaussian_process_draws import kernel_matrix
from synopsis.tasks.random_functions import (
    FUNCTIONS,
    KERNELS,
    LENGTH_SCALES,
    length_scales,
    random_fourier_function,
    spectral_frequencies,
    unit_scale,
)
from tests.tolerances import FLOAT32, FLOAT64, MANY_SIGMAS


@pytest.mark.parametrize("kernel", range(len(KERNELS)))
def test_random_features_have_the_covariance_of_the_kernel(kernel):
    draws, generator = 4000, torch.Generator().manual_seed(3)
    x = torch.tensor([[0.0, 0.0], [0.3, 0.1], [1.0, -0.4], [2.5, 2.0]])
    scales = torch.tensor([0.8, 2.0])
    frequencies = spectral_frequencies(
        generator, torch.full((draws,), kernel), scales.expand(draws, -1), features=64
    )
    f = random_fourier_function(generator, x.expand(draws, -1, -1), frequencies).double()
    products = f[:, :, None] * f[:, None, :]
    standard_error = products.std(0) / math.sqrt(draws)
    exact = kernel_matrix(torch.tensor([kernel]), (x / scales).double())
    assert ((products.mean(0) - exact).abs() < MANY_SIGMAS * standard_error).all()


def test_matern_kernels_are_those_of_sklearn():
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twins = [kernels.RBF(), kernels.Matern(nu=1.5), kernels.Matern(nu=2.5)]
    for kernel, twin in enumerate(twins):
        expected = torch.from_numpy(twin(x.numpy()))
        torch.testing.assert_close(
            kernel_matrix(torch.tensor([kernel]), x), expected, rtol=FLOAT64, atol=FLOAT64
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_irrelevant_inputs_do_not_matter(name):
    _, draw = FUNCTIONS[name]
    x = torch.randn(6, 50, 4, generator=torch.Generator().manual_seed(0))
    relevant = torch.tensor([True, False, True, False]).expand(6, -1)
    first = draw(torch.Generator().manual_seed(1), x * relevant[:, None], relevant)
    again = draw(torch.Generator().manual_seed(1), x * relevant[:, None], relevant)
    other = torch.where(relevant[:, None], x, 0.0).clone()
    other[..., 0] = other[..., 0] + 1.5 * other[..., 2]
    assert torch.equal(first, again)
    assert first.shape == (6, 50) and first.isfinite().all()
    assert not torch.equal(first, draw(torch.Generator().manual_seed(1), other, relevant))
    if name != "steps":  # comparing with a row's own value is all that steps do with numbers
        other = x * relevant[:, None] + 7.0 * ~relevant[:, None]
        shifted = draw(torch.Generator().manual_seed(1), other, relevant)
        torch.testing.assert_close(shifted, first, rtol=1e3 * FLOAT32, atol=1e3 * FLOAT32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_vary_where_something_matters_and_survive_where_nothing_does(name):
    _, draw = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 100, 3, generator=generator)
    f = unit_scale(draw(generator, x, torch.ones(40, 3, dtype=torch.bool)))
    assert (f.std(-1, correction=0) - 1).abs().max() < 100 * FLOAT32
    nothing = torch.zeros(40, 3, dtype=torch.bool)
    assert unit_scale(draw(generator, torch.zeros_like(x), nothing)).abs().max() == 0


def test_steps_take_few_values():
    _, draw = FUNCTIONS["steps"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 500, 1, generator=generator)
    f = draw(generator, x, torch.ones(5, 1, dtype=torch.bool))
    assert max(len(row.mul(1e4).round().unique()) for row in f) <= 17  # 8 × 2 thresholds on a line


def test_length_scales_follow_their_law():
    relevant = torch.tensor([[True, True, True, True, False]]).expand(5000, -1)
    scales = length_scales(torch.Generator().manual_seed(0), relevant)
    assert scales[:, 4].isinf().all()
    low, high = (2 * bound for bound in LENGTH_SCALES)  # √4 relevant inputs
    assert low <= scales[:, :4].min() < 1.01 * low
    assert 0.99 * high < scales[:, :4].max() <= high


def test_unit_scale_of_a_constant_is_zero():
    assert torch.equal(unit_scale(torch.full((2, 7), 3.3)), torch.zeros(2, 7))
