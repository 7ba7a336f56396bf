"""What a user gives to a process: checked, in float64, and as wide as the process wants it."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from synopsis.processes.base import Process
from synopsis.processes.missing import filled
from synopsis.processes.scaling import Scale

Kind = Literal["number", "phase", "lag"]
_KINDS = ("number", "phase", "lag")


class Given:
    """Points and inputs in a user's units, on their way to a process.

    Args:
        process: what will take them.
        kinds: of every input; None: as many numbers as the process takes, or fewer.
    """

    def __init__(self, process: Process, kinds: Sequence[Kind] | None) -> None:
        self.process, self.kinds = process, kinds
        self.width = process.dim_x if kinds is None else len(kinds)

    def points(
        self,
        xc: Float[Tensor, "batch context inputs"],
        yc: Float[Tensor, "batch context outputs"],
        mask: Bool[Tensor, "batch context"] | None,
    ) -> tuple[Tensor, Tensor]:
        """Checked points in float64; what is masked out may be anything and becomes 0, a missing output stays NaN."""
        expected = (*xc.shape[:2], self.process.dim_y)
        if tuple(yc.shape) != expected:
            shapes = f"x {tuple(xc.shape)}, not {tuple(yc.shape)}"
            raise ValueError(f"y must be {expected} to go with {shapes}")
        if mask is not None:
            xc, yc = (v.masked_fill(~mask.unsqueeze(-1), 0.0) for v in (xc, yc))
        _check_finite("y", filled(yc))
        return self.inputs(xc), yc.double()

    def inputs(
        self, x: Float[Tensor, "batch points inputs"]
    ) -> Float[Tensor, "batch points dim_x"]:
        """Checked inputs in float64, filled up with NaN to the width of the wrapped process."""
        width = self.process.dim_x
        if self.kinds is not None and x.shape[-1] != len(self.kinds):
            raise ValueError(f"x has {x.shape[-1]} inputs but {len(self.kinds)} kinds were given")
        if x.dim() != 3 or x.shape[-1] > width:
            shape = tuple(x.shape)
            raise ValueError(f"x must be (batch, points, at most {width} inputs), not {shape}")
        if x.shape[-1] < width and not self._understands_nan:
            raise ValueError(f"x has {x.shape[-1]} inputs but the process needs all {width}")
        x = F.pad(x.double(), (0, width - x.shape[-1]), value=torch.nan)
        _check_finite("x", x.masked_fill(x.isnan(), 0.0) if self._understands_nan else x)
        return x

    @cached_property
    def _understands_nan(self) -> bool:
        """Asked of the process itself: is its prediction finite when no input is given?"""
        state = self.process.init()
        shape = (1, 1, self.process.dim_x)
        nothing = torch.full(shape, torch.nan, dtype=self.dtype, device=state.count.device)
        with torch.no_grad():
            return bool(self.process.predict(state, nothing).mean.isfinite().all())

    @property
    def dtype(self) -> torch.dtype:
        """That of the process's weights."""
        return next((weight.dtype for weight in self.process.parameters()), torch.float64)

    def check_scale(self, scale: Scale) -> None:
        """Raise ValueError when a scale is of other numbers of inputs or outputs."""
        inputs, outputs = len(scale.names), len(scale.location_y)
        fits = inputs <= self.width if self.kinds is None else inputs == self.width
        if not fits or outputs != self.process.dim_y:
            raise ValueError(
                f"the scale has {inputs} inputs and {outputs} outputs but the process takes "
                f"{self.width} and {self.process.dim_y}"
            )


def check_kinds(process: Process, kinds: Sequence[str] | None) -> None:
    """Raise ValueError when a process cannot have inputs of these kinds."""
    if kinds is None:
        return
    if len(kinds) > process.dim_x:
        raise ValueError(f"there are {len(kinds)} inputs but the process takes {process.dim_x}")
    for kind in kinds:
        if kind not in _KINDS:
            raise ValueError(f"an input is one of {', '.join(_KINDS)}, not {kind!r}")
    if "lag" in kinds and process.dim_y != 1:
        raise ValueError(f"a lag is a past value of one output, but there are {process.dim_y}")


def _check_finite(name: str, values: Tensor) -> None:
    finite = values.isfinite()
    if not bool(finite.all()):
        stream, point, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds {values[stream, point, column].item()} in column {column} of point "
            f"{point}, stream {stream}; leave such points out or mask them"
        )
