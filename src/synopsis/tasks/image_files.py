"""Image sets as they are published: where their files are and how to read them.

An image is kept as bytes, row after row of pixels. Files are read once per process and shared.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

SetName = Literal["fashion-mnist", "digits", "emnist", "celeba32", "celeba64", "celeba128"]
SplitName = Literal["train", "seen", "unseen"]
Pixels = UInt8[np.ndarray, "images pixels channels"]

SYSTEM_FOLDER = Path("/usr/share/datasets")
DIGITS_TRAIN = 1297  # of 1,797: the last 500, by other writers, are for measuring


class ImageSet(NamedTuple):
    """What is known of an image set before any file is read.

    Args:
        side: height and width, pixels.
        channels: 1 or 3.
        largest: value of the brightest pixel.
        max_points: the published bound on context and targets together.
        seen: number of classes that are trained on; 0 where there are no classes.
    """

    side: int
    channels: int
    largest: int
    max_points: int
    seen: int


# 32 of 64 pixels for the digits is ours; all else is published, Fashion-MNIST being as EMNIST.
IMAGE_SETS: dict[SetName, ImageSet] = {
    "fashion-mnist": ImageSet(28, 1, 255, 200, 5),
    "digits": ImageSet(8, 1, 16, 32, 5),
    "emnist": ImageSet(28, 1, 255, 200, 10),
    "celeba32": ImageSet(32, 3, 255, 200, 0),
    "celeba64": ImageSet(64, 3, 255, 800, 0),
    "celeba128": ImageSet(128, 3, 255, 1600, 0),
}

_HOW: dict[str, str] = {
    "fashion-mnist": "get it with `sudo apt install dataset-fashion-mnist`, or without root with "
    "`python -c 'from synopsis.tasks.image_packages import fetch_fashion_mnist; "
    "fetch_fashion_mnist()'` (Debian and Ubuntu), or with torchvision's "
    "`datasets.FashionMNIST(folder, download=True)`",
    "emnist": "get it with torchvision's `datasets.EMNIST(folder, 'balanced', download=True)`",
    "celeba": "get it with torchvision's `datasets.CelebA(folder, download=True)`",
}


def load_images(dataset: SetName, split: SplitName, folder: str = "") -> Pixels:
    """All images of a split, read once per process.

    Args:
        dataset: which set.
        split: "train" (seen classes of the training file), "seen" (the same classes of the test
            file) or "unseen" (all other classes of the test file).
        folder: where its files are, directly or in torchvision's layout below it; "" looks in
            the folder of the environment variable SYNOPSIS_DATA, the user's cache
            (~/.cache/synopsis) and /usr/share/datasets.

    Returns:
        Bytes, read only.

    Raises:
        FileNotFoundError: the files are not there; says where it looked and how to get them.
        ValueError: a file is damaged.

    Example:
        >>> load_images("digits", "unseen").shape    # needs scikit-learn
        (248, 64, 1)
    """
    folders = [Path(folder)] if folder else default_folders()
    return _load(dataset, split, tuple(str(f.expanduser()) for f in folders))


def default_folders() -> list[Path]:
    """Where image sets are looked for when no folder is given, first choice first."""
    given = os.environ.get("SYNOPSIS_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "synopsis"
    return [*([Path(given).expanduser()] if given else []), cache, SYSTEM_FOLDER]


@lru_cache(maxsize=8)
def _load(dataset: SetName, split: SplitName, folders: tuple[str, ...]) -> Pixels:
    known = IMAGE_SETS[dataset]
    if not known.seen:
        return _celeba(known.side, split, folders)
    if dataset == "digits":
        images, labels = _digits(split)
    else:
        images, labels = _idx_pair(dataset, split, folders)
    if dataset == "emnist":
        images = images.transpose(0, 2, 1)  # published lying on their side
    wanted = labels >= known.seen if split == "unseen" else labels < known.seen
    return _read_only(images[wanted].reshape(int(wanted.sum()), known.side**2, 1))


def _read_only(pixels: Pixels) -> Pixels:
    pixels.flags.writeable = False
    return pixels


# --- MNIST's idx files


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes from a file in MNIST's idx format, compressed by gzip or not.

    Raises:
        ValueError: the file is not idx, or truncated.
    """
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an idx file of bytes: it starts with {content[:4]!r}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path}: truncated: {len(content)} bytes hold no header of {start}")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path}: holds {len(content) - start} values but its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_pair(
    dataset: SetName, split: SplitName, folders: Iterable[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the training file ("train") or the test file."""
    if dataset == "emnist":
        stem, below = f"emnist-balanced-{'train' if split == 'train' else 'test'}", "EMNIST/raw"
    else:
        stem, below = "train" if split == "train" else "t10k", "FashionMNIST/raw"
    places = [Path(f) / sub for f in folders for sub in (".", dataset, below)]
    images = read_idx(_found(f"{stem}-images-idx3-ubyte", places, dataset))
    labels = read_idx(_found(f"{stem}-labels-idx1-ubyte", places, dataset))
    side = IMAGE_SETS[dataset].side
    if images.shape != (len(labels), side, side):
        raise ValueError(
            f"{stem} of {dataset}: images are {images.shape} but there are "
            f"{len(labels)} labels of {side}×{side} images"
        )
    return images, labels


def _found(name: str, places: list[Path], dataset: str) -> Path:
    for path in (place / (name + end) for place in places for end in ("", ".gz")):
        if path.is_file():
            return path
    raise _missing(f"{name}[.gz]", places, dataset)


def _missing(name: str, places: Iterable[Path], dataset: str) -> FileNotFoundError:
    looked = ", ".join(str(place) for place in places)
    return FileNotFoundError(
        f"{name} of {dataset} is in none of {looked}; {_HOW[dataset]}, and give that folder as "
        "`folder` of the task or in the environment variable SYNOPSIS_DATA"
    )


# --- scikit-learn's digits


def _digits(split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FileNotFoundError(
            "the digits come with scikit-learn; `pip install scikit-learn`"
        ) from error
    bunch = load_digits()
    rows = slice(0, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    return bunch.images.astype(np.uint8)[rows], bunch.target[rows]


# --- CelebA


def _celeba(side: int, split: SplitName, folders: Iterable[str]) -> Pixels:
    """Faces of one size, shrunk at first use and kept beside the originals as a .npy file.

    Source: Feng et al., 2024: the whole image, no crop, Pillow's default filter (bicubic), parts
    0 and 1 of the published partition for training and 2 for testing. Departure: images are in
    the order of their names, not in that of a directory listing.
    """
    places = [Path(f) / sub for f in folders for sub in (".", "celeba")]
    home = next((p for p in places if (p / "list_eval_partition.txt").is_file()), None)
    if home is None:
        raise _missing("list_eval_partition.txt", places, "celeba")
    kept = home / f"celeba{side}-{split}.npy"
    if not kept.is_file():
        _shrink(home, _partition(home / "list_eval_partition.txt", split), side, kept)
    pixels: Pixels = np.load(kept, mmap_mode="r", allow_pickle=False)
    return pixels


def _partition(path: Path, split: SplitName) -> list[str]:
    """Names of the images of a split, sorted."""
    names = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise ValueError(f"{path}:{number}: {line!r} is not a file name and 0, 1 or 2")
        if (words[1] == "2") == (split != "train"):
            names.append(words[0])
    return sorted(names)


def _shrink(home: Path, names: list[str], side: int, kept: Path) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise FileNotFoundError("CelebA's JPEG files need Pillow: `pip install pillow`") from error
    unfinished = kept.with_suffix(f".{os.getpid()}.unfinished")
    shape = (len(names), side * side, 3)
    try:
        pixels = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for index, name in enumerate(names):
            with Image.open(home / "img_align_celeba" / name) as image:
                small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            pixels[index] = np.asarray(small).reshape(-1, 3)
        pixels.flush()
        unfinished.replace(kept)
    finally:
        unfinished.unlink(missing_ok=True)
