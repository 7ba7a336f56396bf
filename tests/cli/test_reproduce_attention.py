"""``synopsis reproduce attention-memory`` on short sequences, and what it measures with."""

import re
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from synopsis.attention import memory_table
from synopsis.attention.measurement import (
    DIM,
    MIB,
    Cell,
    Figure,
    is_bearable,
    methods,
    standard_attention,
)
from synopsis.attention.memory_table import PUBLISHED, PUBLISHED_RATIO, cells, markdown, measure
from synopsis.cli import reproduce
from tests.cli.commands import environment
from tests.tolerances import FLOAT64

NOISE = 1.5 * MIB  # code and scratch that libraries touch at their first larger call
NONSENSE = Cell("synopsis", 16, 16, "float7")  # no such dtype: its process ends with an error


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    reproduce.register(made)
    return made


def run(app: typer.Typer, *arguments: object):
    return CliRunner().invoke(app, ["reproduce", "attention-memory", *map(str, arguments)])


@pytest.fixture
def instant(monkeypatch):
    """Figures by formula instead of measurement: standard attention holds 2 n² floats and ours 1 MiB."""

    def of(cell: Cell) -> Figure:
        overhead = cell.pairs * 8 if cell.method in ("standard", "jax") else MIB
        return Figure(cell.pairs / 1e9, overhead)

    def fake(planned, repeats, watch):
        for cell in planned:
            watch(cell, False)
            watch(cell, True)
        return {cell: of(cell) if is_bearable(cell) else None for cell in planned}

    monkeypatch.setattr(memory_table, "measure", fake)


def rows_of(page: str, section: str) -> list[list[str]]:
    text = page.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def measured() -> dict[Cell, Figure | None]:
    """Six cells, each in a process of its own, in one go: an import of torch takes seconds."""
    planned = [
        Cell("standard", 2048, 2048),
        Cell("synopsis", 2048, 2048),
        Cell("standard", 2048, 2048, differentiate=True),
        Cell("synopsis", 2048, 2048, differentiate=True),
        NONSENSE,
        Cell("torch", 64, 256, "bfloat16"),
    ]
    return measure(planned, repeats=1)


def test_overhead_of_standard_attention_is_its_scores(measured):
    """Twice n² floats forward (scores and weights), three times with the backward pass."""
    scores = 2048**2 * 4
    forward, both = (
        measured[Cell("standard", 2048, 2048, differentiate=d)].overhead for d in (False, True)
    )
    assert 2 * scores - MIB <= forward <= 2 * scores + NOISE
    assert 3 * scores - MIB <= both <= 3 * scores + NOISE


def test_overhead_of_ours_does_not_hold_the_scores(measured):
    for differentiate in (False, True):
        figure = measured[Cell("synopsis", 2048, 2048, differentiate=differentiate)]
        assert figure.overhead < 2048**2 * 4 / 4
        assert figure.seconds > 0


def test_backward_takes_longer_than_forward(measured):
    figures = [measured[Cell("standard", 2048, 2048, differentiate=d)] for d in (False, True)]
    assert figures[0].seconds < figures[1].seconds


def test_a_process_that_dies_is_no_figure_and_no_end(measured):
    assert measured[NONSENSE] is None
    assert list(measured)[-1] != NONSENSE
    assert None not in [figure for cell, figure in measured.items() if cell != NONSENSE]


def test_short_and_rectangular_cells_are_measured_too(measured):
    assert measured[Cell("torch", 64, 256, "bfloat16")].overhead < 8 * MIB


def test_standard_attention_is_the_textbook():
    query, key, value = torch.randn(3, 1, 2, 7, 4, dtype=torch.float64).unbind()
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / 2
    expected = torch.einsum("bhqk,bhkd->bhqd", scores.exp() / scores.exp().sum(-1, True), value)
    assert (standard_attention(query, key, value) - expected).abs().max() < 10 * FLOAT64


def test_writes_tables_and_pictures_with_the_published_figures(app, tmp_path, instant):
    out = tmp_path / "made" / "table.md"
    result = run(app, "--largest", 16384, "--repeats", 2, "--out", out)
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    assert "    synopsis reproduce attention-memory --largest 16384 --repeats 2\n" in page
    last = rows_of(page, "Forward, float32")[-1]
    assert last[0] == "16,384"
    assert {"2,048", "2,048×", "1,024", "17.0", "60×", "11.3"} <= set(last)
    last = rows_of(page, "Forward and backward, bfloat16")[-1]
    assert {"2,048", "64.0", "32×", "21"} <= set(last)
    assert "float32: standard attention's overhead is **2,048×** ours (paper: 59× theirs)" in page
    for name in ("table-overhead.png", "table-time.png"):
        assert f"![{name}]({name})" in page
        assert (out.parent / name).read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_a_dash(instant):
    planned = cells(65536)
    figures = {c: None if not is_bearable(c) else Figure(1.0, MIB) for c in planned}
    page = markdown(figures, "command", [], "versions")
    last = rows_of(page, "Forward, float32")[-1]
    assert last[:2] == ["65,536", "–"]
    assert last[2:4] == ["1.0", "1.0"]
    assert "out of memory" in last


def test_lengths_are_those_of_the_paper_and_queries_few_where_keys_are_many():
    planned = cells(20_000)
    square = {c.keys for c in planned if c.queries == c.keys}
    assert square == {2**8, 2**10, 2**12, 2**14}
    assert square <= PUBLISHED[False].keys()
    few = {(c.queries, c.keys) for c in planned if c.queries != c.keys}
    assert few == {(2**8, 2**18), (2**8, 2**20)}
    assert not any(c.differentiate for c in planned if c.queries != c.keys)
    assert len(planned) == len(set(planned)) == (4 * 2 + 2) * 2 * len(methods())


def test_published_figures_agree_with_the_papers_headline():
    """59 and 32 times less at 16,384; its inputs and outputs say that the width is ours."""
    for differentiate, ratio in PUBLISHED_RATIO.items():
        published = PUBLISHED[differentiate][2**14]
        assert published.standard / published.efficient == pytest.approx(ratio, abs=1.5)
    assert 256 * DIM * (3 * 2 + 4) == 160 * 1024


def test_errors_are_one_line_and_exit_code_2(app, tmp_path, instant):
    assert run(app, "--largest", 100, "--out", tmp_path / "x.md").exit_code == 2
    assert run(app, "--repeats", 0, "--out", tmp_path / "x.md").exit_code == 2
    (tmp_path / "file").write_text("")
    blocked = run(app, "--largest", 256, "--out", tmp_path / "file" / "x.md")
    assert blocked.exit_code == 2
    assert "x.md: " in blocked.output
    assert len(blocked.output.strip().splitlines()) == 1


def test_works_without_matplotlib(app, tmp_path, instant, monkeypatch):
    monkeypatch.delitem(sys.modules, "synopsis.attention.memory_pictures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(app, "--largest", 256, "--out", tmp_path / "x.md")
    assert result.exit_code == 0, result.output
    assert "no pictures" in result.output
    assert "![" not in (tmp_path / "x.md").read_text(encoding="utf-8")


def test_help_does_not_load_torch():
    program = (
        "import sys\nfrom synopsis.cli import reproduce\n"
        "sys.exit(1 if 'torch' in sys.modules else 7)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, env=environment())
    assert done.returncode == 7
