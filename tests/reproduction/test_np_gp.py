"""The table of Gaussian processes, on models as small as they come."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from synopsis.processes import CMANPAND, CNP, TNPA, TNPND, build
from synopsis.reproduction import contenders, np_gp, np_gp_functions, np_gp_page
from synopsis.reproduction.contenders import Contender
from synopsis.reproduction.costs import Call, Cost
from synopsis.reproduction.family import OURS
from synopsis.reproduction.np_gp import CONTENDERS, KERNELS, Settings, exact, rows, score
from synopsis.reproduction.np_gp_functions import (
    draw,
    energy_score,
    exact_energy,
    whole_functions,
)
from synopsis.reproduction.np_gp_grid import CONTEXTS, FUNCTIONS, extremes, grid_task
from synopsis.reproduction.np_gp_page import Results, markdown
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.oracle import exact_oracle
from synopsis.training import Experiment
from synopsis.training.experiment import Component
from tests.tolerances import FLOAT32, FLOAT64, SIGMAS

SMALL = {"dim": 16, "heads": 2, "blocks": 1, "latents": 4}
TINY = {
    "CNP": Contender("CNP", Component("CNP", {"dim": 16})),
    "CMANPAND": Contender("CMANPAND", Component("CMANPAND", SMALL)),
}
BATCHES = 3


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np_gp, "CONTENDERS", TINY)
        yield TINY


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(0.3, 2, BATCHES, tmp_path_factory.mktemp("np-gp"))


@pytest.fixture(scope="module")
def results(tiny, settings):
    found = rows(list(tiny), settings)
    functions = whole_functions(found, settings)
    costs = {name: Cost(9000, Call(0.1, 0), Call(0.1, 0), Call(0.1, 2**21)) for name in tiny}
    far = extremes(found)
    return Results(found, exact(settings), functions, exact_energy(settings), costs, far)


def test_every_model_of_the_literature_competes_at_its_published_size():
    """Parameters as counted in the released code; joint heads are ours, and counted elsewhere."""
    published = {
        "CNP": 215_682,
        "CANP": 331_906,
        "NP": 232_194,
        "ANP": 348_418,
        "BNP": 248_450,
        "BANP": 364_674,
        "TNPD": 222_082,
        "TNPA": 222_082,
        "EQTNP": 492_354,
        "LBANP": 792_514,
        "CMANP": 1_341_634,
    }
    others = {"TNPND", "LBANPND", "CMANPAND", "LBANP-32", "CMANP-32", "CMANPAND-32"}
    assert set(CONTENDERS) == set(published) | others | set(OURS)
    for name, count in published.items():
        part = CONTENDERS[name].process
        process = build({"process": part.name, "arguments": part.arguments})
        assert sum(p.numel() for p in process.parameters()) == count, name
    shipped = {name: c.shipped for name, c in CONTENDERS.items() if c.shipped}
    assert shipped == {
        "AnchoredCMANP": "gp-anchored",
        "AnchoredCMANPAND": "gp-anchored-and",
        "TNPD": "gp-tnpd",
        "CMANP-32": "gp-cmanp",
        "CMANPAND-32": "gp-cmanp-and",
    }


def test_the_anchor_alone_needs_no_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(np_gp, "CONTENDERS", CONTENDERS)
    settings = Settings(0.0, 3, 4, tmp_path)
    (row,) = rows(["SpectralRegression"], settings)
    assert [ledger.origin for ledger in row.ledgers] == ["without weights"]
    found, best = (row.scores["rbf"][0][key]["value"] for key in ("log_likelihood", "oracle_gap"))
    assert found > 1.0 and best < 0.15
    page = markdown(Results([row], exact(settings), [], {}, {}), settings, "synopsis", [])
    line = next(line for line in page.splitlines() if line.startswith("| the anchor alone |"))
    assert line.startswith("| the anchor alone | none | each by itself |")


def test_scores_are_batch_means_on_the_published_tasks(results):
    """Against the batches themselves, with the metric written out."""
    cnp, joint = results.rows
    for kernel in KERNELS:
        task = GaussianProcessTask(kernel=kernel)
        means = {"CNP": [], "CMANPAND": []}
        for index in range(BATCHES):
            batch = task.sample(16, batch_generator(0, index))
            points = (batch.xc, batch.yc, batch.xt)
            with torch.no_grad():
                normal = cnp.processes[0](*points).base_dist
                together = joint.processes[0](*points)
            residual = ((batch.yt - normal.loc) / normal.scale)[..., 0]
            each = -0.5 * residual**2 - normal.scale[..., 0].log() - 0.5 * math.log(2 * math.pi)
            means["CNP"].append(each.mean().item())
            covariance = together.covariance_matrix.double()
            full = torch.distributions.MultivariateNormal(
                together.mean[..., 0].double(), covariance
            )
            density = full.log_prob(batch.yt[..., 0].double())
            means["CMANPAND"].append(density.mean().item() / batch.yt.shape[1])
        for row in results.rows:
            found = row.scores[kernel][0]["log_likelihood"]["value"]
            assert found == pytest.approx(statistics.fmean(means[row.name]), abs=100 * FLOAT32)


def test_weights_come_from_rbf_tasks_with_many_targets(results):
    for ledger in (ledger for row in results.rows for ledger in row.ledgers):
        task = Experiment.read(ledger.folder / "experiment.toml").task
        assert task.arguments == {"kernel": "rbf", "targets": 64, "oracle": False}


def test_the_exact_answer_is_that_of_the_batches(results):
    for kernel in KERNELS:
        batches = [
            GaussianProcessTask(kernel=kernel).sample(16, batch_generator(0, i))
            for i in range(BATCHES)
        ]
        diagonal = statistics.fmean(b.oracle.mean().item() for b in batches)
        joint = statistics.fmean(b.joint_oracle.mean().item() / b.yt.shape[1] for b in batches)
        assert results.exact[kernel]["diagonal"]["value"] == pytest.approx(diagonal, rel=FLOAT64)
        assert results.exact[kernel]["joint"]["value"] == pytest.approx(joint, rel=FLOAT64)


def test_what_was_evaluated_is_not_evaluated_again(results, settings, tiny, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for module, name in ((np_gp, "evaluate"), (np_gp, "_exact"), (np_gp_functions, "_mean_energy")):
        monkeypatch.setattr(module, name, forbidden if name != "_exact" else lambda *_: forbidden)
    again = rows(list(tiny), replace(settings, budget_seconds=0.0))
    assert [row.scores for row in again] == [row.scores for row in results.rows]
    assert whole_functions(again, settings)[0].energy == results.functions[0].energy
    assert exact(settings) == results.exact
    with pytest.raises(AssertionError, match="computed again"):
        rows(list(tiny), replace(settings, batches=BATCHES + 1))


@pytest.mark.parametrize("points", CONTEXTS)
def test_the_exact_answer_on_the_grid_is_the_textbooks(points):
    """By solving instead of by one triangle, from scikit-learn's kernel."""
    from sklearn.gaussian_process.kernels import RBF

    task = grid_task(points)
    x, grid = (t[0].double().numpy() for t in (task.context.xc, task.context.xt))
    kernel, noise = 0.64 * RBF(0.35), 4e-4
    seen = kernel(x) + noise * np.eye(points)
    weights = np.linalg.solve(seen, kernel(x, grid))
    expected = kernel(grid) + noise * np.eye(len(grid)) - kernel(grid, x) @ weights
    close = {"rtol": 0.0, "atol": 100 * FLOAT32}  # the points are kept in float32
    found = (task.factor @ task.factor.mT).numpy()
    np.testing.assert_allclose(found, expected, **close)
    np.testing.assert_allclose(task.stddev.square(), np.diag(expected), **close)
    mean = weights.T @ task.context.yc[0, :, 0].double().numpy()
    np.testing.assert_allclose(task.mean, mean, rtol=0.0, atol=0.01)


def test_functions_along_the_grid_are_drawn_at_once_and_in_blocks(results, settings):
    lines = extremes(results.rows)
    assert [(line.row and line.row.name, line.block) for line in lines] == [
        (None, None),
        ("CMANPAND", None),
        ("CMANPAND", 8),
    ]
    task = grid_task(CONTEXTS[-1])
    widest = (task.mean.abs() + 2 * task.stddev).max().item()
    assert task.mean.abs().max().item() < lines[0].largest[-1] < 1.5 * widest
    process = next(row.processes[0] for row in results.rows if row.name == "CMANPAND")
    torch.manual_seed(0)
    drawn = draw(process, task.context, samples=FUNCTIONS)[:, 0].abs().amax(-1)
    assert lines[1].largest[-1] == pytest.approx(drawn.median().item(), rel=0.2)
    text = markdown(results, settings, "synopsis", [])
    assert "## Functions along a grid" in text and "| CMANP-AND | budget | 8 |" in text


def test_models_that_draw_many_times_are_evaluated_on_fewer_batches(settings):
    generous = replace(settings, batches=3000)
    assert generous.batches_of("CMANP") == 3000
    assert generous.batches_of("BANP") == np_gp.MOST_BATCHES["BANP"] < 3000
    assert settings.batches_of("BANP") == BATCHES


def test_shipped_weights_have_a_row_beside_those_of_the_budget(
    results, settings, tiny, monkeypatch
):
    """The finished CNP plays the shipped one."""
    process = results.rows[0].processes[0]
    monkeypatch.setattr(contenders, "shipped", lambda: ["gp-cnp"])
    monkeypatch.setattr(contenders, "load", lambda source: process)
    monkeypatch.setitem(tiny, "CNP", replace(tiny["CNP"], shipped="gp-cnp"))
    both = rows(["CNP"], settings)
    assert [row.is_shipped for row in both] == [True, False]
    assert [len(row.processes) for row in both] == [1, 2]
    empty = settings.runs.parent / "no-runs-here"
    alone = rows(["CNP"], replace(settings, budget_seconds=0.0, runs=empty))
    assert [row.is_shipped for row in alone] == [True]


def test_blocks_are_scored_by_teacher_forcing(results):
    joint = next(row for row in results.rows if row.model == "CMANPAND")
    process = joint.processes[0]
    found = {f.target_block: f for f in results.functions if f.row is joint}
    assert set(found) == {None, 10, 1}
    assert found[None].scores["rbf"] == joint.scores["rbf"][0]
    task, means = GaussianProcessTask(), []
    for index in range(BATCHES):
        batch = task.sample(16, batch_generator(0, index))
        with torch.no_grad():
            state = process.update(process.init((16,)), batch.xc, batch.yc)
            total = torch.zeros(16)
            for j in range(batch.yt.shape[1]):
                one = (batch.xt[:, j : j + 1], batch.yt[:, j : j + 1])
                total += process.predict(state, one[0]).marginals.log_prob(one[1])[:, 0]
                state = process.update(state, *one)
        means.append(total.mean().item() / batch.yt.shape[1])
    value = found[1].scores["rbf"]["log_likelihood"]["value"]
    assert value == pytest.approx(statistics.fmean(means), abs=100 * FLOAT32)
    assert value != pytest.approx(found[None].scores["rbf"]["log_likelihood"]["value"], abs=FLOAT32)


def test_scoring_in_blocks_leaves_no_trace(results, settings):
    row = next(row for row in results.rows if row.model == "CMANPAND")
    score(row.processes[0], settings.runs / "elsewhere", "rbf", 2, target_block=10)
    assert (
        score(row.processes[0], settings.runs / "elsewhere", "rbf", BATCHES) == row.scores["rbf"][0]
    )


def test_energy_score_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    for task, found in enumerate(energy_score(draws, y).tolist()):
        error = statistics.fmean(math.dist(f[task], y[task]) for f in draws)
        pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
        spread = statistics.fmean(math.dist(draws[a, task], draws[b, task]) for a, b in pairs)
        assert found == pytest.approx((error - spread / 2) / math.sqrt(3), rel=FLOAT64)


def test_exact_draws_have_the_exact_mean_and_deviation(monkeypatch):
    monkeypatch.setattr(np_gp_functions, "SAMPLES", 4000)
    task = GaussianProcessTask()
    torch.manual_seed(0)
    draws = np_gp_functions._exact_draws(task, 0)
    known = task.draw(16, batch_generator(0, 0))
    oracle = exact_oracle(known.factor, known.y, known.context)
    error = oracle.stddev / 4000**0.5
    assert ((draws.mean(0) - oracle.mean).abs() < SIGMAS * error).all()
    assert ((draws.std(0) - oracle.stddev).abs() < SIGMAS * error).all()


def test_no_model_draws_better_functions_than_whoever_knows_the_kernel(results):
    assert all(f.energy["value"] > results.exact_energy["value"] for f in results.functions)


@pytest.mark.parametrize(
    "process",
    [
        CNP(dim=16),
        TNPA(dim=16, heads=2, layers=1),
        TNPND(dim=16, heads=2, layers=1),
        CMANPAND(**SMALL),
    ],
    ids=lambda process: type(process).__name__,
)
def test_every_model_draws_functions(process):
    batch = GaussianProcessTask(targets=5).sample(2, batch_generator(0, 0))
    with torch.no_grad():
        functions = draw(process.eval(), batch, block=2, samples=3)
    assert functions.shape == (3, 2, 5)
    assert (functions[0] != functions[1]).all()


def lines_of(page: str, heading: str) -> list[list[str]]:
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_the_page_holds_published_exact_and_own_figures(results, settings):
    page = markdown(results, settings, "synopsis reproduce np-gp --some", ["a.png"])
    assert "    synopsis reproduce np-gp --some\n" in page
    assert "![a.png](a.png)" in page
    assert "0.005 CPU-minutes for each model and seed" in page
    head, _, joint, diagonal, cnp, block = lines_of(page, "Log-likelihood")
    assert head[3:5] == ["RBF", "published"]
    assert joint[2:4] == ["together", _text(results.exact["rbf"]["joint"])]
    assert diagonal[3] == _text(results.exact["rbf"]["diagonal"])
    values = [s["log_likelihood"]["value"] for s in results.rows[0].scores["rbf"]]
    spread = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}".replace("-", "−")
    assert cnp == ["CNP", "budget", "each by itself", spread, "not found", *cnp[5:]]
    assert cnp[-2:] == [str(BATCHES), "2"]
    assert block[4] == "1.48 ± 0.03"
    assert block[6] == "0.96 ± 0.01"
    assert block[8] == "not found"
    costs = lines_of(page, "What each has cost")
    parameters = sum(p.numel() for p in results.rows[0].processes[0].parameters())
    assert costs[2][2] == f"{parameters:,}"
    assert costs[2][-3:] == ["2.0", "9,000", "no"]
    assert len(lines_of(page, "Whole functions")) == 2 + 1 + 3


def _text(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} ± {estimate['standard_error']:.3f}".replace("-", "−")


def test_the_page_says_what_is_missing(results, settings, tiny):
    nothing = replace(settings, budget_seconds=0.0, runs=settings.runs / "empty")
    failed = rows(["CNP"], nothing)
    assert not failed[0].processes
    both = replace(results, rows=[*results.rows, *failed])
    page = markdown(both, nothing, "command", [])
    assert "Without figures:\n\n- CNP: no weights in" in page
    diverged = np_gp.Row(tiny["CMANPAND"], failure="the gradient's norm was not finite")
    page = markdown(replace(results, rows=[*results.rows, diverged]), nothing, "command", [])
    assert "\n- CMANP-AND: the gradient's norm was not finite\n" in page
    assert "none of its own" in page


def test_names_are_those_of_the_literature():
    assert np_gp.title("LBANPND") == "LBANP-ND"
    assert np_gp.title("CMANP-32") == "CMANP, 32 latents"
    assert np_gp_page.KERNEL_TITLES.keys() == set(KERNELS)


def test_pictures_show_posteriors_and_learning(results, tmp_path):
    pytest.importorskip("matplotlib")
    from synopsis.reproduction.np_gp_pictures import draw, learning_curve

    (only,) = draw(
        results.rows[:1], tmp_path / "np-gp.md"
    )  # so short a run was not evaluated on the way
    assert only.name == "np-gp-posteriors.png"
    metrics = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "cpu_seconds": 1.0, "loss": 2.0},
        {"step": 1, "cpu_seconds": 2.0, "evaluation": {"log_likelihood": {"value": -0.5}}},
        {"step": 2, "cpu_seconds": 4.0, "evaluation": {"log_likelihood": {"value": None}}},
        {"step": 3, "cpu_seconds": 8.0, "evaluation": {"log_likelihood": {"value": 0.5}}},
    ]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert learning_curve(metrics) == [(2.0, -0.5), (8.0, 0.5)]
    ledger = replace(results.rows[1].ledgers[0], metrics=metrics)
    learned = replace(results.rows[1], ledgers=(ledger,))
    made = draw([results.rows[0], learned], tmp_path / "np-gp.md")
    assert [path.name for path in made] == ["np-gp-posteriors.png", "np-gp-learning.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
