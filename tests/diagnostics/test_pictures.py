"""The picture of a memory in training: drawn for any history there can be."""

import dataclasses

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from synopsis.diagnostics import LayerReport, MemoryReport
from synopsis.diagnostics.pictures import draw_memory
from tests.diagnostics.test_report import CELLS, REPORT

PNG = b"\x89PNG\r\n"


@pytest.fixture
def figures(monkeypatch):
    """Figures that were saved."""
    kept, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: kept.append(self) or save(self, *a, **k))  # fmt: skip
    return kept


def at(rank):
    """A report whose first layer has this effective rank."""
    cells = dataclasses.replace(CELLS, effective_rank=rank)
    first = dataclasses.replace(REPORT.layers[0], memory_out=cells)
    return MemoryReport((first, *REPORT.layers[1:]), 4)


def test_curves_and_heat_are_what_was_reported(tmp_path, figures):
    draw_memory([(10, at(3.0)), (20, at(2.0))], tmp_path / "memory.png", "a run")
    assert (tmp_path / "memory.png").read_bytes().startswith(PNG)
    heat, rank, *_ = figures[0].axes
    assert heat.images[0].get_array().tolist() == [[0.25, 0.25]] * 3  # first in, and two layers
    assert [label.get_text() for label in heat.get_xticklabels()] == ["10", "20"]
    assert rank.lines[0].get_xydata().tolist() == [[10, 3.0], [20, 2.0]]


def test_what_a_model_does_not_have_is_said(tmp_path, figures):
    nothing = MemoryReport((LayerReport(1, None, None, None, None),), 4)
    draw_memory([(10, nothing)], tmp_path / "memory.png")
    said = [text.get_text() for ax in figures[0].axes for text in ax.texts]
    assert said == ["not defined for this model"] * 8


def test_no_history_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no reports"):
        draw_memory([], tmp_path / "memory.png")
