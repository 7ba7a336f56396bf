"""What every task of labelled sequences must hold; used by the tests of each."""

import torch

from synopsis.tasks.sequences import SPLITS, PairBatch, SequenceBatch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def arrays(batch):
    return {name: value for name, value in vars(batch).items() if value is not None}


def same(one, other):
    a, b = arrays(one), arrays(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows(batch):
    """Every example as a tuple, to be compared and counted."""
    columns = [value.tolist() for value in arrays(batch).values()]
    return [str(row) for row in zip(*columns, strict=True)]


def check_task(task, stand_in):
    assert task.stand_in == stand_in
    batch = task.sample(5, generator())
    assert same(batch, task.sample(5, generator()))
    assert not same(batch, task.sample(5, generator(1)))
    training = {row for part in task.batches("train", 7) for row in rows(part)}
    assert set(rows(task.sample(50, generator()))) <= training
    for split in SPLITS:
        check_part(task, split)
    levels = task.baselines()
    train, test = (
        [int(label) for batch in task.batches(split, 9) for label in batch.labels]
        for split in ("train", "test")
    )
    frequent = min(set(train), key=lambda label: (-train.count(label), label))
    assert levels["majority"] == test.count(frequent) / len(test)
    assert all(0 <= level <= 1 for level in levels.values())
    assert len(task.checksum) == 64


def check_part(task, split):
    whole = list(task.batches(split, 3))
    count = sum(len(batch.labels) for batch in whole)
    assert all(len(batch.labels) == 3 for batch in whole[:-1])
    some = [row for batch in task.batches(split, 3, limit=4) for row in rows(batch)]
    assert some == [row for batch in whole for row in rows(batch)][:4]
    assert len(some) == min(4, count)
    assert same(next(iter(task.batches(split, 3))), whole[0])
    for batch in whole:
        check_batch(task, batch)


def check_batch(task, batch):
    assert batch.labels.dtype == torch.int64
    assert ((batch.labels >= 0) & (batch.labels < task.classes)).all()
    if isinstance(batch, PairBatch):
        members = [(batch.first, batch.first_mask), (batch.second, batch.second_mask)]
    else:
        assert isinstance(batch, SequenceBatch)
        assert (batch.values is None) == (task.vocabulary is not None)
        members = [(batch.inputs, batch.mask)]
    for inputs, mask in members:
        assert inputs.shape == (len(batch.labels), task.length)
        if task.vocabulary is None:
            assert inputs.dtype == torch.float32
            continue
        assert inputs.dtype == torch.int64
        assert ((inputs >= 0) & (inputs < task.vocabulary)).all()
        if mask is not None:
            assert torch.equal(mask, inputs != 0)
            assert (mask.long().diff(dim=1) <= 0).all()  # pads are on the right
