"""Pathfinder in the folders of the Long Range Arena: PNG files, and lists of them with labels.

pathfinder32/curv_contour_length_14/metadata/0.npy     text: folder, file, number, label, …
pathfinder32/curv_contour_length_14/imgs/0/sample_0.png
"""

from pathlib import Path

import numpy as np

from synopsis.tasks.pathfinder_images import Difficulty, Pictures, Side

FOLDERS: dict[Difficulty, str] = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}


def original_folder(home: Path, side: Side, difficulty: Difficulty) -> Path | None:
    """The folder of one difficulty, in ``home`` or in ``home/pathfinder32``; None if not there."""
    places = (home / FOLDERS[difficulty], home / f"pathfinder{side}" / FOLDERS[difficulty])
    return next((place for place in places if (place / "metadata").is_dir()), None)


def read_pictures(folder: Path, side: int) -> Pictures:
    """Read all pictures, in the order of the lists; empty files are left out, as published.

    Args:
        folder: holds ``metadata`` and ``imgs``; needs Pillow.
        side: height and width the pictures must have.

    Raises:
        FileNotFoundError: a listed picture is not there, or there are no lists, or no Pillow.
        ValueError: a line or a picture is something else.
    """
    listed = _listed(folder)
    images = np.empty((len(listed), side, side), np.uint8)
    for number, (path, _) in enumerate(listed):
        images[number] = _read(path, side)
    return Pictures(images, np.array([label for _, label in listed], np.uint8))


def _listed(folder: Path) -> list[tuple[Path, int]]:
    """Pictures that are not empty, with their labels."""
    lists = sorted(folder.glob("metadata/*.npy"), key=lambda path: (len(path.stem), path.stem))
    if not lists:
        raise FileNotFoundError(f"{folder / 'metadata'}: there are no lists *.npy in it")
    found: list[tuple[Path, int]] = []
    for file in lists:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            words = line.split()
            if len(words) < 4 or words[3] not in ("0", "1"):
                raise ValueError(f"{file}:{number}: {line[:60]!r} has no label 0 or 1 as word 4")
            path = folder / words[0] / words[1]
            if path.stat().st_size:
                found.append((path, int(words[3])))
    return found


def _read(path: Path, side: int) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise FileNotFoundError(
            "Pathfinder's PNG files need Pillow: `pip install pillow`"
        ) from error
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: no readable picture: {error}") from error
    if pixels.shape != (side, side):
        raise ValueError(f"{path}: is {pixels.shape[0]}×{pixels.shape[1]}, not {side}×{side}")
    return pixels
