"""Do two long texts belong together? Byte by byte: the Retrieval task of the Long Range Arena.

The benchmark's texts are papers of the ACL Anthology Network, which belong together if one cites
the other. They cannot be passed on, so pieces of documents stand in for them: two pieces of one
document, or of two. Results on these are not results on the benchmark.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from synopsis.tasks.byte_texts import TENTH, VOCABULARY, byte_counts
from synopsis.tasks.documents import brown_documents, speeches
from synopsis.tasks.sequences import SPLITS, Split, StoredTask, check_split
from synopsis.tasks.text_packages import BROWN, STATE_OF_THE_UNION, found_text_package
from synopsis.tasks.token_sets import PairSet, Sequences

CHARACTERS = 10_000  # of an original text that are encoded
LRA_ENDINGS: dict[Split, str] = {"train": "train", "validation": "eval", "test": "test"}


@dataclass(frozen=True)
class BytePairs(StoredTask):
    """Pairs of long texts, as bytes: papers of one citation, or pieces of one document.

    The stand-in takes documents of the Brown corpus and annual messages of American presidents;
    no document is in two parts. Label 1: two pieces of one document that do not overlap; label 0:
    of two documents of one collection, drawn so that the place of a piece in its document tells
    nothing.

    Args:
        folder: of the original ``…train.tsv``, ``…eval.tsv`` and ``…test.tsv``; "" for the stand-in.
        length: bytes of each text that are read; of the stand-in, also the bytes of a piece.
        train: number of training pairs of the stand-in.
        validation: the same for validation.
        test: the same for the test.
        seed: of the drawing of pairs, 0 or more; documents are always parted alike.

    Raises:
        ValueError: an argument is out of its range.
        FileNotFoundError: ``folder`` is not there.

    Example:
        >>> BytePairs(length=1000).stand_in
        'citations of the ACL Anthology Network'

    Source: Tay et al., 2021 (Long Range Arena).
    """

    folder: str = ""
    length: int = 4000
    train: int = 20_000
    validation: int = 2_000
    test: int = 2_000
    seed: int = 0
    name = "retrieval"  # not fields: what every BytePairs has in common
    classes = 2
    vocabulary = VOCABULARY

    def __post_init__(self) -> None:
        for name in ("length", "train", "validation", "test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.folder and not Path(self.folder).expanduser().is_dir():
            raise FileNotFoundError(f"folder is {self.folder!r}; there is no such folder")

    @property
    def stand_in(self) -> str:
        """What the pieces of documents stand in for; "" for the papers."""
        return "" if self.folder else "citations of the ACL Anthology Network"

    def examples(self, split: Split) -> PairSet:
        """One part; files are read once per process."""
        check_split(split)
        if self.folder:
            return _papers(_file(Path(self.folder).expanduser(), split), self.length)
        archives = found_text_package(BROWN), found_text_package(STATE_OF_THE_UNION)
        count = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return _pieces(archives, split, count, self.length, self.seed)

    def baselines(self) -> dict[str, float]:
        """Accuracy on the test part without order: majority, and likeness of byte frequencies."""
        train, test = self.examples("train"), self.examples("test")
        return {**super().baselines(), "byte frequencies": likeness(train, test)}


# --- the original files


def _file(folder: Path, split: Split) -> Path:
    found = sorted(folder.glob(f"*{LRA_ENDINGS[split]}.tsv"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder}: there are {len(found)} files *{LRA_ENDINGS[split]}.tsv in it; one is needed"
        )
    return found[0]


@lru_cache(maxsize=6)
def _papers(path: Path, length: int) -> PairSet:
    """Lines of label, two names and two texts; a paper is kept once, however often it is named."""
    places: dict[tuple[str, bytes], int] = {}
    pairs: list[list[int]] = []
    labels: list[bool] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            label, *members = _fields(path, number, line)
            labels.append(label == "1")
            papers = zip(members[:2], members[2:], strict=True)
            cut = [(name, text[:CHARACTERS].encode()[:length]) for name, text in papers]
            pairs.append([places.setdefault(paper, len(places)) for paper in cut])
    joined = Sequences.joined([text for _, text in places])
    first, second = (
        Sequences(joined.symbols, joined.starts[rows], joined.lengths[rows])
        for rows in np.array(pairs, np.int64).reshape(-1, 2).T
    )
    return PairSet(first, second, np.array(labels, np.uint8), length)


def _fields(path: Path, number: int, line: str) -> list[str]:
    """Label 0 or 1, first name, second name, first text, second text."""
    fields = line.rstrip("\r\n").split("\t")
    if len(fields) != 5 or fields[0] not in ("0", "1", "0.0", "1.0"):
        raise ValueError(
            f"{path}:{number}: {line[:40]!r}… is not a label 0 or 1, two names and two texts with "
            "tabs between them"
        )
    return [fields[0][0], *fields[1:]]


# --- the stand-in


@lru_cache(maxsize=6)
def _pieces(
    archives: tuple[Path, Path], split: Split, count: int, length: int, seed: int
) -> PairSet:
    collections = [brown_documents(archives[0]), speeches(archives[1])]
    documents: list[bytes] = []
    groups: list[int] = []
    for group, texts in enumerate(collections):
        long_enough = [text for text in texts if len(text) >= 2 * length]
        kept = _part(long_enough, split)
        documents += kept
        groups += [group] * len(kept)
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    return random_pairs(documents, np.array(groups), count, length, rng)


def _part(documents: list[bytes], split: Split) -> list[bytes]:
    """A tenth for validation, a tenth for the test, the rest for training; always the same."""
    order = np.random.default_rng(0).permutation(len(documents))
    tenth = len(documents) // TENTH
    parts = {
        "test": order[:tenth],
        "validation": order[tenth : 2 * tenth],
        "train": order[2 * tenth :],
    }
    return [documents[row] for row in parts[split]]


def random_pairs(
    documents: list[bytes],
    groups: np.ndarray,
    count: int,
    length: int,
    rng: np.random.Generator,
) -> PairSet:
    """Pairs of pieces of one document (label 1) or of two documents of a group (label 0).

    Args:
        documents: texts of at least two pieces each.
        groups: collection of each document, at least two documents in each.
        count: number of pairs, half of either label.
        length: bytes of a piece.
        rng: all randomness.

    Raises:
        ValueError: a group has a single document, or there are none.
    """
    sizes = np.bincount(groups.astype(np.int64))
    if len(documents) == 0 or (sizes == 1).any():
        raise ValueError(
            f"there are {sizes.tolist()} documents of {2 * length} bytes or more; 2 of each "
            "collection are needed: length must be smaller"
        )
    joined = Sequences.joined(documents)
    labels = rng.permutation(np.arange(count) % 2).astype(np.uint8)
    one = rng.integers(0, len(documents), count)
    other = np.where(labels == 1, one, _neighbours(one, groups, rng))
    # Of two documents too, each member is drawn as one of two pieces that do not overlap.
    first, second = _two_pieces(joined.lengths[one], length, rng)
    _, elsewhere = _two_pieces(joined.lengths[other], length, rng)
    second = np.where(labels == 1, second, elsewhere)
    lengths = np.full(count, length, np.int32)
    return PairSet(
        Sequences(joined.symbols, joined.starts[one] + first, lengths),
        Sequences(joined.symbols, joined.starts[other] + second, lengths),
        labels,
        length,
    )


def _neighbours(
    documents: Int[np.ndarray, " pairs"], groups: np.ndarray, rng: np.random.Generator
) -> Int[np.ndarray, " pairs"]:
    """For each document another one of its group, each as likely."""
    members = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(groups), np.int64)
    rank[members] = np.arange(len(groups)) - starts[groups[members]]
    group = groups[documents]
    chosen = rng.integers(0, sizes[group] - 1)
    chosen += chosen >= rank[documents]
    return members[starts[group] + chosen]


def _two_pieces(
    lengths: Int[np.ndarray, " pairs"], piece: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Where two pieces that do not overlap begin, in either order."""
    slack = lengths.astype(np.int64) - 2 * piece
    gaps = np.sort(rng.integers(0, slack + 1, (2, len(lengths))), axis=0)
    places = gaps + np.array([[0], [piece]])
    swap = rng.random(len(lengths)) < 0.5
    return np.where(swap, places[1], places[0]), np.where(swap, places[0], places[1])


# --- what needs no order


def likeness(train: PairSet, test: PairSet) -> float:
    """Accuracy on ``test`` of a threshold on how alike the byte frequencies of both members are.

    The threshold is the one that is best on ``train``.
    """
    scores = _cosines(train)
    order = np.argsort(scores)
    ones = train.labels[order].astype(np.int64)
    # With the threshold before place k: the zeros below it and the ones above are right.
    below = np.concatenate([[0], np.cumsum(1 - ones)])
    above = ones.sum() - np.concatenate([[0], np.cumsum(ones)])
    best = int((below + above).argmax())
    threshold = np.inf if best == len(ones) else scores[order[best]]
    return float(((_cosines(test) >= threshold) == test.labels).mean())


def _cosines(pairs: PairSet) -> Float[np.ndarray, " pairs"]:
    first, second = byte_counts(pairs.first), byte_counts(pairs.second)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / np.maximum(norms, 1)
