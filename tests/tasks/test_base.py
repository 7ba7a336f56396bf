"""A batch with missing outputs, and masks that say so."""

import pytest
import torch

from synopsis.tasks import Batch
from synopsis.tasks.base import observed_points

NAN = torch.nan
Y = torch.tensor([[[1.0, 2.0], [NAN, 3.0], [NAN, NAN]], [[NAN, NAN], [torch.inf, NAN], [0.0, 0.0]]])
OBSERVED = [[True, True, False], [False, True, True]]


def test_a_point_is_observed_when_any_of_its_outputs_is():
    assert observed_points(Y, None).tolist() == OBSERVED
    mask = torch.tensor([[True, False, True], [True, True, False]])
    assert observed_points(Y, mask).tolist() == [[True, False, False], [False, True, False]]


@pytest.mark.parametrize("y", [torch.ones(2, 3, 1), torch.full((2, 3, 1), torch.inf), Y[:, :0]])
def test_complete_points_need_no_mask(y):
    assert observed_points(y, None) is None


def test_of_a_batch_each_part_gets_its_mask():
    whole, x = torch.ones(2, 3, 2), torch.ones(2, 3, 1)
    batch = Batch(x, Y, x, whole, oracle=torch.ones(2, 3))
    found = batch.observed()
    assert found.context_mask.tolist() == OBSERVED and found.target_mask is None
    assert found.yc is Y and found.oracle is batch.oracle
    found = Batch(x, whole, x, Y).observed()
    assert found.context_mask is None and found.target_mask.tolist() == OBSERVED
    untouched = Batch(x, whole, x, whole)
    assert untouched.observed() is untouched
