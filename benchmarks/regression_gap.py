"""How far the shipped process stays behind the exact answer on held-out Gaussian processes."""

import argparse

import torch
from _measure import markdown, write_table

import synopsis
from synopsis.processes import BayesianLinear, Process
from synopsis.tasks.gaussian_process_draws import GaussianProcessDraws
from synopsis.training.evaluation import Estimate, Evaluation, evaluate

GOALS = {10: 0.2, 100: 0.3, 1000: 0.4}
TASKS = {10: (100, 16), 100: (100, 16), 1000: (40, 8)}  # batches, tasks per batch
INPUTS = (1, 2, 4, 8)


def measure(process: Process, inputs: int, context: int) -> Evaluation:
    batches, size = TASKS[context]
    return evaluate(process, GaussianProcessDraws(inputs, context), batches, size, seed=1)


def show(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} ± {estimate.standard_error:.3f}"


def row(process: Process, inputs: int, context: int) -> tuple[object, ...]:
    ours, line = measure(process, inputs, context), measure(BayesianLinear(8), inputs, context)
    goal = f"≤ {GOALS[context]}" if inputs <= 2 else "–"
    covered = [show(ours.coverage[level]) for level in (0.5, 0.9)]
    gaps = (show(ours.oracle_gap), goal, show(line.oracle_gap))
    return (inputs, context, show(ours.oracle), *gaps, *covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", default="regression-8d", help="shipped name or folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    process = synopsis.load(arguments.process)
    header = (
        "inputs",
        "context points",
        "oracle",
        "gap of the process",
        "goal",
        "gap of a line",
        "covered by 50 %",
        "covered by 90 %",
    )
    rows = [row(process, inputs, context) for inputs in INPUTS for context in GOALS]
    write_table(
        "regression-gap",
        "The shipped process against the exact answer",
        "Held-out draws of exact Gaussian processes from the prior that `regression-8d` was trained on. The oracle is "
        "the exact diagonal log-density of the targets, in nats per target, with kernel, length-scales and noise "
        "known; the process knows none of them. Gap = oracle − process; ± is a standard error over batches of tasks.",
        markdown(header, rows),
    )


if __name__ == "__main__":
    main()
