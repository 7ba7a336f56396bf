"""Classification of pictures pixel by pixel: the Image task of the Long Range Arena.

The benchmark's pictures are those of CIFAR-10 in grey. Where they are not at hand, Fashion-MNIST
stands in for them, with a dark border to the same size. Results on these are not results on the
benchmark.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from synopsis.tasks.cifar_files import SIDE, read_cifar
from synopsis.tasks.image_files import default_folders, read_idx
from synopsis.tasks.pixel_sets import Intensity, PixelForm, PixelSet, nearest_mean
from synopsis.tasks.sequences import Split, StoredTask, check_split

FASHION_SIDE = 28
# Mean and spread of pixels / 255: ConvLuna's code for CIFAR-10; measured for padded Fashion-MNIST.
CIFAR_INTENSITY = (0.48, 0.24)
FASHION_INTENSITY = (0.22, 0.33)


@dataclass(frozen=True)
class PixelSequences(StoredTask):
    """Pictures of ten classes as 1024 pixels: CIFAR-10 in grey, or Fashion-MNIST as a stand-in.

    The last tenth of the training pictures is for validation, as published: of CIFAR-10 45,000 :
    5,000 : 10,000, of the stand-in 54,000 : 6,000 : 10,000.

    Args:
        folder: of CIFAR-10's batches, in the form for Python or the binary one; "" for the
            stand-in, whose files are looked for where ``image_files`` does.
        pixels: "values": real numbers of about mean 0 and spread 1; "ids": 0 … 255.

    Raises:
        ValueError: an argument is out of its range.
        FileNotFoundError: ``folder`` is not there.

    Example:
        >>> PixelSequences(pixels="ids").vocabulary
        256

    Source: Tay et al., 2021 (Long Range Arena).
    """

    folder: str = ""
    pixels: PixelForm = "values"
    name = "image"  # not fields: what every PixelSequences has in common
    classes = 10
    length = SIDE * SIDE

    def __post_init__(self) -> None:
        Intensity(self.pixels, 0, 1)  # checks the form
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise FileNotFoundError(f"folder is {self.folder!r}; there is no such folder")

    @property
    def vocabulary(self) -> int | None:
        """256 where pixels are ids; None where they are real values."""
        return 256 if self.pixels == "ids" else None

    @property
    def stand_in(self) -> str:
        """What Fashion-MNIST stands in for; "" for CIFAR-10."""
        return "" if self.folder else "CIFAR-10 in grey"

    def examples(self, split: Split) -> PixelSet:
        """One part; files are read once per process."""
        check_split(split)
        if self.folder:
            images, labels = _cifar(Path(self.folder).expanduser(), split != "test")
            intensity = Intensity(self.pixels, *CIFAR_INTENSITY)
        else:
            images, labels = _fashion(tuple(default_folders()), split != "test")
            intensity = Intensity(self.pixels, *FASHION_INTENSITY)
        cut = len(labels) * 9 // 10
        part = {"train": slice(cut), "validation": slice(cut, None), "test": slice(None)}[split]
        return PixelSet(images[part], labels[part], intensity)

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part: majority label, nearest mean picture."""
        means = nearest_mean(self.examples("train"), self.examples("test"))
        return {**super().baselines(), "nearest mean": means}


_cifar = lru_cache(maxsize=4)(read_cifar)


@lru_cache(maxsize=2)
def _fashion(
    folders: tuple[Path, ...], train: bool
) -> tuple[UInt8[np.ndarray, "images 1024"], UInt8[np.ndarray, " images"]]:
    stem = "train" if train else "t10k"
    images = read_idx(_found(folders, f"{stem}-images-idx3-ubyte"))
    labels = read_idx(_found(folders, f"{stem}-labels-idx1-ubyte"))
    if images.shape != (len(labels), FASHION_SIDE, FASHION_SIDE):
        raise ValueError(
            f"{stem} of fashion-mnist: images are {images.shape}, labels {labels.shape}"
        )
    edge = (SIDE - FASHION_SIDE) // 2
    padded = np.pad(images, ((0, 0), (edge, edge), (edge, edge)))
    return padded.reshape(len(labels), SIDE * SIDE), labels


def _found(folders: tuple[Path, ...], name: str) -> Path:
    places = [
        folder / sub for folder in folders for sub in (".", "fashion-mnist", "FashionMNIST/raw")
    ]
    for path in (place / (name + end) for place in places for end in ("", ".gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{name}[.gz] of fashion-mnist is in none of {', '.join(map(str, places))}; get it with "
        "`python -c 'from synopsis.tasks.image_packages import fetch_fashion_mnist; "
        "fetch_fashion_mnist()'` (Debian and Ubuntu), and give the folder above fashion-mnist in "
        "the environment variable SYNOPSIS_DATA"
    )
