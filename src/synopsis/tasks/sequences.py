"""Sequences with one label each: what a task of the Long Range Arena hands to a classifier.

Id 0 is a pad wherever there are ids and a mask; real values have neither.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Generator, Tensor

from synopsis.tasks.laws import check_generator

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class _Movable:
    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class SequenceBatch(_Movable):
    """A batch of labelled sequences: ids or real values, never both.

    Args:
        labels: class of each sequence, from 0.
        tokens: ids.
        values: one real number per place.
        mask: True where a place is real; None when all are.

    Raises:
        ValueError: there are both or neither of tokens and values.
    """

    labels: Int[Tensor, " batch"]
    tokens: Int[Tensor, "batch length"] | None = None
    values: Float[Tensor, "batch length"] | None = None
    mask: Bool[Tensor, "batch length"] | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.values is None):
            both = "neither" if self.tokens is None else "both"
            raise ValueError(f"a batch has tokens or values; this one has {both}")

    @property
    def inputs(self) -> Tensor:
        """The tokens, or the values where there are no tokens."""
        given = self.values if self.tokens is None else self.tokens
        assert given is not None  # checked when made
        return given


@dataclass(frozen=True)
class PairBatch(_Movable):
    """A batch of labelled pairs of sequences of ids.

    Args:
        labels: class of each pair, from 0.
        first: ids of the first members.
        second: ids of the second members.
        first_mask: True where a place of the first is real; None when all are.
        second_mask: the same of the second.
    """

    labels: Int[Tensor, " batch"]
    first: Int[Tensor, "batch length"]
    second: Int[Tensor, "batch length"]
    first_mask: Bool[Tensor, "batch length"] | None = None
    second_mask: Bool[Tensor, "batch length"] | None = None


class SequenceTask(Protocol):
    """Labelled sequences in three parts: train, validation, test."""

    @property
    def name(self) -> str:
        """What the task is called in tables."""
        ...

    @property
    def classes(self) -> int:
        """Number of labels."""
        ...

    @property
    def vocabulary(self) -> int | None:
        """Number of ids, the pad included; None for real values."""
        ...

    @property
    def length(self) -> int:
        """Places of every sequence, pads included."""
        ...

    @property
    def stand_in(self) -> str:
        """What the data stand in for; "" for the data of the benchmark itself."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of all three parts, in hexadecimal."""
        ...

    def sample(self, batch_size: int, generator: Generator) -> SequenceBatch | PairBatch:
        """Random training examples, drawn with replacement."""
        ...

    def batches(
        self, split: Split, batch_size: int, limit: int | None = None
    ) -> Iterator[SequenceBatch | PairBatch]:
        """The examples of a part in their order, at most ``limit``; the last batch may be smaller."""
        ...

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part of what needs no model, by name, 0 … 1."""
        ...


class ExampleSet(Protocol):
    """Examples of one part of a task, in order."""

    @property
    def labels(self) -> UInt8[np.ndarray, " examples"]:
        """Class of each example."""
        ...

    @property
    def checksum(self) -> str:
        """SHA-256 of the examples and their labels, in hexadecimal."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Int[np.ndarray, " batch"]) -> SequenceBatch | PairBatch:
        """The examples in the given places."""
        ...


class StoredTask:
    """A sequence task whose examples are all there: draws, order, checksum, majority.

    A subclass has ``examples(split)``, which reads or makes a part at first use and keeps it.

    Training examples are drawn with replacement, so that a batch depends on nothing but the state
    of the generator, and a resumed training sees what an uninterrupted one does.
    """

    def examples(self, split: Split) -> ExampleSet:
        """The examples of one part."""
        raise NotImplementedError

    @property
    def checksum(self) -> str:
        """SHA-256 of the checksums of train, validation and test, in hexadecimal."""
        parts = " ".join(self.examples(split).checksum for split in SPLITS)
        return hashlib.sha256(parts.encode()).hexdigest()

    def sample(self, batch_size: int, generator: Generator) -> SequenceBatch | PairBatch:
        """Random training examples, drawn with replacement.

        Raises:
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        check_generator(generator)
        examples = self.examples("train")
        rows = torch.randint(len(examples), (batch_size,), generator=generator)
        return examples.batch(rows.numpy())

    def batches(
        self, split: Split, batch_size: int, limit: int | None = None
    ) -> Iterator[SequenceBatch | PairBatch]:
        """The examples of a part in their order; the last batch may be smaller.

        Args:
            split: which part.
            batch_size: examples per batch, 1 or more.
            limit: at most so many examples; None for all.
        """
        check_split(split)
        examples = self.examples(split)
        count = len(examples) if limit is None else min(limit, len(examples))
        for start in range(0, count, batch_size):
            yield examples.batch(np.arange(start, min(start + batch_size, count)))

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part of what needs no model, fitted on the training part, 0 … 1."""
        train, test = self.examples("train").labels, self.examples("test").labels
        return {"majority": majority(train, test)}


def majority(train: UInt8[np.ndarray, " train"], test: UInt8[np.ndarray, " test"]) -> float:
    """Accuracy on ``test`` of always answering the most frequent label of ``train``."""
    return float((test == np.bincount(train).argmax()).mean())


def check_split(split: str) -> None:
    """Raise ValueError if there is no such part."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
