"""What every model costs, measured on short contexts; and the page, from figures by formula."""

from dataclasses import replace

import pytest

from synopsis.reproduction import np_memory
from synopsis.reproduction.costs import GIB, MIB, Call, Cell, Cost, FreshProcesses
from synopsis.reproduction.family import TITLES, is_joint, streams
from synopsis.reproduction.np_memory import (
    LENGTHS,
    MODELS,
    TARGETS,
    lines,
    markdown,
    measure,
    title,
)
from synopsis.training.experiment import Component

NOISE = 2 * MIB  # code and scratch that libraries touch at their first larger call
SMALL_CMANP = Component("CMANP", {"dim": 16, "heads": 2, "blocks": 1, "latents": 4})
TNPD = Component("TNPD", {"dim": 16, "heads": 2, "layers": 1})
POINT = 4 + 4 + 1  # bytes of x, of y, and of whether they are real


@pytest.fixture(scope="module")
def fresh():
    with FreshProcesses() as processes:
        yield processes


@pytest.fixture(scope="module")
def hurried():
    with FreshProcesses(patience=0.3, most_bytes=48 * MIB) as processes:
        yield processes


def test_a_summary_does_not_grow_and_points_do(fresh):
    kept = {
        (part.name, n): fresh.measure(Cell(part, n, targets=5)).kept
        for part in (SMALL_CMANP, TNPD)
        for n in (10, 1000)
    }
    assert kept["CMANP", 10] == kept["CMANP", 1000] > 0
    assert (kept["TNPD", 10], kept["TNPD", 1000]) == (10 * POINT, 1000 * POINT)


def test_every_call_has_its_time_and_peak(fresh):
    cost = fresh.measure(Cell(SMALL_CMANP, 4096, targets=5))
    assert cost.stopped is None
    for call in (cost.conditioning, cost.update, cost.query):
        assert 0 < call.seconds < 10
        assert 0 <= call.peak < 64 * MIB
    assert cost.conditioning.seconds > cost.update.seconds  # 4096 points and one
    assert cost.peak == max(cost.conditioning.peak, cost.kept + cost.query.peak)


def test_the_peak_of_a_query_is_seen(fresh):
    """Each of 50 copies of a bootstrapped context has at least one hidden layer of 128 numbers alive."""
    cost = fresh.measure(Cell(Component("BNP"), 1000, targets=5))
    assert cost.query.peak > 50 * 1000 * 128 * 4 - NOISE
    assert cost.conditioning.peak < NOISE


def test_a_query_is_left_out_on_request(fresh):
    cost = fresh.measure(Cell(TNPD, 100, query=False))
    assert (cost.query, cost.stopped, cost.peak) == (None, None, None)
    assert cost.update is not None


def test_a_call_that_takes_too_long_ends_its_cell_and_no_other(hurried):
    deeper = Component("TNPD", {"dim": 16, "heads": 2, "layers": 2})  # 1.6·10⁹ pairs of points
    cost = hurried.measure(Cell(deeper, 40_000))
    assert cost.stopped == "time"
    assert cost.kept == 40_000 * POINT  # what came before is known
    assert cost.query is None
    assert hurried.measure(Cell(TNPD, 10, targets=2)).stopped is None


def test_asking_for_too_much_memory_ends_a_cell(hurried):
    cost = hurried.measure(Cell(Component("BNP"), 10_000, targets=2))
    assert (cost.query, cost.stopped) == (None, "memory")
    assert cost.conditioning is not None


def test_a_process_that_cannot_be_built_is_said_to_have_died(fresh):
    assert fresh.measure(Cell(Component("CNP", {"dim": "wide"}), 10)) == Cost(stopped="died")
    assert fresh.measure(Cell(TNPD, 10, targets=2)).stopped is None


class Formula:
    """In place of measuring: a query of points takes N² microseconds, and a second at most."""

    def __init__(self, *_: object) -> None:
        self.asked: list[Cell] = []

    def __enter__(self) -> "Formula":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure(self, cell: Cell) -> Cost:
        self.asked.append(cell)
        summary = streams(cell.process.name)
        kept = 5000 if summary else cell.points * POINT
        done = Cost(kept, Call(1e-3, MIB), Call(1e-4, 0))
        seconds = 1e-2 if summary else cell.points**2 * 1e-6
        if not cell.query:
            return done
        return (
            replace(done, stopped="time")
            if seconds > 1
            else replace(done, query=Call(seconds, MIB))
        )


@pytest.fixture
def formula(monkeypatch):
    helper = Formula()
    monkeypatch.setattr(np_memory, "FreshProcesses", lambda *_: helper)
    return helper


def test_a_query_that_took_too_long_is_not_tried_with_more_points(formula):
    seen: list[tuple[int, int]] = []
    costs = measure(["CNP", "TNPD"], 100_000, watch=lambda _, *done: seen.append(done))
    assert seen == [(i, 8) for i in range(1, 9)]
    queries = {(c.process.name, c.points): c.query for c in formula.asked}
    assert queries["TNPD", 10_000]  # the one that was stopped
    assert not queries["TNPD", 100_000]
    assert queries["CNP", 100_000]
    beyond = costs["TNPD", 100_000]
    assert (beyond.kept, beyond.query, beyond.stopped) == (100_000 * POINT, None, "time")


def test_what_cannot_even_be_stored_is_given_up(monkeypatch):
    calls = []

    class Full(Formula):
        def measure(self, cell: Cell) -> Cost:
            calls.append(cell.points)
            return Cost(stopped="memory")

    monkeypatch.setattr(np_memory, "FreshProcesses", Full)
    costs = measure(["TNPD"], 10**6)
    assert calls == [100]
    assert {cost.stopped for cost in costs.values()} == {"memory"}


def section(page: str, heading: str) -> list[list[str]]:
    part = page.split(f"## {heading}")[1].split("\n## ")[0]
    found = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_the_page_has_every_model_and_says_why_a_cell_is_empty(formula):
    page = markdown(measure(list(MODELS)), "synopsis reproduce np-memory", ["a.png"], 20.0)
    assert "    synopsis reproduce np-memory\n" in page
    assert "![a.png](a.png)" in page
    assert "more than 20 CPU-seconds" in " ".join(page.split())
    kept = section(page, "Bytes kept of a task")
    assert kept[0] == ["model", "keeps", *(f"N = {n:,}" for n in LENGTHS)]
    assert [line[0] for line in kept[2:]] == [title(name) for name in MODELS]
    by_name = {line[0]: line for line in kept[2:]}
    assert by_name["CMANP"][1:] == ["a summary", *["5,000"] * 5]
    assert by_name["TNP-D"][1:4] == ["every point", "900", "9,000"]
    query = {line[0]: line for line in section(page, f"A query of {TARGETS} targets, CPU time")}
    assert query["TNP-D"][2:] == ["10.0 ms", "1.00 s", *["– (too long)"] * 3]
    assert query["CMANP"][2:] == ["10.0 ms"] * 5
    assert "from N = 556 (CMANP) and 556 (CMANP, 32 latents) on" in page  # 5000 bytes ÷ 9


def test_unfinished_cells_are_not_drawn(formula):
    costs = measure(["CNP", "TNPD"], 10_000)
    drawn = dict(lines(costs, lambda cost: cost.query and cost.query.seconds))
    assert [n for n, _ in drawn["CNP"]] == [100, 1000, 10_000]
    assert [n for n, _ in drawn["TNPD"]] == [100, 1000]


def test_pictures_are_drawn_for_every_model(formula, tmp_path):
    pytest.importorskip("matplotlib")
    from synopsis.reproduction.np_memory_pictures import draw

    paths = draw(measure(list(MODELS)), tmp_path / "np-memory.md")
    assert [path.name for path in paths] == ["np-memory-memory.png", "np-memory-time.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_family_is_described_as_its_classes_are():
    joint = {"TNPA", "TNPND", "LBANPND", "CMANPAND"}
    assert {name for name in TITLES if is_joint(name)} == joint
    assert {name for name in TITLES if streams(name)} == {"CNP", "NP", "CMANP", "CMANPAND"}
    assert len(TITLES) == 14
    assert np_memory.MOST_BYTES == 4 * GIB
