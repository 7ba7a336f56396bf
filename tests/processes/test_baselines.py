"""The baselines against numpy and scipy, and the laws of their states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.processes.base import Process, build
from synopsis.processes.baselines import LastValue, RunningMean
from synopsis.states import State, StateFormatError
from tests.tolerances import FLOAT32, FLOAT64

BOTH = pytest.mark.parametrize("process", [LastValue(), RunningMean()], ids=["last", "mean"])
PARTS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
NOWHERE = torch.zeros(1, 1, 1)


def values(count: int, streams: int = 1, dim_y: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 50 + 3 * torch.randn(streams, count, dim_y, generator=generator, dtype=torch.float64)


def absorb(process: Process, y: torch.Tensor, state=None, mask=None):
    state = process.init((len(y),)) if state is None else state
    return process.update(state, torch.zeros(*y.shape[:2], 3), y, mask)


def assert_same(a: State, b: State) -> None:
    assert torch.equal(a.count, b.count)
    for name in ("mean", "squares", "first", "last"):
        if hasattr(a, name):
            torch.testing.assert_close(
                getattr(a, name), getattr(b, name), rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
            )


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_running_mean_is_numpys_mean_and_widened_std(count):
    process, y = RunningMean(dim_y=2), values(count, dim_y=2)
    predicted = process.predict(absorb(process, y), torch.zeros(1, 5, 1))
    k = count - 1
    expected = y[0].numpy().std(0) * (1 + 2 * (1 / k + 2 / k**3))
    assert predicted.mean.shape == (1, 5, 2)
    np.testing.assert_allclose(predicted.mean[0, 3], y[0].numpy().mean(0), rtol=1e3 * FLOAT64)
    np.testing.assert_allclose(predicted.stddev[0, 3], expected, rtol=1e3 * FLOAT64)


@pytest.mark.parametrize("count", [2, 3, 10, 1000])
def test_last_value_is_the_last_and_the_widened_size_of_its_errors(count):
    process, y = LastValue(), values(count)
    predicted = process.predict(absorb(process, y), NOWHERE)
    errors = np.diff(y[0, :, 0].numpy())
    k = count - 1
    expected = np.sqrt((errors**2).mean()) * (1 + 1 / k + 2 / k**3)
    assert predicted.mean.item() == y[0, -1, 0].item()
    np.testing.assert_allclose(predicted.stddev.item(), expected, rtol=1e3 * FLOAT64)


@BOTH
def test_before_any_data_a_broad_gaussian_and_after_one_value_its_size(process):
    predicted = process.predict(process.init(), NOWHERE)
    assert (predicted.mean.item(), predicted.stddev.item()) == (0.0, 100.0)
    predicted = process.predict(absorb(process, torch.tensor([[[-7.0]]])), NOWHERE)
    assert (predicted.mean.item(), predicted.stddev.item()) == (-7.0, 7.0)
    predicted = process.predict(absorb(process, torch.tensor([[[0.1]]])), NOWHERE)
    assert predicted.stddev.item() == 1.0


@BOTH
def test_a_constant_stream_keeps_a_finite_density(process):
    state = absorb(process, torch.full((1, 100, 1), 5.0))
    predicted = process.predict(state, NOWHERE)
    assert predicted.stddev.item() > 0
    assert torch.isfinite(predicted.log_prob(torch.full((1, 1, 1), 5.0).double())).all()


@BOTH
@settings(max_examples=25, deadline=None)
@given(parts=PARTS)
def test_any_split_equals_one_update(process, parts):
    y = values(sum(parts))
    state = process.init()
    for piece in y.split(parts, dim=1):
        state = absorb(process, piece, state)
    assert_same(state, absorb(process, y))


@BOTH
@settings(max_examples=25, deadline=None)
@given(a=st.integers(0, 9), b=st.integers(0, 9), c=st.integers(0, 9))
def test_merge_is_one_pass_over_all_and_associates(process, a, b, c):
    y = values(a + b + c)
    parts = [absorb(process, piece) for piece in y.split([a, b, c], dim=1)]
    left = process.merge(process.merge(parts[0], parts[1]), parts[2])
    right = process.merge(parts[0], process.merge(parts[1], parts[2]))
    assert_same(left, absorb(process, y))
    assert_same(right, left)


def test_running_mean_merges_in_any_order_and_last_value_does_not():
    y = values(20)
    for process, commutes in ((RunningMean(), True), (LastValue(), False)):
        a, b = absorb(process, y[:, :8]), absorb(process, y[:, 8:])
        means = [
            process.predict(s, NOWHERE).mean for s in (process.merge(a, b), process.merge(b, a))
        ]
        assert torch.allclose(*means, rtol=1e3 * FLOAT64) is commutes
        assert process.merges == ("any order" if commutes else "in order")


@BOTH
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12))
def test_masked_points_do_not_exist(process, seed, count):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, count, generator=generator) < 0.5
    y = values(count, streams=3, seed=seed)
    dirty = y.masked_fill(~mask.unsqueeze(-1), torch.nan)
    together = absorb(process, dirty, mask=mask)
    for stream in range(3):
        alone = absorb(process, y[stream : stream + 1, mask[stream]])
        chosen = replace(
            together,
            **{
                name: getattr(together, name)[stream : stream + 1]
                for name in ("count", "mean", "squares", "first", "last")
                if hasattr(together, name)
            },
        )
        assert_same(chosen, alone)


def test_moments_survive_a_large_offset():
    process, y = RunningMean(), 1e9 + values(5000)
    state = process.init()
    for piece in y.split(100, dim=1):
        state = absorb(process, piece, state)
    found = process.predict(state, NOWHERE).stddev.item()
    expected = y.numpy().std() * (1 + 2 * (1 / 4999 + 2 / 4999**3))
    assert found == pytest.approx(
        expected, rel=FLOAT32 / 10
    )  # Σy² − n·mean² would have lost every digit


@BOTH
def test_state_keeps_its_size_and_survives_the_disk(process):
    small, large = absorb(process, values(1)), absorb(process, values(10_000))
    assert small.nbytes == large.nbytes
    back = State.deserialize(large.serialize())
    again = absorb(process, values(50, seed=1), back)
    assert_same(again, absorb(process, values(50, seed=1), large))
    assert process.predict(back, NOWHERE).mean == process.predict(large, NOWHERE).mean


@BOTH
def test_a_state_of_another_process_is_refused(process):
    other = type(process)(broad=1.0)
    with pytest.raises(ValueError, match=other.fingerprint):
        process.merge(process.init(), other.init())
    with pytest.raises(ValueError, match="not by this one"):
        process.predict(other.init(), NOWHERE)
    with pytest.raises(ValueError, match="streams; they must agree"):
        process.merge(process.init((2,)), process.init((3,)))
    with pytest.raises(ValueError, match="y must be"):
        process.update(process.init(), torch.zeros(1, 4, 1), torch.zeros(1, 3, 1))


@BOTH
def test_a_state_whose_parts_do_not_fit_cannot_be_read(process):
    state = absorb(process, values(3))
    broken = replace(state, squares=torch.zeros(2, 1, dtype=torch.float64))
    with pytest.raises(StateFormatError, match="do not go with"):
        State.deserialize(broken.serialize())


@BOTH
def test_it_is_rebuilt_from_its_configuration(process):
    config = {"process": type(process).__name__, "arguments": process.config}
    assert build(config).fingerprint == process.fingerprint
