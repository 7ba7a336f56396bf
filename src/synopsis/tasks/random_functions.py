"""Random functions of several inputs: what may stand between the inputs and the output.

A kind of function is ``(generator, x, relevant) -> f``: x (tasks, rows, columns) has zero mean and
unit spread over the stream, relevant (tasks, columns) tells the columns that matter (the others
must not be looked at), f is (tasks, rows) in any scale.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.tasks.elementary_draws import choose, coin, log_uniform, normal, uniform

Inputs = Float[Tensor, "tasks rows columns"]
Relevant = Bool[Tensor, "tasks columns"]
Function = Float[Tensor, "tasks rows"]

FEATURES = 256
KERNELS = {"rbf": math.inf, "matern-3/2": 3.0, "matern-5/2": 5.0}  # freedom of the frequencies
LENGTH_SCALES = (0.25, 10.0)  # in spreads of the input


def unit_scale(f: Float[Tensor, "tasks rows"]) -> Float[Tensor, "tasks rows"]:
    """Zero mean and unit standard deviation along the stream; a constant becomes 0."""
    centred = f - f.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt()
    # A constant leaves the rounding errors of its size: they are not to be blown up.
    rounding = 1e-5 * f.abs().amax(-1, keepdim=True)
    return centred / torch.where(spread > rounding, spread, math.inf)


def length_scales(generator: torch.Generator, relevant: Relevant) -> Float[Tensor, "tasks columns"]:
    """Log-uniform length-scales in spreads of the input; infinite where a column is irrelevant.

    They grow with the square root of the number of relevant inputs, so that a function of eight
    inputs is as smooth along a random direction as one of a single input.
    """
    number = relevant.sum(-1, keepdim=True).clamp_min(1)
    scales = log_uniform(generator, relevant.shape, *LENGTH_SCALES) * number.sqrt()
    return torch.where(relevant, scales, math.inf)


def spectral_frequencies(
    generator: torch.Generator,
    kernel: Int[Tensor, " tasks"],
    scales: Float[Tensor, "tasks columns"],
    features: int = FEATURES,
) -> Float[Tensor, "tasks columns features"]:
    """Angular frequencies whose random cosines have the kernel as covariance.

    Normal for the RBF kernel, multivariate Student-t with 2ν degrees of freedom for Matérn-ν.

    Args:
        generator: where randomness comes from.
        kernel: index into ``KERNELS`` for every task.
        scales: length-scale of every input, > 0, may be infinite.
        features: number of frequencies.
    """
    tasks, columns = scales.shape
    frequencies = normal(generator, (tasks, columns, features)) / scales[..., None]
    freedom = torch.tensor(list(KERNELS.values()))[kernel, None]
    squares = normal(generator, (5, tasks, features)).square().cumsum(0)
    chi_square = torch.where(freedom == 3.0, squares[2], squares[4])
    stretch = torch.where(freedom.isinf(), 1.0, (freedom / chi_square).sqrt())
    return frequencies * stretch[:, None, :]


def random_fourier_function(
    generator: torch.Generator,
    x: Inputs,
    frequencies: Float[Tensor, "tasks columns features"],
) -> Function:
    """A draw, nearly Gaussian, of zero mean and unit variance with the spectrum given.

    Source: Rahimi and Recht 2007, "Random features for large-scale kernel machines".
    """
    tasks, _, features = frequencies.shape
    offset = uniform(generator, (tasks, 1, features), 0.0, 2 * math.pi)
    weights = normal(generator, (tasks, features, 1)) * math.sqrt(2 / features)
    waves = torch.baddbmm(offset, x, frequencies).cos_()
    return (waves @ weights).squeeze(-1)


def gaussian_process(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Function:
    """A Gaussian process of a random kernel and random length-scales."""
    kernel = choose(generator, (1, 1, 1), (len(x),))
    scales = length_scales(generator, relevant)
    return random_fourier_function(generator, x, spectral_frequencies(generator, kernel, scales))


def linear(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Function:
    """A linear function of the relevant inputs."""
    weights = normal(generator, relevant.shape) * relevant
    return (x @ weights[..., None]).squeeze(-1)


def linear_and_gaussian_process(
    generator: torch.Generator, x: Inputs, relevant: Relevant
) -> Function:
    """A linear function and a Gaussian process around it, of 0.05 to 1 times its size."""
    residual = unit_scale(gaussian_process(generator, x, relevant))
    size = log_uniform(generator, (len(x), 1), 0.05, 1.0)
    return unit_scale(linear(generator, x, relevant)) + size * residual


def network(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Function:
    """A random network of one or two hidden layers with tanh, ReLU or sine units."""
    tasks, columns, width = len(x), x.shape[-1], 32
    activation = choose(generator, (1, 1, 1), (tasks, 1, 1))
    gain = log_uniform(generator, (tasks, 1, 1), 0.5, 3.0)
    fan_in = relevant.sum(-1).clamp_min(1)[:, None, None]
    first = normal(generator, (tasks, columns, width)) * relevant[..., None] / fan_in.sqrt()
    hidden = _activated(x @ (gain * first) + normal(generator, (tasks, 1, width)), activation)
    second = normal(generator, (tasks, width, width)) * gain / math.sqrt(width)
    deeper = _activated(hidden @ second + normal(generator, (tasks, 1, width)), activation)
    last = torch.where(coin(generator, (tasks, 1, 1)), hidden, deeper)
    return (last @ normal(generator, (tasks, width, 1))).squeeze(-1)


def _activated(
    h: Float[Tensor, "tasks rows width"], kind: Int[Tensor, "tasks 1 1"]
) -> Float[Tensor, "tasks rows width"]:
    return torch.where(kind == 0, h.tanh(), torch.where(kind == 1, h.relu(), h.sin()))


def steps(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Function:
    """A sum of up to eight jumps, each where one or two inputs pass a threshold (small trees)."""
    count = 8
    first = _passed(generator, x, relevant, count)
    second = _passed(generator, x, relevant, count) | coin(generator, (len(x), 1, count))
    heights = normal(generator, (len(x), count, 1))
    kept = torch.arange(count) <= choose(generator, (1,) * count, (len(x), 1))
    return ((first & second).float() @ (heights * kept[..., None])).squeeze(-1)


def _passed(
    generator: torch.Generator, x: Inputs, relevant: Relevant, count: int
) -> Bool[Tensor, "tasks rows count"]:
    """Whether a random relevant input lies above its value at a random row."""
    tasks, rows, _ = x.shape
    column = _relevant_columns(generator, relevant, count)[:, None, :]
    values = x.gather(2, column.expand(-1, rows, -1))  # (tasks, rows, count)
    row = (torch.rand((tasks, 1, count), generator=generator) * rows).long()
    return values > values.gather(1, row)


def _relevant_columns(
    generator: torch.Generator, relevant: Relevant, count: int
) -> Int[Tensor, "tasks count"]:
    """Columns drawn with replacement among the relevant ones (among all, if none is)."""
    weights = torch.where(relevant.any(-1, keepdim=True), relevant, True).float()
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def periodic(generator: torch.Generator, x: Inputs, relevant: Relevant) -> Function:
    """A wave of one to four harmonics in one input, and a smaller linear part in the others."""
    tasks, rows, _ = x.shape
    column = _relevant_columns(generator, relevant, 1)[:, None, :]
    along = x.gather(2, column.expand(-1, rows, -1))  # (tasks, rows, 1)
    harmonics = torch.arange(1, 5)
    period = log_uniform(generator, (tasks, 1, 1), 0.4, 6.0)  # in spreads of the input
    shift = uniform(generator, (tasks, 1, 4), 0.0, 2 * math.pi)
    kept = harmonics <= 1 + choose(generator, (1, 1, 1, 1), (tasks, 1))
    size = normal(generator, (tasks, 4)) * kept / harmonics
    waves = (2 * math.pi * harmonics * along / period + shift).sin()
    rest = unit_scale(linear(generator, x, relevant)) * log_uniform(
        generator, (tasks, 1), 0.05, 0.7
    )
    return unit_scale((waves @ size[..., None]).squeeze(-1)) + rest


FUNCTIONS: dict[str, tuple[float, Callable[[torch.Generator, Inputs, Relevant], Function]]] = {
    "gaussian process": (0.35, gaussian_process),
    "linear + gaussian process": (0.25, linear_and_gaussian_process),
    "linear": (0.12, linear),
    "network": (0.13, network),
    "steps": (0.10, steps),
    "periodic": (0.05, periodic),
}
