"""A task and an experiment small enough to train in a test."""

from dataclasses import dataclass

import torch

from synopsis.tasks.sequences import SequenceBatch
from tests.diagnostics.models import WIDTH

TOML = """
[model]
name = "SequenceClassifier"
classes = 2
length = 9
layers = 2
dim = 8
heads = 2
feedforward = 8
memory = 3
[task]
name = "first_id"
[training]
steps = 4
batch_size = 4
threads = 1
log_every = 2
[evaluation]
batches = 1
batch_size = 4
every = 2
"""


@dataclass(frozen=True)
class FirstId:
    """Whether the first id is odd."""

    name = "first_id"
    classes = 2
    vocabulary = 17
    length = WIDTH
    stand_in = checksum = ""

    def sample(self, batch_size, generator):
        tokens = torch.randint(1, 17, (batch_size, WIDTH), generator=generator)
        mask = torch.rand(tokens.shape, generator=generator) < 0.8
        return SequenceBatch(tokens[:, 0] % 2, tokens.masked_fill(~mask, 0), mask=mask)

    def batches(self, split, batch_size, limit=None):
        generator = torch.Generator().manual_seed(("train", "validation", "test").index(split))
        for _ in range(0, 12 if limit is None else limit, batch_size):
            yield self.sample(batch_size, generator)

    def baselines(self):
        return {}
