"""Location and scale of a stream: estimated from its first rows, or known beforehand."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from synopsis.states import State

_ROUNDING = (
    8 * torch.finfo(torch.float64).eps
)  # relative spread below which values are all the same
UNKNOWN_SCALE = 100.0  # of y before its first value: too wide costs little, too narrow everything


@dataclass(frozen=True)
class Scale:
    """A scaling as a person writes it down: standardised = (value − location) / scale.

    Args:
        names: of the inputs, in order.
        location_x: one per input.
        scale_x: one per input, positive; NaN (null in JSON) for an input that is to be ignored.
        location_y: one per output.
        scale_y: one per output, positive.

    Raises:
        ValueError: when the lengths do not agree, or a number cannot scale.

    Example:
        >>> scale = Scale(("year",), (2000.0,), (10.0,), (15.0,), (8.0,))
        >>> Scale.from_json(scale.to_json()) == scale
        True
    """

    names: tuple[str, ...]
    location_x: tuple[float, ...]
    scale_x: tuple[float, ...]
    location_y: tuple[float, ...]
    scale_y: tuple[float, ...]

    def __post_init__(self) -> None:
        inputs = (len(self.names), len(self.location_x), len(self.scale_x))
        outputs = (len(self.location_y), len(self.scale_y))
        if len(set(inputs)) > 1 or len(set(outputs)) > 1 or not outputs[0]:
            raise ValueError(
                f"a scale has {inputs} names, locations and scales of x and {outputs} locations "
                "and scales of y; they must agree"
            )
        for scale in (*self.scale_x, *self.scale_y):
            if scale <= 0 or math.isinf(scale):
                raise ValueError(f"a scale must be positive and finite, not {scale}")
        for number in (*self.location_x, *self.location_y, *self.scale_y):
            if not math.isfinite(number):
                raise ValueError(f"a location, and a scale of y, must be finite, not {number}")

    def to_json(self) -> str:
        """One JSON object with a list per field."""
        lists = {
            name: [None if value != value else value for value in values]  # NaN has no JSON
            for name, values in asdict(self).items()
        }
        return json.dumps(lists, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote; ValueError when it is not that."""
        found = json.loads(text)
        wanted = [field.name for field in fields(cls)]
        if not isinstance(found, dict) or set(found) != set(wanted):
            raise ValueError(
                f"a scale is a JSON object with {', '.join(wanted)}; found {text[:80]!r}"
            )
        if not isinstance(found["names"], list):
            raise ValueError(f"names of a scale are a list, not {found['names']!r}")
        names = tuple(str(name) for name in found["names"])
        return cls(names, *(_numbers(found[name]) for name in wanted[1:]))


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(
        value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        for value in values
    ):
        raise ValueError(f"expected a list of numbers in a scale, found {values!r}")
    return tuple(math.nan if value is None else float(value) for value in values)


@dataclass(frozen=True)
class Scaling(State):
    """Location and scale of every input and output of every stream, float64.

    Args:
        location_x: subtracted from the inputs.
        scale_x: divides them, positive; NaN for an input that was never given and is ignored.
        location_y: subtracted from the outputs.
        scale_y: divides them, positive.
    """

    kind: ClassVar[str] = "scaling"
    location_x: Float[Tensor, "batch dim_x"]
    scale_x: Float[Tensor, "batch dim_x"]
    location_y: Float[Tensor, "batch dim_y"]
    scale_y: Float[Tensor, "batch dim_y"]

    @property
    def count(self) -> int:
        """A scaling does not remember how many rows made it; states built on it count."""
        return 0

    @classmethod
    def of(
        cls,
        rows: "FirstRows",
        provisional: bool = False,
    ) -> Self:
        """Mean and population standard deviation of these rows; 1 where all values are equal.

        Args:
            rows: at least room for one; NaN in their x is not given.
            provisional: for predictions from so few rows that their spread is not to be trusted:
                that of y is widened, equal values have the scale max(\\|y\\|, 1), and before any
                there is ``UNKNOWN_SCALE``.
        """
        location_x, scale_x, number_x = moments(rows.x, rows.filled)
        location_y, scale_y, number_y = moments(rows.y, rows.filled)
        if provisional:
            scale_y = scale_y * widening((number_y - 1).clamp(min=1).double())
            size = location_y.abs().clamp(min=1.0).masked_fill(number_y == 0, UNKNOWN_SCALE)
            scale_y = torch.where(scale_y == 0, size, scale_y)
        scale_x, scale_y = (scale.masked_fill(scale == 0, 1.0) for scale in (scale_x, scale_y))
        never = (number_x == 0) & (rows.count > 0).unsqueeze(1)
        return cls(location_x, scale_x.masked_fill(never, torch.nan), location_y, scale_y)

    @classmethod
    def known(cls, scale: Scale, streams: int, dim_x: int, device: torch.device) -> Self:
        """A scale from elsewhere, for all streams alike; inputs beyond it are ignored."""
        beyond = dim_x - len(scale.names)
        values = (
            (*scale.location_x, *[0.0] * beyond),
            (*scale.scale_x, *[math.nan] * beyond),
            scale.location_y,
            scale.scale_y,
        )
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(*(torch.tensor([each] * streams, **options) for each in values))

    def with_kinds(self, phase: Bool[Tensor, " dim_x"], lag: Bool[Tensor, " dim_x"]) -> Self:
        """Lags are scaled as the (only) output is, phases not at all."""
        location = torch.where(lag, self.location_y[:, :1], self.location_x)
        scale = torch.where(lag, self.scale_y[:, :1], self.scale_x)
        location, scale = location.masked_fill(phase, 0.0), scale.masked_fill(phase, 1.0)
        return replace(self, location_x=location, scale_x=scale)

    def where(self, chosen: Bool[Tensor, " batch"], other: Self) -> Self:
        """This scaling for the chosen streams, the other one for the rest."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return type(self)(*(torch.where(chosen.unsqueeze(1), a, b) for a, b in pairs))

    def inputs(self, x: Float[Tensor, "batch points dim_x"]) -> Float[Tensor, "batch points dim_x"]:
        """Inputs, standardised; NaN where not given or never scaled."""
        return (x - self.location_x.unsqueeze(1)) / self.scale_x.unsqueeze(1)

    def outputs(
        self, y: Float[Tensor, "batch points dim_y"]
    ) -> Float[Tensor, "batch points dim_y"]:
        """Outputs, standardised."""
        return (y - self.location_y.unsqueeze(1)) / self.scale_y.unsqueeze(1)

    def named(self, names: Sequence[str]) -> Scale:
        """The scaling of the first stream's first inputs, written down under these names."""
        x = (self.location_x[0, : len(names)], self.scale_x[0, : len(names)])
        y = (self.location_y[0], self.scale_y[0])
        return Scale(tuple(names), *(tuple(values.tolist()) for values in (*x, *y)))

    def check_equal(self, other: Self) -> None:
        """Raise ValueError, naming the first difference, unless both are the same."""
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            same = (mine == theirs) | (mine.isnan() & theirs.isnan())
            if not bool(same.all()):
                stream, column = (~same).nonzero()[0].tolist()
                a, b = float(mine[stream, column]), float(theirs[stream, column])
                raise ValueError(
                    f"{name}[{column}] is {a:.6g} in one state and {b:.6g} in the other, "
                    f"{abs(a - b):.3g} apart; give both parts one scale"
                )

    def check(self) -> None:
        """Raise ValueError unless locations and scales describe the same streams and columns."""
        for name in ("x", "y"):
            location, scale = getattr(self, f"location_{name}"), getattr(self, f"scale_{name}")
            if location.shape != scale.shape or location.dim() != 2:
                raise ValueError(
                    f"locations of {name} are {tuple(location.shape)}, scales they must agree"
                )


@dataclass(frozen=True)
class FirstRows(State):
    """A buffer for the first rows of every stream, as they came; of one size whatever it holds.

    Args:
        x: inputs, float64; 0 where nothing is kept.
        y: outputs, likewise.
        count: rows kept, per stream.
    """

    kind: ClassVar[str] = "first-rows"
    x: Float[Tensor, "batch size dim_x"]
    y: Float[Tensor, "batch size dim_y"]
    count: Int[Tensor, " batch"]

    @property
    def filled(self) -> Bool[Tensor, "batch size"]:
        """Which rows of the buffer hold one."""
        places = torch.arange(self.x.shape[1], device=self.count.device)
        return places < self.count.unsqueeze(1)

    def keep(
        self,
        x: Float[Tensor, "batch points dim_x"],
        y: Float[Tensor, "batch points dim_y"],
        wanted: Bool[Tensor, "batch points"],
    ) -> tuple[Self, Bool[Tensor, "batch points"]]:
        """Keep what is wanted, as far as there is room; also which points were kept."""
        size = self.x.shape[1]
        place = self.count.unsqueeze(1) + wanted.cumsum(1) - 1
        kept = wanted & (place < size)
        place = place.where(kept, size).unsqueeze(-1)  # one row more takes the others
        x, y = (
            F.pad(old, (0, 0, 0, 1)).scatter(1, place.expand_as(new), new)[:, :size]
            for old, new in ((self.x, x), (self.y, y))
        )
        return type(self)(x, y, self.count + kept.sum(1)), kept

    def without(self, streams: Bool[Tensor, " batch"]) -> Self:
        """Empty the buffers of these streams."""
        gone = streams.view(-1, 1, 1)
        x, y = self.x.masked_fill(gone, 0.0), self.y.masked_fill(gone, 0.0)
        return type(self)(x, y, self.count.masked_fill(streams, 0))

    def check(self) -> None:
        """Raise ValueError unless inputs, outputs and counts describe the same streams."""
        batch, size, _ = self.x.shape
        if self.y.shape[:-1] != (batch, size) or self.count.shape != (batch,):
            raise ValueError(
                f"rows of x are {tuple(self.x.shape)}, of y {tuple(self.y.shape)}, "
                f"counts {tuple(self.count.shape)}; they must agree"
            )
        if bool(((self.count < 0) | (self.count > size)).any()):
            raise ValueError(f"{self.count.tolist()} rows are kept in a buffer of {size}")


def moments(
    values: Float[Tensor, "batch points dim"], real: Bool[Tensor, "batch points"]
) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"], Int[Tensor, "batch dim"]]:
    """Mean, population standard deviation and number of the values of each column that are given.

    Args:
        values: float64, at least one point; NaN is not given.
        real: False leaves the whole point out.

    Returns:
        The mean (0 where nothing is given), the standard deviation (0 where all values are equal
        up to rounding), and the number of values.
    """
    given = real.unsqueeze(-1) & ~values.isnan()
    number = given.sum(1)
    known = values.masked_fill(~given, 0.0)
    mean = known.sum(1) / number.clamp(min=1)
    deviation = (known - mean.unsqueeze(1)).masked_fill(~given, 0.0)
    spread = (deviation.square().sum(1) / number.clamp(min=1)).sqrt()
    return mean, spread.masked_fill(spread <= _ROUNDING * known.abs().amax(1), 0.0), number


def widening(degrees: Float[Tensor, "*shape"], unknown_mean: bool = True) -> Tensor:
    """Factor by which the root mean square of few values must grow to predict the next one.

    A Gaussian stretched by 1 + c (1/k + 2/k³) has, within 10 %, the 90 % interval that Student's t
    prescribes.

    Args:
        degrees: of freedom k ≥ 1: the number of values, less one when their mean is estimated too.
        unknown_mean: c = 2, for deviations of n = k + 1 values from their own mean, root of the sum
            over n; False: c = 1, for deviations of k values from a known one.

    Example:
        >>> widening(torch.tensor([1.0, 10.0]))
        tensor([7.0000, 1.2040])
    """
    return 1 + (2.0 if unknown_mean else 1.0) * (1 / degrees + 2 / degrees**3)
