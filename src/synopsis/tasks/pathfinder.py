"""Pathfinder: are two discs joined by a dashed snake? As a sequence of pixels."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from synopsis.tasks.image_files import default_folders
from synopsis.tasks.laws import check_settings
from synopsis.tasks.pathfinder_files import original_folder, read_pictures
from synopsis.tasks.pathfinder_images import Difficulty, Pictures, Side, random_pictures
from synopsis.tasks.pixel_sets import Intensity, PixelForm, PixelSet, nearest_mean
from synopsis.tasks.sequences import SPLITS, Split, StoredTask, check_split
from synopsis.tasks.token_sets import load_arrays, save_arrays

GENERATOR = "1"  # raised when the same seed gives other pictures
BLOCK = 500  # pictures at once; part of what a seed means

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Pathfinder(StoredTask):
    """Pathfinder of the Long Range Arena, from its files or generated from a seed.

    The files are read, or the pictures generated and kept, at first use. A part that was kept with
    more pictures than asked for gives its first ones.

    Args:
        folder: of the original ``curv_…`` folders (or the one that holds ``pathfinder32``), or
            where generated parts are kept; "" is ``pathfinder32…`` in the folder of the
            environment variable SYNOPSIS_DATA or in the user's cache.
        side: 32, 64 or 128 pixels; hard 32 is the published Pathfinder, hard 128 is Path-X.
        difficulty: "easy", "intermediate" or "hard": snakes of 6, 9 or 14 dashes.
        pixels: "values" in −1 … 1, or "ids".
        train: number of training pictures; original files are cut 80 : 10 : 10, as published.
        validation: number of validation pictures.
        test: number of test pictures.
        seed: of the generator, 0 or more; without meaning for original files.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = Pathfinder(train=16_000, validation=2_000, test=2_000)
        >>> task.prepare(processes=2)                                     # doctest: +SKIP
        >>> batch = task.sample(32, torch.Generator().manual_seed(0))     # doctest: +SKIP
        >>> batch.values.shape                                            # doctest: +SKIP
        torch.Size([32, 1024])

    Source: see ``pathfinder_images.random_pictures``.
    """

    folder: str = ""
    side: Side = 32
    difficulty: Difficulty = "hard"
    pixels: PixelForm = "values"
    train: int = 160_000
    validation: int = 20_000
    test: int = 20_000
    seed: int = 0
    name = "pathfinder"  # not fields: what every Pathfinder has in common
    classes = 2
    stand_in = ""

    def __post_init__(self) -> None:
        sides, levels = get_args(Side), get_args(Difficulty)
        rules = (
            ("side", self.side in sides, f"be one of {', '.join(map(str, sides))}"),
            ("difficulty", self.difficulty in levels, f"be one of {', '.join(levels)}"),
            ("pixels", self.pixels in get_args(PixelForm), "be values or ids"),
            ("train", self.train >= 1, "be 1 or more"),
            ("validation", self.validation >= 1, "be 1 or more"),
            ("test", self.test >= 1, "be 1 or more"),
            ("seed", self.seed >= 0, "be 0 or more"),
        )
        check_settings(self, rules)

    @property
    def length(self) -> int:
        """Pixels of a picture."""
        return self.side**2

    @property
    def vocabulary(self) -> int | None:
        """256 where pixels are ids; None where they are real values."""
        return 256 if self.pixels == "ids" else None

    @property
    def home(self) -> Path:
        """The folder that is read, or written to."""
        if self.folder:
            return Path(self.folder).expanduser()
        level = "" if self.difficulty == "hard" else f"-{self.difficulty}"
        seed = f"-seed{self.seed}" if self.seed else ""
        return default_folders()[0] / f"pathfinder{self.side}{level}{seed}"

    def examples(self, split: Split) -> PixelSet:
        """One part; all three are generated and kept first if one is not there."""
        check_split(split)
        original = original_folder(self.home, self.side, self.difficulty)
        if original is not None:
            pictures = _slice(_original(original, self.side), split)
        else:
            if not all(self._file(part).is_file() for part in SPLITS):
                self.prepare()
            pictures = self._kept(split)
        count, intensity = self._wanted[split], Intensity(self.pixels, 0.5, 0.5)
        flat = pictures.images.reshape(len(pictures.images), -1)
        return PixelSet(flat, pictures.labels, intensity).first(count)

    def prepare(self, progress: Progress | None = None, processes: int = 1) -> None:
        """Generate the three parts and keep them.

        Args:
            progress: called with a part, how many pictures it has, and how many it will have.
            processes: with more than 1, a script must guard its main part as multiprocessing
                requires; the pictures do not depend on it.
        """
        for split in SPLITS:
            wanted = self._wanted[split]
            parts: list[Pictures] = []
            for part in self._blocks(split, processes):
                parts.append(part)
                if progress is not None:
                    progress(split, min(BLOCK * len(parts), wanted), wanted)
            images = np.concatenate([part.images for part in parts])[:wanted]
            labels = np.concatenate([part.labels for part in parts])[:wanted]
            save_arrays(self._file(split), {"images": images, "labels": labels}, self._facts)
        _load.cache_clear()

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part without tracing: majority label, nearest mean picture."""
        means = nearest_mean(self.examples("train"), self.examples("test"))
        return {**super().baselines(), "nearest mean": means}

    @property
    def _wanted(self) -> dict[Split, int]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def _facts(self) -> dict[str, str]:
        facts = {"side": self.side, "difficulty": self.difficulty, "seed": self.seed}
        return {"generator": GENERATOR, **{name: str(value) for name, value in facts.items()}}

    def _file(self, split: Split) -> Path:
        return self.home / f"{split}.safetensors"

    def _blocks(self, split: Split, processes: int) -> Iterator[Pictures]:
        count = -(-self._wanted[split] // BLOCK)
        seeds = [(self.seed, SPLITS.index(split), number) for number in range(count)]
        work = [_Block(BLOCK, self.side, self.difficulty, seed) for seed in seeds]
        if processes == 1:
            yield from map(_drawn, work)
            return
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield from pool.map(_drawn, work)

    def _kept(self, split: Split) -> Pictures:
        path = self._file(split)
        pictures, facts = _load(path)
        for name, wanted in self._facts.items():
            if facts.get(name) != wanted:
                raise ValueError(
                    f"{path} was kept with {name} {facts.get(name)}, not {wanted}; remove it or "
                    "give another folder"
                )
        if len(pictures.labels) < self._wanted[split]:
            raise ValueError(
                f"{path} holds {len(pictures.labels)} pictures, not {self._wanted[split]}; remove "
                "it or give another folder"
            )
        return pictures


class _Block(NamedTuple):
    pictures: int
    side: Side
    difficulty: Difficulty
    seed: tuple[int, ...]


def _drawn(block: _Block) -> Pictures:
    rng = np.random.default_rng(block.seed)
    return random_pictures(block.pictures, block.side, block.difficulty, rng)


def _slice(pictures: Pictures, split: Split) -> Pictures:
    """80, 10 and 10 of 100, in their order."""
    count = len(pictures.labels)
    cuts = [0, count * 8 // 10, count * 9 // 10, count]
    part = slice(*cuts[SPLITS.index(split) :][:2])
    return Pictures(pictures.images[part], pictures.labels[part])


@lru_cache(maxsize=8)
def _load(path: Path) -> tuple[Pictures, dict[str, str]]:
    arrays, facts = load_arrays(path)
    if missing := {"images", "labels"} - set(arrays):
        raise ValueError(f"{path}: there is no {', '.join(sorted(missing))} in it")
    return Pictures(arrays["images"], arrays["labels"]), facts


_original = lru_cache(maxsize=2)(read_pictures)
