"""What models make of the same three tasks, beside the exact answer; and how they came there. Needs matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from synopsis.processes.base import Process
from synopsis.reproduction.family import is_joint
from synopsis.reproduction.looks import DOTS_PER_INCH, EXACT, look, tidy
from synopsis.reproduction.np_gp import Row, title
from synopsis.reproduction.np_gp_functions import draw as draw_functions
from synopsis.reproduction.np_gp_grid import CONTEXTS, SEED, GridTask, grid_task
from synopsis.tasks import Batch
from synopsis.training.records import read_records
from synopsis.training.seeds import own_randomness

# A simple model, a Transformer, and the ones of constant memory, of which the table may lack some.
_SHOWN = ("CNP", "TNPD", "CMANP-32", "AnchoredCMANP", "AnchoredCMANPAND")
_SAMPLES = 3
_LOWEST = -1.0  # nats, of a learning curve: what comes before is of no interest


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw posteriors and learning curves beside a page.

    Args:
        rows: of the table; some of them have to be trained.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the PNGs, without one for which there is nothing to show.
    """
    paths = [out.with_name(f"{out.stem}-{what}.png") for what in ("posteriors", "learning")]
    made = [_draw_posteriors(_chosen(rows), paths[0]), _draw_learning(rows, paths[1])]
    return [path for path, done in zip(paths, made, strict=True) if done]


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """A few models that differ, shipped weights first; any others where those are not there."""
    known: dict[str, Row] = {}
    for row in rows:
        if row.processes and row.name not in known:
            known[row.name] = row
    wanted = [name for name in _SHOWN if name in known]
    others = [name for name in known if name not in wanted]
    return [known[name] for name in (*wanted, *others)[: len(_SHOWN)]]


def _draw_posteriors(rows: Sequence[Row], path: Path) -> bool:
    if not rows:
        return False
    tasks = [grid_task(points) for points in CONTEXTS]
    picture = Figure(figsize=(11.0, 1.0 + 2.1 * len(rows)), layout="constrained")
    axes = picture.subplots(len(rows), len(tasks), sharex=True, sharey="col", squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for task, ax in zip(tasks, line, strict=True):
            _panel(ax, row, task)
        line[0].set_ylabel(f"{title(row.name)}\ny")
    for ax, points in zip(axes[0], CONTEXTS, strict=True):
        ax.set_title(f"{points} context points", loc="left", fontsize=10)
    for ax in axes[-1]:
        ax.set_xlabel("x")
    for ax, task in zip(axes[0], tasks, strict=True):
        widest = float((task.mean.abs() + 2 * task.stddev).max())
        ax.set_ylim(-1.2 * widest, 1.2 * widest)
    # A joint model's panels have draws of functions, which the others lack.
    handles = {
        label: handle
        for line in axes
        for handle, label in zip(*line[0].get_legend_handles_labels(), strict=True)
    }
    picture.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False
    )
    picture.savefig(path, dpi=DOTS_PER_INCH)
    return True


def _panel(ax: Axes, row: Row, task: GridTask) -> None:
    grid, process = task.context.xt, row.processes[0]
    x = grid[0, :, 0]
    mean, stddev = _predicted(process, task.context)
    ax.fill_between(
        x, mean - 2 * stddev, mean + 2 * stddev, color="#0072B2", alpha=0.18, linewidth=0
    )
    ax.plot(x, mean, color="#0072B2", linewidth=1.4, label="model: mean, ± 2 σ")
    if is_joint(row.model):
        with own_randomness(SEED):
            functions = draw_functions(process, task.context, None, _SAMPLES)
        for i, function in enumerate(functions):
            label = "model: drawn functions" if i == 0 else None
            ax.plot(x, function[0], color="#D55E00", linewidth=0.7, alpha=0.8, label=label)
    ax.plot(x, task.mean, color=EXACT, linewidth=0.9, linestyle="--", label="exact: mean")
    for i, sign in enumerate((-2, 2)):
        label = "exact: ± 2 σ" if i == 0 else None
        edge = task.mean + sign * task.stddev
        ax.plot(x, edge, color=EXACT, linewidth=0.7, linestyle=":", label=label)
    points = (task.context.xc[0, :, 0], task.context.yc[0, :, 0])
    ax.scatter(*points, color="black", s=13, zorder=3, label="context")
    tidy(ax)


def _predicted(process: Process, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        predicted = process(batch.xc, batch.yc, batch.xt)
    return predicted.mean[0, :, 0], predicted.stddev[0, :, 0]


def _draw_learning(rows: Sequence[Row], path: Path) -> bool:
    curves = [(row, learning_curve(row.ledgers[0].metrics)) for row in rows if row.ledgers]
    curves = [(row, curve) for row, curve in curves if len(curve) > 1]
    if not curves:
        return False
    picture = Figure(figsize=(9.0, 5.0), layout="constrained")
    ax = picture.subplots()
    for row, curve in curves:
        style, label = look(row.name), title(row.name)
        label += ", together" if is_joint(row.model) else ""
        ax.plot(
            *zip(*curve, strict=True),
            label=f"{label}, shipped" if row.is_shipped else label,
            color=style.color,
            marker=style.marker,
            linestyle=style.linestyle,
            markersize=4,
            linewidth=2.0 if row.is_shipped else 1.2,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # a budget spans one power of ten
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("CPU-seconds of training, one thread")
    ax.set_ylabel("log-likelihood on RBF tasks, nats per target")
    ax.set_ylim(bottom=_LOWEST)
    tidy(ax)
    picture.legend(loc="outside right center", frameon=False, fontsize=8)
    picture.savefig(path, dpi=DOTS_PER_INCH)
    return True


def learning_curve(metrics: Path) -> list[tuple[float, float]]:
    """CPU-seconds and log-likelihood of every evaluation on the way; no points where nothing was evaluated.

    Args:
        metrics: a run's lines of metrics; a file that need not be there.
    """
    curve = []
    for record in read_records(metrics):
        scores = record.get("evaluation")
        value = math.nan if scores is None else scores["log_likelihood"]["value"]
        if value is not None and math.isfinite(value):
            curve.append((float(record["cpu_seconds"]), float(value)))
    return curve
