"""What each departure from the published training of CMANP brings, at equal CPU time.

A ladder: the first rung trains as the released code does, every further one changes one thing more. All have the same
CPU time, so a rung that makes a step cheaper is paid in steps.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from synopsis.processes.base import Process, build
from synopsis.processes.cmanp import CMANP
from synopsis.reproduction.contenders import Contender, NotTrained, Watch, trained
from synopsis.reproduction.np_gp import BATCH_SIZE, PRIOR, TRAINED_ON, Row, Settings, score
from synopsis.tasks.kernels import KernelName
from synopsis.training import Experiment, TrainingDiverged
from synopsis.training.experiment import Component, Training
from synopsis.training.optimizers import build_optimizers
from synopsis.training.registries import build_task
from synopsis.training.seeds import own_randomness

KERNELS: tuple[KernelName, ...] = ("rbf", "matern52")
PUBLISHED_LAW = Component("gaussian_process", {"kernel": "rbf", "oracle": False})
_PUBLISHED = {
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "schedule": "cosine",
    "clip": 0.0,
    "ema": 0.0,
}
_ONE_CYCLE = {"optimizer": "adamw", "ema": 0.0}  # what is left out is the recipe's
_AS_PUBLISHED = Component("CMANP", {"residual": "normed", "initial": "copies"})
_SMALL = Component("CMANP", {"latents": 32})
_TIMED, _IDLE = 10, 2  # steps of each kind when compiling is measured


@dataclass(frozen=True)
class Rung:
    """One more change.

    Args:
        change: in words, from the rung before.
        contender: with everything changed so far.
        task: what it is trained on.
    """

    change: str
    contender: Contender
    task: Component = TRAINED_ON

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.contender.name


def _rung(name: str, change: str, process: Component, task: Component, **training: Any) -> Rung:
    return Rung(change, Contender(name, process, training), task)


_RUNGS = (
    _rung("published", "as published", _AS_PUBLISHED, PUBLISHED_LAW, **_PUBLISHED),
    _rung(
        "raw",
        "+ residual stream not normalised, blocks drawn independently",
        Component("CMANP"),
        PUBLISHED_LAW,
        **_PUBLISHED,
    ),
    _rung(
        "one-cycle",
        "+ one cycle to 1e-3, gradients clipped at 1",
        Component("CMANP"),
        PUBLISHED_LAW,
        **_ONE_CYCLE,
    ),
    _rung("targets", "+ 64 targets in every task", Component("CMANP"), TRAINED_ON, **_ONE_CYCLE),
    _rung(
        "muon",
        "+ Muon 0.01 between wide layers, moving average of the weights 0.995",
        Component("CMANP"),
        TRAINED_ON,
    ),
    _rung("latents", "+ 32 latents and learned queries instead of 128", _SMALL, TRAINED_ON),
    _rung("bf16", "+ products in bfloat16", _SMALL, TRAINED_ON, precision="bf16"),
    _rung(
        "anchored",
        "anchored at Bayesian regressions, float32 (another process)",
        Component("AnchoredCMANP", {"dim_x": 1, "prior": PRIOR}),
        TRAINED_ON,
    ),
)
LADDER: dict[str, Rung] = {rung.name: rung for rung in _RUNGS}
COMPILED = "bf16"  # the rung whose step is compiled, for its cost


@dataclass(frozen=True)
class Compiled:
    """What compiling brings, in CPU-seconds.

    Args:
        plain: a step as it is.
        compiled: a step with the blocks compiled.
        first: what compiling costs, with the first step.
    """

    plain: float
    compiled: float
    first: float


@dataclass(frozen=True)
class Results:
    """Everything the page is made of.

    Args:
        rows: of the ladder, by the rung's name.
        compiled: cost of the rung ``COMPILED``; None where it was not measured.
        remark: why it was not.
    """

    rows: Mapping[str, Row] = field(default_factory=dict)
    compiled: Compiled | None = None
    remark: str = ""


def climb(names: Sequence[str], settings: Settings, watch: Watch = lambda *_: None) -> Results:
    """Train or load, and evaluate, rung after rung.

    Args:
        names: of ``LADDER``.
        settings: budget, seeds and so on.
        watch: called with what is done, how much of it is done and how much there is.
    """
    return Results({name: _row(LADDER[name], settings, watch) for name in names})


def _row(rung: Rung, settings: Settings, watch: Watch) -> Row:
    made, contender = [], rung.contender
    try:
        for seed in range(settings.seeds):
            run = (contender, rung.task, settings.budget_seconds, seed, settings.runs, watch)
            made.append(trained(*run))
    except (NotTrained, TrainingDiverged) as failure:  # what was made before it stays
        if not made:
            return Row(contender, failure=str(failure))
    processes, ledgers = zip(*made, strict=True)
    scores = {}
    for kernel in KERNELS:
        scores[kernel] = tuple(
            score(process, ledger.folder, kernel, settings.batches) for process, ledger in made
        )
        watch(f"evaluating {contender.name}", len(scores), len(KERNELS))
    return Row(contender, processes, ledgers, scores)


def with_compiling(results: Results, watch: Watch = lambda *_: None) -> Results:
    """The results with what compiling brings; it needs a C++ compiler, and takes CPU-minutes."""
    try:
        return replace(results, compiled=compiling(LADDER[COMPILED], watch))
    except RuntimeError as error:  # of torch's compiler: there is no C++ compiler, or it failed
        return replace(results, remark=str(error).strip().splitlines()[0])


def compiling(rung: Rung, watch: Watch = lambda *_: None) -> Compiled:
    """Measure steps of a rung as they are and with the blocks compiled, in turns."""
    training = Training(**{"optimizer": "muon", **rung.contender.training})
    part = rung.contender.process
    experiment = Experiment(part, rung.task, training)
    with own_randomness(0):
        config = {"process": part.name, "arguments": part.arguments}
        pair = [build(config).train() for _ in range(2)]
        task, generator = build_task(experiment), torch.Generator().manual_seed(0)
        batches = [task.sample(BATCH_SIZE, generator) for _ in range(_TIMED)]
        compile_blocks(pair[1])
        steppers = [_stepper(process, training) for process in pair]
        seconds: list[list[float]] = [[], []]
        for done, batch in enumerate(batches, 1):
            for stepper, kept in zip(steppers, seconds, strict=True):
                begin = time.process_time()
                stepper(batch)
                kept.append(time.process_time() - begin)
            watch("compiling", done, len(batches))
    plain, compiled = (statistics.median(kept[_IDLE:]) for kept in seconds)
    return Compiled(plain, compiled, seconds[1][0])


def compile_blocks(process: Process) -> None:
    """Compile what each block does after it has met the stream: shapes are fixed there, blocks share the code."""
    if not isinstance(process, CMANP):
        raise ValueError(f"{type(process).__name__} has no blocks that could be compiled")
    for block in process.trunk.stack.blocks:
        block.answer = torch.compile(block.answer, dynamic=False)  # type: ignore[method-assign]


def _stepper(process: Process, training: Training) -> Any:
    optimizers, bf16 = build_optimizers(process, training), training.precision == "bf16"

    def step(batch: Any) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = process.loss(batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step
