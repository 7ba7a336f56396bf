"""Classifiers of sequences: published sizes, pads, pooling, pairs, and weights on disk."""

import pytest
import torch
from torch.nn import functional as F

from synopsis.models import LAYERS, PairMatcher, PixelClassifier, SequenceClassifier, load_model
from synopsis.models.layers import WITH_MEMORY, WITHOUT_MEMORY
from synopsis.tasks.sequences import PairBatch, SequenceBatch
from tests.tolerances import FLOAT32

LEARNED = {"temperatures": {"pack": "learn", "unpack": "learn"}}
LAYER = {  # name of the layer, its memory, its options
    "vanilla": ("VanillaLayer", 0, {}),
    "luna": ("SharedLunaLayer", 256, {}),
    "convluna": ("SimplifiedConvLunaLayer", 256, LEARNED),
}
PUBLISHED = {
    "text": (1_405_442, 1_439_234, 1_373_258),
    "listops": (1_519_370, 1_553_674, 1_454_710),
    "retrieval": (1_998_082, 2_032_386, 1_933_422),
    "image": (None, 2_086_538, 1_954_586),
    "pathfinder": (None, 1_685_378, 1_586_414),
}
OPTIONS = {
    "LinformerLayer": {"length": 13, "rank": 4},
    "InducedSetLayer": {"memory": 3},
    "RecurrentMemory": {"memory": 3, "segment": 4, "layers": 1},
    "TemporalLatentBottleneck": {"memory": 3, "segment": 4, "layers": 1},
}


def build(task, name):
    layer, memory, options = LAYER[name]
    same = {"layer": layer, "memory": memory, "options": options}
    return {
        "text": lambda: SequenceClassifier(257, 2, 4000, layers=4, **same),
        "listops": lambda: SequenceClassifier(**same),
        "retrieval": lambda: PairMatcher(**same),
        "image": lambda: PixelClassifier(**same),
        "pathfinder": lambda: PixelClassifier(classes=2, layers=6, **same),
    }[task]()


def small(layer="SimplifiedConvLunaLayer", kind=SequenceClassifier, **settings):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 8, "heads": 2, "feedforward": 16, "length": 12, "layer": layer}
    sizes["memory"] = 3 if layer in WITH_MEMORY else 0
    sizes["options"] = OPTIONS.get(layer, {})
    sizes["pooling"] = "memory" if layer == "LatentLayer" else "class"
    return kind(**(sizes | settings)).eval()


def tokens(lengths=(12, 5, 1), width=12):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 17, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return SequenceBatch(torch.arange(len(lengths)), ids.masked_fill(~mask, 0), mask=mask)


@pytest.mark.parametrize("task", PUBLISHED)
def test_parameters_are_as_many_as_published(task):
    for name, published in zip(LAYER, PUBLISHED[task], strict=True):
        if published is not None:
            assert sum(p.numel() for p in build(task, name).parameters()) == published, name


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_classifies_whatever_stands_in_pads(layer):
    model, batch = small(layer), tokens()
    other = SequenceBatch(batch.labels, batch.tokens.where(batch.mask, 7), mask=batch.mask)
    logits = model(batch)
    assert logits.shape == (3, 10)
    assert torch.allclose(logits, model(other), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_trains(layer):
    model = small(layer).train()
    loss = model.loss(tokens())
    loss.backward()
    last = "summary.encoder.layers.1."  # whose memory nobody reads, unless it is pooled
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or name.startswith(last), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("pooling", ["class", "mean", "memory"])
def test_padding_may_be_longer_or_shorter(pooling):
    model = small(layer="SharedLunaLayer", pooling=pooling)
    batch = tokens((5, 3), width=12)
    short = SequenceBatch(batch.labels, batch.tokens[:, :5], mask=batch.mask[:, :5])
    assert torch.allclose(model(batch), model(short), rtol=FLOAT32, atol=FLOAT32)


def test_mean_pooling_is_the_mean_of_real_items():
    model = small(layer="VanillaLayer", pooling="mean", positions="sinusoidal")
    batch = tokens()
    x, _, mask = model.summary.encoder(batch.tokens, batch.mask)
    means = torch.stack([row[real].mean(0) for row, real in zip(x, mask, strict=True)])
    found = model.summary(batch.tokens, batch.mask)
    assert torch.allclose(found, means, rtol=FLOAT32, atol=FLOAT32)


def test_the_loss_is_the_cross_entropy():
    model, batch = small(), tokens()
    expected = F.cross_entropy(model(batch).double(), batch.labels)
    assert abs(model.loss(batch).item() - expected.item()) < FLOAT32


def test_penalties_are_part_of_the_loss_in_training_only():
    model, batch = small("VonMisesFisherLunaLayer"), tokens()
    torch.manual_seed(0)
    trained = model.train().loss(batch)
    torch.manual_seed(0)
    plain = F.cross_entropy(model(batch), batch.labels)
    assert trained > plain
    model.eval()
    assert model.loss(batch).item() == F.cross_entropy(model(batch), batch.labels).item()


def test_recomputation_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = small(recompute=recompute).train()
        model.loss(tokens()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for kept, again in zip(*gradients, strict=True):
        assert torch.allclose(kept, again, rtol=FLOAT32, atol=FLOAT32)


def test_pairs_are_read_by_one_encoder():
    model, batch = small(kind=PairMatcher, classes=2, vocabulary=17), tokens()
    pair = PairBatch(
        batch.labels, batch.tokens, batch.tokens.flip(0), batch.mask, batch.mask.flip(0)
    )
    one, other = (
        model.summary(pair.first, pair.first_mask),
        model.summary(pair.second, pair.second_mask),
    )
    assert torch.allclose(one, other.flip(0), rtol=FLOAT32, atol=FLOAT32)
    assert model(pair).shape == (3, 2)
    assert small(kind=PairMatcher, classes=2, features="interactions")(pair).shape == (3, 2)


def test_weights_survive_the_disk(tmp_path):
    model = small(options={"filtering": {"kind": "max", "kernel": 3, "stride": 2}})
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert torch.equal(model(tokens()), again(tokens()))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="does not hold whole weights"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="does not hold whole weights"):
        load_model(tmp_path / "nowhere")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"unknown layer 'Lstm'; there are .*LunaLayer"):
        small("Lstm")
    with pytest.raises(ValueError, match="SharedLunaLayer needs a memory, but memory is 0"):
        small("SharedLunaLayer", memory=0)
    with pytest.raises(ValueError, match="VanillaLayer takes no memory, but memory is 4"):
        small("VanillaLayer", memory=4)
    with pytest.raises(ValueError, match=r"has no option 'kernel'; known are filtering"):
        small(options={"kernel": 4})
    with pytest.raises(ValueError, match=r"filtering = \{'size': 4\}"):
        small(options={"filtering": {"size": 4}})
    with pytest.raises(ValueError, match="no memory to classify from"):
        small("VanillaLayer", pooling="memory")
    with pytest.raises(ValueError, match="pool its memory, not 'mean'"):
        small("LatentLayer", pooling="mean")
    with pytest.raises(ValueError, match="13 items; the model takes 12"):
        small()(tokens((13,), width=13))
    with pytest.raises(ValueError, match="takes a SequenceBatch, not a PairBatch"):
        small()(PairBatch(torch.zeros(1).long(), tokens().tokens, tokens().tokens))
    with pytest.raises(ValueError, match="there is PixelClassifier"):
        small()(SequenceBatch(torch.zeros(1).long(), values=torch.rand(1, 12)))


def test_every_kind_of_layer_is_listed_once():
    assert len(LAYERS) == len(set(LAYERS.values()))
    assert not WITH_MEMORY.keys() & WITHOUT_MEMORY.keys()
