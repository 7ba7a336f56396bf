"""``synopsis reproduce gp-oracle`` on a few batches, and the table behind it."""

import math
import re
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from synopsis.cli import reproduce
from synopsis.tasks.fixed_batches import evaluation_batches
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.oracle_table import METRICS, PUBLISHED, oracle_row, oracle_table
from tests.tolerances import FLOAT64, SIGMAS


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    reproduce.register(made)
    return made


def run(app: typer.Typer, *arguments: object):
    return CliRunner().invoke(app, ["reproduce", "gp-oracle", *map(str, arguments)])


def test_writes_the_table_with_ours_beside_the_published(app, tmp_path):
    out = tmp_path / "made" / "table.md"
    result = run(app, "--batches", 4, "--seed", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Matérn-5/2" in result.output
    page = out.read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(("| RBF", "| Mat", "| per"))]
    rows = oracle_table(4, seed=2)
    assert len(lines) == len(rows) == len(PUBLISHED) == 5
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")][2:]
        assert cells[0::2] == [str(estimate) for estimate in row.ours]
        assert cells[1::2] == [str(estimate) for estimate in row.published]
    assert "1.519 ± 0.008" in lines[0]
    assert "    synopsis reproduce gp-oracle --batches 4 --seed 2\n" in page
    assert re.search(r"\b4 batches of 16\b", page)


def test_same_seed_writes_the_same_bytes(app, tmp_path):
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(app, "--batches", 2, "--seed", seed, "--out", tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert pages[0] != pages[2].replace(b"--seed 1", b"--seed 0")


def test_errors_are_one_line_and_exit_code_2(app, tmp_path):
    too_few = run(app, "--batches", 1, "--out", tmp_path / "x.md")
    assert too_few.exit_code == 2
    (tmp_path / "file").write_text("")
    blocked = run(app, "--batches", 2, "--out", tmp_path / "file" / "x.md")
    assert blocked.exit_code == 2
    assert "x.md: " in blocked.output
    assert len(blocked.output.strip().splitlines()) == 1


def test_module_does_not_load_torch():
    program = (
        "import runpy, sys\n"
        f"names = runpy.run_path({reproduce.__file__!r})\n"
        "sys.exit(1 if 'torch' in sys.modules else 7 if 'register' in names else 2)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 7


def test_rows_are_batch_means_of_what_evaluation_batches_hold():
    """Against the batches themselves, with the metric written out."""
    task = GaussianProcessTask(kernel="matern52")
    diagonal, joint, _, _ = oracle_row(task, batches=20, batch_size=4, seed=5)
    batches = list(evaluation_batches(task, 20, 4, seed=5))
    per_batch = [batch.oracle.mean().item() for batch in batches]
    mean = sum(per_batch) / 20
    variance = sum((value - mean) ** 2 for value in per_batch) / 19
    assert diagonal.mean == pytest.approx(mean, rel=FLOAT64)
    assert diagonal.error == pytest.approx(math.sqrt(variance / 20), rel=1e3 * FLOAT64)
    joint_mean = sum((b.joint_oracle / b.yt.shape[1]).mean().item() for b in batches) / 20
    assert joint.mean == pytest.approx(joint_mean, rel=FLOAT64)


def test_reproduces_the_published_ceilings():
    """A tenth of the published run: every metric within five combined standard errors."""
    for row in oracle_table(300, seed=1):
        for name, ours, published in zip(METRICS, row.ours, row.published, strict=True):
            error = math.hypot(ours.error, published.error or 0.0)
            assert abs(ours.mean - published.mean) < SIGMAS * error, (row.kernel, name)
        assert row.ours[0].mean < row.ours[1].mean  # correlated targets are worth something
        assert row.ours[2].mean < 1.384  # log-density at its peak with a deviation of 0.1


def test_prior_only_has_its_exact_expectation():
    scale = torch.linspace(0.1, 1, 100_001, dtype=torch.float64)
    expected = -0.5 * (math.log(2 * math.pi) + 1) - 0.5 * (scale**2 + 0.02**2).log().mean().item()
    estimate = oracle_row(GaussianProcessTask(), batches=400, seed=2)[3]
    assert abs(estimate.mean - expected) < SIGMAS * estimate.error


def test_wrong_requests_are_named_with_their_value():
    with pytest.raises(ValueError, match="batches is 1; a standard error needs 2 or more"):
        oracle_row(GaussianProcessTask(), batches=1)
    with pytest.raises(ValueError, match=r"student_t is 0\.1; only None has an exact oracle"):
        oracle_row(GaussianProcessTask(student_t=0.1), batches=2)
