"""A process in the user's units: against naive numpy, across the warm-up, and on the disk."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.processes import CMANP, AnchoredCMANP, BayesianLinear, build
from synopsis.processes.baselines import LastValue
from synopsis.processes.scaling import Scale
from synopsis.processes.standardized import Standardized, StandardizedState
from synopsis.states import State, StateFormatError
from tests.tolerances import FLOAT32, FLOAT64, PREDICTION, STATE

WARMUP = 6
EXACT = 1e5 * FLOAT64  # a Cholesky solve of well-scaled sums loses a few digits
SIZES = {"dim": 16, "heads": 2, "blocks": 2, "latents": 8}


def stream(count: int, dim_x: int = 2, streams: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    x = 400 + 7 * torch.randn(streams, count, dim_x, **options)
    noise = torch.randn(streams, count, 1, **options)
    return x, -2000 + 3 * x.sum(-1, keepdim=True) + 0.5 * noise


def linear(dim_x: int = 2, **options) -> Standardized:
    return Standardized(BayesianLinear(dim_x=dim_x), **{"warmup": WARMUP, **options}).eval()


def anchored(dim_x: int = 2, **options) -> Standardized:
    torch.manual_seed(0)
    inner = AnchoredCMANP(dim_x=dim_x, **SIZES).eval()
    return Standardized(inner, **{"warmup": WARMUP, **options})


def absorb(process, x, y, state=None, mask=None) -> StandardizedState:
    return process.update(process.init((len(x),)) if state is None else state, x, y, mask)


def naive(x, y, xt, rows: int):
    """Standardise with numpy by the first rows, run the wrapped process, go back."""
    x, y, xt = x[0].numpy(), y[0].numpy(), xt[0].numpy()
    mx, sx, my, sy = x[:rows].mean(0), x[:rows].std(0), y[:rows].mean(0), y[:rows].std(0)
    if rows < WARMUP:
        k = rows - 1
        sy = sy * (1 + 2 * (1 / k + 2 / k**3))
    scaled = (torch.from_numpy(v)[None] for v in ((x - mx) / sx, (y - my) / sy, (xt - mx) / sx))
    predicted = BayesianLinear(dim_x=x.shape[1])(*scaled)
    return my + sy * predicted.mean[0].numpy(), sy * predicted.stddev[0].numpy()


@pytest.mark.parametrize("count", [2, 3, WARMUP - 1, WARMUP, WARMUP + 1, 100])
def test_equals_naive_standardisation(count):
    process, (x, y), (xt, _) = linear(), stream(count), stream(4, seed=1)
    predicted = process.predict(absorb(process, x, y), xt)
    mean, stddev = naive(x, y, xt, min(count, WARMUP))
    np.testing.assert_allclose(predicted.mean[0], mean, rtol=EXACT)
    np.testing.assert_allclose(predicted.stddev[0], stddev, rtol=EXACT)


def test_before_any_data_and_after_one_row_or_equal_ones():
    process, x = linear(), torch.zeros(1, 1, 2)
    spread = BayesianLinear(2).predict(BayesianLinear(2).init(), x.double()).stddev.item()
    predicted = process.predict(process.init(), x)
    assert predicted.mean.item() == 0
    assert predicted.stddev.item() == pytest.approx(100 * spread)
    for count in (1, 3):
        inner = BayesianLinear(2)
        expected = inner(
            torch.zeros(1, count, 2), torch.zeros(1, count, 1), torch.zeros(1, 1, 2)
        ).stddev.item()
        for value, scale in ((-70.0, 70.0), (0.2, 1.0)):
            y = torch.full((1, count, 1), value, dtype=torch.float64)
            found = process.predict(absorb(process, 5 + x.expand(1, count, 2), y), 5 + x)
            assert found.mean.item() == pytest.approx(value)
            assert found.stddev.item() == pytest.approx(scale * expected)


def test_a_constant_column_has_scale_one():
    process, (x, _) = linear(), stream(WARMUP)
    x = torch.cat([torch.full_like(x[..., :1], 0.1), x[..., 1:]], dim=-1)
    state = absorb(process, x, torch.full((1, WARMUP, 1), 1 / 3))
    scale = process.scale(state, ("constant", "other"))
    assert scale.scale_x[0] == 1.0
    assert scale.scale_y == (1.0,)
    assert scale.scale_x[1] == pytest.approx(x[0, :, 1].numpy().std())


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_any_split_equals_one_update(parts):
    process, (x, y) = linear(), stream(sum(parts))
    state = process.init()
    for px, py in zip(x.split(parts, dim=1), y.split(parts, dim=1), strict=True):
        state = absorb(process, px, py, state)
    whole = absorb(process, x, y)
    assert torch.equal(state.count, whole.count)
    assert torch.equal(state.scaling.scale_y, whole.scaling.scale_y)
    assert torch.equal(state.rows.x, whole.rows.x)
    xt, _ = stream(3, seed=1)
    found, expected = process.predict(state, xt), process.predict(whole, xt)
    torch.testing.assert_close(found.mean, expected.mean, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(found.stddev, expected.stddev, rtol=EXACT, atol=EXACT)


def test_row_by_row_equals_one_update_for_a_network_too():
    process, (x, y) = anchored(), stream(20)
    state = process.init()
    for i in range(20):
        state = absorb(process, x[:, i : i + 1], y[:, i : i + 1], state)
    whole = absorb(process, x, y)
    mine, theirs = (s.inner.blocks.summary.output for s in (state, whole))
    torch.testing.assert_close(mine, theirs, rtol=STATE, atol=STATE)
    found, expected = (process.predict(s, x).mean for s in (state, whole))
    torch.testing.assert_close(found, expected, rtol=PREDICTION, atol=0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), first=st.integers(0, 15), second=st.integers(0, 15))
def test_streams_at_different_rows_are_independent(seed, first, second):
    process, (x, y) = linear(), stream(first + second, streams=3, seed=seed)
    mask = torch.rand(3, first + second, generator=torch.Generator().manual_seed(seed)) < 0.6
    dirty_x, dirty_y = (v.masked_fill(~mask.unsqueeze(-1), torch.nan) for v in (x, y))
    state, xt = process.init((3,)), stream(2, streams=3, seed=1)[0]
    for piece in (slice(0, first), slice(first, None)):
        state = absorb(process, dirty_x[:, piece], dirty_y[:, piece], state, mask[:, piece])
    together = process.predict(state, xt)
    for i in range(3):
        alone = absorb(process, x[i : i + 1, mask[i]], y[i : i + 1, mask[i]])
        assert int(state.count[i]) == int(alone.count) == int(mask[i].sum())
        expected = process.predict(alone, xt[i : i + 1])
        torch.testing.assert_close(together.mean[i : i + 1], expected.mean, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(
            together.stddev[i : i + 1], expected.stddev, rtol=EXACT, atol=EXACT
        )


@pytest.mark.parametrize("count", [3, WARMUP, 50])
@pytest.mark.parametrize(("factor", "offset"), [(1000.0, 0.0), (0.01, -7.0), (1.0, 1e5)])
def test_predictions_follow_the_units(count, factor, offset):
    process, (x, y), (xt, _) = linear(), stream(count), stream(4, seed=1)
    plain = process.predict(absorb(process, x, y), xt)
    in_y = process.predict(absorb(process, x, factor * y + offset), xt)
    in_x = process.predict(absorb(process, factor * x + offset, y), factor * xt + offset)
    lost = 1e-8  # digits that the offset itself takes from float64
    torch.testing.assert_close(in_y.mean, factor * plain.mean + offset, rtol=lost, atol=lost)
    torch.testing.assert_close(in_y.stddev, factor * plain.stddev, rtol=lost, atol=lost)
    torch.testing.assert_close(in_x.mean, plain.mean, rtol=lost, atol=lost)
    torch.testing.assert_close(in_x.stddev, plain.stddev, rtol=lost, atol=lost)


def test_phases_stay_and_lags_follow_y():
    process = linear(3, kinds=("number", "phase", "lag"))
    x, y = stream(WARMUP, dim_x=3)
    x[..., 1] = x[..., 1].sin()
    scale = process.scale(absorb(process, x, y), ("a", "b", "c"))
    assert (scale.location_x[1], scale.scale_x[1]) == (0.0, 1.0)
    assert (scale.location_x[2], scale.scale_x[2]) == (scale.location_y[0], scale.scale_y[0])
    assert scale.location_x[0] == pytest.approx(x[0, :, 0].mean().item())
    given = process.init(scale=Scale(("a", "b", "c"), (1, 2, 3), (4, 5, 6), (7,), (8,)))
    assert given.scaling.location_x.tolist() == [[1, 0, 7]]
    assert given.scaling.scale_x.tolist() == [[4, 1, 8]]


def test_fewer_inputs_are_not_given_and_more_are_refused():
    process, (x, y) = anchored(4), stream(20, dim_x=3)
    narrow = process.predict(absorb(process, x, y), x).mean
    padded = torch.cat([x, torch.full_like(x[..., :1], torch.nan)], dim=-1)
    assert torch.equal(narrow, process.predict(absorb(process, padded, y), padded).mean)
    with pytest.raises(ValueError, match=r"at most 4 inputs\), not \(1, 20, 5\)"):
        absorb(process, *stream(20, dim_x=5))
    with pytest.raises(ValueError, match="x has 2 inputs but 3 kinds were given"):
        absorb(anchored(4, kinds=["number"] * 3), *stream(20, dim_x=2))
    needs_all = Standardized(CMANP(dim_x=2, **SIZES).eval(), WARMUP)
    with pytest.raises(ValueError, match="x has 1 inputs but the process needs all 2"):
        absorb(needs_all, *stream(20, dim_x=1))
    x, y = stream(20)
    x[0, 3, 1] = torch.nan
    with pytest.raises(ValueError, match="x holds nan in column 1 of point 3, stream 0"):
        absorb(needs_all, x, y)


def test_an_input_never_given_in_the_warmup_is_ignored_from_then_on():
    process, (x, y) = anchored(), stream(20)
    x[:, :WARMUP, 1] = torch.nan
    state, xt = absorb(process, x[:, :WARMUP], y[:, :WARMUP]), stream(3, seed=1)[0]
    wild = xt * torch.tensor([1.0, 1e6])
    assert torch.equal(process.predict(state, xt).mean, process.predict(state, wild).mean)
    assert torch.isfinite(process.predict(absorb(process, x, y), wild).mean).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_values_that_would_poison_the_state_are_refused(value):
    process, (x, y) = linear(), stream(5)
    y[0, 2] = value
    with pytest.raises(ValueError, match=r"y holds -?inf in column 0 of point 2, stream 0"):
        absorb(process, x, y)
    x, y = stream(5)
    x[0, 1, 1] = torch.inf
    with pytest.raises(ValueError, match="x holds inf in column 1 of point 1"):
        absorb(process, x, y)
    with pytest.raises(ValueError, match="x holds inf"):
        process.predict(process.init(), x)


def test_the_state_does_not_grow_from_row_1_to_10_000():
    process, (x, y) = linear(), stream(10_000)
    state = process.init()
    size = state.nbytes
    for piece in (slice(0, 1), slice(1, WARMUP), slice(WARMUP, 10_000)):
        state = absorb(process, x[:, piece], y[:, piece], state)
        assert state.nbytes == size
    assert len(state.serialize()) < size + 3000
    assert int(state.count) == 10_000


@pytest.mark.parametrize("make", [linear, anchored])
@pytest.mark.parametrize("count", [0, 3, WARMUP, 20])
def test_the_disk_changes_nothing(make, count):
    process, (x, y) = make(), stream(30)
    state = absorb(process, x[:, :count], y[:, :count])
    back = State.deserialize(state.serialize())
    assert isinstance(back, StandardizedState)
    assert torch.equal(back.count, state.count)
    for part in (slice(0, 0), slice(count, 30)):
        one, other = (absorb(process, x[:, part], y[:, part], s) for s in (state, back))
        assert torch.equal(process.predict(one, x).mean, process.predict(other, x).mean)


def test_parts_that_do_not_fit_cannot_be_read():
    process = linear()
    state = absorb(process, *stream(3))
    for changes in (
        {"fixed": torch.zeros(2, dtype=torch.bool)},
        {"inner": process.process.init((2,))},
        {"rows": type(state.rows)(state.rows.x, state.rows.y, torch.tensor([99]))},
        {"scaling": linear(3).init().scaling},
    ):
        broken = StandardizedState(**{**vars(state), **changes})
        with pytest.raises(StateFormatError):
            State.deserialize(broken.serialize())


@pytest.mark.parametrize("count", [3, 20])
def test_predicting_changes_nothing(count):
    process, (x, y) = anchored(), stream(count)
    state = absorb(process, x, y)
    before, inputs = state.serialize(), x.clone()
    first, second = process.predict(state, x), process.predict(state, x)
    assert state.serialize() == before
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(x, inputs)


def test_updating_leaves_the_old_state_and_the_data_alone():
    process, (x, y) = linear(), stream(20)
    for count in (0, 3, WARMUP):
        state = absorb(process, x[:, :count], y[:, :count])
        before, inputs = state.serialize(), x.clone()
        absorb(process, x, y, state)
        assert state.serialize() == before
        assert torch.equal(x, inputs)


def test_with_a_known_scale_parts_merge_in_any_order():
    process, (x, y) = linear(), stream(40)
    scale = process.scale(absorb(process, x[:, :WARMUP], y[:, :WARMUP]), ("a", "b"))
    known = process.init(scale=Scale.from_json(scale.to_json()))
    assert bool(known.fixed.all())
    whole = process.predict(absorb(process, x, y), x)
    a, b = absorb(process, x[:, :9], y[:, :9], known), absorb(process, x[:, 9:], y[:, 9:], known)
    for state in (process.merge(a, b), process.merge(b, a)):
        assert int(state.count) == 40
        found = process.predict(state, x)
        torch.testing.assert_close(found.mean, whole.mean, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(found.stddev, whole.stddev, rtol=EXACT, atol=EXACT)


def test_merge_refuses_what_is_not_exact_and_says_why():
    process, (x, y) = linear(), stream(40)
    whole, young = absorb(process, x, y), absorb(process, x[:, :3], y[:, :3])
    with pytest.raises(ValueError, match=r"in its warm-up \(3 of 6 rows\)"):
        process.merge(whole, young)
    with pytest.raises(ValueError, match=r"location_y\[0\] is .* 0\.25 apart"):
        process.merge(
            *(
                process.init(scale=Scale((), (), (), (location,), (1.0,)))
                for location in (3.0, 3.25)
            )
        )
    with pytest.raises(ValueError, match="streams; they must agree"):
        process.merge(whole, process.init((2,)))
    assert process.merge(process.init(), young) is young
    assert process.merge(whole, process.init()) is whole
    other = linear(warmup=WARMUP + 1)
    with pytest.raises(ValueError, match=f"{other.fingerprint}, not by this one"):
        process.merge(whole, other.init())
    with pytest.raises(ValueError, match="not by this one"):
        process.predict(other.init(), x)
    with pytest.raises(ValueError, match="not by this one"):
        absorb(process, x, y, other.init())


def test_it_claims_what_the_wrapped_process_claims():
    assert linear().merges == "any order"
    assert Standardized(LastValue()).merges == "in order"


def test_years_in_seconds_keep_their_digits():
    process, (x, y) = linear(1), stream(50, dim_x=1)
    shifted = process.predict(absorb(process, 1.7e9 + x, 1e6 + y), 1.7e9 + x)
    plain = process.predict(absorb(process, x, y), x)
    torch.testing.assert_close(
        shifted.mean, 1e6 + plain.mean, rtol=1e3 * FLOAT64, atol=10 * FLOAT32
    )


def test_a_network_in_float32_answers_in_float64_units():
    process, (x, y) = anchored(), stream(50)
    shifted = process.predict(absorb(process, x, 1e7 + y), x).mean
    plain = process.predict(absorb(process, x, y), x).mean
    torch.testing.assert_close(shifted - 1e7, plain, rtol=0.0, atol=0.01)


def test_it_is_rebuilt_from_its_configuration():
    process, (x, y) = anchored(3, kinds=("number", "phase", "lag")), stream(20, dim_x=3)
    config = {"process": "Standardized", "arguments": process.config}
    again = build(config)
    again.load_state_dict(process.state_dict())
    assert again.fingerprint == process.fingerprint
    assert again.dim_x == 3
    state = absorb(process, x, y)
    assert torch.equal(again.eval().predict(state, x).mean, process.predict(state, x).mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 1}, "at least 2 rows, not 1"),
        ({"kinds": ["number"] * 3}, "there are 3 inputs but the process takes 2"),
        ({"kinds": ["number", "date"]}, "not 'date'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear(**arguments)


def test_more_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="of one output, but there are 2"):
        Standardized(BayesianLinear(1, dim_y=2), kinds=("lag",))
    process, (x, y) = linear(), stream(3)
    with pytest.raises(ValueError, match="one stream past its warm-up; 0 of 1 are"):
        process.scale(absorb(process, x, y), ("a",))
    with pytest.raises(ValueError, match="y must be"):
        absorb(process, x, y[:, :2])
    with pytest.raises(ValueError, match="the scale has 3 inputs and 1 outputs"):
        process.init(scale=Scale(("a", "b", "c"), (0,) * 3, (1,) * 3, (0,), (1,)))
