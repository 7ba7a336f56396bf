"""Bayesian optimisation on tiny grids with tiny processes: beliefs against naive formulas, and the whole table."""

import math

import pytest
import torch
import typer
from torch.distributions import Normal
from typer.testing import CliRunner

from synopsis.cli.reproduce_np_bo import np_bo
from synopsis.processes import CMANP, CMANPAND, CNP
from synopsis.reproduction import np_bo as table
from synopsis.reproduction.contenders import Contender
from synopsis.reproduction.np_bo_beliefs import ExactBelief, ProcessBelief, RefittedBelief
from synopsis.reproduction.np_bo_grid import (
    NOISE,
    Functions,
    expected_improvement,
    optimise,
    search_at_random,
)
from synopsis.reproduction.np_bo_plane import Problem, at_random, by_process, play, problems
from synopsis.tasks.gaussian_process import LENGTHS, PERIODS, SCALES
from synopsis.training.experiment import Component
from tests.tolerances import FLOAT64, PREDICTION, TRAPEZOIDS, UPDATED_SOLVE

POINTS, DECISIONS = 60, 8
KERNELS = ("rbf", "matern52", "periodic")
PLACES = torch.tensor([[3, 40, 40, 21], [50, 7, 30, 7]])


def kernel_matrix(functions, i):
    """Written anew from the published formulas."""
    length, scale, period = (float(value[i]) for value in functions.hyper)
    d = (functions.x[:, None] - functions.x[None, :]).abs()
    r = math.sqrt(5) * d / length
    shape = {
        "rbf": torch.exp(-(d**2) / (2 * length**2)),
        "matern52": (1 + r + r**2 / 3) * torch.exp(-r),
        "periodic": torch.exp(-2 * torch.sin(math.pi * d / period) ** 2 / length**2),
    }[functions.kernel]
    return scale**2 * shape + NOISE**2 * torch.eye(len(d), dtype=d.dtype)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_exact_belief_is_conditioning(kernel):
    functions = Functions.drawn(kernel, 0, 2, points=POINTS)
    belief = ExactBelief(functions)
    for step in range(PLACES.shape[1]):
        belief.tell(PLACES[:, step])
    mean, stddev = belief.predict()
    for i in range(2):
        matrix, known = kernel_matrix(functions, i), PLACES[i].unique()
        weights = torch.linalg.solve(matrix[known][:, known], matrix[known])
        expected = weights.T @ functions.y[i, known]
        variance = matrix.diagonal() - (weights * matrix[known]).sum(0)
        torch.testing.assert_close(mean[i], expected, rtol=UPDATED_SOLVE, atol=UPDATED_SOLVE)
        torch.testing.assert_close(
            stddev[i] ** 2, variance.clamp(min=0), rtol=UPDATED_SOLVE, atol=UPDATED_SOLVE
        )
        torch.testing.assert_close(
            mean[i, known], functions.y[i, known], rtol=UPDATED_SOLVE, atol=UPDATED_SOLVE
        )


def test_functions_follow_the_published_law_whatever_portion_they_are_drawn_in():
    whole, part = (Functions.drawn("matern52", first, 200, points=12) for first in (0, 150))
    assert torch.equal(whole.y[150:], part.y) and torch.equal(whole.start[150:], part.start)
    assert whole.x[0] == -2 and whole.x[-1] == 2
    for values, (low, high) in zip(whole.hyper, (LENGTHS["code"], SCALES, PERIODS), strict=True):
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() < high
    size = (whole.y / (whole.hyper.scale[:, None] ** 2 + NOISE**2).sqrt()).square().mean()
    assert abs(size - 1) < 0.25  # 200 functions of few independent values each
    assert {int(start) for start in whole.start} == set(range(12))


def test_expected_improvement_is_the_integral():
    best, mean, stddev = (torch.tensor([[v]], dtype=torch.float64) for v in (0.3, 0.5, 0.7))
    y = torch.linspace(-8, 0.3, 200_001, dtype=torch.float64)
    integral = torch.trapezoid((0.3 - y) * Normal(mean, stddev).log_prob(y).exp()[0], y)
    assert abs(expected_improvement(best, mean, stddev).item() - integral) < TRAPEZOIDS


@pytest.mark.parametrize("kind", (CMANP, CMANPAND, CNP), ids=lambda kind: kind.__name__)
def test_a_process_believes_what_it_predicts_from_all_it_was_told(kind):
    torch.manual_seed(0)
    sizes = {"dim": 16} if kind is CNP else {"dim": 16, "blocks": 2, "latents": 8}
    process = kind(**sizes).eval()
    functions = Functions.drawn("rbf", 0, 2, points=POINTS)
    belief = ProcessBelief(process, functions)
    for step in range(PLACES.shape[1]):
        belief.tell(PLACES[:, step])
    x, y = functions.x[PLACES].float()[..., None], functions.y.gather(1, PLACES).float()[..., None]
    with torch.no_grad():
        expected = process(x, y, functions.x.float().view(1, -1, 1).expand(2, -1, -1))
    for found, wanted in zip(belief.predict(), (expected.mean, expected.stddev), strict=True):
        torch.testing.assert_close(found, wanted[..., 0].double(), rtol=PREDICTION, atol=PREDICTION)
    assert belief.nbytes == belief.state.nbytes // 2


def test_the_refitted_belief_finds_the_likeliest_length():
    functions = Functions.drawn("rbf", 3, 4, points=POINTS)
    belief = RefittedBelief(functions)
    for place in range(0, POINTS, 4):
        belief.tell(torch.tensor([place]))
    x, y = functions.x[::4], functions.y[0, ::4]
    eye, best = torch.eye(len(x), dtype=x.dtype), (-math.inf, None)
    for length in torch.linspace(*LENGTHS["code"], 41).tolist():
        for scale in torch.linspace(*SCALES, 19).tolist():
            shape = torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
            factor = torch.linalg.cholesky(scale**2 * shape + NOISE**2 * eye)
            white = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
            likelihood = -0.5 * white.square().sum() - factor.diagonal().log().sum()
            if likelihood > best[0]:
                across = torch.exp(-((x[:, None] - functions.x) ** 2) / (2 * length**2))
                half = torch.linalg.solve_triangular(factor, scale**2 * across, upper=False)
                variance = scale**2 + NOISE**2 - half.square().sum(0)
                best = (likelihood, ((half.T @ white)[:, 0], variance.sqrt()))
    for found, wanted in zip(belief.predict(), best[1], strict=True):
        torch.testing.assert_close(
            found[0], wanted, rtol=0.1, atol=0.02
        )  # the steps of this search


class Oracle:
    """Knows every value."""

    def __init__(self, functions):
        self.y = functions.y

    def tell(self, places):
        pass

    def predict(self):
        return self.y, torch.full_like(self.y, 1e-9)


class Stubborn(Oracle):
    """Believes in one place."""

    def predict(self):
        return torch.zeros_like(self.y).index_fill(1, torch.tensor([5]), -9.0), self.y * 0 + 0.1


def test_regret_is_of_the_best_value_so_far():
    functions = Functions.drawn("rbf", 0, 4, points=POINTS)
    played = optimise(Oracle(functions), functions, 3)
    first = functions.at(functions.start) - functions.y.amin(1)
    assert torch.equal(played.regret[:, 0], first)
    assert (played.regret[:, 1:] == 0).all()
    again = optimise(Stubborn(functions), functions, 3)
    wanted = torch.minimum(functions.at(functions.start), functions.y[:, 5]) - functions.y.amin(1)
    assert torch.equal(again.regret[:, 1:], wanted[:, None].expand(-1, 3))


def test_without_repeats_every_place_is_found_in_the_end():
    functions = Functions.drawn("periodic", 0, 3, points=12)
    for play_once in (
        optimise(Stubborn(functions), functions, 11, repeats=False),
        search_at_random(functions, 11, repeats=False),
    ):
        assert (play_once.regret[:, -1] == 0).all() and (play_once.regret[:, 0] > 0).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_who_knows_the_kernel_beats_chance(kernel):
    functions = Functions.drawn(kernel, 0, 20, points=200)
    exact = optimise(ExactBelief(functions), functions, 25).regret
    chance = search_at_random(functions, 25).regret
    assert exact[:, -1].mean() < 0.5 * chance[:, -1].mean()
    assert (exact.diff(dim=1) <= 0).all() and (chance >= 0).all()


def test_the_true_minima_of_the_test_functions():
    found = problems()
    assert found["Ackley"].bounds.tolist() == [[-2, -2], [2, 2]]
    assert found["Michalewicz"].bounds.tolist() == [[0, 0], [2, 2]]
    assert abs(found["Ackley"].least()) < FLOAT64
    assert abs(found["DropWave"].least() + 1) < FLOAT64
    x = torch.linspace(0, 2, 2_000_001, dtype=torch.float64)  # a sum over inputs: one at a time
    parts = [(x.sin() * (i * x**2 / math.pi).sin() ** 20).max() for i in (1, 2)]
    assert abs(found["Michalewicz"].least() + sum(parts)) < TRAPEZOIDS


def test_a_process_in_two_dimensions_is_told_every_point():
    torch.manual_seed(0)
    process = CNP(dim_x=2, dim=16).eval()
    bounds = torch.tensor([[0.0, -1.0], [4.0, 1.0]], dtype=torch.float64)
    bowl = Problem("bowl", lambda x: (x - 0.5).square().sum(-1), bounds)
    assert abs(bowl.least()) < TRAPEZOIDS
    propose = by_process(process, bowl)
    regret, seconds = play(bowl, propose, seed=1, decisions=2)
    assert propose.__closure__ is not None
    (told,) = (
        cell.cell_contents for cell in propose.__closure__ if type(cell.cell_contents) is list
    )
    assert told[0].state.count.tolist() == [2]
    assert regret == sorted(regret, reverse=True) and seconds > 0
    assert regret == play(bowl, by_process(process, bowl), seed=1, decisions=2)[0]
    assert regret[0] == play(bowl, at_random(bowl), seed=1, decisions=1)[0][0]


@pytest.fixture(autouse=True)
def few_restarts(monkeypatch):
    monkeypatch.setattr("synopsis.reproduction.np_bo_plane.RESTARTS", 2)
    monkeypatch.setattr("synopsis.reproduction.np_bo_plane.RAW_SAMPLES", 8)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command with processes of a few weights, and everything in one folder."""
    tiny = {"dim": 16, "blocks": 1, "latents": 4}
    contenders = {
        "CMANP-32": Contender("CMANP-32", Component("CMANP", tiny)),
        "CNP": Contender("CNP", Component("CNP", {"dim": 16})),
    }
    plane = {"CMANP-32": Contender("CMANP-32", Component("CMANP", {**tiny, "dim_x": 2}))}
    monkeypatch.setattr("synopsis.reproduction.np_gp.CONTENDERS", contenders)
    monkeypatch.setattr(table, "CONTENDERS", contenders)
    monkeypatch.setattr(table, "ON_PLANE", plane)
    app = typer.Typer()
    app.command()(np_bo)

    def run(*arguments):
        places = {"--out": "np-bo.md", "--runs": "runs", "--weights": "weights"}
        named = [word for key, name in places.items() for word in (key, tmp_path / name)]
        sizes = ["--models", "CMANP-32,CNP", "--functions", 2, "--decisions", 3, "--tasks", 2]
        words = [*sizes, "--plane-decisions", 1, *named, *arguments]
        return CliRunner().invoke(app, list(map(str, words)))

    return run


def test_the_command_writes_the_table_and_continues_a_killed_one(command, tmp_path, monkeypatch):
    result = command("--budget", 0.01)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "np-bo.md").read_text(encoding="utf-8")
    assert page.count("| exact Gaussian process |") == page.count("| random search |") - 3 == 6
    assert page.count("| CMANP, 32 latents |") == 9
    assert page.count("| not found |") == 2 * 3 * 5 + 3 * 3 and "trained here, seed 0" in page
    for name in ("np-bo-1d.png", "np-bo-2d.png"):
        assert f"![{name}]({name})" in page and (tmp_path / name).stat().st_size > 10_000
    assert "    synopsis reproduce np-bo --budget 0.01 --functions 2 --decisions 3" in page

    def forbidden(*arguments, **settings):
        raise AssertionError("played again")

    monkeypatch.setattr(table, "optimise", forbidden)
    monkeypatch.setattr("synopsis.reproduction.np_bo_plane.play", forbidden)
    again = command("--budget", 0.02)  # weights that are there are taken, whatever they have cost
    assert again.exit_code == 0, again.output
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines == [
        line
        for line in (tmp_path / "np-bo.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]


def test_without_budget_what_is_not_there_is_said(command, tmp_path):
    result = command("--budget", 0, "--tasks", 0)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "np-bo.md").read_text(encoding="utf-8")
    assert "CNP: no weights in" in page and "| exact Gaussian process |" in page
    assert "## Two dimensions" not in page and "-2d.png" not in page


def test_an_unknown_model_is_one_line(command):
    result = command("--models", "GPT")
    assert result.exit_code == 2
    assert "'GPT' is not in this table" in result.output
    assert "Traceback" not in result.output
