"""The page about short trainings on the Long Range Arena, with the published figures for reading."""

import statistics
from collections.abc import Sequence

from synopsis.reproduction.luna_lra import ARENAS, BYTES, CELLS, Result, Settings
from synopsis.reproduction.luna_memory_page import TITLES
from synopsis.reproduction.memory_columns import COLUMNS
from synopsis.reproduction.pages import (
    UNKNOWN,
    UNPUBLISHED,
    joined,
    made_by,
    number,
    plus_minus,
    table,
    wrapped,
)
from synopsis.reproduction.sequence_runs import RECIPE_IN_WORDS, SequenceRun

# Accuracy, %: ListOps, Text, Retrieval, Image, Pathfinder; and where it stands.
PUBLISHED: dict[str, tuple[tuple[str, ...], str]] = {
    "Transformer": (("36.37", "64.27", "57.46", "42.44", "71.40"), "Long Range Arena v1"),
    "Transformer, trained by Luna's authors": (
        ("37.11", "65.21", "79.14", "42.94", "71.83"),
        "table of the Mega paper",
    ),
    "Linformer": (("35.70", "53.94", "52.27", "38.56", "76.34"), "Long Range Arena v1"),
    "Luna, 256 cells": (
        ("37.98", "65.78", "79.56", "47.86", "78.55"),
        "tables of the Mega and Megalodon papers",
    ),
    "Luna, 256 cells, first version": (
        ("37.25", "64.57", "79.29", "47.38", "77.72"),
        "table of the S4 paper",
    ),
    "Temporal Latent Bottleneck": (
        ("37.05", "81.88", "76.91", "57.51", "79.06"),
        "Long Range Arena v1, external",
    ),
    "ConvLuna": ((UNPUBLISHED,) * 5, UNPUBLISHED),
}
_SHOWN = ("cosine", "effective rank", "pack entropy")  # of the last layer's memory


def markdown(
    found: Sequence[Result], settings: Settings, command: str, pictures: Sequence[str]
) -> str:
    """The page."""
    head = _HEAD.format(
        layers=settings.layers, steps=settings.steps, examples=settings.test_examples
    )
    parts = [wrapped(head), _less(found), *(f"![{name}]({name})" for name in pictures)]
    for result in found:
        parts += [f"## {result.title}", _words(result), _table(result)]
        parts += [f"- {name}: {why}" for name, why in result.failures.items()]
    return joined([*parts, "## Published", wrapped(_PUBLISHED), _published(), made_by(command)])


def _less(found: Sequence[Result]) -> str:
    """Trainings that were cut short."""
    short = [
        f"{result.title}, {TITLES.get(run.name, run.name)} (seed {run.seed}) stopped at {run.step:,} of {run.steps:,}"
        for result in found
        for run in result.runs
        if run.step < run.steps
    ]
    return wrapped(f"**Less than planned**: {'; '.join(short)}.") if short else ""


def _words(result: Result) -> str:
    words = f"Checksum of all three parts {result.checksum[:12]}…."
    if result.stand_in:
        words += (
            f" **These are not the benchmark's data**: they stand in for {result.stand_in}, and accuracies on them "
            "cannot be held against published ones."
        )
    if ARENAS[result.name].arguments["length"] == BYTES:
        words += f" Texts are cut after {BYTES:,} bytes."
    if result.runs and not any(_learned(run, result.baselines["majority"]) for run in result.runs):
        words += (
            " **Nothing is learned here yet**: no model names the test examples better than the most frequent label "
            "does, within two standard errors."
        )
    return wrapped(words)


def _learned(run: SequenceRun, majority: float) -> bool:
    error = run.test["accuracy"]["standard_error"] or 0.0
    return bool(run.accuracy > majority + 2 * error)


def _table(result: Result) -> str:
    head = ["model", "parameters", "seeds", "steps", "test accuracy, %", "training loss, nats"]
    head += [*_SHOWN, "CPU-s per step", "CPU-hours"]
    lines = []
    for name, accuracy in result.baselines.items():
        line = [f"*{name}*", *[UNKNOWN] * (len(head) - 1)]
        line[4] = number(100 * accuracy, 1)
        lines.append(line)
    for name in dict.fromkeys(run.name for run in result.runs):
        runs = [run for run in result.runs if run.name == name]
        lines.append([TITLES.get(name, name), *_row(runs)])
    return table(head, lines)


def _row(runs: Sequence[SequenceRun]) -> list[str]:
    steps = "–".join(f"{step:,}" for step in sorted({run.step for run in runs}))
    losses = [run.loss for run in runs if run.loss is not None]
    line = [f"{runs[0].parameters:,}", str(len(runs)), steps, accuracy(runs)]
    line.append(number(statistics.fmean(losses), 3) if losses else UNKNOWN)
    last = [run.memory.layers[-1] for run in runs if run.memory is not None]
    line += [COLUMNS[name].mean(last) for name in _SHOWN]
    line.append(number(statistics.fmean(run.cpu_seconds / max(1, run.step) for run in runs), 3))
    return [*line, number(statistics.fmean(run.cpu_seconds for run in runs) / 3600, 2)]


def accuracy(runs: Sequence[SequenceRun]) -> str:
    """Percent ± standard deviation over seeds; of a single run, ± standard error over examples."""
    values = [100 * run.accuracy for run in runs]
    if len(values) > 1:
        return plus_minus(statistics.fmean(values), statistics.stdev(values), 1)
    error = runs[0].test["accuracy"]["standard_error"]
    return plus_minus(values[0], None if error is None else 100 * error, 1)


def _published() -> str:
    head = ["model", "ListOps", "Text", "Retrieval", "Image", "Pathfinder", "as printed in"]
    return table(head, [[name, *row, source] for name, (row, source) in PUBLISHED.items()])


_HEAD = f"""# Short trainings on the Long Range Arena

{{layers}} layers of width 64 with 4 heads and a feed-forward of 256, {CELLS} memory cells, {{steps:,}} steps:
{RECIPE_IN_WORDS}; warm-up takes at most a quarter of the steps. The published models are several times as wide and
deep and are trained for 25,000 to 125,000 steps; what can be compared here is how three models begin, not where they
end. Accuracies are on at most {{examples:,}} test examples. ± is the standard deviation over seeds, or the standard
error over examples where there is one seed. Cosine, effective rank and pack entropy are those of the last layer.

Read every accuracy beside the lines in italics, which need no training: always the most frequent label, the nearest
mean picture, byte frequencies."""

_PUBLISHED = """Accuracies in percent of full-size models on the benchmark's own data. That retrieval went from 57 to 79
is a change of training, not of attention. ConvLuna's own figures were found in no source that we could read."""
