"""Examples of unequal lengths, kept end to end as bytes, and the file they are kept in.

A stored byte b is the token id b + 1, since id 0 is the pad; so a byte holds every id of a text.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from synopsis.tasks.sequences import PairBatch, SequenceBatch


@dataclass(frozen=True, eq=False)
class Sequences:
    """Byte sequences cut out of one long array; they may overlap or be one another.

    Args:
        symbols: everything, end to end.
        starts: where each sequence begins.
        lengths: how long each one is.
    """

    symbols: UInt8[np.ndarray, " total"]
    starts: Int64[np.ndarray, " examples"]
    lengths: Int32[np.ndarray, " examples"]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> UInt8[np.ndarray, " length"]:
        """The symbols of one sequence."""
        start = int(self.starts[row])
        return self.symbols[start : start + int(self.lengths[row])]

    @classmethod
    def joined(cls, pieces: list[bytes]) -> "Sequences":
        """The given sequences, end to end."""
        lengths = np.array([len(piece) for piece in pieces], np.int32)
        return cls.end_to_end(np.frombuffer(b"".join(pieces), np.uint8), lengths)

    @classmethod
    def end_to_end(
        cls, symbols: UInt8[np.ndarray, " total"], lengths: Int32[np.ndarray, " examples"]
    ) -> "Sequences":
        """Sequences that follow each other without gaps."""
        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(symbols, ends - lengths, lengths)

    def pad(
        self, rows: Int[np.ndarray, " batch"], length: int
    ) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Token ids of the given sequences, cut or padded on the right to ``length``, and the mask.

        Example:
            >>> tokens, mask = Sequences.joined([b"ab", b"c"]).pad(np.array([1, 0]), 2)
            >>> tokens.tolist(), mask.tolist()
            ([[100, 0], [98, 99]], [[True, False], [True, True]])
        """
        places = np.arange(length)
        mask = places < self.lengths[rows][:, None]
        tokens = np.zeros(mask.shape, np.int64)
        tokens[mask] = self.symbols[(self.starts[rows][:, None] + places)[mask]]
        tokens[mask] += 1
        return torch.from_numpy(tokens), torch.from_numpy(mask)

    def digest(self) -> bytes:
        """SHA-256 of the lengths and the symbols, however they are stored."""
        hashed = hashlib.sha256(self.lengths.astype("<i4").tobytes())
        for row in range(len(self)):
            hashed.update(self[row].data)
        return hashed.digest()


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Labelled sequences.

    Args:
        sequences: the examples.
        labels: class of each.
        length: places of a batch, pads included.
    """

    sequences: Sequences
    labels: UInt8[np.ndarray, " examples"]
    length: int

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "TokenSet":
        """The first ``count`` examples."""
        kept = self.sequences
        cut = Sequences(kept.symbols, kept.starts[:count], kept.lengths[:count])
        return TokenSet(cut, self.labels[:count], self.length)

    def batch(self, rows: Int[np.ndarray, " batch"]) -> SequenceBatch:
        """The examples in the given places, cut or padded to ``length``."""
        tokens, mask = self.sequences.pad(rows, self.length)
        return SequenceBatch(labels_of(self.labels, rows), tokens=tokens, mask=mask)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of labels, lengths and symbols, in hexadecimal."""
        return hashlib.sha256(self.labels.tobytes() + self.sequences.digest()).hexdigest()


@dataclass(frozen=True, eq=False)
class PairSet:
    """Labelled pairs of sequences; arguments as :class:`TokenSet`."""

    first: Sequences
    second: Sequences
    labels: UInt8[np.ndarray, " examples"]
    length: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Int[np.ndarray, " batch"]) -> PairBatch:
        """The pairs in the given places, each member cut or padded to ``length``."""
        first, first_mask = self.first.pad(rows, self.length)
        second, second_mask = self.second.pad(rows, self.length)
        labels = labels_of(self.labels, rows)
        return PairBatch(labels, first, second, first_mask, second_mask)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of labels, first and second members, in hexadecimal."""
        content = self.labels.tobytes() + self.first.digest() + self.second.digest()
        return hashlib.sha256(content).hexdigest()


def labels_of(
    labels: UInt8[np.ndarray, " examples"], rows: Int[np.ndarray, " batch"]
) -> Int[Tensor, " batch"]:
    """The labels in the given places as torch's losses want them."""
    return torch.from_numpy(labels[rows].astype(np.int64))


# --- the file


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]) -> None:
    """Write arrays and facts about them to a safetensors file; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        save_file(dict(arrays), unfinished, dict(facts))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and facts of a file of :func:`save_arrays`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def save_tokens(path: Path, tokens: TokenSet, facts: Mapping[str, str]) -> None:
    """Keep a set that lies end to end, with its checksum."""
    kept = tokens.sequences
    used = int(kept.starts[-1] + kept.lengths[-1]) if len(tokens) else 0
    if used != int(kept.lengths.sum(dtype=np.int64)):
        raise ValueError(f"the sequences use {used} symbols with gaps; only end to end is kept")
    arrays = {"symbols": kept.symbols[:used], "lengths": kept.lengths, "labels": tokens.labels}
    save_arrays(path, arrays, {**facts, "checksum": tokens.checksum})


def load_tokens(path: Path, length: int) -> tuple[TokenSet, dict[str, str]]:
    """A set of :func:`save_tokens`, verified against its checksum, and the facts kept with it.

    Raises:
        ValueError: the file is damaged.
    """
    arrays, facts = load_arrays(path)
    if missing := {"symbols", "lengths", "labels"} - set(arrays):
        raise ValueError(f"{path}: there is no {', '.join(sorted(missing))} in it")
    sequences = Sequences.end_to_end(arrays["symbols"], arrays["lengths"])
    tokens = TokenSet(sequences, arrays["labels"], length)
    if tokens.checksum != facts.get("checksum"):
        raise ValueError(
            f"{path}: damaged: its content has checksum {tokens.checksum[:12]}… but its header "
            f"says {facts.get('checksum', '')[:12]}…"
        )
    return tokens, facts
