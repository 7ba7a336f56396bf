"""Pictures as sequences of pixels, row after row."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8

from synopsis.tasks.sequences import SequenceBatch
from synopsis.tasks.token_sets import labels_of

PixelForm = Literal["values", "ids"]


@dataclass(frozen=True)
class Intensity:
    """How a pixel 0 … 255 becomes what a model reads.

    Args:
        form: "values": one real number, (pixel / 255 − mean) / spread, as in ConvLuna's code;
            "ids": the pixel itself, one of 256 ids with no pad among them, as in the Long Range
            Arena.
        mean: of pixel / 255.
        spread: of pixel / 255.
    """

    form: PixelForm
    mean: float
    spread: float

    def __post_init__(self) -> None:
        if self.form not in ("values", "ids"):
            raise ValueError(f"pixels is {self.form!r}; it must be values or ids")


@dataclass(frozen=True, eq=False)
class PixelSet:
    """Labelled pictures.

    Args:
        pixels: 0 … 255, row after row.
        labels: class of each picture.
        intensity: how pixels are handed out.
    """

    pixels: UInt8[np.ndarray, "examples pixels"]
    labels: UInt8[np.ndarray, " examples"]
    intensity: Intensity

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "PixelSet":
        """The first ``count`` examples."""
        return PixelSet(self.pixels[:count], self.labels[:count], self.intensity)

    def batch(self, rows: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """The pictures in the given places."""
        labels, chosen = labels_of(self.labels, rows), torch.from_numpy(self.pixels[rows])
        if self.intensity.form == "ids":
            return SequenceBatch(labels, tokens=chosen.long())
        values = (chosen.float() / 255 - self.intensity.mean) / self.intensity.spread
        return SequenceBatch(labels, values=values)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of labels and pixels, in hexadecimal."""
        return hashlib.sha256(self.labels.tobytes() + self.pixels.tobytes()).hexdigest()


def nearest_mean(train: PixelSet, test: PixelSet) -> float:
    """Accuracy on ``test`` of the class whose mean picture in ``train`` is nearest."""
    classes = int(train.labels.max()) + 1
    one_hot = np.eye(classes, dtype=np.float32)[train.labels]
    means = np.zeros((classes, train.pixels.shape[1]), np.float32)
    for start in range(0, len(train), 4096):
        part = slice(start, start + 4096)
        means += one_hot[part].T @ train.pixels[part].astype(np.float32)
    means /= np.maximum(one_hot.sum(axis=0), 1)[:, None]
    right = 0
    for start in range(0, len(test), 4096):
        part = slice(start, start + 4096)
        # |x − μ|² without |x|², which is the same for all classes
        scores = test.pixels[part].astype(np.float32) @ means.T - 0.5 * (means**2).sum(axis=1)
        right += int((scores.argmax(axis=1) == test.labels[part]).sum())
    return right / len(test)
