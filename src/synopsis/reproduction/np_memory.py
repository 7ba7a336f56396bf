"""What every neural process keeps of a context, and what conditioning, one more point and a query cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product

from synopsis.reproduction.costs import GIB, MOST_BYTES, PATIENCE, Call, Cell, Cost, FreshProcesses
from synopsis.reproduction.family import EVERY_TITLE, TITLES, streams
from synopsis.reproduction.pages import UNKNOWN, joined, made_by, mebibytes, seconds, table
from synopsis.training.experiment import Component

MODELS: dict[str, Component] = {name: Component(name) for name in TITLES}
MODELS["AnchoredCMANP"] = Component("AnchoredCMANP", {"dim_x": 1})
MODELS["CMANP-32"] = Component("CMANP", {"latents": 32})
LENGTHS = tuple(10**power for power in range(2, 7))
TARGETS = 100
Costs = Mapping[tuple[str, int], Cost]


def title(name: str) -> str:
    """A model's name as the literature writes it.

    Example:
        >>> title("CMANP-32")
        'CMANP, 32 latents'
    """
    return "CMANP, 32 latents" if name == "CMANP-32" else EVERY_TITLE[name]


def measure(
    names: Sequence[str],
    longest: int = LENGTHS[-1],
    patience: float = PATIENCE,
    watch: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[tuple[str, int], Cost]:
    """Measure models on contexts of 100 points, 1,000 and so on.

    Args:
        names: of ``MODELS``.
        longest: no context has more points.
        patience: CPU-seconds of one call; a query that takes longer is not tried on longer contexts.
        watch: called after each cell with a word, cells done and all cells.
    """
    lengths = [length for length in LENGTHS if length <= longest]
    costs: dict[tuple[str, int], Cost] = {}
    with FreshProcesses(patience) as fresh:
        for name, points in product(names, lengths):
            before = costs.get((name, points // 10))
            costs[name, points] = _next(fresh, MODELS[name], points, before)
            watch("np-memory", len(costs), len(names) * len(lengths))
    return costs


def _next(fresh: FreshProcesses, process: Component, points: int, before: Cost | None) -> Cost:
    """The cost of a cell; what could not be done with fewer points is not tried again."""
    if before is not None and before.stopped is not None:
        if before.conditioning is None or before.update is None:
            return before
        found = fresh.measure(Cell(process, points, TARGETS, query=False))
        return found if found.stopped else _stopped(found, before.stopped)
    return fresh.measure(Cell(process, points, TARGETS))


def _stopped(cost: Cost, why: str) -> Cost:
    return Cost(cost.kept, cost.conditioning, cost.update, None, why)


def markdown(costs: Costs, command: str, pictures: Sequence[str], patience: float) -> str:
    """The page: one table for each question, a model a row and a length a column."""
    shown = [f"![{name}]({name})" for name in pictures]
    head = _HEAD.format(targets=TARGETS, patience=patience, gib=MOST_BYTES // GIB)
    parts = [head, *shown]
    for heading, (why, read) in _TABLES.items():
        parts += [f"## {heading}", why, _table(costs, read)]
    return joined([*parts, _TAIL + _worth(costs), made_by(command)])


def _table(costs: Costs, read: Callable[[Cost], str]) -> str:
    lengths = sorted({length for _, length in costs})
    names = list(dict.fromkeys(name for name, _ in costs))
    head = ["model", "keeps", *(f"N = {length:,}" for length in lengths)]
    rows = []
    for name in names:
        keeps = "a summary" if streams(MODELS[name].name) else "every point"
        rows.append([title(name), keeps, *(read(costs[name, length]) for length in lengths)])
    return table(head, rows)


def _worth(costs: Costs) -> str:
    """From how many points on a summary is smaller than the points."""
    kept = {name: cost.kept for (name, _), cost in costs.items() if cost.kept is not None}
    growing = [name for name in kept if not streams(MODELS[name].name)]
    summaries = [name for name in ("CMANP", "CMANP-32") if name in kept]
    if not growing or not summaries:
        return ""
    most = max(length for name, length in costs if name == growing[0])
    per_point = kept[growing[0]] / most
    counts = " and ".join(f"{kept[name] / per_point:,.0f} ({title(name)})" for name in summaries)
    return (
        f"\n- A stored point takes {per_point:.0f} bytes here, so a summary is the smaller of the two from "
        f"N = {counts} on; what it saves earlier is time."
    )


def _reason(cost: Cost) -> str:
    words = {"time": "too long", "memory": "too much", "died": "failed"}
    return f"{UNKNOWN} ({words[cost.stopped]})" if cost.stopped else UNKNOWN


def _time(read: Callable[[Cost], Call | None]) -> Callable[[Cost], str]:
    def cell(cost: Cost) -> str:
        call = read(cost)
        return _reason(cost) if call is None else seconds(call.seconds)

    return cell


def _peak(cost: Cost) -> str:
    return _reason(cost) if cost.peak is None else mebibytes(cost.peak)


def _kept(cost: Cost) -> str:
    return _reason(cost) if cost.kept is None else f"{cost.kept:,}"


_TABLES: dict[str, tuple[str, Callable[[Cost], str]]] = {
    "Bytes kept of a task": (
        "`state.nbytes` after conditioning; everything that later updates and queries need.",
        _kept,
    ),
    "Peak extra memory of conditioning and a query, MiB": (
        "Beyond the weights and the N points themselves, the state included. Below about 1 MiB it is scratch of "
        "libraries.",
        _peak,
    ),
    "Conditioning on N points, CPU time": (
        "`process.update(process.init(), x, y)`. A model that keeps every point only stores it here, and pays in "
        "every query.",
        _time(lambda cost: cost.conditioning),
    ),
    "One more point, CPU time": (
        "`process.update(state, x, y)` with a state of N points.",
        _time(lambda cost: cost.update),
    ),
    f"A query of {TARGETS} targets, CPU time": (
        "`process.predict(state, xt).mean`, from the state alone. A model that keeps every point encodes the whole "
        "context again.",
        _time(lambda cost: cost.query),
    ),
}

_HEAD = """# What every neural process costs as its context grows

One task of N points, one input, one output, published sizes (and CMANP with 32 latents, as it is shipped), random
weights, on which costs do not depend; float32, one thread, evaluation mode. Each cell is measured in a process of
its own: a call's memory first, then its time in further calls. A cell ends when one call takes more than
{patience:g} CPU-seconds ("too long") or asks for more than {gib} GiB ("too much"); longer contexts are then not
tried."""

_TAIL = """- Sampling models answer a query with 50 draws (NP, ANP: of z; BNP, BANP: of bootstrapped contexts; TNP-A: of
  functions, each drawn target by target), as published.
- LBANP could keep its latents to answer queries, but not to be updated: its blocks read each other's answers, so one
  more point changes everything that was computed from the others.
- Times are CPU time, short calls as the mean of several. Memory is resident memory as the operating system counts it.
- Published figures of the same quantities: not found."""


def lines(
    costs: Costs, read: Callable[[Cost], float | None]
) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """For a picture: of each model the lengths at which there is a value, with the values."""
    for name in dict.fromkeys(name for name, _ in costs):
        points = [(n, read(cost)) for (of, n), cost in costs.items() if of == name]
        yield name, [(n, value) for n, value in points if value is not None]
