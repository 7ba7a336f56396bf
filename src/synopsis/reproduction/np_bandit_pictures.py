"""Pictures of the wheel bandit: regret over steps, and what a step costs. They need matplotlib (the extra ``plot``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from synopsis.reproduction.bandit_curves import DELTAS, Curves
from synopsis.reproduction.family import TITLES
from synopsis.reproduction.looks import DOTS_PER_INCH, look, tidy
from synopsis.reproduction.np_bandit import Settings, Table

_FAINT = "#777777"


def draw(tables: Sequence[Table], settings: Settings, out: Path) -> list[Path]:
    """Draw regret curves of each protocol, and the cost of a step, beside a page.

    Args:
        tables: one for each protocol.
        settings: of the tables.
        out: of the page; pictures are named after it.

    Returns:
        The paths of the PNGs; none of the cost when nothing was played.
    """
    paths = []
    for table in tables:
        paths.append(out.with_name(f"{out.stem}-regret-{table.protocol}.png"))
        _regrets(table, settings).savefig(paths[-1], dpi=DOTS_PER_INCH)
    played = [row for table in tables[:1] for row in table.rows if row.curves is not None]
    if played:
        paths.append(out.with_name(f"{out.stem}-cost.png"))
        named = {row.name: row.curves for row in played if row.curves is not None}
        _cost(named, settings).savefig(paths[-1], dpi=DOTS_PER_INCH)
    return paths


def _regrets(table: Table, settings: Settings) -> Picture:
    picture = Picture(figsize=(13.0, 4.0), layout="constrained")
    axes = picture.subplots(1, len(DELTAS), sharex=True)
    for number, (ax, delta) in enumerate(zip(axes, DELTAS, strict=True)):
        scale = float(table.uniform.regret[number, :, -1].mean())
        for name, curves, style in _lines(table):
            steps = _steps(curves.regret.shape[-1], settings)
            mean = 100 * curves.regret[number].mean(0).numpy() / scale
            ax.plot(steps, np.concatenate([[0.0], mean]), label=name, **style)
        ax.set_title(f"rich beyond δ = {delta:g}", loc="left", fontsize=10)
        tidy(ax)
    axes[0].set_ylabel("regret so far, uniform agent's at the end = 100")
    axes[len(axes) // 2].set_xlabel("steps")
    handles, labels = axes[0].get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False)
    picture.suptitle(f"Wheel bandit, {table.protocol} protocol, mean over runs: lower is better")
    return picture


def _lines(table: Table) -> list[tuple[str, Curves, dict[str, Any]]]:
    lines: list[tuple[str, Curves, dict[str, Any]]] = [
        (name, curves, {"color": _FAINT, "linewidth": 1.0, "linestyle": dashes})
        for (name, curves), dashes in zip(table.references.items(), (":", "-.", "--"), strict=True)
    ]
    rows = [(row.name, row.curves) for row in table.rows if row.curves is not None]
    return lines + [(TITLES[name], curves, _look(name)) for name, curves in rows]


def _cost(named: dict[str, Curves], settings: Settings) -> Picture:
    picture = Picture(figsize=(7.0, 4.4), layout="constrained")
    ax = picture.subplots()
    for name, curves in named.items():
        steps = _steps(len(curves.seconds), settings)[1:]
        ax.plot(steps, 1e3 * curves.seconds.numpy(), label=TITLES[name], **_look(name))
    ax.set_yscale("log")
    ax.set_xlabel("steps played, each one more point of history")
    ax.set_ylabel("CPU time of one step of one run, ms")
    ax.set_title("What a decision costs as history grows", loc="left")
    tidy(ax)
    picture.legend(loc="outside right center", frameon=False)
    return picture


def _look(name: str) -> dict[str, Any]:
    """A model's colour and line, as in all pictures."""
    chosen = look(name)
    return {"color": chosen.color, "linestyle": chosen.linestyle, "linewidth": 1.5}


def _steps(points: int, settings: Settings) -> np.ndarray:
    """Steps of the points of a curve, from 0 on."""
    return settings.grid * np.arange(points + 1)
