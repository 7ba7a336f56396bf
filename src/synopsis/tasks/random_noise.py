"""Random noise around a function, and the memory of y when its own past drives it.

A kind of noise is ``(generator, x, relevant) -> noise`` of zero mean and unit variance over the
stream, with x and relevant as in ``random_functions``.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.tasks.elementary_draws import (
    coin,
    log_uniform,
    normal,
    sign,
    student_t,
    uniform,
)
from synopsis.tasks.random_functions import (
    Inputs,
    Relevant,
    gaussian_process,
    linear,
    unit_scale,
)
from synopsis.tasks.random_inputs import filtered

Noise = Float[Tensor, "tasks rows"]
BURN_IN = 64  # rows before the stream that fill the memory of y


def gaussian(generator: torch.Generator, x: Inputs, _: Relevant) -> Noise:
    """The same normal law at every row."""
    return normal(generator, x.shape[:2])


def input_dependent(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Noise:
    """Normal with a log-sd that is linear, or a Gaussian process, in the inputs."""
    slope, surface = linear(generator, x, relevant), gaussian_process(generator, x, relevant)
    shape = torch.where(coin(generator, (len(x), 1)), slope, surface)
    # Heavy-tailed inputs must not make a single row carry all the noise of a stream.
    log_sd = uniform(generator, (len(x), 1), 0.2, 1.0) * unit_scale(shape).clamp(-2.5, 2.5)
    sd = log_sd.exp()
    return normal(generator, sd.shape) * sd / sd.square().mean(-1, keepdim=True).sqrt()


def heavy_tailed(generator: torch.Generator, x: Inputs, _: Relevant) -> Noise:
    """Student-t with 2.5 to 10 degrees of freedom, scaled to unit variance."""
    freedom = uniform(generator, (len(x), 1), 2.5, 10.0)
    return student_t(generator, freedom, x.shape[:2]) * ((freedom - 2) / freedom).sqrt()


def skewed(generator: torch.Generator, x: Inputs, _: Relevant) -> Noise:
    """Shifted log-normal of skewness about 0.3 to 1.8, to either side, scaled to unit variance."""
    shape = uniform(generator, (len(x), 1), 0.1, 0.5)
    raw = (shape * normal(generator, x.shape[:2]) - shape.square() / 2).exp() - 1
    return sign(generator, (len(x), 1)) * raw / torch.expm1(shape.square()).sqrt()


NOISES: dict[str, tuple[float, Callable[[torch.Generator, Inputs, Relevant], Noise]]] = {
    "gaussian": (0.60, gaussian),
    "input-dependent": (0.20, input_dependent),
    "heavy-tailed": (0.15, heavy_tailed),
    "skewed": (0.05, skewed),
}


def outliers(
    generator: torch.Generator, rows: int, afflicted: Bool[Tensor, " tasks"]
) -> Float[Tensor, "tasks rows"]:
    """Rare gross errors of 4 to 20 spreads of y in the afflicted tasks, 0 elsewhere."""
    shape = (len(afflicted), rows)
    rate = log_uniform(generator, (len(afflicted), 1), 0.003, 0.03)
    hit = (torch.rand(shape, generator=generator) < rate) & afflicted[:, None]
    return hit * sign(generator, shape) * uniform(generator, shape, 4.0, 20.0)


def autoregression(
    generator: torch.Generator,
    f: Float[Tensor, "tasks rows"],
    noise: Float[Tensor, "tasks rows"],
) -> Float[Tensor, "tasks rows_and_two"]:
    """Stationary AR(1) or AR(2) driven by function and noise.

    y_t = a₁ y_{t−1} + a₂ y_{t−2} + f_t + noise_t, with poles of modulus e^(−1/memory), memory
    log-uniform from half a row to 200 rows.

    Args:
        generator: where randomness comes from.
        f: the function at every row of the stream.
        noise: the noise at every row of the stream.

    Returns:
        y with two rows before the stream, so that entry t + 2 is y_t.
    """
    tasks, rows = f.shape
    # Before the stream: f of random early rows, and noise of random rows with fresh signs.
    early = (torch.rand((tasks, BURN_IN), generator=generator) * min(rows, 32)).long()
    any_row = (torch.rand((tasks, BURN_IN), generator=generator) * rows).long()
    before = f.gather(1, early) + noise.gather(1, any_row) * sign(generator, (tasks, BURN_IN))
    drive = torch.cat([before, f + noise], dim=1)
    y = filtered(drive.double(), _impulse_response(generator, *drive.shape))
    return y[:, BURN_IN - 2 :].float()


def _impulse_response(
    generator: torch.Generator, tasks: int, rows: int
) -> Float[Tensor, "tasks rows"]:
    """h_k = Σ_{i+j=k} p₁ⁱ p₂ʲ for poles p₁, p₂: real and different, conjugate, or p₂ = 0."""
    modulus = (-1 / log_uniform(generator, (tasks, 1), 0.5, 200.0)).exp().double()
    # Slow cycles are the common ones: of 126 rows down to 2.5.
    angle = log_uniform(generator, (tasks, 1), 0.05, 2.5).double()
    lags = torch.arange(1, rows + 1, dtype=torch.float64)
    conjugate = modulus.pow(lags - 1) * (angle * lags).sin() / angle.sin()
    other = modulus * uniform(generator, (tasks, 1), -0.5, 0.9).double()
    real = (modulus.pow(lags) - other.pow(lags)) / (modulus - other)
    single = modulus.pow(lags - 1)
    kind = torch.rand((tasks, 1), generator=generator)
    return torch.where(kind < 0.5, single, torch.where(kind < 0.8, real, conjugate))
