"""Batches of labelled sequences, and tasks that store theirs."""

import numpy as np
import pytest
import torch

from synopsis.tasks.sequences import PairBatch, SequenceBatch, StoredTask, majority
from synopsis.tasks.token_sets import Sequences, TokenSet
from tests.tasks.sequence_checks import generator

ONES = torch.ones(2, 3, dtype=torch.int64)


def test_a_batch_has_tokens_or_values():
    assert SequenceBatch(ONES[:, 0], tokens=ONES).inputs is ONES
    values = ONES.float()
    assert SequenceBatch(ONES[:, 0], values=values).inputs is values
    with pytest.raises(ValueError, match="neither"):
        SequenceBatch(ONES[:, 0])
    with pytest.raises(ValueError, match="both"):
        SequenceBatch(ONES[:, 0], tokens=ONES, values=values)


def test_batches_move_whole():
    moved = SequenceBatch(ONES[:, 0], tokens=ONES, mask=ONES > 0).to("meta")
    assert moved.values is None
    assert {moved.labels.device.type, moved.tokens.device.type, moved.mask.device.type} == {"meta"}
    pair = PairBatch(ONES[:, 0], ONES, ONES, second_mask=ONES > 0).to("meta")
    assert pair.first_mask is None
    assert {pair.first.device.type, pair.second.device.type} == {"meta"}
    assert pair.second_mask.device.type == "meta"


class Digits(StoredTask):
    def __init__(self, count=8):
        self.count = count

    def examples(self, split):
        count = self.count if split == "train" else 3
        pieces = [bytes([row]) for row in range(count)]
        return TokenSet(Sequences.joined(pieces), np.arange(count, dtype=np.uint8), 1)


def test_training_examples_are_drawn_evenly_with_replacement():
    labels = Digits().sample(8000, generator()).labels
    counts = np.bincount(labels.numpy(), minlength=8)
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000)).all()


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="split is 'dev'; it must be one of train, validation"):
        next(Digits().batches("dev", 2))
    with pytest.raises(NotImplementedError):
        StoredTask().examples("train")


def test_checksum_changes_with_any_part():
    assert Digits().checksum == Digits().checksum != Digits(9).checksum


def test_majority_is_fitted_on_training_labels():
    train, test = np.array([1, 1, 2], np.uint8), np.array([2, 2, 2, 1], np.uint8)
    assert majority(train, test) == 0.25
