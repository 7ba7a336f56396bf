"""Random inputs of a stream: what the columns a user brings may look like.

Every column starts as a standard normal series, white or a walk, possibly correlated with its
neighbours; its marginal turns the normal into the distribution of the column. Trends and the sine
and cosine of a clock replace the columns that have these roles.
"""

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.tasks.elementary_draws import (
    by_kind,
    choose,
    coin,
    log_uniform,
    normal,
    sign,
    uniform,
)


class Role(IntEnum):
    """What a column of the inputs is."""

    ABSENT = 0
    STILL = 1
    WALK = 2
    TREND = 3
    SINE = 4
    COSINE = 5
    SECOND_SINE = 6
    SECOND_COSINE = 7
    LAG_1 = 8
    LAG_2 = 9


PHASES = (Role.SINE, Role.COSINE, Role.SECOND_SINE, Role.SECOND_COSINE)
LAGS = (Role.LAG_1, Role.LAG_2)

Columns = Float[Tensor, "columns rows"]


def is_among(roles: Int[Tensor, "..."], wanted: tuple[Role, ...]) -> Bool[Tensor, "..."]:
    """True where a role is one of those wanted."""
    return torch.isin(roles, torch.tensor(wanted))


def _quantile(z: Columns) -> Columns:
    return (1 + (z / math.sqrt(2)).erf()) / 2


# Marginals: a standard normal column becomes a column of that distribution, of order one.


def _normal(_: torch.Generator, z: Columns) -> Columns:
    return z


def _uniform(_: torch.Generator, z: Columns) -> Columns:
    return _quantile(z)


def _log_normal(generator: torch.Generator, z: Columns) -> Columns:
    return (log_uniform(generator, (len(z), 1), 0.2, 1.2) * z).exp()


def _student_t3(generator: torch.Generator, z: Columns) -> Columns:
    chi_square = normal(generator, (3, *z.shape)).square().sum(0)
    return z * (3 / chi_square).sqrt()


def _bimodal(generator: torch.Generator, z: Columns) -> Columns:
    separation = uniform(generator, (len(z), 1), 1.5, 4.0)
    share = uniform(generator, (len(z), 1), 0.2, 0.8)
    upper = torch.rand(z.shape, generator=generator) < share
    return z + separation * upper


def _few_levels(generator: torch.Generator, z: Columns) -> Columns:
    levels = (2 + choose(generator, (3, 2, 2, 1, 1, 1, 1), (len(z), 1))).float()
    # A power of the quantile makes some levels rare, as in real categories.
    skew = log_uniform(generator, (len(z), 1), 0.4, 2.5)
    return (_quantile(z).pow(skew) * levels).floor().minimum(levels - 1)


MARGINALS: dict[str, tuple[float, Callable[[torch.Generator, Columns], Columns]]] = {
    "normal": (0.25, _normal),
    "uniform": (0.25, _uniform),
    "log-normal": (0.20, _log_normal),
    "student-t3": (0.10, _student_t3),
    "bimodal": (0.10, _bimodal),
    "few levels": (0.10, _few_levels),
}


def filtered(
    drive: Float[Tensor, "columns rows"], response: Float[Tensor, "columns rows"]
) -> Float[Tensor, "columns rows"]:
    """Causal convolution of every column with its impulse response, by FFT."""
    rows = drive.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * rows))  # padded: nothing wraps around
    spectrum = torch.fft.rfft(drive, size) * torch.fft.rfft(response, size)
    convolved: Tensor = torch.fft.irfft(spectrum, size)
    return convolved[..., :rows]


def _walks(generator: torch.Generator, innovations: Columns) -> Columns:
    """AR(1) columns of unit stationary variance; memory far beyond the stream is a random walk."""
    count, rows = innovations.shape
    memory = log_uniform(generator, (count, 1), 2.0, 10.0 * rows)  # rows until e⁻¹ is left
    decay = (-1 / memory).exp()
    drive = innovations * (1 - decay.square()).sqrt()
    drive[:, :1] = innovations[:, :1]  # starts stationary
    return filtered(drive, decay.pow(torch.arange(rows)))


def _correlated(
    generator: torch.Generator,
    z: Float[Tensor, "tasks columns rows"],
    mixed: Bool[Tensor, " tasks"],
) -> Float[Tensor, "tasks columns rows"]:
    """Mix the columns by identity + low rank in the chosen tasks, keeping unit variance."""
    tasks, columns, _ = z.shape
    # Ten times the identity: nearly collinear, as the length, width and weight of a thing.
    strength = log_uniform(generator, (tasks, 1, 1), 0.3, 10.0) * mixed[:, None, None]
    rank = torch.arange(2) <= choose(generator, (1, 1), (tasks, 1, 1))
    loadings = normal(generator, (tasks, columns, 2)) * rank
    sources = normal(generator, (tasks, 2, columns)) / math.sqrt(columns)
    mixing = torch.eye(columns) + strength * (loadings @ sources)
    norm: Tensor = mixing.square().sum(-1, keepdim=True).sqrt()
    return mixing / norm @ z


def _clock(generator: torch.Generator, tasks: int, rows: int) -> Float[Tensor, "tasks rows"]:
    """Time of every row: mostly regular, in a quarter of the tasks with random gaps of mean 1."""
    gaps = -(1 - torch.rand((tasks, rows), generator=generator)).log()
    irregular = coin(generator, (tasks, 1), 0.25)
    return torch.where(irregular, gaps, torch.ones(())).cumsum(-1)


def _phase(generator: torch.Generator, time: Float[Tensor, "tasks rows"]) -> Tensor:
    """Angle of a clock whose period is 7 rows to four times the stream."""
    tasks, rows = time.shape
    period = log_uniform(generator, (tasks, 1), 7.0, 4.0 * rows)
    return 2 * math.pi * (time / period + uniform(generator, (tasks, 1)))


def _trend(
    generator: torch.Generator,
    time: Float[Tensor, "tasks rows"],
    x: Float[Tensor, "tasks columns rows"],
) -> Float[Tensor, "tasks columns rows"]:
    """Rising columns: time itself, or (one in three) the column's own values in sorted order."""
    scaled = time / time[:, -1:]
    ordered = coin(generator, (*x.shape[:2], 1), 1 / 3)
    return torch.where(ordered, x.sort(dim=-1).values, scaled[:, None, :])


def random_inputs(
    generator: torch.Generator,
    roles: Int[Tensor, "tasks columns"],
    rows: int,
    correlated: Bool[Tensor, " tasks"],
) -> tuple[Float[Tensor, "tasks rows columns"], Float[Tensor, "tasks rows"]]:
    """Draw the inputs of every task, row after row.

    Args:
        generator: where randomness comes from.
        roles: the role of every column; absent and lagged columns are left to the caller.
        rows: length of the stream, ≥ 1.
        correlated: tasks whose columns are mixed.

    Returns:
        The inputs in natural units (of order one, not standardised), and the time of every row
        (mean step 1).

    Example:
        >>> roles = torch.full((2, 3), Role.STILL)
        >>> x, time = random_inputs(torch.Generator(), roles, 50, torch.tensor([True, False]))
    """
    tasks, columns = roles.shape
    z = normal(generator, (tasks, columns, rows))
    walking = roles == Role.WALK
    if walking.any():
        z[walking] = _walks(generator, z[walking])
    z = _correlated(generator, z, correlated)
    weights, draws = zip(*MARGINALS.values(), strict=True)
    kinds = choose(generator, weights, (tasks * columns,))
    x = by_kind(kinds, draws, generator, z.flatten(0, 1)).view(tasks, columns, rows)
    time = _clock(generator, tasks, rows)
    if (roles == Role.TREND).any():
        trending = (roles == Role.TREND)[..., None]
        x = torch.where(trending, _trend(generator, time, x), x)
    x = x * sign(generator, (tasks, columns, 1))
    return _with_phases(generator, roles, x, time).transpose(1, 2), time


def _with_phases(
    generator: torch.Generator,
    roles: Int[Tensor, "tasks columns"],
    x: Float[Tensor, "tasks columns rows"],
    time: Float[Tensor, "tasks rows"],
) -> Float[Tensor, "tasks columns rows"]:
    """Put the sine and cosine of up to two clocks where the roles want them."""
    if not is_among(roles, PHASES).any():
        return x
    first, second = _phase(generator, time), _phase(generator, time)
    waves = (first.sin(), first.cos(), second.sin(), second.cos())
    for role, wave in zip(PHASES, waves, strict=True):
        x = torch.where((roles == role)[..., None], wave[:, None, :], x)
    return x
