"""Classification of long texts, byte by byte: the Text task of the Long Range Arena.

The benchmark's texts are IMDb's reviews. Where they are not at hand, e-mails stand in for them:
spam or not, without headers. Results on these are not results on the benchmark.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from synopsis.tasks.documents import mail_bodies
from synopsis.tasks.sequences import Split, StoredTask, check_split
from synopsis.tasks.text_packages import SPAM_ASSASSIN, found_text_package
from synopsis.tasks.token_sets import Sequences, TokenSet

VOCABULARY = 257  # the pad and 256 bytes
SHUFFLE_SEED = 0  # of the parts that are cut here
TENTH = 10


@dataclass(frozen=True)
class ByteTexts(StoredTask):
    """Long texts of two classes, as bytes: IMDb's reviews, or e-mails that stand in for them.

    The stand-in is the SpamAssassin corpus: bodies without headers and without repetitions, cut at
    random 80 : 10 : 10; label 1 is spam, about a third, so look at the majority baseline.

    Args:
        folder: of the original reviews, with ``train/pos``, ``train/neg``, ``test/pos`` and
            ``test/neg`` in it, of which label 1 is positive; "" for the stand-in.
        length: bytes of a text that are read; shorter ones are padded.
        held_out: training reviews kept for validation, drawn at random; 0 validates on the test
            reviews, as published. Without meaning for the stand-in.

    Raises:
        ValueError: an argument is out of its range.
        FileNotFoundError: ``folder`` is not there.

    Example:
        >>> ByteTexts(length=1000).stand_in
        "IMDb's reviews"

    Source: Tay et al., 2021 (Long Range Arena). Departure: validation is not the test part.
    """

    folder: str = ""
    length: int = 4000
    held_out: int = 2500
    name = "text"  # not fields: what every ByteTexts has in common
    classes = 2
    vocabulary = VOCABULARY

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is {self.length}; it must be 1 or more")
        if self.held_out < 0:
            raise ValueError(f"held_out is {self.held_out}; it must be 0 or more")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise FileNotFoundError(f"folder is {self.folder!r}; there is no such folder")

    @property
    def stand_in(self) -> str:
        """What the e-mails stand in for; "" for the reviews."""
        return "" if self.folder else "IMDb's reviews"

    def examples(self, split: Split) -> TokenSet:
        """One part; files are read once per process."""
        check_split(split)
        if not self.folder:
            return _mails(found_text_package(SPAM_ASSASSIN), split, self.length)
        return _reviews(Path(self.folder).expanduser(), split, self.length, self.held_out)

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part without order: majority, and naive Bayes on single bytes."""
        train, test = self.examples("train"), self.examples("test")
        return {**super().baselines(), "byte frequencies": naive_bayes(train, test)}


@lru_cache(maxsize=6)
def _mails(archive: Path, split: Split, length: int) -> TokenSet:
    bodies = mail_bodies(archive)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(bodies))
    tenth = len(bodies) // TENTH
    parts = {
        "test": order[:tenth],
        "validation": order[tenth : 2 * tenth],
        "train": order[2 * tenth :],
    }
    return _token_set([bodies[row] for row in parts[split]], length)


@lru_cache(maxsize=6)
def _reviews(folder: Path, split: Split, length: int, held_out: int) -> TokenSet:
    if split == "test" or (split == "validation" and held_out == 0):
        return _token_set(_folder_pair(folder / "test"), length)
    reviews = _folder_pair(folder / "train")
    if held_out >= len(reviews):
        raise ValueError(f"held_out is {held_out}, but there are only {len(reviews)} reviews")
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(reviews))
    rows = order[:held_out] if split == "validation" else order[held_out:]
    return _token_set([reviews[row] for row in rows], length)


def _folder_pair(folder: Path) -> list[tuple[bytes, bool]]:
    """Texts of ``neg`` and ``pos``, with whether they are positive."""
    found: list[tuple[bytes, bool]] = []
    for name in ("neg", "pos"):
        paths = sorted((folder / name).glob("*.txt"))
        if not paths:
            raise FileNotFoundError(f"{folder / name}: there are no texts *.txt in it")
        found += [(path.read_bytes(), name == "pos") for path in paths]
    return found


def _token_set(texts: list[tuple[bytes, bool]], length: int) -> TokenSet:
    labels = np.array([label for _, label in texts], np.uint8)
    return TokenSet(Sequences.joined([text[:length] for text, _ in texts]), labels, length)


def naive_bayes(train: TokenSet, test: TokenSet) -> float:
    """Accuracy on ``test`` of naive Bayes on the frequencies of bytes in ``train``."""
    counts = byte_counts(train.sequences)
    classes = range(int(train.labels.max()) + 1)
    # One of every byte is added, so that none is impossible.
    of_class = np.stack([counts[train.labels == c].sum(axis=0) + 1 for c in classes])
    log_rates = np.log(of_class / of_class.sum(axis=1, keepdims=True))
    prior = np.log(np.bincount(train.labels, minlength=len(classes)) / len(train))
    guess = (byte_counts(test.sequences) @ log_rates.T + prior).argmax(axis=1)
    return float((guess == test.labels).mean())


def byte_counts(sequences: Sequences) -> Float[np.ndarray, "examples 256"]:
    """How often every byte occurs in every sequence."""
    counts = np.zeros((len(sequences), 256))
    for row in range(len(sequences)):
        symbols: UInt8[np.ndarray, " length"] = sequences[row]
        counts[row] = np.bincount(symbols, minlength=256)
    return counts
