"""Image completion: every model trained on some classes, and measured on those and on classes it has never seen."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from synopsis.processes.base import Process
from synopsis.processes.heads import Gaussian
from synopsis.processes.pooling import CELEBA, EMNIST
from synopsis.reproduction.contenders import (
    Contender,
    Ledger,
    NotTrained,
    Watch,
    remembered,
    trained,
)
from synopsis.reproduction.costs import Cell, FreshProcesses
from synopsis.tasks import Batch
from synopsis.tasks.image_files import IMAGE_SETS, ImageSet, SetName, SplitName, load_images
from synopsis.tasks.image_packages import fetch_fashion_mnist
from synopsis.tasks.images import ImageCompletion
from synopsis.training import Estimate, Evaluation, TrainingDiverged, evaluate
from synopsis.training.evaluation import ratio
from synopsis.training.experiment import JSON, Component

MODELS = ("CMANP", "CMANP-4", "CMANPAND", "CNP", "LBANP", "TNPD")  # of the default table
# CMANP at about the number of weights and the cost of a step of LBANP.
FEWER_BLOCKS = {"CMANP-4": 4}
SHIPPED = "fashion-cmanp"
BATCH_SIZE = 16
LATENTS = 32  # of the processes that have latents; published are 128
TRAIN_TARGETS = 64
_SEED = 0  # of the evaluation's pixels
_DIAGONAL = ("CMANP", "LBANP", "TNPD", "TNPA", "EQTNP")
_JOINT = ("CMANPAND", "LBANPND", "TNPND")
_LATENT = ("CMANP", "CMANPAND", "LBANP", "LBANPND")
_POOLING = ("CNP", "CANP", "NP", "ANP", "BNP", "BANP")
ALL = (*_DIAGONAL, *FEWER_BLOCKS, *_JOINT, *_POOLING)


@dataclass(frozen=True)
class Settings:
    """What table is asked for.

    Args:
        dataset: which images.
        models: rows, by name; ``fashion-cmanp`` is the process that is shipped.
        budget_seconds: CPU-seconds of training for each model and seed; 0 takes what is there.
        seeds: trainings of each model.
        batches: evaluation batches of 16 images for each split; fewer where there are fewer images.
        runs: folder of the runs.
        training: departures from the common recipe.
    """

    dataset: SetName = "fashion-mnist"
    models: Sequence[str] = MODELS
    budget_seconds: float = 1200.0
    seeds: int = 1
    batches: int = 313
    runs: Path = Path("runs/np-images")
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """What is measured: images of the classes that were trained on, and of others where there are classes."""
        return ("seen", "unseen") if IMAGE_SETS[self.dataset].seen else ("seen",)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name: of the model.
        process: the one of the first seed, for pictures; None where there is none.
        ledgers: one for each seed.
        scores: one for each seed, by split.
        kept: bytes that the process keeps of one image after 10 pixels, and after all.
        peak: bytes of memory to complete an image from as many pixels as are ever given; None where not measured.
        failure: why there are no scores.
    """

    name: str
    process: Process | None = None
    ledgers: tuple[Ledger, ...] = ()
    scores: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    kept: tuple[int, ...] = ()
    peak: int | None = None
    failure: str = ""

    def log_likelihood(self, split: str) -> Estimate:
        """Nats per pixel: the mean over seeds, and the mean of their standard errors (they share the images)."""
        found = [score["log_likelihood"] for score in self.scores[split]]
        values, errors = ([one[key] for one in found] for key in ("value", "standard_error"))
        return Estimate(math.fsum(values) / len(found), math.fsum(errors) / len(found))

    def spread(self, split: str) -> float | None:
        """Standard deviation of the log-likelihood over seeds; None for one seed."""
        values = [score["log_likelihood"]["value"] for score in self.scores[split]]
        return float(torch.tensor(values).double().std()) if len(values) > 1 else None


@dataclass(frozen=True)
class InOrder:
    """A task whose batches are every image of a split once, for ``training.evaluate``; the published evaluation.

    Args:
        task: the split.
        watch: called with the number of batches drawn.
    """

    task: ImageCompletion
    watch: Callable[[int], object] = lambda _: None
    dim_x = 2  # not a field

    def __post_init__(self) -> None:
        object.__setattr__(self, "_batches", enumerate(self.task.in_order(BATCH_SIZE, _SEED)))

    @property
    def dim_y(self) -> int:
        """Number of channels."""
        return self.task.dim_y

    def sample(self, batch_size: int, generator: Generator) -> Batch:  # noqa: ARG002
        """The next batch; its pixels come from a generator of its own."""
        batches: Iterator[tuple[int, Batch]] = self._batches  # type: ignore[attr-defined]
        number, batch = next(batches)
        self.watch(number + 1)
        return batch


def contender(name: str, settings: Settings) -> Contender:
    """A model in its published sizes for these images, but for the number of latents.

    Raises:
        ValueError: there is no such model.
    """
    if name == SHIPPED:
        return Contender(SHIPPED, Component("CMANP"), shipped=SHIPPED)
    if name not in ALL:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(ALL)}")
    grey = IMAGE_SETS[settings.dataset].channels == 1
    model, _, _ = name.partition("-")
    arguments: dict[str, JSON] = {"dim_x": 2, "dim_y": IMAGE_SETS[settings.dataset].channels}
    bounded = "bounded-" if grey else ""  # published: a floor of 0.05 for EMNIST, none for CelebA
    if model in _POOLING:
        arguments["depths"] = list(EMNIST if grey else CELEBA)
    else:
        arguments["head"] = f"{bounded}{'cholesky' if model in _JOINT else 'gaussian'}"
    if model in _LATENT:
        arguments["latents"] = LATENTS
    if name in FEWER_BLOCKS:
        arguments["blocks"] = FEWER_BLOCKS[name]
    return Contender(name, Component(model, arguments), settings.training)


def train_targets(dataset: SetName) -> int:
    """Targets of each image in training: 64, or half of the pixels where there are few."""
    return min(TRAIN_TARGETS, IMAGE_SETS[dataset].side ** 2 // 2)


def training_task(dataset: SetName) -> Component:
    """What models are trained on: the training images of the seen classes."""
    return Component("image_completion", {"dataset": dataset, "targets": train_targets(dataset)})


def ensure_images(dataset: SetName, say: Callable[[str], object]) -> None:
    """Find the images, or download them where that is possible (Fashion-MNIST, 31 MB).

    Args:
        dataset: which.
        say: called with a line of progress before each step of a download.

    Raises:
        OSError: they are not there and cannot be had; says how to get them.
    """
    try:
        load_images(dataset, "seen")
    except FileNotFoundError:
        if dataset != "fashion-mnist":
            raise
        try:
            fetch_fashion_mnist(say=say)
        except OSError as error:
            raise OSError(f"Fashion-MNIST is not here and cannot be downloaded: {error}") from error
        load_images(dataset, "seen")


def rows(settings: Settings, watch: Watch = lambda *_: None) -> list[Row]:
    """Train or load every model, and measure it.

    Args:
        settings: of the table.
        watch: called with what is done, how much of it, and how much there is.

    Example:
        >>> [row] = rows(Settings("digits", ("CNP",), 2.0, runs=Path("runs/x")))    # doctest: +SKIP
        >>> row.log_likelihood("seen")    # doctest: +SKIP
        Estimate(value=-0.1, standard_error=0.02)
    """
    return [_row(contender(name, settings), settings, watch) for name in settings.models]


def _row(who: Contender, settings: Settings, watch: Watch) -> Row:
    task, runs = training_task(settings.dataset), settings.runs / settings.dataset
    try:
        found = [
            trained(who, task, settings.budget_seconds, seed, runs, watch)
            for seed in range(1 if who.is_shipped else settings.seeds)
        ]
    except (NotTrained, TrainingDiverged) as error:
        return Row(who.name, failure=str(error))
    processes, ledgers = zip(*found, strict=True)
    scores: dict[str, tuple[Mapping[str, Any], ...]] = {
        split: tuple(_scores(process, ledger, split, settings, watch) for process, ledger in found)
        for split in settings.splits
    }
    everything = IMAGE_SETS[settings.dataset].side ** 2
    kept = tuple(_kept(processes[0], points) for points in (10, everything))
    peak = _peak(processes[0], ledgers[0].folder, IMAGE_SETS[settings.dataset])
    return Row(who.name, processes[0], ledgers, scores, kept, peak)


def _scores(
    process: Process, ledger: Ledger, split: SplitName, settings: Settings, watch: Watch
) -> dict[str, Any]:
    task = ImageCompletion(settings.dataset, split)
    batches = available(task, settings.batches)
    what = f"{ledger.folder.name}, {split}"

    def compute() -> dict[str, Any]:
        in_order = InOrder(task, lambda done: watch(what, done, batches))
        scores: Evaluation = evaluate(process, in_order, batches, BATCH_SIZE, _SEED)
        return scores.to_dict()

    asked: dict[str, JSON] = {"dataset": settings.dataset, "split": split, "batches": batches}
    asked |= {"process": process.fingerprint, "size": BATCH_SIZE, "seed": _SEED}
    return remembered(ledger.folder, "evaluation", asked, compute)


def available(task: ImageCompletion, batches: int) -> int:
    """As many batches as asked for, or as there are."""
    return min(batches, math.ceil(len(task) / BATCH_SIZE))


def _kept(process: Process, points: int) -> int:
    x = torch.zeros(1, points, process.dim_x)
    with torch.no_grad():
        state = process.update(process.init((1,)), x, torch.zeros(1, points, process.dim_y))
    size: int = state.nbytes
    return size


def _peak(process: Process, folder: Path, images: ImageSet) -> int | None:
    cell = Cell(
        Component(type(process).__name__, process.config), images.max_points, images.side**2
    )

    def compute() -> dict[str, Any]:
        with FreshProcesses() as fresh:
            return {"peak": fresh.measure(cell).peak}

    try:
        found = remembered(
            folder, "memory", {"points": cell.points, "targets": cell.targets}, compute
        )
    except OSError:  # no fork here
        return None
    peak: int | None = found["peak"]
    return peak


def without_context(settings: Settings, split: SplitName) -> Estimate | None:
    """The score of each pixel's mean and standard deviation over the training images, nats per pixel.

    What a model that learns nothing from its context could reach at best with Gaussians; standard deviations are at
    least 0.05, like those of the models. None for colour images, of which there are too many to hold at once.
    """
    known, task = IMAGE_SETS[settings.dataset], ImageCompletion(settings.dataset, split)
    if known.channels > 1:
        return None
    pixels = load_images(settings.dataset, "train").astype(np.float32)
    images = torch.from_numpy(pixels) / known.largest - 0.5
    mean, stddev = images.mean(0), images.std(0).clamp(min=0.05)
    scores = []
    for _, batch in zip(range(settings.batches), task.in_order(BATCH_SIZE, _SEED), strict=False):
        places = ((batch.xt + 1) / 2 * (known.side - 1)).round().long()
        at = places[..., 0] * known.side + places[..., 1]
        scores.append(float(Gaussian(mean[at], stddev[at]).log_prob(batch.yt).mean()))
    return ratio(scores, [1.0] * len(scores))
