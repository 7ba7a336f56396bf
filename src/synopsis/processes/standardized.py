"""A process in the user's own units: the scaling was learned too, so it is part of the state.

Neural processes are trained on data of about unit size. A stream comes in degrees, dollars and
days, and its first rows are all that is known when the scaling must be chosen. So the first
``warmup`` rows are kept as they came; meanwhile every prediction conditions a fresh state on them,
scaled by themselves. With row number ``warmup`` the scaling is fixed for good, the rows are folded
in, and from then on points go straight through.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.processes.base import Process, build
from synopsis.processes.given import Given, Kind, check_kinds
from synopsis.processes.heads import PredictiveDistribution
from synopsis.processes.scaling import FirstRows, Scale, Scaling
from synopsis.states import State


@dataclass(frozen=True)
class StandardizedState(State):
    """What a standardised process has seen, and its units.

    Args:
        rows: those that wait for the scaling, as they came; cleared once folded in.
        fixed: whether the scaling of each stream is settled.
        scaling: location 0 and scale 1 until then.
        inner: state of the wrapped process.
        fingerprint: of the standardised process it belongs to.
    """

    kind: ClassVar[str] = "standardized"
    rows: FirstRows
    fixed: Bool[Tensor, " batch"]
    scaling: Scaling
    inner: State
    fingerprint: str

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """Points seen by each stream, waiting or folded in."""
        count: Tensor = self.rows.count + self.inner.count
        return count

    def check(self) -> None:
        """Raise ValueError unless all parts describe the same streams, inputs and outputs."""
        batch = len(self.rows.count)
        parts = {
            "fixed": (self.fixed, (batch,)),
            "location_x": (self.scaling.location_x, (batch, self.rows.x.shape[-1])),
            "location_y": (self.scaling.location_y, (batch, self.rows.y.shape[-1])),
            "inner count": (self.inner.count, (batch,)),
        }
        for name, (part, shape) in parts.items():
            if tuple(part.shape) != shape:
                raise ValueError(f"{name} is {tuple(part.shape)}; it must be {shape}")


class Standardized(Process):
    """A process that takes and gives the user's units.

    Inputs of kind ``"number"``, and the outputs, become (value − mean) / standard deviation, those
    of the first ``warmup`` rows; a constant column has scale 1. ``"phase"`` inputs lie in [−1, 1]
    and are never touched. ``"lag"`` inputs are past values of y and share its scaling. NaN is "not
    given": fewer inputs than the process takes are filled up with NaN, if it understands NaN, and
    an input that was never given during the warm-up has no scale and is ignored from then on.

    With n < ``warmup`` rows a prediction rests on a provisional scaling. n = 0: location 0, scale
    1, for y 100, since nobody knows its units yet. One value of y, or equal ones: located there,
    scale max(\\|y\\|, 1). Otherwise mean and standard deviation of the rows so far, for y times
    :func:`~synopsis.processes.scaling.widening`, because few values underrate their spread.

    Streams of one batch may be at different rows; masks may make them so. A missing output, NaN, has no
    part in the scaling and reaches the wrapped process as it came; a row without any is not a row.

    ``merges`` is what the wrapped process claims, and holds as it stands when the scaling is given
    to :meth:`init`. With a warm-up the first ``warmup`` rows choose the units: every split into
    updates still gives the same state, but the state depends on which rows came first, and states
    merge only when both are past the warm-up with equal scaling. A state that has seen nothing
    merges with any.

    Args:
        process: what to wrap, or its configuration as :func:`~synopsis.processes.build` takes it.
        warmup: rows that settle the scaling, at least 2.
        kinds: of every input; None: all are numbers, as many as the process takes or fewer.

    Raises:
        ValueError: when ``kinds`` or ``warmup`` do not fit the process.

    Example:
        >>> from synopsis.processes import BayesianLinear
        >>> process = Standardized(BayesianLinear(dim_x=1))
        >>> x = torch.linspace(1900, 2000, 100).view(1, -1, 1)
        >>> state = process.update(process.init(), x, 30 * x - 50_000)
        >>> round(process.predict(state, torch.full((1, 1, 1), 1950.0)).mean.item(), -2)
        8500.0
    """

    keeps_gaps: ClassVar[bool] = True  # 0 is not the mean in these units

    def __init__(
        self,
        process: Process | Mapping[str, Any],
        warmup: int = 32,
        kinds: Sequence[Kind] | None = None,
    ) -> None:
        inner = process if isinstance(process, Process) else build(process)
        if warmup < 2:
            raise ValueError(f"a scaling needs a warm-up of at least 2 rows, not {warmup}")
        check_kinds(inner, kinds)
        super().__init__(dim_x=inner.dim_x if kinds is None else len(kinds), dim_y=inner.dim_y)
        named = {"process": type(inner).__name__, "arguments": inner.config}
        listed = None if kinds is None else list(kinds)
        self.config = {"process": named, "warmup": warmup, "kinds": listed}
        self.process, self.warmup, self.kinds = inner, warmup, listed
        self._given = Given(inner, listed)
        self.merges = inner.merges  # type: ignore[misc]  # it can do what the wrapped one can
        self.train(inner.training)
        padded = [*(kinds or ()), *["number"] * inner.dim_x][: inner.dim_x]
        self.is_phase: Tensor
        self.is_lag: Tensor
        for kind in ("phase", "lag"):
            flags = torch.tensor([found == kind for found in padded], dtype=torch.bool)
            self.register_buffer(f"is_{kind}", flags, persistent=False)

    def init(
        self, batch_shape: tuple[int, ...] = (1,), scale: Scale | None = None
    ) -> StandardizedState:
        """A state that has seen nothing.

        Args:
            batch_shape: ``(streams,)``.
            scale: a known scaling, which makes the warm-up unnecessary. Whatever it says of them,
                phases stay untouched and lags follow y.

        Raises:
            ValueError: when ``scale`` has other numbers of inputs or outputs.
        """
        (streams,), width = batch_shape, self.process.dim_x
        inner = self.process.init(batch_shape)
        nobody = torch.zeros_like(inner.count)
        x = nobody.new_zeros(streams, self.warmup, width, dtype=torch.float64)
        rows = FirstRows(x, x.new_zeros(streams, self.warmup, self.dim_y), nobody)
        scaling = Scaling.of(rows)
        if scale is not None:
            self._given.check_scale(scale)
            scaling = Scaling.known(scale, streams, width, nobody.device)
            scaling = scaling.with_kinds(self.is_phase, self.is_lag)
        fixed = torch.full_like(nobody, scale is not None, dtype=torch.bool)
        return StandardizedState(rows, fixed, scaling, inner, self.fingerprint)

    def update(
        self,
        state: StandardizedState,
        xc: Float[Tensor, "batch context inputs"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> StandardizedState:
        """The state after these points as well; mask is True where a point is real.

        Raises:
            ValueError: when shapes do not fit, a real point is infinite, an input of it is NaN to a
                process that needs them all, or the state belongs to another process.
        """
        self.check_belongs(state)
        x, y = self._given.points(xc, yc, mask)
        if not bool(state.fixed.all()):
            real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
            rows, kept = state.rows.keep(x, y, real & ~state.fixed.unsqueeze(1))
            state, mask = self._settle(replace(state, rows=rows)), real & ~kept
            if not bool(mask.any()):
                return state
        return self._absorb(state, x, y, mask)

    def predict(
        self, state: StandardizedState, xt: Float[Tensor, "batch targets inputs"]
    ) -> PredictiveDistribution:
        """The predictive distribution at target inputs, in the units of y; nothing is learned.

        Raises:
            ValueError: when shapes do not fit, or the state belongs to another process.
        """
        self.check_belongs(state)
        x = self._given.inputs(xt)
        if not bool(state.fixed.all()):
            state = self._provisional(state)
        scaling = state.scaling
        predicted = self.process.predict(state.inner, scaling.inputs(x).to(self._given.dtype))
        return predicted.affine(scaling.location_y.unsqueeze(1), scaling.scale_y.unsqueeze(1))

    def merge(self, a: StandardizedState, b: StandardizedState) -> StandardizedState:
        """The state after both parts of the data.

        Raises:
            ValueError: when a part is still in its warm-up, their scalings differ, or one belongs
                to another process.
        """
        self.check_belongs(a)
        self.check_belongs(b)
        if a.count.shape != b.count.shape:
            streams = len(a.count), len(b.count)
            raise ValueError(f"states hold {streams} streams; they must agree")
        for empty, other in ((a, b), (b, a)):
            if not bool(empty.fixed.any() or empty.rows.count.any()):
                return other
        for part in (a, b):
            if not bool(part.fixed.all()):
                seen = int(part.rows.count[~part.fixed].min())
                raise ValueError(
                    f"cannot merge a state that is in its warm-up ({seen} of {self.warmup} rows); "
                    "give both parts one scale"
                )
        a.scaling.check_equal(b.scaling)
        return replace(a, inner=self.process.merge(a.inner, b.inner))

    def scale(self, state: StandardizedState, names: Sequence[str]) -> Scale:
        """The scaling of a state of one stream, to be given to :meth:`init` elsewhere.

        Args:
            state: of one stream, past its warm-up.
            names: of the inputs, in order.

        Raises:
            ValueError: during the warm-up, for several streams, or for more names than inputs.
        """
        if state.fixed.tolist() != [True]:
            settled = f"{int(state.fixed.sum())} of {len(state.fixed)}"
            raise ValueError(f"a scale needs one stream past its warm-up; {settled} are")
        if len(names) > self.dim_x:
            raise ValueError(f"there are {len(names)} names for {self.dim_x} inputs")
        return state.scaling.named(names)

    def _settle(self, state: StandardizedState) -> StandardizedState:
        """Where the rows are full: fix the scaling, fold the rows in, and clear them."""
        full = ~state.fixed & (state.rows.count == self.warmup)
        if not bool(full.any()):
            return state
        scaling = Scaling.of(state.rows).with_kinds(self.is_phase, self.is_lag)
        scaling = scaling.where(full, state.scaling)
        state = replace(state, fixed=state.fixed | full, scaling=scaling)
        folded = full.unsqueeze(1).expand(-1, self.warmup)
        state = self._absorb(state, state.rows.x, state.rows.y, folded)
        return replace(state, rows=state.rows.without(full))

    def _provisional(self, state: StandardizedState) -> StandardizedState:
        """For one prediction: unsettled streams scaled by their own rows, which are folded in."""
        scaling = Scaling.of(state.rows, provisional=True).with_kinds(self.is_phase, self.is_lag)
        state = replace(state, scaling=scaling.where(~state.fixed, state.scaling))
        if not bool(state.rows.count.any()):
            return state
        return self._absorb(state, state.rows.x, state.rows.y, state.rows.filled)

    def _absorb(
        self, state: StandardizedState, x: Tensor, y: Tensor, mask: Tensor | None
    ) -> StandardizedState:
        scaling, dtype = state.scaling, self._given.dtype
        x, y = scaling.inputs(x).to(dtype), scaling.outputs(y).to(dtype)
        return replace(state, inner=self.process.update(state.inner, x, y, mask))
