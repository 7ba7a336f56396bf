"""ListOps: the value of a nested expression of minimum, maximum, median and sum modulo 10.

Any result must be read beside what no composition gives: the majority label (about 17 %), the
root operator alone (about 36 %: reading the first token), and the root operator over those of its
arguments that are digits (about 49 %).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from synopsis.tasks.image_files import default_folders
from synopsis.tasks.laws import check_settings
from synopsis.tasks.listops_files import LRA_FILES, read_tsv
from synopsis.tasks.listops_sets import different_expressions, trivial_answers
from synopsis.tasks.listops_trees import VOCABULARY, Law
from synopsis.tasks.sequences import SPLITS, Split, StoredTask, check_split
from synopsis.tasks.token_sets import TokenSet, load_tokens, save_tokens

GENERATOR = "1"  # raised when the same seed gives other expressions

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class ListOps(StoredTask):
    """ListOps of the Long Range Arena, from its files or generated from a seed.

    The files are read, or the expressions generated and kept, at first use. A part that was kept
    with more examples than asked for gives its first ones.

    Args:
        folder: of the original ``basic_train.tsv``, ``basic_val.tsv``, ``basic_test.tsv``, or where
            generated parts are kept; "" is ``listops…`` in the folder of the environment variable
            SYNOPSIS_DATA or in the user's cache.
        min_length: expressions are longer than this, tokens.
        max_length: and shorter than this; also the places of a batch.
        train: number of training examples.
        validation: number of validation examples.
        test: number of test examples.
        seed: of the generator, 0 or more; without meaning for original files.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = ListOps(min_length=32, max_length=128, train=100_000)
        >>> batch = task.sample(32, torch.Generator().manual_seed(0))    # doctest: +SKIP
        >>> batch.tokens.shape, batch.mask.shape                         # doctest: +SKIP
        (torch.Size([32, 128]), torch.Size([32, 128]))

    Source: Tay et al., 2021 (Long Range Arena). Departures: the published generator has no seed
    and slices a Python set, so its parts differ from run to run; the published vocabulary is
    numbered anew by every process, here it is fixed.
    """

    folder: str = ""
    min_length: int = 500
    max_length: int = 2000
    train: int = 96_000
    validation: int = 2_000
    test: int = 2_000
    seed: int = 0
    name = "listops"  # not fields: what every ListOps has in common
    classes = 10
    vocabulary = VOCABULARY
    stand_in = ""

    def __post_init__(self) -> None:
        rules = (
            ("min_length", self.min_length >= 0, "be 0 or more"),
            ("max_length", self.max_length > self.min_length + 1, "exceed min_length by 2 or more"),
            ("train", self.train >= 1, "be 1 or more"),
            ("validation", self.validation >= 1, "be 1 or more"),
            ("test", self.test >= 1, "be 1 or more"),
            ("seed", self.seed >= 0, "be 0 or more"),
        )
        check_settings(self, rules)

    @property
    def length(self) -> int:
        """Places of every sequence, pads included."""
        return self.max_length

    @property
    def home(self) -> Path:
        """The folder that is read, or written to."""
        if self.folder:
            return Path(self.folder).expanduser()
        usual = (self.min_length, self.max_length) == (500, 2000)
        lengths = "" if usual else f"-{self.min_length}-{self.max_length}"
        return default_folders()[0] / f"listops{lengths}{f'-seed{self.seed}' if self.seed else ''}"

    def examples(self, split: Split) -> TokenSet:
        """One part; all three are generated and kept first if one is not there."""
        check_split(split)
        if any((self.home / name).is_file() for name in LRA_FILES.values()):
            return _original(self.home / LRA_FILES[split], self.max_length).first(
                self._wanted[split]
            )
        if not all(self._file(part).is_file() for part in SPLITS):
            self.prepare()
        return self._kept(split)

    def prepare(self, progress: Progress | None = None) -> None:
        """Generate the three parts and keep them; 100,000 expressions take about 20 seconds.

        Args:
            progress: called with a part, how many examples it has, and how many it will have.
        """
        taken: set[bytes] = set()
        # The smaller parts come first: nothing of them is ever trained on.
        for split in ("validation", "test", "train"):
            wanted = self._wanted[split]
            say = None if progress is None else _of_part(progress, split, wanted)
            seed = (self.seed, SPLITS.index(split))
            law = Law(self.min_length, self.max_length)
            made = different_expressions(law, wanted, seed, taken, say)
            save_tokens(self._file(split), made, self._facts)
        _load.cache_clear()

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part of what composes nothing, fitted on the training part.

        Returns:
            ``majority``: always the most frequent label; ``root operator``: the most frequent
            label of the first token; ``root over digits``: the root operator applied to those of
            its arguments that are digits, or the previous answer where there are none.
        """
        train, test = self.examples("train"), self.examples("test")
        return {**super().baselines(), **trivial_answers(train, test)}

    @property
    def _wanted(self) -> dict[Split, int]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def _facts(self) -> dict[str, str]:
        facts = {"min_length": self.min_length, "max_length": self.max_length, "seed": self.seed}
        return {"generator": GENERATOR, **{name: str(value) for name, value in facts.items()}}

    def _file(self, split: Split) -> Path:
        return self.home / f"{split}.safetensors"

    def _kept(self, split: Split) -> TokenSet:
        path = self._file(split)
        tokens, facts = _load(path, self.max_length)
        for name, wanted in self._facts.items():
            if facts.get(name) != wanted:
                raise ValueError(
                    f"{path} was kept with {name} {facts.get(name)}, not {wanted}; remove it or "
                    "give another folder"
                )
        if len(tokens) < self._wanted[split]:
            raise ValueError(
                f"{path} holds {len(tokens)} examples, not {self._wanted[split]}; remove it or "
                "give another folder"
            )
        return tokens.first(self._wanted[split])


def _of_part(progress: Progress, split: Split, total: int) -> Callable[[int], object]:
    return lambda done: progress(split, done, total)


_load = lru_cache(maxsize=8)(load_tokens)
_original = lru_cache(maxsize=8)(read_tsv)
