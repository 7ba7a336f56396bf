"""The prior of the shipped process: random regression streams as users may bring them.

A stream is drawn in three steps: a recipe (which columns, which function, which noise), its rows in
natural units, and the standardisation by the first rows that also happens at use.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.elementary_draws import by_kind, choose, coin, log_uniform, uniform
from synopsis.tasks.random_functions import FUNCTIONS, unit_scale
from synopsis.tasks.random_inputs import LAGS, PHASES, Role, is_among, random_inputs
from synopsis.tasks.random_noise import NOISES, autoregression, outliers
from synopsis.tasks.warmup import location_and_scale, standardised

FEWEST_TASKS = 4  # a batch does not shrink below this for the sake of its points
INPUT_WEIGHTS = (0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)  # of 1, 2, … inputs
IRRELEVANT = 0.2  # share of the inputs that do not matter


@dataclass(frozen=True)
class Recipe:
    """What was drawn for every task of a batch before any row.

    Args:
        roles: role of every input column.
        ordered: the order of the rows matters.
        correlated: the inputs are mixed.
        drifting: the function changes slowly along the stream.
        held_out: targets are rows from anywhere in the stream, not those after the context.
        sorted_by: column whose values sort the rows (the number of columns: y does); −1: none.
        afflicted: y has outliers.
        function: index into ``FUNCTIONS``.
        noise: index into ``NOISES``.
        noise_sd: noise against the function's standard deviation.
        warmup: number of first rows that fix location and scale.
    """

    roles: Int[Tensor, "tasks columns"]
    ordered: Bool[Tensor, " tasks"]
    correlated: Bool[Tensor, " tasks"]
    drifting: Bool[Tensor, " tasks"]
    held_out: Bool[Tensor, " tasks"]
    sorted_by: Int[Tensor, " tasks"]
    afflicted: Bool[Tensor, " tasks"]
    function: Int[Tensor, " tasks"]
    noise: Int[Tensor, " tasks"]
    noise_sd: Float[Tensor, " tasks"]
    warmup: Int[Tensor, " tasks"]


@dataclass(frozen=True)
class RegressionPrior:
    """A distribution over regression streams; a task of ``tasks.base.Task``.

    Args:
        max_inputs: number of input columns handed out; the unused ones are NaN.
        max_context: most context points; their number is log-uniform on 0 … max_context.
        targets: target points of every task.
        warmup: rows that fix location and scale at use.
        max_points_per_batch: batches with more points than this shrink, not below 4 tasks.
        ordered_share: tasks in which the order of the rows matters.
        lagged_share: tasks with one or two past values of y among the inputs (all are ordered).
        drifting_share: of the ordered tasks, those whose function changes slowly.
        held_out_share: of the ordered tasks without lags, those whose targets are rows from
            anywhere in the stream; in all others the targets follow the context.
        sorted_share: of the tasks without order, those that come as a sorted file: by y or, as
            often, by an input.
        outlier_share: tasks with occasional gross errors in y.
        noise_range: smallest and largest noise sd against the function's; log-uniform between.
        functions: weight of every kind in ``FUNCTIONS``.
        noises: weight of every kind in ``NOISES``.

    Raises:
        ValueError: if a weight names no kind, or a number is out of its range.

    Example:
        >>> batch = RegressionPrior().sample(16, torch.Generator().manual_seed(0))
        >>> batch.xt.shape[1:], batch.yt.shape[1:]
        (torch.Size([64, 8]), torch.Size([64, 1]))
    """

    max_inputs: int = 8
    max_context: int = 2000
    targets: int = 64
    warmup: int = 32
    max_points_per_batch: int = 8192
    ordered_share: float = 0.40
    lagged_share: float = 0.15
    drifting_share: float = 0.10
    held_out_share: float = 0.25
    sorted_share: float = 0.05
    outlier_share: float = 0.03
    noise_range: tuple[float, float] = (0.03, 1.0)
    functions: dict[str, float] = field(default_factory=lambda: _weights(FUNCTIONS))
    noises: dict[str, float] = field(default_factory=lambda: _weights(NOISES))
    dim_y: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        for given, table in ((self.functions, FUNCTIONS), (self.noises, NOISES)):
            if unknown := sorted(set(given) - set(table)):
                raise ValueError(f"{unknown[0]!r} is no kind; the kinds are {', '.join(table)}")
        if not 1 <= self.max_inputs <= len(INPUT_WEIGHTS):
            raise ValueError(
                f"max_inputs is {self.max_inputs} but must lie in 1 … {len(INPUT_WEIGHTS)}"
            )
        if self.max_context < 0 or self.targets < 1 or self.warmup < 1:
            raise ValueError(
                f"max_context, targets, warmup are {self.max_context}, {self.targets}, "
                f"{self.warmup} but must be at least 0, 1, 1"
            )

    @property
    def dim_x(self) -> int:
        """Number of input columns."""
        return self.max_inputs

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw up to ``batch_size`` tasks that share one number of context and target points."""
        return self.sample_with_recipe(batch_size, generator)[0]

    def sample_with_recipe(
        self, batch_size: int, generator: torch.Generator
    ) -> tuple[Batch, Recipe]:
        """A batch, and what its tasks are made of."""
        draw = float(torch.rand((), generator=generator, dtype=torch.float64))
        context = int((self.max_context + 2) ** draw) - 1
        rows = context + self.targets
        tasks = min(batch_size, max(FEWEST_TASKS, self.max_points_per_batch // rows))
        recipe = self._recipe(generator, tasks, context)
        x, y = _arranged(generator, recipe, context, *_stream(generator, recipe, rows))
        x, y = _as_at_use(recipe, x, y)
        return Batch(x[:, :context], y[:, :context], x[:, context:], y[:, context:]), recipe

    def _recipe(self, generator: torch.Generator, tasks: int, context: int) -> Recipe:
        shape = (tasks,)
        ordered = coin(generator, shape, self.ordered_share)
        lagged = ordered & coin(generator, shape, self.lagged_share / max(self.ordered_share, 1e-9))
        inputs = 1 + choose(generator, INPUT_WEIGHTS[: self.max_inputs], shape)
        by_context = (context >= self.warmup) | (coin(generator, shape) & (context >= 3))
        return Recipe(
            roles=_random_roles(generator, inputs, ordered, lagged, self.max_inputs),
            ordered=ordered,
            correlated=coin(generator, shape),
            drifting=ordered & coin(generator, shape, self.drifting_share),
            held_out=ordered & ~lagged & coin(generator, shape, self.held_out_share),
            sorted_by=torch.where(
                ordered | ~coin(generator, shape, self.sorted_share),
                -1,
                self._key(generator, inputs),
            ),
            afflicted=coin(generator, shape, self.outlier_share),
            function=choose(generator, [self.functions.get(k, 0.0) for k in FUNCTIONS], shape),
            noise=choose(generator, [self.noises.get(k, 0.0) for k in NOISES], shape),
            noise_sd=log_uniform(generator, shape, *self.noise_range),
            warmup=torch.where(by_context, min(context, self.warmup), self.warmup).clamp_max(
                context + self.targets
            ),
        )

    def _key(self, generator: torch.Generator, inputs: Int[Tensor, " tasks"]) -> Tensor:
        """A random one of the given inputs, or y."""
        column = (uniform(generator, inputs.shape) * inputs).long()
        return torch.where(coin(generator, inputs.shape), column, self.max_inputs)


def _weights(table: Mapping[str, tuple[float, object]]) -> dict[str, float]:
    return {name: weight for name, (weight, _) in table.items()}


def _random_roles(
    generator: torch.Generator,
    inputs: Int[Tensor, " tasks"],
    ordered: Bool[Tensor, " tasks"],
    lagged: Bool[Tensor, " tasks"],
    columns: int,
) -> Int[Tensor, "tasks columns"]:
    """Roles of the columns; those present come first, in random order."""
    numbers = torch.rand((len(inputs), 2 * columns + 8), generator=generator).tolist()
    rows = []
    for count, order, lag, drawn in zip(
        inputs.tolist(), ordered.tolist(), lagged.tolist(), numbers, strict=True
    ):
        draws = iter(drawn)
        roles = _ordered_roles(draws, count, lag) if order else [Role.STILL] * count
        shuffled = sorted(roles, key=lambda _, draws=draws: next(draws))  # type: ignore[misc]
        rows.append(shuffled + [Role.ABSENT] * (columns - count))
    return torch.tensor(rows, dtype=torch.int64)


def _ordered_roles(draws: Iterator[float], inputs: int, lagged: bool) -> list[Role]:
    """Roles of a stream in which order matters: at least one of them depends on time."""
    roles: list[Role] = []
    if lagged:
        roles += LAGS[: min(inputs, 1 + (next(draws) < 0.5))]
    for pair, share in ((PHASES[:2], 0.5), (PHASES[2:], 0.15)):
        if next(draws) < share and inputs - len(roles) >= 2:
            roles += pair
    if next(draws) < 0.35 and inputs > len(roles):
        roles.append(Role.TREND)
    while len(roles) < inputs:
        roles.append(Role.WALK if next(draws) < 0.5 else Role.STILL)
    if set(roles) == {Role.STILL}:
        roles[0] = Role.WALK if next(draws) < 0.5 else Role.TREND
    return roles


def _stream(
    generator: torch.Generator, recipe: Recipe, rows: int
) -> tuple[Float[Tensor, "tasks rows columns"], Float[Tensor, "tasks rows 1"]]:
    """Inputs and outputs in natural units, in the order of time."""
    x, time = random_inputs(generator, recipe.roles, rows, recipe.correlated)
    seen, relevant = _seen_by_function(generator, recipe, x, time)
    functions = [draw for _, draw in FUNCTIONS.values()]
    noises = [draw for _, draw in NOISES.values()]
    f = unit_scale(by_kind(recipe.function, functions, generator, seen, relevant))
    unit_noise = by_kind(recipe.noise, noises, generator, seen, relevant)
    noise = recipe.noise_sd[:, None] * unit_noise
    # Two rows before the stream: the first rows have lags too.
    y = torch.nn.functional.pad(f + noise, (2, 0))
    lagged = is_among(recipe.roles, LAGS).any(-1)
    if lagged.any():
        y[lagged] = autoregression(generator, f[lagged], noise[lagged])
    # Gross errors are of the record: they show in the lags but do not drive what follows.
    spread = y[:, 2:].std(-1, correction=0, keepdim=True)
    y = y + spread * outliers(generator, rows + 2, recipe.afflicted)
    return _with_lags(recipe.roles, x, y), y[:, 2:, None]


def _seen_by_function(
    generator: torch.Generator,
    recipe: Recipe,
    x: Float[Tensor, "tasks rows columns"],
    time: Float[Tensor, "tasks rows"],
) -> tuple[Float[Tensor, "tasks rows columns_and_one"], Bool[Tensor, "tasks columns_and_one"]]:
    """Inputs of unit spread, then time, a hidden input of functions that change; what matters."""
    present = (recipe.roles != Role.ABSENT) & ~is_among(recipe.roles, LAGS)
    keys = uniform(generator, present.shape)
    # One input, the one of the smallest key, always matters.
    first = keys == torch.where(present, keys, math.inf).amin(-1, keepdim=True)
    relevant = present & ((keys > IRRELEVANT) | first)
    everything = torch.cat([x, time[..., None]], dim=-1)
    centred = everything - everything.mean(1, keepdim=True)
    seen = centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
    relevant = torch.cat([relevant, recipe.drifting[:, None]], dim=-1)
    return seen * relevant[:, None, :], relevant


def _with_lags(
    roles: Int[Tensor, "tasks columns"],
    x: Float[Tensor, "tasks rows columns"],
    y: Float[Tensor, "tasks rows_and_two"],
) -> Float[Tensor, "tasks rows columns"]:
    """Past values of y in the columns that have this role."""
    x = torch.where((roles == Role.LAG_1)[:, None, :], y[:, 1:-1, None], x)
    return torch.where((roles == Role.LAG_2)[:, None, :], y[:, :-2, None], x)


def _arranged(
    generator: torch.Generator,
    recipe: Recipe,
    context: int,
    x: Float[Tensor, "tasks rows columns"],
    y: Float[Tensor, "tasks rows 1"],
) -> tuple[Float[Tensor, "tasks rows columns"], Float[Tensor, "tasks rows 1"]]:
    """Rows in the order handed out: context, then targets (from anywhere in held-out tasks)."""
    tasks, rows, columns = x.shape
    shuffled = torch.rand((tasks, rows), generator=generator).argsort(-1)
    split = torch.cat([shuffled[:, :context].sort(-1).values, shuffled[:, context:]], dim=1)
    order = torch.where(recipe.held_out[:, None], split, torch.arange(rows))
    is_sorted = recipe.sorted_by >= 0
    if is_sorted.any():
        everything = torch.cat([x, y], dim=-1)[is_sorted]
        key = recipe.sorted_by[is_sorted, None, None].expand(-1, rows, 1)
        order[is_sorted] = everything.gather(2, key).squeeze(-1).argsort(-1)
    return x.gather(1, order[..., None].expand(-1, -1, columns)), y.gather(1, order[..., None])


def _as_at_use(
    recipe: Recipe, x: Float[Tensor, "tasks rows columns"], y: Float[Tensor, "tasks rows 1"]
) -> tuple[Float[Tensor, "tasks rows columns"], Float[Tensor, "tasks rows 1"]]:
    """Standardised by the first rows; lags in the units of y, phases as they are, NaN if absent."""
    y_location, y_scale = location_and_scale(y, recipe.warmup)
    x_location, x_scale = location_and_scale(x, recipe.warmup)
    lag = is_among(recipe.roles, LAGS)[:, None, :]
    x_location = torch.where(lag, y_location, x_location)
    x_scale = torch.where(lag, y_scale, x_scale)
    x = standardised(x, x_location, x_scale, untouched=is_among(recipe.roles, PHASES))
    x = x.masked_fill((recipe.roles == Role.ABSENT)[:, None, :], math.nan)
    return x, standardised(y, y_location, y_scale)
