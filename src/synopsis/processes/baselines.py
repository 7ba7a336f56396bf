"""Two processes that any other must beat: the last value, and the mean of all values so far.

Both ignore the inputs, keep a handful of float64 numbers per stream, and answer with Gaussians in
the units of y. They are processes like the rest, so whatever runs, saves, resumes or merges a
process does it to its yardsticks too.

Before any data both predict a broad Gaussian, mean 0 and standard deviation ``broad``. After one
value they are centred on it, with a standard deviation of its own size, max(|y|, 1). From then on
the spread is the observed one, widened as :func:`~synopsis.processes.scaling.widening` says because
few values underrate it, and never quite 0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.memory.base import Merges
from synopsis.processes.base import Process
from synopsis.processes.heads import Gaussian
from synopsis.processes.scaling import UNKNOWN_SCALE, widening
from synopsis.states import State

_NARROWEST = 1e-9  # smallest stddev relative to max(|mean|, 1): a constant stream keeps a density


def _nothing(
    process: "RunningMean | LastValue", batch_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A count of 0 per stream, and 0 per output, where the process lives."""
    device = process.device_of.device
    zeros = torch.zeros(*batch_shape, process.dim_y, dtype=torch.float64, device=device)
    return torch.zeros(batch_shape, dtype=torch.int64, device=device), zeros


def _gaussian(
    center: Tensor, spread: Tensor, count: Tensor, broad: float, targets: int
) -> Gaussian:
    """The same prediction at every target; ``spread`` counts from the second value on."""
    size = center.abs().clamp(min=1.0)
    seen = count.unsqueeze(-1)
    stddev = torch.where(seen > 1, spread.maximum(_NARROWEST * size), size)
    stddev = torch.where(seen > 0, stddev, broad)
    shape = (-1, targets, -1)
    return Gaussian(center.unsqueeze(-2).expand(shape), stddev.unsqueeze(-2).expand(shape))


def _check_belong(fingerprint: str, *states: "RunningMeanState | LastValueState") -> None:
    for state in states:
        if state.fingerprint != fingerprint:
            raise ValueError(
                f"the state was made by process {state.fingerprint}, "
                f"not by this one ({fingerprint})"
            )
    streams = [tuple(state.count.shape) for state in states]
    if len(set(streams)) > 1:
        raise ValueError(f"states hold {streams} streams; they must agree")


def _check_outputs(x: Tensor, y: Tensor, dim_y: int) -> None:
    if tuple(y.shape) != (*x.shape[:2], dim_y):
        raise ValueError(
            f"y must be {(*x.shape[:2], dim_y)} to go with x {tuple(x.shape)}, not {tuple(y.shape)}"
        )


def _real(yc: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values in float64 with 0 where masked out, and the mask itself."""
    if mask is None:
        mask = torch.ones(yc.shape[:2], dtype=torch.bool, device=yc.device)
    return yc.double().masked_fill(~mask.unsqueeze(-1), 0.0), mask


@dataclass(frozen=True)
class RunningMeanState(State):
    """Moments of every stream.

    Args:
        count: values seen.
        mean: of them; 0 before any.
        squares: sum of squared deviations from the mean.
        fingerprint: of the process it belongs to.
    """

    kind: ClassVar[str] = "running-mean"
    count: Int[Tensor, " batch"]
    mean: Float[Tensor, "batch dim_y"]
    squares: Float[Tensor, "batch dim_y"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless the moments describe the same streams."""
        if self.mean.shape != self.squares.shape or self.mean.shape[:-1] != self.count.shape:
            raise ValueError(
                f"{tuple(self.count.shape)} counts do not go with means {tuple(self.mean.shape)} "
                f"and squares {tuple(self.squares.shape)}"
            )


class RunningMean(Process):
    """Predicts the mean of all values so far, with their spread.

    Args:
        dim_y: number of outputs.
        dim_x: width of the inputs, which are ignored whatever theirs is.
        broad: standard deviation before any data, in the units of y.

    Example:
        >>> import torch
        >>> process = RunningMean()
        >>> y = torch.tensor([[[1.0], [2.0], [6.0]]])
        >>> state = process.update(process.init(), torch.zeros(1, 3, 1), y)
        >>> process.predict(state, torch.zeros(1, 1, 1)).mean.item()
        3.0

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances" (1979), equation 2.1.
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(self, dim_y: int = 1, dim_x: int = 1, broad: float = UNKNOWN_SCALE) -> None:
        super().__init__(dim_y=dim_y, dim_x=dim_x, broad=broad)
        self.broad = broad
        self.device_of: Tensor
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> RunningMeanState:
        """A state that has seen nothing."""
        count, zeros = _nothing(self, batch_shape)
        return RunningMeanState(count, zeros, zeros.clone(), self.fingerprint)

    def update(
        self,
        state: RunningMeanState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> RunningMeanState:
        """The state after these points as well; mask is True where a point is real."""
        _check_outputs(xc, yc, self.dim_y)
        y, real = _real(yc, mask)
        count = real.sum(1)
        mean = y.sum(1) / count.clamp(min=1).unsqueeze(-1)
        deviation = (y - mean.unsqueeze(1)).masked_fill(~real.unsqueeze(-1), 0.0)
        block = RunningMeanState(count, mean, deviation.square().sum(1), self.fingerprint)
        return self.merge(state, block)

    def predict(
        self, state: RunningMeanState, xt: Float[Tensor, "batch targets dim_x"]
    ) -> Gaussian:
        """One Gaussian for all targets: the mean, and the widened population standard deviation."""
        _check_belong(self.fingerprint, state)
        count = state.count.unsqueeze(-1)
        degrees = (count - 1).clamp(min=1).double()
        spread = (state.squares / count.clamp(min=1)).sqrt() * widening(degrees)
        return _gaussian(state.mean, spread, state.count, self.broad, xt.shape[1])

    def merge(self, a: RunningMeanState, b: RunningMeanState) -> RunningMeanState:
        """The state after both parts of the data, in any order."""
        _check_belong(self.fingerprint, a, b)
        count = a.count + b.count
        share = (b.count.double() / count.clamp(min=1)).unsqueeze(-1)
        step = b.mean - a.mean
        between = step.square() * share * a.count.unsqueeze(-1)
        squares = a.squares + b.squares + between
        return replace(a, count=count, mean=a.mean + share * step, squares=squares)


@dataclass(frozen=True)
class LastValueState(State):
    """Ends of every stream, and the errors between.

    Args:
        count: values seen.
        first: value, so that a part before this one can be joined to it; 0 before any.
        last: value; 0 before any.
        squares: sum of squared steps from each value to the next, ``count − 1`` of them.
        fingerprint: of the process it belongs to.
    """

    kind: ClassVar[str] = "last-value"
    count: Int[Tensor, " batch"]
    first: Float[Tensor, "batch dim_y"]
    last: Float[Tensor, "batch dim_y"]
    squares: Float[Tensor, "batch dim_y"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless all parts describe the same streams."""
        shapes = {tuple(part.shape) for part in (self.first, self.last, self.squares)}
        if len(shapes) != 1 or self.last.shape[:-1] != self.count.shape:
            raise ValueError(f"{tuple(self.count.shape)} counts do not go with {sorted(shapes)}")


class LastValue(Process):
    """Predicts the last value, with the root mean square of its own one-step errors.

    Args:
        dim_y: number of outputs.
        dim_x: width of the inputs, which are ignored whatever theirs is.
        broad: standard deviation before any data, in the units of y.

    Example:
        >>> import torch
        >>> process = LastValue()
        >>> y = torch.tensor([[[1.0], [2.0], [6.0]]])
        >>> state = process.update(process.init(), torch.zeros(1, 3, 1), y)
        >>> process.predict(state, torch.zeros(1, 1, 1)).mean.item()
        6.0
    """

    merges: ClassVar[Merges] = "in order"

    def __init__(self, dim_y: int = 1, dim_x: int = 1, broad: float = UNKNOWN_SCALE) -> None:
        super().__init__(dim_y=dim_y, dim_x=dim_x, broad=broad)
        self.broad = broad
        self.device_of: Tensor
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> LastValueState:
        """A state that has seen nothing."""
        count, zeros = _nothing(self, batch_shape)
        return LastValueState(count, zeros, zeros.clone(), zeros.clone(), self.fingerprint)

    def update(
        self,
        state: LastValueState,
        xc: Float[Tensor, "batch context dim_x"],
        yc: Float[Tensor, "batch context dim_y"],
        mask: Bool[Tensor, "batch context"] | None = None,
    ) -> LastValueState:
        """The state after these points too, in their order; mask is True where a point is real."""
        _check_outputs(xc, yc, self.dim_y)
        if yc.shape[1] == 0:
            return state
        y, real = _real(yc, mask)
        places = torch.arange(y.shape[1], device=y.device)
        latest = torch.where(real, places, -1).cummax(1).values  # last real point up to each
        first = y.gather(1, _at(real.int().argmax(1, keepdim=True), y)).squeeze(1)
        last = y.gather(1, _at(latest[:, -1:].clamp(min=0), y)).squeeze(1)
        before = y.gather(1, _at(latest[:, :-1].clamp(min=0), y))
        step = real[:, 1:] & (latest[:, :-1] >= 0)
        steps = (y[:, 1:] - before).masked_fill(~step.unsqueeze(-1), 0.0)
        squares = steps.square().sum(1)
        block = LastValueState(real.sum(1), first, last, squares, self.fingerprint)
        return self.merge(state, block)

    def predict(self, state: LastValueState, xt: Float[Tensor, "batch targets dim_x"]) -> Gaussian:
        """One Gaussian for all targets: the last value, and the widened size of past steps."""
        _check_belong(self.fingerprint, state)
        errors = (state.count - 1).clamp(min=1).double().unsqueeze(-1)
        spread = (state.squares / errors).sqrt() * widening(errors, unknown_mean=False)
        return _gaussian(state.last, spread, state.count, self.broad, xt.shape[1])

    def merge(self, a: LastValueState, b: LastValueState) -> LastValueState:
        """The state after ``a`` and then ``b``; the step between the two counts as well."""
        _check_belong(self.fingerprint, a, b)
        has_a, has_b = a.count.unsqueeze(-1) > 0, b.count.unsqueeze(-1) > 0
        junction = (b.first - a.last).square().masked_fill(~(has_a & has_b), 0.0)
        return replace(
            a,
            count=a.count + b.count,
            first=torch.where(has_a, a.first, b.first),
            last=torch.where(has_b, b.last, a.last),
            squares=a.squares + b.squares + junction,
        )


def _at(places: Tensor, y: Tensor) -> Tensor:
    """Index for ``gather`` that takes every output at these places."""
    return places.unsqueeze(-1).expand(-1, -1, y.shape[-1])
