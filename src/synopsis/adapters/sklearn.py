"""A neural process as a scikit-learn regressor that never refits (extra ``sklearn``)."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from synopsis.processes.base import Process, load
from synopsis.processes.heads import PredictiveDistribution
from synopsis.processes.standardized import Standardized

Array = NDArray[np.float64]


class StreamingRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is untyped
    """Regression with calibrated uncertainty that learns from every row and never grows.

    ``partial_fit`` absorbs rows; ``fit`` forgets what came before and absorbs, so it equals
    ``partial_fit`` on a fresh estimator. Nothing is optimised: the process was trained beforehand
    and only conditions on the rows. All that was learned is ``state_``, of constant size:
    ``synopsis.states.write_atomic(path, model.state_.serialize())`` saves it.

    Inputs and outputs may have any units; the first ``warmup`` rows settle the scaling, so rows
    sorted by y should be shuffled before. A missing input is NaN.

    Args:
        process: name of a shipped process, folder of a saved one, or a process of one output. Fewer
            features than it takes are fine when it understands NaN as "not given".
        warmup: rows that settle the scaling, at least 2.
        chunk_size: rows absorbed or predicted at once; bounds memory, does not change results.
        random_state: seed of :meth:`sample_y`; nothing else is random.

    Attributes:
        state_: what was learned, a :class:`~synopsis.processes.standardized.StandardizedState`.
        process_: the process in the units of the data.
        n_features_in_: number of features seen.
        feature_names_in_: their names, when X had names.

    Raises:
        ValueError: on fitting, when there are more features than the process takes.

    Example:
        >>> from synopsis.processes import BayesianLinear
        >>> X = np.linspace(0, 100, 500).reshape(-1, 1)
        >>> model = StreamingRegressor(BayesianLinear(dim_x=1)).fit(X, 3 * X[:, 0] + 20)
        >>> model.predict([[50.0]]).round(1)
        array([170.])
    """

    def __init__(
        self,
        process: str | Process = "regression-8d",
        warmup: int = 32,
        chunk_size: int = 4096,
        random_state: Any = None,
    ) -> None:
        self.process = process
        self.warmup = warmup
        self.chunk_size = chunk_size
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Forget, then absorb these rows.

        Args:
            X: (rows, features), finite or NaN for not given.
            y: (rows,), finite.
        """
        return self._learn(X, y, afresh=True)

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Absorb these rows after all that came before.

        Args:
            X: (rows, features), finite or NaN for not given.
            y: (rows,), finite.
        """
        return self._learn(X, y, afresh=not hasattr(self, "state_"))

    def predict(self, X: ArrayLike, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Predictive mean, in the units of y.

        Args:
            X: (rows, features).
            return_std: also return the predictive standard deviation.

        Returns:
            (rows,), or two of them.
        """
        pieces = [(p.mean[0, :, 0], p.stddev[0, :, 0]) for p in self._predictions(X)]
        mean, stddev = (torch.cat(part).double().numpy() for part in zip(*pieces, strict=True))
        return (mean, stddev) if return_std else mean

    def predict_quantiles(
        self, X: ArrayLike, quantiles: Sequence[float] = (0.1, 0.5, 0.9)
    ) -> Array:
        """Predictive quantiles, in the units of y.

        Args:
            X: (rows, features).
            quantiles: levels, each in (0, 1).

        Returns:
            (rows, levels).
        """
        for level in quantiles:
            if not 0 < level < 1:
                raise ValueError(f"a quantile lies between 0 and 1, not {level}")
        pieces = [
            torch.cat([predicted.quantile(level)[0] for level in quantiles], dim=-1)
            for predicted in self._predictions(X)
        ]
        table: Array = torch.cat(pieces).double().numpy()
        return table

    def sample_y(self, X: ArrayLike, n_samples: int = 1, random_state: Any = None) -> Array:
        """Draws from each row's predictive distribution, rows independent of each other.

        Args:
            X: (rows, features).
            n_samples: draws per row.
            random_state: seed; None takes the constructor's.

        Returns:
            (rows, draws).
        """
        chosen = self.random_state if random_state is None else random_state
        seed = check_random_state(chosen).randint(np.iinfo(np.int32).max)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draws = [p.sample((n_samples,))[:, 0, :, 0] for p in self._predictions(X)]
        sampled: Array = torch.cat(draws, dim=1).T.double().numpy()
        return sampled

    def __sklearn_tags__(self) -> Tags:
        """NaN is understood as not given."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _learn(self, X: ArrayLike, y: ArrayLike, afresh: bool) -> Self:
        X, y = validate_data(
            self,
            X,
            y,
            reset=afresh,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            y_numeric=True,
        )
        if afresh:
            self.process_ = self._standardized()
            self.state_ = self.process_.init()
        x, outputs = torch.tensor(X)[None], torch.tensor(y, dtype=torch.float64)[None, :, None]
        state = self.state_
        with torch.no_grad():
            for piece in self._pieces(x.shape[1]):
                state = self.process_.update(state, x[:, piece], outputs[:, piece])
        self.state_ = state
        return self

    def _standardized(self) -> Standardized:
        given = self.process  # a parameter is never touched: not its mode, not its caches
        process = copy.deepcopy(given) if isinstance(given, Process) else load(given)
        if process.dim_y != 1:
            raise ValueError(f"a regressor predicts one output; this process has {process.dim_y}")
        if self.n_features_in_ > process.dim_x:
            raise ValueError(
                f"X has {self.n_features_in_} features but the process takes {process.dim_x}"
            )
        return Standardized(process, self.warmup).eval()

    def _predictions(self, X: ArrayLike) -> Iterator[PredictiveDistribution]:
        """Predictive distributions, chunk by chunk."""
        check_is_fitted(self, "state_")
        X = validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        x = torch.tensor(X)[None]
        with torch.no_grad():
            for piece in self._pieces(x.shape[1]):
                yield self.process_.predict(self.state_, x[:, piece])

    def _pieces(self, rows: int) -> list[slice]:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, not {self.chunk_size}")
        return [slice(i, i + self.chunk_size) for i in range(0, rows, self.chunk_size)]
