"""Every neural process on one-dimensional Gaussian processes: who competes, and what they score.

The published protocol: weights from RBF tasks only, evaluated on three kernels by the mean over batches of 16 tasks of
each batch's mean, nats per target. What is not as published is the training: one recipe for all, within a budget.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from synopsis.processes.autoregressive import BlockAutoregressive
from synopsis.processes.base import Process
from synopsis.reproduction.contenders import (
    Contender,
    Ledger,
    NotTrained,
    Watch,
    remembered,
    trained,
)
from synopsis.reproduction.family import EVERY_TITLE, TITLES
from synopsis.tasks.fixed_batches import evaluation_batches
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.kernels import KernelName
from synopsis.training import TrainingDiverged, evaluate
from synopsis.training.evaluation import ratio
from synopsis.training.experiment import JSON, Component

KERNELS: tuple[KernelName, ...] = get_args(KernelName)
BATCH_SIZE, SEED = 16, 0  # of the evaluation
TARGETS = 64  # of every task in training
TRAINED_ON = Component("gaussian_process", {"kernel": "rbf", "targets": TARGETS, "oracle": False})
# Models that draw 50 times for every answer: a batch of theirs costs as much as a hundred of the others'.
MOST_BATCHES = {"BNP": 300, "BANP": 150, "TNPA": 200}

CONTENDERS: dict[str, Contender] = {name: Contender(name, Component(name)) for name in TITLES}
CONTENDERS["TNPD"] = replace(CONTENDERS["TNPD"], shipped="gp-tnpd")
for _name, _shipped in (("LBANP", None), ("CMANP", "gp-cmanp"), ("CMANPAND", "gp-cmanp-and")):
    _small = Component(_name, {"latents": 32})
    CONTENDERS[f"{_name}-32"] = Contender(f"{_name}-32", _small, shipped=_shipped)

# What the task says of its functions, with the amplitudes in units of a noise variance of 0.02².
PRIOR: JSON = {
    "features": 128,
    "length_scales": [0.1, 0.15, 0.22, 0.33, 0.5],
    "amplitudes": [100.0, 1000.0],
    "noise_variance": 8e-4,
    "period": 8.0,  # of inputs from an interval of length 4
}
CONTENDERS["SpectralRegression"] = Contender(
    "SpectralRegression",
    Component("SpectralRegression", {"dim_x": 1, "prior": PRIOR}),
    has_weights=False,
)
for _name, _shipped in (("AnchoredCMANP", "gp-anchored"), ("AnchoredCMANPAND", "gp-anchored-and")):
    _anchored = Component(_name, {"dim_x": 1, "prior": PRIOR})
    CONTENDERS[_name] = Contender(_name, _anchored, shipped=_shipped)

# Feng et al. 2024, table 4, as quoted by a public reproduction audit; nothing else of it was found.
PUBLISHED: dict[str, dict[KernelName, str]] = {
    "CMANP": {"rbf": "1.24 ± 0.01", "matern52": "0.80 ± 0.01"},
    "CMANPAND": {"rbf": "1.48 ± 0.03", "matern52": "0.96 ± 0.01"},
}


@dataclass(frozen=True)
class Settings:
    """What a table is made with.

    Args:
        budget_seconds: CPU-seconds of training for each model and seed; 0 takes what is there.
        seeds: trainings of each model.
        batches: of an evaluation, 2 or more; some models take fewer, see ``MOST_BATCHES``.
        runs: folder of the runs.
    """

    budget_seconds: float
    seeds: int
    batches: int
    runs: Path

    def batches_of(self, process: str) -> int:
        """Batches on which a process is evaluated."""
        return min(self.batches, MOST_BATCHES.get(process, self.batches))


@dataclass(frozen=True)
class Row:
    """A contender with what it has cost and what it scores, one of each for a seed.

    Args:
        contender: who.
        processes: with their weights.
        ledgers: what they have cost.
        scores: of each kernel, as :meth:`synopsis.training.Evaluation.to_dict` writes them.
        failure: why there is nothing else.
    """

    contender: Contender
    processes: tuple[Process, ...] = ()
    ledgers: tuple[Ledger, ...] = ()
    scores: Mapping[KernelName, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    failure: str = ""

    @property
    def name(self) -> str:
        """Of the model, such as ``"CMANP-32"``."""
        return self.contender.name

    @property
    def model(self) -> str:
        """Name of the process without its variant, such as ``"CMANP"``."""
        return self.contender.process.name

    @property
    def is_shipped(self) -> bool:
        """Whether its weights came with the package."""
        return any(ledger.origin == "shipped" for ledger in self.ledgers)


def title(name: str) -> str:
    """A model's name as the literature writes it.

    Example:
        >>> title("CMANPAND-32"), title("TNPD")
        ('CMANP-AND, 32 latents', 'TNP-D')
    """
    model, _, latents = name.partition("-")
    return f"{EVERY_TITLE[model]}, {latents} latents" if latents else EVERY_TITLE[model]


def rows(names: Sequence[str], settings: Settings, watch: Watch = lambda *_: None) -> list[Row]:
    """Train or load, and evaluate: for each model a row of shipped weights, if there are any, and one of the budget.

    Args:
        names: of ``CONTENDERS``.
        settings: budget, seeds and so on.
        watch: called with what is done, how much of it is done and how much there is.
    """
    found = []
    for name in names:
        contender = CONTENDERS[name]
        if contender.is_shipped:
            found.append(_row(contender, replace(settings, seeds=1), watch))
        own = _row(replace(contender, shipped=None), settings, watch)
        if own.processes or not contender.is_shipped:
            found.append(own)
    return found


def _row(contender: Contender, settings: Settings, watch: Watch) -> Row:
    made: list[tuple[Process, Ledger]] = []
    seeds = settings.seeds if contender.has_weights else 1
    budget, runs = settings.budget_seconds, settings.runs
    try:
        for seed in range(seeds):
            process, ledger = trained(contender, TRAINED_ON, budget, seed, runs, watch)
            made.append((process, ledger))
    except (NotTrained, TrainingDiverged) as failure:  # what was made before it stays
        if not made:
            return Row(contender, failure=str(failure))
    processes, ledgers = zip(*made, strict=True)
    scores: dict[KernelName, tuple[dict[str, Any], ...]] = {}
    for kernel in KERNELS:
        scores[kernel] = tuple(
            score(process, ledger.folder, kernel, settings.batches_of(contender.process.name))
            for process, ledger in made
        )
        watch(f"evaluating {contender.name}", len(scores), len(KERNELS))
    return Row(contender, processes, ledgers, scores)


def score(
    process: Process,
    folder: Path,
    kernel: KernelName,
    batches: int,
    target_block: int | None = None,
) -> dict[str, Any]:
    """The scores of a process on a kernel, computed once.

    Args:
        process: whose.
        folder: where they are kept.
        kernel: of the tasks.
        batches: of 16 tasks, the same for every process.
        target_block: targets that a block-autoregressive process predicts together; None for all of them, as published.
    """
    settings = {
        "process": process.fingerprint,
        "kernel": kernel,
        "batches": batches,
        "batch_size": BATCH_SIZE,
        "seed": SEED,
        "target_block": target_block or 0,
    }

    def compute() -> dict[str, Any]:
        if isinstance(process, BlockAutoregressive):
            process.target_block = target_block
        task = GaussianProcessTask(kernel=kernel)
        return evaluate(process, task, batches, BATCH_SIZE, SEED).to_dict()

    return remembered(folder, f"evaluation-{kernel}", settings, compute)


def exact(settings: Settings, watch: Watch = lambda *_: None) -> dict[KernelName, dict[str, Any]]:
    """What whoever knows the kernel scores on all batches: ``diagonal`` and ``joint``, value and standard error."""
    found = {}
    for kernel in KERNELS:
        wanted = {"batches": settings.batches, "batch_size": BATCH_SIZE, "seed": SEED}
        found[kernel] = remembered(
            settings.runs / "exact", kernel, wanted, _exact(kernel, settings.batches)
        )
        watch("the exact answer", len(found), len(KERNELS))
    return found


def _exact(kernel: KernelName, batches: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        task = GaussianProcessTask(kernel=kernel)
        diagonal, joint = [], []
        for batch in evaluation_batches(task, batches, BATCH_SIZE, SEED):
            assert batch.oracle is not None and batch.joint_oracle is not None
            diagonal.append(batch.oracle.mean().item())
            joint.append(batch.joint_oracle.mean().item() / batch.yt.shape[1])
        means = {"diagonal": diagonal, "joint": joint}
        return {name: vars(ratio(values, [1.0] * batches)) for name, values in means.items()}

    return compute
