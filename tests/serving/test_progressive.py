import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.calibration import RunningScores
from synopsis.processes.baselines import LastValue, RunningMean
from synopsis.processes.heads import Gaussian
from synopsis.serving.forecasts import Forecast
from synopsis.serving.progressive import Method, Outcome, Progressive
from synopsis.serving.tally import Tally
from tests.tolerances import FLOAT64

NAN = math.nan
OUTCOMES = [3.0, 1.0, 4.0, 1.5, NAN, 9.0, 2.0, 6.0, 5.0, 3.5, 8.0]


def progressive(horizon: int = 1, unscored: int = 0, **left: Any) -> Progressive:
    methods = [Method("last", LastValue()), Method("mean", RunningMean())]
    return Progressive(methods, horizon, unscored, **left)


def run(on: Progressive, outcomes: list[float], first: int = 0) -> list[Outcome]:
    found = []
    for i, y in enumerate(outcomes, first):
        found += on.take((float(i),), y, line=i + 2)
    return found


def essence(outcomes: list[Outcome]) -> list[tuple[int, int, Forecast]]:
    return [(o.row.number, o.row.line, o.forecast) for o in outcomes]


def test_every_row_is_predicted_before_it_is_learned_from() -> None:
    found = run(progressive(), OUTCOMES[:4])
    assert [o.forecast.mean for o in found] == [0.0, 3.0, 1.0, 4.0]
    assert [o.seen for o in found] == [0, 1, 2, 3]
    assert [o.row.line for o in found] == [2, 3, 4, 5]


@pytest.mark.parametrize("horizon", [2, 3])
def test_a_block_is_predicted_from_what_was_known_before_it(horizon: int) -> None:
    found = run(progressive(horizon), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    expected = [float(i // horizon * horizon) for i in range(6)]
    assert [o.forecast.mean for o in found] == expected


def test_scoring_begins_after_the_warm_up_on_the_same_rows_for_all() -> None:
    on = progressive(unscored=3)
    run(on, OUTCOMES)
    assert {int(scores.count) for scores in on.scores().values()} == {len(OUTCOMES) - 3 - 1}
    assert on.absorbed == len(OUTCOMES) - 1


def test_scores_are_those_of_the_forecasts() -> None:
    on = progressive(unscored=2)
    found = [o for o in run(on, OUTCOMES) if o.seen >= 2 and not math.isnan(o.row.y)]
    summary = on.scores()["last"].summary()
    errors = [abs(o.forecast.mean - o.row.y) for o in found]
    densities = [o.forecast.log_prob(o.row.y) for o in found]
    assert summary["mae"] == pytest.approx(sum(errors) / len(errors), rel=FLOAT64)
    assert summary["nll"] == pytest.approx(-sum(densities) / len(densities), rel=FLOAT64)


def test_a_missing_outcome_is_predicted_and_not_learned() -> None:
    on = progressive()
    found = run(on, [3.0, NAN, 5.0])
    assert [o.forecast.mean for o in found] == [0.0, 3.0, 3.0]
    assert on.absorbed == 2
    assert on.rows == 3


def test_a_skipped_row_takes_its_place_in_the_block() -> None:
    on = progressive(horizon=2)
    assert on.take((0.0,), 1.0, line=2) == []
    (outcome,) = on.skip()
    assert outcome.row.number == 1
    assert on.begun == 0
    assert on.rows == 2
    assert on.skip() == []
    assert on.skip() == []


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.lists(st.integers(0, len(OUTCOMES)), max_size=4))
def test_stopping_anywhere_leaves_no_trace(horizon: int, stops: list[int]) -> None:
    whole = progressive(horizon, unscored=2)
    expected = [*run(whole, OUTCOMES), *whole.flush()]
    on, found = progressive(horizon, unscored=2), []
    for start, stop in pairwise([0, *sorted(stops), len(OUTCOMES)]):
        found += [*run(on, OUTCOMES[start:stop], start), *on.flush()]
        methods = [Method(m.name, m.process, m.state, m.tally.scores) for m in on.methods]
        on = Progressive(methods, horizon, 2, on.rows, on.begun, on.waiting)
    assert essence(found) == essence(expected)
    for name, scores in whole.scores().items():
        assert torch.equal(scores.sums, on.scores()[name].sums)
        assert torch.equal(scores.pit, on.scores()[name].pit)


def test_flush_twice_scores_once() -> None:
    on = progressive(horizon=3)
    run(on, [1.0, 2.0])
    assert len(on.flush()) == 2
    assert on.flush() == []
    assert int(on.scores()["last"].count) == 2
    on.absorb_waiting()
    assert (on.absorbed, on.begun, on.waiting) == (2, 0, ())


class Broken(LastValue):
    """Answers with NaN after its third value."""

    def predict(self, state: Any, xt: torch.Tensor) -> Gaussian:
        predicted = super().predict(state, xt)
        spoiled = torch.where(state.count > 2, math.nan, 1.0).double()
        return Gaussian(predicted.mean * spoiled, predicted.stddev)


def test_a_forecast_that_is_none_ends_the_stream_before_the_row() -> None:
    methods = [Method("mean", RunningMean()), Method("broken", Broken())]
    on = Progressive(methods, horizon=1, unscored=0)
    run(on, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="broken: a forecast has mean nan"):
        on.take((0.0,), 4.0, line=5)
    assert (on.rows, on.begun, on.waiting, on.absorbed) == (3, 0, (), 3)
    assert {int(scores.count) for scores in on.scores().values()} == {3}


def test_horizon_must_be_positive() -> None:
    with pytest.raises(ValueError, match="the horizon is 0; it must be at least 1"):
        progressive(horizon=0)


def test_tally_agrees_with_running_scores() -> None:
    tally, scores = Tally.of(RunningScores.empty()), RunningScores.empty()
    for i, y in enumerate([0.0, 1.5, -7.0, 3.25]):
        forecast = Forecast((1.0,), (0.5 * i,), (1.0 + i,))
        tally = tally.add(forecast, y)
        numbers = (forecast.mean, forecast.stddev, forecast.log_prob(y), forecast.crps(y))
        parts = [torch.tensor([n], dtype=torch.float64) for n in (*numbers, forecast.cdf(y), y)]
        scores = scores.add(*parts)
    assert torch.allclose(tally.scores.sums, scores.sums, rtol=FLOAT64, atol=0)
    assert torch.equal(tally.scores.pit, scores.pit)
    assert int(tally.scores.count) == 4
    assert Tally.of(tally.scores) == tally
