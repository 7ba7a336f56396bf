"""Models and batches small enough to write every statistic out."""

import torch

from synopsis.models import SequenceClassifier
from synopsis.models.layers import WITH_MEMORY
from synopsis.tasks.sequences import SequenceBatch

WIDTH = 9
OPTIONS = {
    "LinformerLayer": {"length": WIDTH + 1, "rank": 4},
    "InducedSetLayer": {"memory": 3},
    "RecurrentMemory": {"memory": 3, "segment": 4, "layers": 1},
    "TemporalLatentBottleneck": {"memory": 3, "segment": 4, "layers": 1},
}


def model(layer="SimplifiedConvLunaLayer", kind=SequenceClassifier, **settings):
    """Two layers of width 8 in float64, with weights large enough for attention to choose."""
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 8, "heads": 2, "feedforward": 8, "length": WIDTH, "classes": 3}
    sizes["memory"] = 3 if layer in WITH_MEMORY else 0
    sizes["options"] = OPTIONS.get(layer, {})
    sizes["pooling"] = "memory" if layer == "LatentLayer" else "mean"
    made = kind(**(sizes | {"layer": layer} | settings)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made


def batch(lengths=(9, 6, 2), seed=1):
    """Random ids of these lengths, with pads behind them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 17, (len(lengths), WIDTH), generator=generator)
    mask = torch.arange(WIDTH) < torch.tensor(lengths)[:, None]
    return SequenceBatch(torch.zeros(len(lengths)).long(), ids.masked_fill(~mask, 0), mask=mask)
