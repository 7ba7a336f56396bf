"""The one training loop: a run is a folder, and a run continued is a run never interrupted.

The batch and everything else random at a step depend on (seed, step) alone, and the learning rate on
the step alone; with weights and moments in the checkpoint nothing else is left to remember.

    run/experiment.toml         what was asked for
    run/metrics.jsonl           one line every ``log_every`` steps, and one per evaluation, with another for a memory
    run/checkpoint.safetensors  the last one only
    run/process/                the result, for ``synopsis.load``, once all steps are done; of a model run/model/,
                                for ``synopsis.models.load_model``
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from synopsis.states import write_atomic
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.training.checkpoint import Checkpoint, CheckpointError
from synopsis.training.clock import Clock
from synopsis.training.experiment import Experiment, ExperimentError
from synopsis.training.interruption import Interruption
from synopsis.training.layout import CHECKPOINT, EXPERIMENT, METRICS
from synopsis.training.learner import Learner, Tally
from synopsis.training.records import append_record, keep_records
from synopsis.training.registries import build_task, build_trainee
from synopsis.training.runs import load_trained
from synopsis.training.schedules import learning_rate
from synopsis.training.seeds import derived_seed, own_randomness, seed_torch
from synopsis.training.trainees import Trainee, check_suits, look_into, measure

Watch = Callable[[int, float, float], None]


class TrainingInterrupted(Exception):
    """A signal ended the run; the checkpoint holds every step taken.

    Args:
        signal: its number.
        step: steps done.
        checkpoint: where they are kept.
    """

    def __init__(self, signal: int, step: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted after step {step}; {checkpoint} continues from there")
        self.signal = signal


def train(
    experiment: Experiment, run_dir: Path, resume: bool = False, watch: Watch | None = None
) -> Path:
    """Run an experiment to its last step.

    Args:
        experiment: what to train, on what, and how.
        run_dir: folder of the run, made if it does not exist.
        resume: continue from the run's checkpoint, bit for bit as if never interrupted (on the
            same machine with the same number of threads); from the start if it has none yet.
        watch: called after each step with steps done, loss and learning rate.

    Returns:
        The folder of what was trained, for ``synopsis.load`` or ``synopsis.models.load_model``.

    Raises:
        ExperimentError: if process, model or task cannot be built, or do not fit each other.
        CheckpointError: if the run's checkpoint is damaged or of another process, or there is
            one and ``resume`` is False, or there is no run to resume.
        TrainingInterrupted: on SIGINT or SIGTERM, once the checkpoint is written.
        TrainingDiverged: if gradients stay not finite; the last checkpoint stays.
    """
    settings = experiment.training
    with (
        _threads(settings.threads),
        own_randomness(derived_seed(settings.seed, "weights")),
        Interruption() as interruption,
    ):
        run = Run(experiment, Path(run_dir), watch)
        run.begin(resume)
        return run.finish(interruption)


class Run:
    """One run in its folder; :func:`train` drives it.

    Args:
        experiment: what to do.
        folder: where everything is written.
        watch: see :func:`train`.
    """

    def __init__(self, experiment: Experiment, folder: Path, watch: Watch | None) -> None:
        self.experiment, self.folder, self.watch = experiment, folder, watch
        self.task = build_task(experiment)
        # Accelerate keeps the precision of the first Accelerator for the life of the interpreter.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=experiment.training.precision)
        trainee = build_trainee(experiment)
        if experiment.training.start and not (folder / CHECKPOINT).exists():
            _start(trainee, experiment)
        _check(experiment, trainee, self.task, self.accelerator.num_processes)
        self.learner = Learner(trainee, experiment.training, self.accelerator)
        self.step = 0
        self._clock = Clock()

    def begin(self, resume: bool) -> None:
        """Find the folder empty, or continue from what it holds."""
        path = self.folder / CHECKPOINT
        if path.exists() and not resume:
            raise CheckpointError(f"{path}: already there; resume it or choose another folder")
        if resume and not (self.folder / EXPERIMENT).exists():
            raise CheckpointError(f"{self.folder}: no run to resume")
        if path.exists():
            self._continue(Checkpoint.read(path), path)
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / EXPERIMENT, self.experiment.to_toml().encode())
            keep_records(self.folder / METRICS, self.step)
        self.accelerator.wait_for_everyone()

    def finish(self, interruption: Interruption) -> Path:
        """Take all remaining steps and write what was trained."""
        training, saved = self.experiment.training, time.monotonic()
        while self.step < training.steps:
            self._learn()
            stop = self._agree(interruption.signal is not None)
            due = time.monotonic() - saved >= 60 * training.checkpoint_minutes
            if stop or due or self.step == training.steps:
                self.save()
                saved = time.monotonic()
            if stop and self.step < training.steps:
                number = interruption.signal or 0
                raise TrainingInterrupted(number, self.step, self.folder / CHECKPOINT)
        if self.accelerator.is_main_process:
            self.learner.result.save_pretrained(self.folder / self.experiment.section)
        return self.folder / self.experiment.section

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.accelerator.is_main_process:
            return
        scalars = {"tally": asdict(self.learner.tally), "clock": self._clock.read()}
        text = self.experiment.to_toml()
        checkpoint = Checkpoint(self.step, self.learner.tensors(), scalars, text)
        checkpoint.write(self.folder / CHECKPOINT)

    def _continue(self, checkpoint: Checkpoint, path: Path) -> None:
        before = Experiment.from_toml(checkpoint.experiment, source=str(path))
        for part in ("process", "task"):
            was, now = getattr(before, part), getattr(self.experiment, part)
            if was != now:
                raise CheckpointError(f"{path}: of {part} {was}, but the experiment has {now}")
        try:
            self.learner.load(checkpoint.tensors)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        self.step = checkpoint.step
        self.learner.tally = Tally(**checkpoint.scalars["tally"])
        self._clock = Clock(**checkpoint.scalars["clock"])

    def _learn(self) -> None:
        training, every = self.experiment.training, self.experiment.evaluation.every
        rate = learning_rate(self.step, training)
        loss = self.learner.learn(self._batch(), rate)
        self.step += 1
        last = self.step == training.steps
        if last or self.step % training.log_every == 0:
            self._record({**self.learner.tally.means(), "learning_rate": rate})
        if last or (every and self.step % every == 0):
            self._evaluate()
        if self.watch is not None:
            self.watch(self.step, loss, rate)

    def _batch(self) -> Any:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        training = self.experiment.training
        index = self.step * ranks + rank
        seed_torch(derived_seed(training.seed, "torch", index))
        generator = batch_generator(derived_seed(training.seed, "task"), index)
        batch = self.task.sample(training.batch_size // ranks, generator)
        return batch.to(self.accelerator.device)

    def _record(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            skipped = {"skipped": self.learner.tally.skipped}
            line = {"step": self.step, **record, **skipped, **self._clock.read()}
            append_record(self.folder / METRICS, line)

    def _evaluate(self) -> None:
        settings = self.experiment.evaluation
        if settings.batches and self.accelerator.is_main_process:
            scores = measure(self.learner.result, self.task, settings)
            self._record({"evaluation": scores.to_dict()})
            memory = look_into(self.learner.result, self.task, settings)
            if memory is not None:
                self._record({"memory": memory.to_dict()})
        self.accelerator.wait_for_everyone()

    def _agree(self, stop: bool) -> bool:
        """Whether any rank was told to stop: all must leave at the same step."""
        if self.accelerator.num_processes == 1:
            return stop
        told = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)


def _start(trainee: Trainee, experiment: Experiment) -> None:
    """Take the weights of what was trained before."""
    where = f"{experiment.source}: training.start = {experiment.training.start!r}"
    try:
        before = load_trained(experiment.training.start)
        trainee.load_state_dict(before.state_dict())
    except (ValueError, RuntimeError) as error:
        raise ExperimentError(f"{where}: {' '.join(str(error).split())}") from error


def _check(experiment: Experiment, trainee: Trainee, task: Any, ranks: int) -> None:
    try:
        check_suits(trainee, task)
    except ValueError as error:
        raise ExperimentError(f"{experiment.source}: {error}") from error
    size = experiment.training.batch_size
    if size % ranks:
        raise ExperimentError(
            f"{experiment.source}: training.batch_size = {size}: "
            f"must be a multiple of the {ranks} devices"
        )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
