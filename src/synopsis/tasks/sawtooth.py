"""Sawtooth waves: functions of known shape, unknown frequency, direction and phase, full of jumps.

f(x) = (ω u·x − φ) mod 1, with ω the frequency, u a unit vector and φ the phase.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.laws import check_generator, check_settings, integer, uniform

FREQUENCIES = (2.0, 4.0)  # per unit of x, divided by √dim_x
CONTEXT_1D, CONTEXT_PER_INPUT, TARGETS_PER_INPUT = 30, 75, 100


@dataclass(frozen=True)
class SawtoothTask:
    """Random sawtooth waves; published as the task on which Gaussian predictions fail.

    The published law: ω ~ U[2, 4) / √D, u uniform over directions, φ ~ U[0, 1), all per task; x ~
    U[−2, 2)^D; one N ~ U{0..30} per batch (0..75 D for D > 1) and M = 100 D; no noise.

    Args:
        dim_x: D, 1 or more.
        min_context: fewest context points, 0 or more.
        max_context: most context points; None for the published number.
        targets: number of targets, 1 or more; None for the published number.
        noise: standard deviation of the observation noise, 0 or more. There is no oracle: without
            noise there is no density.
        context_range: interval of every coordinate of the context.
        target_range: the same of the targets; other than ``context_range`` it asks for
            extrapolation.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> batch = SawtoothTask().sample(4, torch.Generator().manual_seed(0))
        >>> batch.yt.shape, bool((batch.yt >= 0).all() and (batch.yt <= 1).all())
        (torch.Size([4, 100, 1]), True)

    Source: the released code of Bruinsma et al., 2023 (Autoregressive conditional neural
    processes). Ours: one wave per task, so one output.
    """

    dim_x: int = 1
    min_context: int = 0
    max_context: int | None = None
    targets: int | None = None
    noise: float = 0.0
    context_range: tuple[float, float] = (-2.0, 2.0)
    target_range: tuple[float, float] = (-2.0, 2.0)
    dim_y = 1  # not a field

    def __post_init__(self) -> None:
        rules = (
            ("dim_x", self.dim_x >= 1, "be 1 or more"),
            ("min_context", self.min_context >= 0, "be 0 or more"),
            ("max_context", self._most >= self.min_context, f"be {self.min_context} or more"),
            ("targets", self.targets is None or self.targets >= 1, "be None or 1 or more"),
            ("noise", self.noise >= 0, "be 0 or more"),
            ("context_range", self.context_range[0] < self.context_range[1], "be increasing"),
            ("target_range", self.target_range[0] < self.target_range[1], "be increasing"),
        )
        check_settings(self, rules)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw ``batch_size`` waves that share one number of context points.

        Raises:
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        check_generator(generator)
        n = integer(self.min_context, self._most, generator)
        m = TARGETS_PER_INPUT * self.dim_x if self.targets is None else self.targets
        x = torch.cat(
            [
                uniform((batch_size, n, self.dim_x), self.context_range, generator),
                uniform((batch_size, m, self.dim_x), self.target_range, generator),
            ],
            dim=1,
        ).float()
        y = self._waves(x.double(), generator)
        y = y + self.noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        y = y.float()
        return Batch(xc=x[:, :n], yc=y[:, :n], xt=x[:, n:], yt=y[:, n:])

    @property
    def _most(self) -> int:
        if self.max_context is not None:
            return self.max_context
        return CONTEXT_1D if self.dim_x == 1 else CONTEXT_PER_INPUT * self.dim_x

    def _waves(
        self, x: Float[Tensor, "batch points dim_x"], generator: Generator
    ) -> Float[Tensor, "batch points 1"]:
        """One wave per task, at its inputs."""
        tasks = (len(x), 1, 1)
        frequency = uniform(tasks, FREQUENCIES, generator) / math.sqrt(self.dim_x)
        towards = torch.randn((len(x), self.dim_x, 1), generator=generator, dtype=torch.float64)
        direction = towards / towards.norm(dim=1, keepdim=True)
        phase = uniform(tasks, (0.0, 1.0), generator)
        return (frequency * (x @ direction) - phase).remainder(1)
