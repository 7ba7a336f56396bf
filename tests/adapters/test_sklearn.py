"""The scikit-learn adapter: scikit-learn's own checks first, then what it adds."""

import io

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import check_estimator

from synopsis.adapters.sklearn import StreamingRegressor
from synopsis.processes import AnchoredCMANP, BayesianLinear
from synopsis.states import State
from tests.tolerances import PREDICTION

SMALL = {"dim": 16, "heads": 2, "blocks": 2, "latents": 8}
TEN_FEATURES = "the check has 10 features and the process takes 8, which is an error by design"
TOO_WIDE_FOR_8 = {
    "check_dtype_object": TEN_FEATURES,
    "check_regressors_train": TEN_FEATURES,
    "check_regressor_data_not_an_array": TEN_FEATURES,
    "check_regressors_int": TEN_FEATURES,
    "check_fit2d_1sample": TEN_FEATURES,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved processes of 8 and of 10 inputs, as a user names them."""
    torch.manual_seed(0)
    found = {}
    for dim_x in (8, 10):
        found[dim_x] = str(tmp_path_factory.mktemp(f"inputs-{dim_x}"))
        AnchoredCMANP(dim_x=dim_x, **SMALL).save_pretrained(found[dim_x])
    return found


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3)) * [1, 10, 0.1] + [0, 500, 3]
    y = 1000 + 40 * X[:, 0] + X[:, 1] + rng.normal(size=300)
    return X, y


def line(features: int = 3) -> BayesianLinear:
    return BayesianLinear(dim_x=features)


@pytest.mark.parametrize(("dim_x", "expected"), [(10, {}), (8, TOO_WIDE_FOR_8)])
def test_passes_scikit_learns_own_checks(folders, dim_x, expected):
    results = check_estimator(
        StreamingRegressor(folders[dim_x]),
        expected_failed_checks=expected,
        on_fail="raise",
        on_skip=None,
    )
    passed = [r["check_name"] for r in results if r["status"] == "passed"]
    assert len(passed) >= 40
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # only runs where SCIPY_ARRAY_API is set


def test_predicts_what_the_exact_posterior_says(data):
    X, y = data
    weak_prior = BayesianLinear(dim_x=3, precision=1e-3, rate=1e-5)
    model = StreamingRegressor(weak_prior).fit(X, y)
    mean, stddev = model.predict(X, return_std=True)
    reference, spread = BayesianRidge().fit(X, y).predict(X, return_std=True)
    np.testing.assert_allclose(mean, reference, atol=0.01)
    np.testing.assert_allclose(stddev, spread, rtol=0.02)  # the priors differ
    assert np.mean(np.abs(y - mean) < 1.645 * stddev) == pytest.approx(0.9, abs=0.05)


def test_fit_forgets_and_partial_fit_does_not(data):
    X, y = data
    whole = StreamingRegressor(line()).fit(X, y)
    pieces = StreamingRegressor(line())
    for i in range(0, 300, 7):
        pieces.partial_fit(X[i : i + 7], y[i : i + 7])
    np.testing.assert_allclose(pieces.predict(X), whole.predict(X), rtol=PREDICTION)
    assert int(pieces.state_.count) == 300
    other = whole.fit(X[:50], y[:50])
    assert int(other.state_.count) == 50
    again = StreamingRegressor(line()).fit(X[:50], y[:50])
    np.testing.assert_array_equal(other.predict(X), again.predict(X))


def test_chunks_do_not_change_results(data):
    X, y = data
    one, many = (StreamingRegressor(line(), chunk_size=size).fit(X, y) for size in (4096, 11))
    for a, b in zip(one.predict(X, True), many.predict(X, True), strict=True):
        np.testing.assert_allclose(a, b, rtol=PREDICTION)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        StreamingRegressor(line(), chunk_size=0).fit(X, y)


def test_the_state_does_not_grow_and_can_be_saved(data):
    X, y = data
    model = StreamingRegressor(line()).fit(X[:1], y[:1])
    size = model.state_.nbytes
    model.partial_fit(X[1:], y[1:])
    assert model.state_.nbytes == size
    before = model.predict(X)
    model.state_ = State.deserialize(model.state_.serialize())
    np.testing.assert_array_equal(model.predict(X), before)


def test_quantiles_are_ordered_centred_and_checked(data):
    X, y = data
    model = StreamingRegressor(line()).fit(X, y)
    table = model.predict_quantiles(X, (0.05, 0.5, 0.95))
    mean, stddev = model.predict(X, return_std=True)
    assert table.shape == (300, 3)
    np.testing.assert_allclose(table[:, 1], mean)
    np.testing.assert_allclose(table[:, 2], mean + 1.6448536 * stddev)
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        model.predict_quantiles(X, (0.5, 1.5))


def test_samples_follow_the_prediction_and_the_seed(data):
    X, y = data
    model = StreamingRegressor(line(), chunk_size=2, random_state=3).fit(X, y)
    draws = model.sample_y(X[:4], n_samples=4000)
    mean, stddev = model.predict(X[:4], return_std=True)
    np.testing.assert_allclose(draws.mean(1), mean, atol=0.1)
    np.testing.assert_allclose(draws.std(1), stddev, rtol=0.05)
    np.testing.assert_array_equal(draws, model.sample_y(X[:4], n_samples=4000))
    assert not np.array_equal(draws, model.sample_y(X[:4], n_samples=4000, random_state=4))
    before = torch.get_rng_state()
    model.sample_y(X)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_inputs_are_not_given(data, folders):
    X, y = data
    model = StreamingRegressor(folders[8]).fit(X, y)
    narrow = model.predict(np.where([False, True, True], X, np.nan))
    assert np.isfinite(narrow).all()
    assert np.abs(narrow - model.predict(X)).max() > 10  # feature 0 is worth 40 per unit


def test_errors_say_what_came_and_what_was_expected(data):
    X, y = data
    with pytest.raises(ValueError, match="X has 3 features but the process takes 2"):
        StreamingRegressor(line(2)).fit(X, y)
    with pytest.raises(ValueError, match="this process has 2"):
        StreamingRegressor(BayesianLinear(dim_x=3, dim_y=2)).fit(X, y)
    with pytest.raises(NotFittedError):
        StreamingRegressor(line()).predict(X)


def test_a_process_given_as_parameter_is_not_touched(data):
    X, y = data
    process = AnchoredCMANP(dim_x=3, **SMALL)
    model = StreamingRegressor(process).fit(X, y)
    assert process.training
    assert model.process is process
    assert clone(model).process is not process


def test_joblib_brings_a_fitted_model_back(data, folders):
    X, y = data
    model = StreamingRegressor(folders[8]).fit(X, y)
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    back = joblib.load(file)
    np.testing.assert_array_equal(back.predict(X), model.predict(X))
    back.partial_fit(X, y)
    assert int(back.state_.count) == 600


def test_pipeline_cross_validation_and_grid_search_run(data):
    X, y = data
    pipeline = make_pipeline(PolynomialFeatures(1, include_bias=False), StreamingRegressor(line()))
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.98
    search = GridSearchCV(StreamingRegressor(line()), {"warmup": [8, 32]}, cv=2).fit(X, y)
    assert search.best_params_["warmup"] in (8, 32)
    assert search.score(X, y) > 0.98
