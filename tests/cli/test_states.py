import json
from pathlib import Path

import pytest
import torch

from synopsis import AttentionState
from synopsis.serving.opening import read_stream_state
from tests.cli.commands import assert_one_line_error, run, stream
from tests.tolerances import PREDICTION


def halves(table: Path, at: int) -> tuple[Path, Path]:
    lines = table.read_text().splitlines(keepends=True)
    for name, part in {"a.csv": lines[1 : at + 1], "b.csv": lines[at + 1 :]}.items():
        Path(name).write_text("".join([lines[0], *part]))
    return Path("a.csv"), Path("b.csv")


def test_inspect_says_what_a_state_holds(table: Path, base: list[object]) -> None:
    stream(table, *base, "--lags", "1", "--save-state", "s")
    result = run("inspect", "s")
    assert result.exit_code == 0
    for text in ("stream, format 1", "60 read, 58 learned from, 2 with", "y[-1]", "last value"):
        assert text in result.stdout
    found = json.loads(run("inspect", "s", "--json").stdout)
    state = read_stream_state(Path("s"))
    assert found["kind"] == "stream"
    assert found["bytes"] == {"file": Path("s").stat().st_size, "state": state.nbytes}
    assert found["process"]["fingerprint"] == state.fingerprint
    assert found["rows"] == {"read": 60, "absorbed": 58, "missing": 2, "waiting": 0}
    names = ["date:year(sin)", "date:year(cos)", "x", "y[-1]", "y"]
    assert [entry["name"] for entry in found["scaling"]] == names
    assert found["scores"]["last value"]["rows"] == 50


def test_inspect_during_the_warm_up(table: Path, base: list[object]) -> None:
    stream(table, *base, "--limit", 5, "--save-state", "s")
    assert "not settled before 8 rows" in run("inspect", "s").stdout
    assert json.loads(run("inspect", "s", "--json").stdout)["scaling"] is None


def test_inspect_knows_other_kinds(tmp_path: Path) -> None:
    state = AttentionState.empty(torch.ones(1, 1, 2), value_dim=2)
    (tmp_path / "s").write_bytes(state.serialize())
    found = json.loads(run("inspect", tmp_path / "s", "--json").stdout)
    assert (found["kind"], found["count"]) == (state.kind, 0)


def test_inspect_of_what_is_no_state(table: Path, base: list[object]) -> None:
    assert_one_line_error(run("inspect", table), f"{table}: not a state")
    assert_one_line_error(run("inspect", "gone"), "gone: No such file or directory")


@pytest.mark.parametrize("horizon", [1, 4])
def test_merged_parts_are_the_whole(table: Path, base: list[object], horizon: int) -> None:
    stream(table, *base, "--save-scale", "scale.json")
    options = [*base, "--scale", "scale.json", "--horizon", horizon]
    a, b = halves(table, 30)
    for source, name in ((table, "whole"), (a, "a"), (b, "b")):
        assert stream(source, *options, "--save-state", name).exit_code == 0
    result = run("merge", "a", "b", "--out", "deep.state")
    assert result.exit_code == 0, result.output
    waiting = 0 if horizon == 1 else 2  # of the last part only
    assert result.stdout == f"deep.state: {58 - waiting} rows of 2 states\n"
    whole, merged = (read_stream_state(Path(name)) for name in ("whole", "deep.state"))
    assert (merged.rows, merged.missing, int(merged.count)) == (60, 2, 58 - waiting)
    assert len(merged.waiting_y) == waiting
    scored = [read_stream_state(Path(name)).scored for name in ("a", "b")]
    assert torch.equal(merged.scored, scored[0] + scored[1])
    if horizon == 1:
        line, line_whole = merged.methods[3].inner, whole.methods[3].inner
        last, last_whole = merged.methods[1], whole.methods[1]
        assert torch.allclose(line.cross, line_whole.cross, rtol=PREDICTION)
        assert torch.allclose(last.squares, last_whole.squares, rtol=PREDICTION)
        _predict_alike(table, whole="whole", merged="deep.state")


def _predict_alike(table: Path, whole: str, merged: str) -> None:
    rows = []
    for name in (whole, merged):
        stream(table, "--state", name, "--limit", 3, "--predictions", f"{name}.csv")
        lines = Path(f"{name}.csv").read_text().splitlines()[1:]
        rows.append([[float(cell) for cell in line.split(",")] for line in lines])
    assert rows[1] == [pytest.approx(row, rel=PREDICTION) for row in rows[0]]


def test_past_values_of_y_reach_across_a_short_last_part(table: Path, base: list[object]) -> None:
    stream(table, *base, "--save-scale", "scale.json")
    options = [*base[:2], "--x", "x", *base[4:], "--lags", "1,3"]
    a, b = halves(table, 58)
    stream(table, *options, "--save-scale", "scale.json", "--save-state", "w")
    for source, name in ((a, "a"), (b, "b")):
        assert (
            stream(source, *options, "--scale", "scale.json", "--save-state", name).exit_code == 0
        )
    assert run("merge", "a", "b", "--out", "c").exit_code == 0
    assert torch.equal(read_stream_state(Path("c")).past, read_stream_state(Path("w")).past)


def test_states_that_do_not_belong_together(
    table: Path, base: list[object], other_process_folder: Path
) -> None:
    a, b = halves(table, 30)
    assert stream(a, *base, "--save-state", "a", "--save-scale", "scale.json").exit_code == 0
    scale = ["--scale", "scale.json"]
    variants: dict[str, tuple[list[object], str]] = {
        "scaling": ([*base], "give both parts one scale"),
        "inputs": ([*base[:2], "--x", "x", *base[4:]], "its list of inputs is ('x',)"),
        "process": ([*base[:5], other_process_folder, *base[6:], *scale], "its process is"),
        "warm-up": ([*base, "--limit", 4], "in its warm-up (4 of 8 rows)"),
        "horizon": ([*base, *scale, "--horizon", 2], "its horizon is 2; in a it is 1"),
    }
    for name, (options, message) in variants.items():
        assert stream(b, *options, "--save-state", name).exit_code == 0
        result = run("merge", "a", name, "--out", "c")
        assert_one_line_error(result, message)
        assert f"{name}: " in result.stderr
    assert not Path("c").exists()
    assert_one_line_error(run("merge", "a", "--out", "c"), "at least two states; there is only a")
    assert_one_line_error(run("merge", "a", table, "--out", "c"), f"{table}: not a state")
