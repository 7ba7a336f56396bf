"""Reports through JSON."""

import json

import pytest

from synopsis.diagnostics import (
    Cells,
    LayerReport,
    MemoryReport,
    Pack,
    Unpack,
    reports_by_step,
)

CELLS = Cells(0.25, None, 3.5, 8.0)
REPORT = MemoryReport(
    (
        LayerReport(1, CELLS, CELLS, Pack(0.9, 0.125, 2.0, 1.0), Unpack(0.5, 2.5, 4.0)),
        LayerReport(2, None, CELLS, None, None),
    ),
    examples=32,
)


def test_json_round_trip():
    line = json.dumps({"step": 7, "memory": REPORT.to_dict()}, allow_nan=False)
    found = reports_by_step([{"step": 3, "loss": 1.0}, json.loads(line)])
    assert found == [(7, REPORT)]


@pytest.mark.parametrize("part", ["layers", "examples"])
def test_what_is_no_report_is_refused(part):
    found = REPORT.to_dict()
    del found[part]
    with pytest.raises(ValueError, match=f"not the report of a memory.*{part}"):
        MemoryReport.from_dict(found)


def test_an_unknown_number_is_refused():
    layer = REPORT.to_dict()["layers"][0] | {"pack": {"colour": 1.0}}
    with pytest.raises(ValueError, match="colour"):
        MemoryReport.from_dict({"examples": 1, "layers": [layer]})
