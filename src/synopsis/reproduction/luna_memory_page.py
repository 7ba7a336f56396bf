"""The page about memories on ListOps: its tables, and what they say about each other."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from synopsis.reproduction.luna_memory import (
    CELLS,
    FILTERS,
    LONGEST,
    MAIN,
    MAIN_SEEDS,
    MAIN_STEPS,
    MEMORIES,
    SHORTEST,
    TEMPERATURES,
    Results,
    Settings,
)
from synopsis.reproduction.memory_columns import COLUMNS
from synopsis.reproduction.pages import UNKNOWN, joined, made_by, number, plus_minus, table, wrapped
from synopsis.reproduction.sequence_runs import MEMORY_EXAMPLES, RECIPE_IN_WORDS, SequenceRun

LEARNED = 0.3  # accuracy that tells the first step of learning: below the root operator's, above the majority's
BEYOND = 0.4  # accuracy that the root operator alone does not give
GOAL = 5.0  # points that ConvLuna was hoped to be ahead of Luna
TITLES = {"Luna": "Luna, shared", "ConvLuna": "ConvLuna, simplified", "Vanilla": "Transformer"}
_OF_LAST = ("cosine", "centred", "effective rank")  # columns of the ablation: of the last layer
_OF_ALL = ("pack entropy", "pack TV", "τ of pack")  # and means over all layers
_BASELINES = {
    "majority": "*the most frequent label*",
    "root operator": "*the root operator alone*",
    "root over digits": "*the root operator over its direct digits*",
}


def markdown(found: Results, settings: Settings, command: str, pictures: Sequence[str]) -> str:
    """The page."""
    head = _HEAD.format(examples=f"{settings.test_examples:,}", checksum=found.checksum[:12])
    parts = [wrapped(head), _shorter(found, settings)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += [wrapped(_SEEDS)] if pictures and any(run.seed for run in found.main) else []
    if found.main:
        parts += ["## Side by side", wrapped(_verdict(found)), _main(found)]
        parts += ["## What their memories look like", wrapped(_MEMORY), _memories(found.main)]
    if found.ablation:
        words = _ABLATION.format(steps=f"{settings.ablation_steps:,}")
        parts += ["## What does it", wrapped(words), _ablation(found)]
    return joined([*parts, _absent(found.failures), made_by(command)])


def _shorter(found: Results, settings: Settings) -> str:
    """What is less than a whole table has."""
    less = []
    if found.main and settings.main_steps < MAIN_STEPS:
        less.append(f"{settings.main_steps:,} steps instead of {MAIN_STEPS:,}")
    seeds = {run.seed for run in found.main}
    if found.main and len(seeds) < MAIN_SEEDS:
        less.append(f"{len(seeds)} seed instead of {MAIN_SEEDS}")
    for run in (*found.main, *found.ablation):
        if run.step < run.steps:
            words = f"{_title(run)} (seed {run.seed}) stopped at {run.step:,} of {run.steps:,}"
            less.append(f"{words}, its learning rate not yet decayed")
    there = _by_name(found.main) or MAIN
    less += [f"{TITLES.get(name, name)} was not trained" for name in MAIN if name not in there]
    missing = len(FILTERS) * len(TEMPERATURES) * len(MEMORIES) - len(found.ablation)
    if found.ablation and missing:
        less.append(f"{missing} trainings of the ablation are missing")
    return wrapped(f"**Less than planned**: {'; '.join(less)}.") if less else ""


def _verdict(found: Results) -> str:
    """Who is ahead, in points of test accuracy, as far as both were trained."""
    by_name = _by_name(found.main)
    if not {"Luna", "ConvLuna"} <= by_name.keys():
        return _MAIN
    luna, conv = (by_name[name] for name in ("Luna", "ConvLuna"))
    ahead = 100 * (_mean(conv, _accuracy) - _mean(luna, _accuracy))
    error = 100 * math.hypot(*(_standard_error(runs) for runs in (luna, conv)))
    words = (
        f"The test accuracy of ConvLuna minus that of Luna is {plus_minus(ahead, error, 1)} points"
    )
    words += f"; {GOAL:g} were hoped for" if ahead < GOAL else ""
    beyond = [
        100 * (_mean(runs, _accuracy) - found.baselines["root operator"]) for runs in (conv, luna)
    ]
    words += ". Beyond the root operator alone"
    words += f" ConvLuna is by {number(beyond[0], 1)}, and Luna by {number(beyond[1], 1)} points. {_MAIN}"
    return words


def _main(found: Results) -> str:
    head = ["model", "parameters", "seeds", "steps", "test accuracy, %", "test loss, nats"]
    head += ["training loss, nats", "steps to 30 %", "steps to 40 %", "CPU-s per step", "CPU-hours"]
    lines = _baseline_lines(found.baselines, len(head), at=4)
    for name, runs in _by_name(found.main).items():
        steps = {run.step for run in runs}
        line = [TITLES.get(name, name), f"{runs[0].parameters:,}", str(len(runs))]
        line += ["–".join(f"{step:,}" for step in sorted(steps)), _accuracies(runs)]
        line += [_over(runs, _test_loss, 3), _over(runs, lambda run: run.loss, 3)]
        line += [_reached(runs, LEARNED), _reached(runs, BEYOND)]
        line += [number(_mean(runs, lambda r: r.cpu_seconds / max(1, r.step)), 3)]
        lines.append([*line, number(_mean(runs, lambda r: r.cpu_seconds / 3600), 2)])
    return table(head, lines)


def _memories(runs: Sequence[SequenceRun]) -> str:
    lines = []
    for name, own in _by_name(runs).items():
        reports = [run.memory for run in own if run.memory is not None]
        for layers in zip(*(report.layers for report in reports), strict=True):
            values = (column.mean(layers) for column in COLUMNS.values())
            lines.append([TITLES.get(name, name), str(layers[0].layer), *values])
    return table(["model", "layer", *COLUMNS], lines)


def _ablation(found: Results) -> str:
    head = ["cells", "τ of pack", "filter", "steps to 30 %", "test accuracy, %"]
    head += ["training loss, nats", *_OF_LAST, *_OF_ALL, "CPU-s per step"]
    lines = _baseline_lines(found.baselines, len(head), at=4)
    runs = {run.name: run for run in found.ablation}
    for cells in MEMORIES:
        for temperature in TEMPERATURES:
            for key, (words, _) in FILTERS.items():
                run = runs.get(f"{key}-{temperature}-m{cells}")
                if run is not None:
                    lines.append([str(cells), temperature, words, *_ablated(run)])
    return table(head, lines)


def _ablated(run: SequenceRun) -> list[str]:
    assert run.memory is not None  # every model of the ablation has one
    layers = run.memory.layers
    line = [_reached([run], LEARNED), _accuracies([run]), number(run.loss, 3)]
    line += [COLUMNS[name].mean(layers[-1:]) for name in _OF_LAST]
    line += [COLUMNS[name].mean(layers) for name in _OF_ALL]
    return [*line, number(run.cpu_seconds / max(1, run.step), 3)]


def _baseline_lines(baselines: Mapping[str, float], width: int, at: int) -> list[list[str]]:
    """Answers that need no model, in the column of accuracies."""
    lines = []
    for name, words in _BASELINES.items():
        line = [words, *[UNKNOWN] * (width - 1)]
        line[at] = number(100 * baselines[name], 1)
        lines.append(line)
    return lines


def _accuracies(runs: Sequence[SequenceRun]) -> str:
    """Percent ± standard deviation over seeds; of a single run, ± standard error."""
    if len(runs) > 1:
        return _over(runs, lambda run: 100 * run.accuracy, 1)
    return plus_minus(100 * runs[0].accuracy, 100 * _standard_error(runs), 1)


def _standard_error(runs: Sequence[SequenceRun]) -> float:
    """Of the mean accuracy: of the seeds where there are several, else of the examples."""
    if len(runs) > 1:
        return statistics.stdev(run.accuracy for run in runs) / math.sqrt(len(runs))
    error = runs[0].test["accuracy"]["standard_error"]
    return math.nan if error is None else float(error)


def _reached(runs: Sequence[SequenceRun], accuracy: float) -> str:
    values = [run.steps_to(accuracy) for run in runs]
    known = [value for value in values if value is not None]
    if not known:
        return "never"
    words = number(statistics.fmean(known), 0)
    return words if len(known) == len(values) else f"{words} ({len(known)} of {len(values)})"


def _over(
    runs: Sequence[SequenceRun], find: Callable[[SequenceRun], float | None], digits: int
) -> str:
    known = [value for value in map(find, runs) if value is not None]
    if not known:
        return UNKNOWN
    spread = statistics.stdev(known) if len(known) > 1 else None
    return plus_minus(statistics.fmean(known), spread, digits)


def _mean(runs: Sequence[SequenceRun], find: Callable[[SequenceRun], float]) -> float:
    return statistics.fmean(map(find, runs))


def _accuracy(run: SequenceRun) -> float:
    return run.accuracy


def _test_loss(run: SequenceRun) -> float | None:
    return float(run.test["loss"]["value"])


def _by_name(runs: Sequence[SequenceRun]) -> dict[str, list[SequenceRun]]:
    found: dict[str, list[SequenceRun]] = {}
    for run in runs:
        found.setdefault(run.name, []).append(run)
    return found


def _title(run: SequenceRun) -> str:
    return TITLES.get(run.name, run.name)


def _absent(failures: Mapping[str, str]) -> str:
    lines = [f"- {name}: {why}" for name, why in failures.items()]
    return "\n".join(["Without figures:", "", *lines]) if lines else ""


_SEEDS = "Curves of later seeds are broken lines; the memories drawn are those of the first seed."
_HEAD = f"""# Memories on ListOps

Expressions of {SHORTEST} to {LONGEST} tokens, 100,000 to train on (checksum of all three parts {{checksum}}…). Four
layers of width 64 with 4 heads and a feed-forward of 256, {CELLS} memory cells where nothing else is said, learned
positions, a class vector, pads masked. {RECIPE_IN_WORDS}; warm-up takes at most a quarter of the steps. Accuracies are
on {{examples}} test examples that were never looked at before. ± is the standard deviation over seeds, or the standard
error over examples where there is one seed.

Read every accuracy beside the lines in italics: answering with the most frequent label, with the most frequent label of
the first token, or with the first operator over those of its arguments that are digits. Only what is above the second
composes anything."""

_MAIN = f"""The training loss is the mean over the last 5 % of the steps. Steps to {100 * LEARNED:g} and to
{100 * BEYOND:g} % are read off the validation accuracy, between two evaluations linearly. CPU-seconds include the
evaluations on the way."""

_MEMORY = f"""After the last step, on {MEMORY_EXAMPLES} validation examples, means over seeds; the memory is the one
that a layer hands on. *cosine* between two cells, and *centred* when their mean is taken away; *effective rank* of the
matrix of {CELLS} cells; *entropy* of what a cell reads (pack) and of what an item reads (unpack), 1 for reading
everything alike; *TV*: the total variation between what two cells read, 0 when all cells read the same; how many cells
hold 90 % of what items read; norms; and the temperature τ. What each of them means: [memory
diagnostics](../memory-diagnostics.md)."""

_ABLATION = """Simplified ConvLuna with one part changed at a time, {steps} steps each, one seed. τ is that of pack;
unpack divides by 1 in all of them, as the published code does. Cosine, centred cosine and effective rank are those of
the last layer's memory; what is said of pack is a mean over layers. With one cell there is nothing to
compare, and unpack has no choice."""
