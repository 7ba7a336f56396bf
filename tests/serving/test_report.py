import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from synopsis.calibration import RunningScores
from synopsis.processes import AnchoredCMANP
from synopsis.serving.exact_gp import measure_exact_gp
from synopsis.serving.records import Record
from synopsis.serving.report import best, verdict
from synopsis.serving.run import Outputs, Run
from synopsis.serving.stream import Stream, StreamSettings


def scores(nll: float, crps: float) -> RunningScores:
    one = torch.ones(1, dtype=torch.float64)
    return RunningScores.empty().add(one, one, -nll * one, crps * one, 0.5 * one, one)


def begin(folder: Path, horizon: int = 1) -> Stream:
    torch.manual_seed(0)
    process = AnchoredCMANP(dim_x=2, dim=8, heads=2, blocks=1, latents=4, components=2)
    process.save_pretrained(folder / "tiny")
    wanted = StreamSettings(str(folder / "tiny"), "temperature", ("x",), horizon=horizon, warmup=5)
    return Stream.begin(wanted)


def rows(count: int) -> list[Record]:
    y = torch.randn(count, generator=torch.Generator().manual_seed(0)).cumsum(0).tolist()
    return [Record(i + 2, (y[i], float(i % 9)), "rows.csv") for i in range(count)]


def test_who_wins_is_said_also_when_it_is_a_baseline() -> None:
    both = {"process": scores(1.0, 0.5), "line": scores(1.25, 0.25), "mean": scores(2.0, 0.75)}
    assert best(both) == {"nll": "process", "crps": "line"}
    assert verdict(both) == (
        "process wins on NLL: 1.000; the best baseline, line, has 1.250. "
        "line wins on CRPS: 0.2500; process has 0.5000."
    )


def test_an_infinite_score_loses_whatever_the_others_are() -> None:
    assert best({"a": scores(float("inf"), 0.5), "b": scores(9.0, 0.75)})["nll"] == "b"


def test_nothing_scored_is_said() -> None:
    assert verdict({"process": RunningScores.empty()}).startswith("Nothing was scored")


@pytest.mark.parametrize(("count", "horizon"), [(1, 1), (7, 3), (60, 1)])
def test_report_has_metrics_and_pictures(tmp_path: Path, count: int, horizon: int) -> None:
    run = Run(begin(tmp_path, horizon), Outputs(report=tmp_path / "report"))
    run.over(iter(rows(count)))
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["rows"]["read"] == count
    assert metrics["rows"]["scored"] == sum(
        int(s.count) for s in [run.stream.progressive.scores()[run.stream.name]]
    )
    assert metrics["inputs"] == ["x"]
    assert list(metrics["methods"]) == ["tiny", "last value", "running mean", "linear regression"]
    drawn = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert {"fan.png", "cost.png"} <= drawn
    assert ("reliability.png" in drawn) == (metrics["rows"]["scored"] > 0)
    for path in (tmp_path / "report").glob("*.png"):
        assert not _is_blank(path)


def _is_blank(path: Path) -> bool:
    from matplotlib.image import imread

    return bool(np.ptp(imread(path)[..., :3]) < 0.5)


def test_a_long_run_is_drawn_with_all_of_it_below(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    Run(begin(tmp_path), Outputs(report=short)).over(iter(rows(20)))
    Run(begin(tmp_path), Outputs(report=long)).over(iter(rows(400)))
    from matplotlib.image import imread

    assert len(imread(long / "fan.png")) > len(imread(short / "fan.png"))


def test_without_matplotlib_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "synopsis.serving.pictures", raising=False)
    monkeypatch.delattr(sys.modules["synopsis.serving"], "pictures", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_NoMatplotlib(), *sys.meta_path])
    run = Run(begin(tmp_path), Outputs(report=tmp_path / "report"))
    run.over(iter(rows(12)))
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["metrics.json"]
    assert run.remarks == [
        "There are no pictures, as matplotlib is not installed: "
        "pip install 'synopsis-attention[plot]'."
    ]


class _NoMatplotlib:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")


def test_a_run_without_rows_has_metrics_only(tmp_path: Path) -> None:
    run = Run(begin(tmp_path), Outputs(report=tmp_path / "report"))
    run.over(iter([]))
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert metrics["best"] == {"nll": None, "crps": None}
    assert metrics["methods"]["tiny"]["mae"] is None
    assert run.remarks == ["There are no pictures, as no row was predicted."]


def test_exact_gp_costs_grow_and_keep_to_the_budget() -> None:
    data = np.random.default_rng(0).normal(size=(700, 3))
    costs = measure_exact_gp(data)
    assert [cost.rows for cost in costs] == [16, 32, 64, 128, 256, 512, 700]
    assert [cost.nbytes for cost in costs] == [
        8 * n * (n + 3) for n in (16, 32, 64, 128, 256, 512, 700)
    ]
    assert len(measure_exact_gp(data, budget_seconds=0.0)) == 0
    assert measure_exact_gp(data[:3]) == ()
