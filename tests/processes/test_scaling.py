"""Scalings: few values against scipy, first rows against lists, files against what they hold."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synopsis.processes.scaling import FirstRows, Scale, Scaling, moments, widening
from synopsis.states import State, StateFormatError
from tests.tolerances import FLOAT32, FLOAT64

NUMBERS = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 15, 31, 100])
def test_widening_is_students_t_within_ten_percent(k):
    normal, t = stats.norm.ppf(0.95), stats.t.ppf(0.95, k)
    n = k + 1
    unknown = t * np.sqrt(1 + 1 / n) * np.sqrt(n / k) / normal  # population std, estimated mean
    degrees = torch.tensor(float(k))
    assert widening(degrees).item() == pytest.approx(unknown, rel=0.1)
    assert widening(degrees, unknown_mean=False).item() == pytest.approx(t / normal, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(column=st.lists(st.tuples(NUMBERS, st.booleans()), min_size=1, max_size=12))
def test_moments_are_numpys_of_what_is_given(column):
    values = torch.tensor([[[value] for value, _ in column]], dtype=torch.float64)
    real = torch.tensor([[kept for _, kept in column]])
    mean, spread, number = (float(found) for found in moments(values, real))
    given_values = [value for value, kept in column if kept and value == value]
    assert number == len(given_values)
    if not given_values:
        assert (mean, spread) == (0, 0)
        return
    largest = max(map(abs, given_values))
    assert mean == pytest.approx(np.mean(given_values), rel=FLOAT64, abs=FLOAT64 * largest)
    assert spread == pytest.approx(np.std(given_values), rel=FLOAT32, abs=1e2 * FLOAT64 * largest)


@pytest.mark.parametrize("value", [0.1, -1e9, 1 / 3, 0.0])
def test_equal_values_have_no_spread_whatever_rounding_says(value):
    values = torch.full((1, 31, 1), value, dtype=torch.float64)
    assert moments(values, torch.ones(1, 31, dtype=torch.bool))[1].item() == 0.0


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.lists(st.booleans(), max_size=5), max_size=4))
def test_the_first_wanted_rows_are_kept_in_order(parts):
    size, wanted, number = 4, [], 0
    empty = torch.zeros(1, size, 1, dtype=torch.float64)
    rows = FirstRows(empty, empty.clone(), torch.zeros(1, dtype=torch.int64))
    for part in parts:
        x = torch.arange(number + 1, number + 1 + len(part)).double().view(1, -1, 1)
        before = len(wanted)
        wanted += [float(v) for v, chosen in zip(x.flatten(), part, strict=True) if chosen]
        number += len(part)
        mask = torch.tensor([part], dtype=torch.bool).view(1, -1)
        rows, kept = rows.keep(x, -x, mask)
        assert int(kept.sum()) == len(wanted[:size]) - len(wanted[:before][:size])
    expected = (wanted[:size] + [0.0] * size)[:size]
    assert rows.x.flatten().tolist() == expected
    assert rows.y.flatten().tolist() == [-value for value in expected]
    assert rows.filled.tolist() == [[value > 0 for value in expected]]
    assert not rows.without(torch.tensor([True])).x.any()


def test_scalings_that_differ_say_where_and_by_how_much():
    def scaling(location, scale_x):
        found = Scale(("a",), (location,), (scale_x,), (0.0,), (1.0,))
        return Scaling.known(found, 1, 2, torch.device("cpu"))

    scaling(1.0, 2.0).check_equal(scaling(1.0, 2.0))  # the second input is NaN in both
    with pytest.raises(ValueError, match=r"location_x\[0\] is 1 in one .* 1\.5 in the other, 0\.5"):
        scaling(1.0, 2.0).check_equal(scaling(1.5, 2.0))
    with pytest.raises(ValueError, match=r"scale_x\[0\]"):
        scaling(1.0, 2.0).check_equal(scaling(1.0, float("nan")))


def test_a_scaling_whose_parts_do_not_fit_cannot_be_read():
    one, two = torch.ones(1, 1), torch.ones(1, 2)
    with pytest.raises(StateFormatError, match="they must agree"):
        State.deserialize(Scaling(one, two, one.clone(), one.clone()).serialize())


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"names": "a", "location_x": [0], "scale_x": [1], "location_y": [0], "scale_y": [1]}',
        '{"names": ["a"], "location_x": 0, "scale_x": [1], "location_y": [0], "scale_y": [1]}',
        '{"names": ["a"], "location_x": ["0"], "scale_x": [1], "location_y": [0], "scale_y": [1]}',
        '{"names": ["a"], "location_x": [0], "scale_x": [0], "location_y": [0], "scale_y": [1]}',
        '{"names": ["a"], "location_x": [0, 1], "scale_x": [1], "location_y": [0], "scale_y": [1]}',
        '{"names": [], "location_x": [], "scale_x": [], "location_y": [null], "scale_y": [1]}',
        '{"names": [], "location_x": [], "scale_x": [], "location_y": [], "scale_y": []}',
        "not json",
    ],
)
def test_a_scale_that_cannot_scale_is_refused(text):
    with pytest.raises(ValueError, match=r"scale|Expecting"):
        Scale.from_json(text)


def test_a_scale_survives_json_with_ignored_inputs():
    scale = Scale(("a", "b"), (1.5, 0.0), (2.0, float("nan")), (3.0,), (4.0,))
    back = Scale.from_json(scale.to_json())
    assert back.to_json() == scale.to_json()
    assert "null" in scale.to_json()
