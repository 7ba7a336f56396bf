"""AnchoredCMANP: where it starts, what it does with inputs that are not given, and both its memories."""

from dataclasses import replace

import pytest
import torch

from synopsis.memory import CMABState
from synopsis.processes import AnchoredCMANP, AnchoredState, BayesianLinear
from synopsis.states import State, StateFormatError
from tests.reference import enliven
from tests.tolerances import FLOAT32, PREDICTION, STATE

SMALL = {"dim": 16, "heads": 2, "blocks": 2, "latents": 6}
NAN = float("nan")


def small(dim_x: int = 3, **options) -> AnchoredCMANP:
    return enliven(AnchoredCMANP(dim_x, **SMALL | options)).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(length: int, streams: int = 1, seed: int = 0):
    x = draw(streams, length, 3, seed=seed)
    return x, (2 * x[..., :1]).sin() + 0.1 * draw(streams, length, 1, seed=seed + 1)


def same(found, expected, tolerance=10 * PREDICTION):
    for name in ("mean", "stddev"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance
        )


def test_with_a_silent_network_it_is_the_regression():
    process, (x, y), xt = small(), points(40), draw(1, 6, 3, seed=9)
    with torch.no_grad():
        process.head.predict.weight.zero_()
        process.head.predict.bias.zero_()
    anchor = process.regression.experts(
        process.update(process.init(), x, y).regression, xt
    ).moments()
    found = process(x, y, xt)
    torch.testing.assert_close(found.mean, anchor.mean, rtol=FLOAT32, atol=FLOAT32)
    stretch = (
        1.0 + process.head.floor
    )  # every component is N(0, (1 + floor)²) in units of the anchor
    torch.testing.assert_close(found.stddev, stretch * anchor.stddev, rtol=FLOAT32, atol=FLOAT32)


def test_before_training_it_is_near_the_regression_already():
    torch.manual_seed(0)
    process, (x, y), (xt, yt) = AnchoredCMANP(3, **SMALL).eval(), points(300), points(50, seed=5)
    predicted, line = process(x, y, xt), BayesianLinear(3)(x, y, xt)
    error, of_a_line = ((p.mean - yt).square().mean() for p in (predicted, line))
    assert error < 0.5 * of_a_line
    assert predicted.log_prob(yt).mean() > line.log_prob(yt).mean() - 0.2


@pytest.mark.parametrize("training", [False, True])
def test_an_input_never_given_is_no_input(training):
    """What an input would have said cannot matter when it is NaN everywhere."""
    process, (x, y), xt = small().train(training), points(30), draw(1, 5, 3, seed=9)
    given = [x.clone(), xt.clone()]
    for each in given:
        each[..., 1] = NAN
    predicted = process(given[0], y, given[1])
    assert predicted.mean.isfinite().all() and predicted.stddev.isfinite().all()
    loss = -predicted.log_prob(torch.zeros(1, 5, 1)).mean()
    if training:
        loss.backward()
        assert all(w.grad is None or bool(w.grad.isfinite().all()) for w in process.parameters())
    other = process(x, y, xt)
    assert (predicted.mean - other.mean).abs().max() > 0.01
    nothing = process(torch.full_like(x, NAN), y, torch.full_like(xt, NAN))
    assert nothing.mean.isfinite().all()
    spread = (nothing.mean - nothing.mean[:, :1]).abs().max()
    assert spread <= PREDICTION * (
        1 + nothing.mean.abs().max()
    )  # targets that say nothing are all alike


def test_values_of_any_size_give_finite_answers():
    process, (x, y), xt = small(), points(30), draw(1, 5, 3, seed=9)
    for size in (1e-6, 1e3, 1e8):
        predicted = process(x * size, y * size, xt * size)
        assert predicted.mean.isfinite().all() and predicted.stddev.isfinite().all()
        assert (predicted.stddev > 0).all()


def test_one_by_one_with_padding_and_in_any_order_is_all_at_once():
    process, (x, y), xt = small(), points(40), draw(1, 5, 3, seed=9)
    x[:, ::3, 2] = NAN
    expected = process(x, y, xt)
    state = process.init()
    for i in torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist():
        x_, y_ = (torch.cat([v[:, i : i + 1], torch.full_like(v[:, :1], NAN)], 1) for v in (x, y))
        state = process.update(state, x_, y_, torch.tensor([[True, False]]))
    same(process.predict(state, xt), expected)
    assert state.count.tolist() == [40]


def test_training_mode_predicts_as_evaluation_mode():
    process, (x, y), xt = small(), points(40, streams=2), draw(2, 5, 3, seed=9)
    mask = torch.arange(40) < torch.tensor([[40], [11]])
    for seen in (None, mask):
        same(process.train()(x, y, xt, seen), process.eval()(x, y, xt, seen))


def test_merged_parts_are_the_whole():
    process, (x, y), xt = small(), points(60, streams=2), draw(2, 5, 3, seed=9)
    a, b = (
        process.update(process.init((2,)), x[:, part], y[:, part])
        for part in (slice(0, 25), slice(25, None))
    )
    merged, whole = process.merge(b, a), process.update(process.init((2,)), x, y)
    same(process.predict(merged, xt), process.predict(whole, xt))
    torch.testing.assert_close(
        merged.blocks.summary.output, whole.blocks.summary.output, rtol=STATE, atol=STATE
    )
    assert merged.count.tolist() == merged.regression.count.tolist() == [60, 60]


def test_states_of_another_process_are_refused():
    mine, other, (x, y) = small(), small(blocks=1), points(3)
    state = mine.update(mine.init(), x, y)
    for action in (
        lambda: other.update(state, x, y),
        lambda: other.predict(state, x),
        lambda: other.merge(state, state),
        lambda: mine.merge(state, other.init()),
    ):
        with pytest.raises(ValueError, match="made by process"):
            action()


def test_one_output_only():
    with pytest.raises(ValueError, match="predicts one output, not 2"):
        AnchoredCMANP(2, **SMALL, dim_y=2)


@pytest.mark.parametrize("what", ["streams", "kind"])
def test_memories_that_do_not_fit_each_other_cannot_be_read(what):
    process = small()
    good = process.init((2,))
    wrong = process.init((3,)).regression if what == "streams" else process.init((2,)).blocks
    assert isinstance(wrong, CMABState) == (what == "kind")
    with pytest.raises(StateFormatError):
        State.deserialize(replace(good, regression=wrong).serialize())


def test_a_state_goes_through_the_disk():
    process, (x, y) = small(), points(30)
    state = process.update(process.init(), x, y)
    again = AnchoredState.deserialize(state.serialize())
    assert again.serialize() == state.serialize()
    assert torch.equal(process.predict(again, x).mean, process.predict(state, x).mean)
