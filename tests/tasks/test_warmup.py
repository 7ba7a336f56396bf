import torch

from synopsis.tasks.warmup import LARGEST, SMALLEST_SCALE, location_and_scale, standardised
from tests.tolerances import FLOAT64


def _draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_first_rows_have_zero_mean_and_unit_deviation():
    values = 5 + 3 * _draw(3, 40, 2)
    warmup = torch.tensor([4, 32, 40])
    scaled = standardised(values, *location_and_scale(values, warmup))
    for task, rows in enumerate(warmup.tolist()):
        first = scaled[task, :rows]
        assert first.mean(0).abs().max() < FLOAT64
        assert (first.std(0, correction=0) - 1).abs().max() < FLOAT64


def test_later_rows_do_not_move_location_and_scale():
    values = _draw(1, 40, 1)
    changed = values.clone()
    changed[:, 10:] = changed[:, 10:].flip(1)
    for one, other in zip(
        location_and_scale(values, torch.tensor([10])),
        location_and_scale(changed, torch.tensor([10])),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=FLOAT64, atol=FLOAT64)


def test_scale_is_floored_and_constants_keep_their_unit():
    values = _draw(1, 100, 4)
    values[:, :10, 0] *= 1e-3  # quiet at first
    values[:, :10, 1] = 2.0  # constant at first
    values[:, :, 2] = 1e6 / 3  # constant throughout
    _, scale = location_and_scale(values, torch.tensor([10]))
    whole = values.std(1, correction=0)
    torch.testing.assert_close(scale[0, 0, 0], SMALLEST_SCALE * whole[0, 0])
    torch.testing.assert_close(scale[0, 0, 1], whole[0, 1])
    assert scale[0, 0, 2] == 1
    assert scale[0, 0, 3] > 0.3


def test_values_are_cut_and_untouched_columns_are_not():
    values = torch.tensor([[[1e5, 1e5, -1e5]]])
    one = torch.ones(1, 1, 3)
    scaled = standardised(values, 0 * one, one, untouched=torch.tensor([[False, True, False]]))
    assert scaled.flatten().tolist() == [LARGEST, 1e5, -LARGEST]
