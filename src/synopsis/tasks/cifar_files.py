"""CIFAR-10's files, in both forms its authors publish.

The form for Python is a pickle. It is not unpickled: its instructions are listed and the pixels and
labels taken out, so that nothing in the file can run.
"""

import pickletools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # of a picture: all red, then all green, then all blue
TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST = ("test_batch",)
FOLDERS = (".", "cifar-10-batches-bin", "cifar-10-batches-py")
GREY = np.array([0.2989, 0.587, 0.114])  # of red, green and blue

_INTEGERS = {"BININT1", "BININT2", "BININT", "INT", "LONG1", "LONG"}
_TEXTS = {"BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES"}


def read_cifar(
    folder: Path, train: bool
) -> tuple[UInt8[np.ndarray, "images 1024"], UInt8[np.ndarray, " images"]]:
    """Grey pictures, row after row, and labels, in the order of the files.

    Args:
        folder: of ``data_batch_1.bin`` … or ``data_batch_1`` …, or the one above.
        train: the five training files; else the test file.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is something else.

    Source: Tay et al., 2021 (Long Range Arena): 0.2989 R + 0.587 G + 0.114 B, cut to an integer.
    """
    parts = [_read(_found(folder, name)) for name in (TRAIN if train else TEST)]
    colours = np.concatenate([images for images, _ in parts]).reshape(-1, 3, SIDE * SIDE)
    grey = np.tensordot(colours, GREY, axes=(1, 0)).astype(np.uint8)
    return grey, np.concatenate([labels for _, labels in parts])


def _found(folder: Path, name: str) -> Path:
    for path in (folder / below / (name + end) for below in FOLDERS for end in (".bin", "")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}[.bin] of CIFAR-10 is in neither {folder} nor a folder in it")


def _read(path: Path) -> tuple[UInt8[np.ndarray, "images 3072"], UInt8[np.ndarray, " images"]]:
    content = path.read_bytes()
    if path.suffix == ".bin":
        if len(content) % (PIXELS + 1):
            raise ValueError(f"{path}: {len(content)} bytes are no whole number of pictures")
        rows = np.frombuffer(content, np.uint8).reshape(-1, PIXELS + 1)
        images, labels = rows[:, 1:], rows[:, 0]
    else:
        images, labels = _out_of_pickle(path, content)
    if len(images) != len(labels) or (labels > 9).any():
        raise ValueError(f"{path}: {len(images)} pictures, {len(labels)} labels of 0 … 9 expected")
    return images, labels


def _out_of_pickle(
    path: Path, content: bytes
) -> tuple[UInt8[np.ndarray, "images 3072"], UInt8[np.ndarray, " images"]]:
    """The longest string, which holds the pixels, and the integers after the key ``labels``."""
    pixels, labels, listing = b"", bytearray(), False
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name in _TEXTS:
                text = argument if isinstance(argument, bytes) else str(argument).encode("latin-1")
                listing = text == b"labels"
                pixels = max(pixels, text, key=len)
            elif listing and code.name in _INTEGERS:
                labels.append(int(argument or 0))
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not pixels or len(pixels) % PIXELS:
        raise ValueError(f"{path}: {len(pixels)} bytes are no whole number of pictures")
    return np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS), np.frombuffer(labels, np.uint8)
