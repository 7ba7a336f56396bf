"""An experiment: everything a training run depends on, as frozen dataclasses and as a TOML file."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from synopsis.training.toml import toml_table

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON]"
_T = TypeVar("_T")

Schedule = Literal["cosine", "one-cycle", "inverse-square-root", "warmup-stable-decay"]
Optimizer = Literal["adamw", "muon"]
Section = Literal["process", "model"]


class ExperimentError(ValueError):
    """An experiment that cannot be run; the one-line message names file, key and value."""


@dataclass(frozen=True)
class Component:
    """A process or a task by its registered name, with the arguments of its constructor.

    Args:
        name: a key of the registry, such as ``"CMANP"``.
        arguments: keyword arguments; those left out keep the constructor's defaults.
    """

    name: str
    arguments: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """How the weights are found.

    Args:
        steps: optimiser steps, at least 1.
        batch_size: tasks per step over all devices together, at least 1.
        micro_batch_size: tasks per device whose gradient is computed at a time; the step is that of the whole batch, in
            the memory of so few. 0 computes all at once.
        learning_rate: the highest learning rate, positive; under Muon that of the parameters left to AdamW.
        optimizer: ``"muon"`` for the weights between wide layers and AdamW for the rest, or ``"adamw"`` for all.
        muon_learning_rate: the highest learning rate of Muon, positive; it follows the same schedule.
        schedule: how it changes (``training.schedules``).
        warmup: steps of warm-up (one-cycle: 0 means the customary 30 % of all steps).
        decay_fraction: share of all steps that ``"warmup-stable-decay"`` decays over, 0 to 1.
        clip: largest allowed norm of the gradient; 0 does not clip.
        weight_decay: of AdamW, on matrices only; 0 is Adam.
        betas: decay rates of the two moments of Adam, each in [0, 1).
        seed: everything random follows from it.
        threads: of the processor; 0 leaves torch's choice.
        precision: ``"bf16"`` computes the loss under autocast.
        ema: decay of the moving average of the weights, in [0, 1); 0 keeps none.
        checkpoint_minutes: time between two checkpoints, in minutes.
        log_every: steps between two lines of metrics, at least 1.
        start: run, folder or shipped name whose weights training begins with; random ones where it is empty.
    """

    steps: int = 100_000
    batch_size: int = 16
    micro_batch_size: int = 0
    learning_rate: float = 5e-4
    optimizer: Optimizer = "adamw"
    muon_learning_rate: float = 0.02
    schedule: Schedule = "cosine"
    warmup: int = 0
    decay_fraction: float = 0.2
    clip: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0
    threads: int = 0
    precision: Literal["no", "bf16"] = "no"
    ema: float = 0.0
    checkpoint_minutes: float = 3.0
    log_every: int = 100
    start: str = ""


@dataclass(frozen=True)
class Evaluating:
    """What is measured while training, and by ``synopsis evaluate`` unless told otherwise.

    Args:
        batches: batches of one evaluation; 0 evaluates never.
        batch_size: tasks per batch.
        every: steps between two evaluations; 0 evaluates after the last step only.
        seed: of the evaluation's tasks, which are never those of training.
        split: which examples, of a task that has a fixed set of them.
        memory_batches: batches over which the memory of a model that has one is looked into at each evaluation while
            training, always the same ones; 0 never does.
    """

    batches: int = 100
    batch_size: int = 16
    every: int = 0
    seed: int = 0
    split: Literal["validation", "test"] = "validation"
    memory_batches: int = 1


_RANGES: Mapping[str, tuple[float, float, str]] = {  # lowest, highest, in words
    "training.steps": (1, float("inf"), "at least 1"),
    "training.batch_size": (1, float("inf"), "at least 1"),
    "training.micro_batch_size": (0, float("inf"), "at least 0"),
    "training.learning_rate": (5e-324, 1e6, "positive"),
    "training.muon_learning_rate": (5e-324, 1e6, "positive"),
    "training.warmup": (0, float("inf"), "at least 0"),
    "training.decay_fraction": (0, 1, "between 0 and 1"),
    "training.clip": (0, float("inf"), "at least 0"),
    "training.weight_decay": (0, 1e6, "at least 0"),
    "training.betas": (0, 1 - 2**-53, "at least 0 and less than 1"),
    "training.seed": (0, 2**63 - 1, "at least 0 and less than 2**63"),
    "training.threads": (0, 4096, "between 0 and 4096"),
    "training.ema": (0, 1 - 2**-53, "at least 0 and less than 1"),
    "training.checkpoint_minutes": (0, float("inf"), "at least 0"),
    "training.log_every": (1, float("inf"), "at least 1"),
    "evaluation.batches": (0, float("inf"), "at least 0"),
    "evaluation.batch_size": (1, float("inf"), "at least 1"),
    "evaluation.every": (0, float("inf"), "at least 0"),
    "evaluation.seed": (0, 2**63 - 1, "at least 0 and less than 2**63"),
    "evaluation.memory_batches": (0, float("inf"), "at least 0"),
}


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, how, and how it is measured.

    Args:
        process: what is trained, by the section ``[process]`` or, for a model of sequences, ``[model]``.
        task: the distribution of tasks, or the examples.
        training: optimisation.
        evaluation: measurement.
        section: the name of the section that says what is trained.
        source: where this was read from, for messages; no part of the experiment itself.

    Example:
        >>> Experiment.from_toml('[process]\\nname="CMANP"\\n[task]\\nname="gaussian_process"')
        ... # doctest: +ELLIPSIS
        Experiment(process=Component(name='CMANP', arguments={}), ...)
    """

    process: Component
    task: Component
    training: Training = field(default_factory=Training)
    evaluation: Evaluating = field(default_factory=Evaluating)
    section: Section = "process"
    source: str = field(default="experiment", compare=False)

    @classmethod
    def read(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file.

        Args:
            path: the file.
            overrides: ``section.key=value`` each, applied in order; the value is TOML, or a bare
                word for a string.

        Raises:
            ExperimentError: if the file is missing or says something unknown or out of range.
        """
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise ExperimentError(f"{path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ExperimentError(f"{path}: not UTF-8 at byte {error.start}") from error
        return cls.from_toml(text, overrides, source=str(path))

    @classmethod
    def from_toml(
        cls, text: str, overrides: Iterable[str] = (), source: str = "experiment"
    ) -> Self:
        """The experiment a TOML text describes; see :meth:`read`."""
        try:
            tree = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ExperimentError(f"{source}: {error}") from error
        for override in overrides:
            _override(tree, override)
        unknown = sorted(tree.keys() - {"process", "model", "task", "training", "evaluation"})
        if unknown:
            raise ExperimentError(
                f"{source}: unknown section [{unknown[0]}]; "
                "there are [process] or [model], [task], [training] and [evaluation]"
            )
        if "process" in tree and "model" in tree:
            raise ExperimentError(f"{source}: has both [process] and [model]; one is trained")
        section: Section = "model" if "model" in tree else "process"
        return cls(
            process=_component(tree, section, source),
            task=_component(tree, "task", source),
            training=_section(Training, tree, "training", source),
            evaluation=_section(Evaluating, tree, "evaluation", source),
            section=section,
            source=source,
        )

    def to_toml(self) -> str:
        """The TOML text that :meth:`from_toml` reads back as an equal experiment."""
        tables = [
            toml_table(name, {"name": part.name, **part.arguments})
            for name, part in ((self.section, self.process), ("task", self.task))
        ]
        for name, part in (("training", self.training), ("evaluation", self.evaluation)):
            tables.append(toml_table(name, {f.name: getattr(part, f.name) for f in fields(part)}))
        return "\n".join(tables)


def has_type(value: object, hint: Any) -> bool:
    """Whether a value read from TOML may be given to a parameter annotated ``hint``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, str):
        return True
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if isinstance(hint, UnionType) or (origin is not None and str(origin) == "typing.Union"):
        return any(has_type(value, option) for option in arguments)
    if origin is tuple:
        lengthless = len(arguments) == 2 and arguments[1] is Ellipsis
        hints = arguments[:1] * len(value) if lengthless and isinstance(value, list) else arguments
        return (
            isinstance(value, list)
            and len(value) == len(hints)
            and all(map(has_type, value, hints))
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True


def type_name(hint: Any) -> str:
    """A type as it is said in a message."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def as_declared(value: Any, hint: Any) -> Any:
    """The value in the very type of its annotation: arrays to tuples, whole numbers to floats."""
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(map(as_declared, value, hints))
    return float(value) if hint is float else value


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and section and name):
        raise ExperimentError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, so that a shell needs no quotes inside quotes
    table = tree.setdefault(section, {})
    if isinstance(table, dict):
        table[name] = value


def _table(tree: Mapping[str, Any], section: str, source: str) -> dict[str, Any]:
    table = tree.get(section, {})
    if not isinstance(table, dict):
        raise ExperimentError(f"{source}: {section} = {table!r} must be a table [{section}]")
    return dict(table)


def _component(tree: Mapping[str, Any], section: str, source: str) -> Component:
    table = _table(tree, section, source)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise ExperimentError(f"{source}: {section}.name = {name!r}: must be a string")
    return Component(name, table)


def _section(kind: type[_T], tree: Mapping[str, Any], section: str, source: str) -> _T:
    table, hints = _table(tree, section, source), get_type_hints(kind)
    for key, value in table.items():
        where = f"{source}: {section}.{key} = {value!r}"
        if key not in hints:
            raise ExperimentError(f"{where}: unknown key; known are {', '.join(sorted(hints))}")
        if not has_type(value, hints[key]):
            raise ExperimentError(f"{where}: must be {type_name(hints[key])}")
        low, high, words = _RANGES.get(f"{section}.{key}", (None, None, ""))
        numbers = value if isinstance(value, list) else [value]
        if low is not None and not all(low <= number <= high for number in numbers):
            raise ExperimentError(f"{where}: must be {words}")
    return kind(**{key: as_declared(value, hints[key]) for key, value in table.items()})
