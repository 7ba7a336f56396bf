import math

import pytest
import torch
from scipy import stats

from synopsis.tasks.random_functions import FUNCTIONS
from synopsis.tasks.random_inputs import LAGS, PHASES, Role, is_among
from synopsis.tasks.random_noise import NOISES
from synopsis.tasks.regression_prior import INPUT_WEIGHTS, Recipe, RegressionPrior
from synopsis.tasks.warmup import LARGEST
from tests.tolerances import DRIFT_ROUNDING, FLOAT32, UNLIKELY


def _rows(batch):
    return torch.cat([batch.xc, batch.xt], 1), torch.cat([batch.yc, batch.yt], 1)


@pytest.fixture(scope="module")
def drawn():
    """200 batches of the default prior with their recipes."""
    prior, generator = RegressionPrior(), torch.Generator().manual_seed(11)
    return [prior.sample_with_recipe(16, generator) for _ in range(200)]


@pytest.fixture(scope="module")
def recipe():
    """Recipes of 20,000 tasks."""
    return RegressionPrior()._recipe(torch.Generator().manual_seed(5), 20_000, 100)


def test_everything_is_finite_and_nan_exactly_where_absent(drawn):
    for batch, recipe in drawn:
        x, y = _rows(batch)
        absent = (recipe.roles == Role.ABSENT)[:, None, :]
        assert torch.equal(x.isnan(), absent.expand_as(x))
        assert x.nan_to_num().abs().max() <= LARGEST
        assert y.isfinite().all() and y.abs().max() <= LARGEST
        assert x.dtype == y.dtype == torch.float32


def test_shapes_and_number_of_points(drawn):
    for batch, _ in drawn:
        tasks, context, columns = batch.xc.shape
        assert columns == RegressionPrior().dim_x == 8
        assert batch.yc.shape == (tasks, context, 1)
        assert batch.xt.shape == (tasks, 64, 8) and batch.yt.shape == (tasks, 64, 1)
        assert 0 <= context <= 2000
        assert tasks == min(16, max(4, 8192 // (context + 64)))


def test_context_is_log_uniform_including_none():
    prior, generator = RegressionPrior(targets=1, max_inputs=1), torch.Generator().manual_seed(0)
    sizes = [prior.sample(1, generator).xc.shape[1] for _ in range(1500)]
    assert stats.binomtest(sizes.count(0), 1500, math.log(2) / math.log(2002)).pvalue > UNLIKELY
    # n stands for the interval [log(n + 1), log(n + 2)): a uniform point in it is uniform again.
    inside = torch.rand(1500, generator=generator, dtype=torch.float64)
    sizes = torch.tensor(sizes, dtype=torch.float64)
    logs = (sizes + 1).log() + inside * ((sizes + 2) / (sizes + 1)).log()
    assert stats.kstest(logs / math.log(2002), "uniform").pvalue > UNLIKELY


def test_a_seed_gives_the_same_batches_and_another_does_not():
    first, again, other = (
        RegressionPrior(max_context=50).sample(5, torch.Generator().manual_seed(seed))
        for seed in (4, 4, 5)
    )
    assert torch.equal(first.xt.nan_to_num(), again.xt.nan_to_num())
    assert torch.equal(first.yc, again.yc) and torch.equal(first.yt, again.yt)
    assert not torch.equal(first.yt, other.yt)


def test_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    RegressionPrior().sample(8, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_first_rows_are_standardised(drawn):
    checked = 0
    for batch, recipe in drawn:
        x, y = (values.double() for values in _rows(batch))
        for task, rows in enumerate(recipe.warmup.tolist()):
            scaled = ~is_among(recipe.roles[task], (Role.ABSENT, *PHASES, *LAGS))
            first = torch.cat([x[task, :rows, scaled], y[task, :rows]], -1)
            assert first.mean(0).abs().max() < DRIFT_ROUNDING
            deviation = first.std(0, correction=0)
            # Below one only where the scale is floored, or the column was constant so far.
            whole = torch.cat([x[task][:, scaled], y[task]], -1).std(0, correction=0)
            free = (deviation > 0) & (whole < 49)
            assert (deviation < 1 + DRIFT_ROUNDING).all()
            assert ((deviation[free] - 1).abs() < DRIFT_ROUNDING).all()
            checked += int(free.sum())
    assert checked > 5000


def test_warmup_is_the_context_only_where_it_is_short():
    for context, expected in ((2, {32}), (10, {10, 32}), (32, {32}), (500, {32})):
        recipe = RegressionPrior()._recipe(torch.Generator().manual_seed(0), 100, context)
        assert set(recipe.warmup.tolist()) == expected


def _assert_shares(kinds, weights):
    counts = kinds.bincount(minlength=len(weights)).double()
    total = sum(weights)
    for count, weight in zip(counts.tolist(), weights, strict=True):
        assert stats.binomtest(int(count), len(kinds), weight / total).pvalue > UNLIKELY


def test_shares_of_the_kinds(recipe: Recipe):
    _assert_shares((recipe.roles != Role.ABSENT).sum(-1) - 1, INPUT_WEIGHTS)
    _assert_shares(recipe.function, [weight for weight, _ in FUNCTIONS.values()])
    _assert_shares(recipe.noise, [weight for weight, _ in NOISES.values()])
    _assert_shares(recipe.ordered.long(), [0.6, 0.4])
    _assert_shares(is_among(recipe.roles, LAGS).any(-1).long(), [0.85, 0.15])
    _assert_shares(recipe.drifting.long(), [0.96, 0.04])
    _assert_shares(recipe.afflicted.long(), [0.97, 0.03])
    _assert_shares((recipe.sorted_by >= 0).long(), [0.97, 0.03])
    noise = recipe.noise_sd.numpy()
    assert stats.kstest(noise, stats.loguniform(0.03, 1.0).cdf).pvalue > UNLIKELY


def test_roles_make_sense(recipe: Recipe):
    present = recipe.roles != Role.ABSENT
    assert (present == present.sort(-1, descending=True).values).all()  # the given come first
    timely = is_among(recipe.roles, (Role.WALK, Role.TREND, *PHASES, *LAGS)).any(-1)
    assert torch.equal(timely, recipe.ordered)
    for sine, cosine in (PHASES[:2], PHASES[2:]):
        assert torch.equal((recipe.roles == sine).sum(-1), (recipe.roles == cosine).sum(-1))
    second, first = ((recipe.roles == lag).sum(-1) for lag in reversed(LAGS))
    assert (second <= first).all() and first.max() == 1
    assert (recipe.sorted_by[recipe.ordered] == -1).all()
    inputs = present.sum(-1)
    by_input = (recipe.sorted_by >= 0) & (recipe.sorted_by < 8)
    assert (recipe.sorted_by < inputs)[by_input].all()
    assert by_input.any() and (recipe.sorted_by == 8).any()


def test_lags_are_past_outputs_in_the_units_of_the_output(drawn):
    seen = {Role.LAG_1: 0, Role.LAG_2: 0}
    for batch, recipe in drawn:
        x, y = _rows(batch)
        for role, back in ((Role.LAG_1, 1), (Role.LAG_2, 2)):
            for task, column in (recipe.roles == role).nonzero().tolist():
                torch.testing.assert_close(
                    x[task, back:, column], y[task, :-back, 0], rtol=FLOAT32, atol=FLOAT32
                )
                seen[role] += 1
    assert seen[Role.LAG_1] > 200 and seen[Role.LAG_2] > 50


def test_targets_follow_the_context_unless_held_out():
    prior = RegressionPrior(
        max_inputs=2, ordered_share=1.0, lagged_share=0.0, held_out_share=0.5, max_context=500
    )
    generator, seen = torch.Generator().manual_seed(0), {True: 0, False: 0}
    while min(seen.values()) < 20:
        batch, recipe = prior.sample_with_recipe(16, generator)
        if batch.xc.shape[1] < 30:
            continue
        for task, column in (recipe.roles == Role.TREND).nonzero().tolist():
            before, after = batch.xc[task, :, column], batch.xt[task, :, column]
            rising = before[-1] >= before[0]
            follows = bool(
                (after.min() >= before.max()) if rising else (after.max() <= before.min())
            )
            assert follows != bool(recipe.held_out[task])
            steps = before.diff()
            assert (steps >= 0).all() or (steps <= 0).all()
            seen[follows] += 1


def test_sorted_files_are_sorted_by_their_key():
    prior = RegressionPrior(ordered_share=0.0, lagged_share=0.0, sorted_share=1.0)
    batch, recipe = prior.sample_with_recipe(64, torch.Generator().manual_seed(2))
    x, y = _rows(batch)
    for task, key in enumerate(recipe.sorted_by.tolist()):
        column = y[task, :, 0] if key == 8 else x[task, :, key]
        assert (column.diff() >= 0).all()


def test_functions_explain_what_noise_leaves():
    """With little noise and one input, neighbours in x are neighbours in y."""
    prior = RegressionPrior(
        max_inputs=1,
        ordered_share=0.0,
        lagged_share=0.0,
        sorted_share=0.0,
        outlier_share=0.0,
        noise_range=(0.03, 0.031),
        functions={"linear + gaussian process": 1.0},
    )
    x, y = _rows(prior.sample(32, torch.Generator().manual_seed(6)))
    order = x[..., 0].argsort(-1)
    y = y[..., 0].gather(1, order)
    roughness = y.diff(dim=1).square().mean(-1) / (2 * y.var(-1))
    assert roughness.median() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functions": {"linnear": 1.0}}, "'linnear' is no kind; the kinds are gaussian process,"),
        ({"noises": {"pink": 1.0}}, "'pink' is no kind"),
        ({"max_inputs": 9}, "max_inputs is 9 but must lie in 1 … 8"),
        ({"targets": 0}, "are 2000, 0, 32 but must be at least 0, 1, 1"),
    ],
)
def test_impossible_priors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RegressionPrior(**changes)


def test_small_priors_work():
    prior = RegressionPrior(max_inputs=1, max_context=0, targets=1, warmup=1)
    batch = prior.sample(3, torch.Generator().manual_seed(0))
    assert batch.xc.shape == (3, 0, 1) and batch.yt.shape == (3, 1, 1)
    assert batch.yt.isfinite().all()
