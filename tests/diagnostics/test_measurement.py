"""A whole model: every number of its report from loops over captured vectors, and what a measurement leaves behind."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synopsis.diagnostics import has_memory, measure_memory, weights
from synopsis.models import LAYERS, PairMatcher, SequenceClassifier
from synopsis.models.layers import WITH_MEMORY, WITH_OWN_MEMORY
from synopsis.tasks.sequences import PairBatch, SequenceBatch
from tests.diagnostics import naive
from tests.diagnostics.models import WIDTH, batch, model
from tests.tolerances import FLOAT32, FLOAT64

REMEMBERING = [*WITH_MEMORY, *WITH_OWN_MEMORY, "InducedSetLayer"]
LUNAS = ["LunaLayer", "SharedLunaLayer", "ConvLunaLayer", "SimplifiedConvLunaLayer", "SetLikeLayer"]
FILTERED = {"filtering": {"kind": "max", "kernel": 3, "stride": 2}}


def passes(made, batches):
    """For each batch and layer: x, memory in and out, mask, packed."""
    with torch.no_grad():
        for given in batches:
            encoder = made.summary.encoder
            x, mask = encoder.embedding(given.tokens, given.mask)
            memory = encoder.memory.expand(len(x), -1, -1)
            for layer in encoder.layers:
                items, out = layer(x, memory, mask)
                yield layer, x, memory, out, mask, layer.pack(memory, x, mask)
                x, memory = items, out


def expected(layer, x, memory, out, mask, packed):
    """Lists of numbers, one for each sequence, by part and name."""
    pack, unpack = layer.pack.weights(memory, x, mask), layer.unpack.weights(x, packed)
    _, _, seen = layer.pack.keys_values(x, mask)
    found = {}
    for name, cells in (("memory_in", memory), ("memory_out", out)):
        for what in ("cosine", "centred_cosine", "effective_rank"):
            found[name, what] = [getattr(naive, what)(one.numpy()) for one in cells]
        found[name, "norm"] = [float(one.norm(dim=-1).mean()) for one in cells]
    rows = list(zip(pack.numpy(), seen.numpy(), strict=True))
    found["pack", "entropy"] = [naive.pack_entropy(*row) for row in rows]
    found["pack", "total_variation"] = [naive.total_variation(*row) for row in rows]
    found["pack", "norm"] = [
        float(one.norm(dim=-1).mean()) if real.any() else None
        for one, real in zip(packed, mask, strict=True)
    ]
    rows = list(zip(unpack.numpy(), mask.numpy(), strict=True))
    found["unpack", "entropy"] = [naive.unpack_entropy(*row) for row in rows]
    found["unpack", "cells_for_90"] = [naive.cells_for_90(*row) for row in rows]
    return found


@pytest.mark.parametrize(
    ("layer", "settings"),
    [(layer, {}) for layer in LUNAS]
    + [("SimplifiedConvLunaLayer", {"memory": 1}), ("ConvLunaLayer", {"options": FILTERED})],
)
def test_every_number_as_written_out(layer, settings):
    """Ragged sequences, one of a single item and one of none, in batches of unequal size."""
    made = model(layer, **settings)
    batches = [batch((9, 6, 2)), batch((1, 0), seed=2)]
    report = measure_memory(made, batches)
    assert report.examples == 5
    numbers = {}
    for i, done in enumerate(passes(made, batches)):
        for key, found in expected(*done).items():
            numbers.setdefault((i % 2, *key), []).extend(found)
    for (layer_index, part, name), found in numbers.items():
        here, there = getattr(getattr(report.layers[layer_index], part), name), naive.mean(found)
        assert (here is None) == (there is None), (part, name)
        assert here is None or here == pytest.approx(there, rel=1e4 * FLOAT64, abs=1e4 * FLOAT64), (
            part,
            name,
        )


def test_temperatures():
    made = model("ConvLunaLayer", options={"temperatures": {"pack": "learn", "unpack": "sqrt"}})
    with torch.no_grad():
        made.summary.encoder.layers[0].pack.temperature.log.fill_(math.log(3.0))
    first = measure_memory(made, [batch()]).layers[0]
    assert first.pack.temperature == pytest.approx(3.0, rel=FLOAT64)
    assert first.unpack.temperature == pytest.approx(2.0, rel=FLOAT64)  # √(8 / 2 heads)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_measured_or_has_no_memory(layer):
    made = model(layer)
    assert has_memory(made) == (layer in REMEMBERING)
    if not has_memory(made):
        with pytest.raises(ValueError, match=f"SequenceClassifier has no memory: {layer} keeps"):
            measure_memory(made, [batch()])
        return
    for number, found in enumerate(measure_memory(made, [batch()]).layers, start=1):
        assert found.layer == number
        assert 1 <= found.memory_out.effective_rank <= 3
        assert (found.pack is not None) == hasattr(made.summary.encoder.layers[0], "pack")
        assert (found.unpack is not None) == hasattr(made.summary.encoder.layers[0], "unpack")
        for part in filter(None, (found.pack, found.unpack)):
            assert 0 < part.entropy <= 1


def test_pads_behind_sequences_change_nothing():
    """Segments too, whose items are moved together."""
    short, lengths = batch((5, 3)), torch.tensor([5, 3])
    cut = SequenceBatch(short.labels, short.tokens[:, :5], mask=short.mask[:, :5])
    gaps = torch.zeros_like(short.tokens)
    places = torch.tensor([0, 2, 3, 6, 8])
    gaps[:, places] = short.tokens[:, :5]
    apart = SequenceBatch(short.labels, gaps, mask=gaps > 0)
    assert torch.equal(apart.mask.sum(1), lengths)
    for layer in ("TemporalLatentBottleneck", "SharedLunaLayer", "BottleneckMemoryLayer"):
        made = model(layer, positions="none")
        one, *others = (measure_memory(made, [given]).to_dict() for given in (cut, short, apart))
        for other in others:
            assert flat(other) == pytest.approx(flat(one), rel=1e3 * FLOAT64, abs=1e3 * FLOAT64), (
                layer
            )


def flat(report):
    return {
        (i, part, name): number
        for i, layer in enumerate(report["layers"])
        for part in ("memory_in", "memory_out", "pack", "unpack")
        for name, number in (layer[part] or {}).items()
        if number is not None
    }


def test_both_members_of_a_pair_count():
    made = model(kind=PairMatcher, vocabulary=17)
    a, b = batch((9, 4)), batch((5, 7), seed=3)
    pair = PairBatch(a.labels, a.tokens, b.tokens, a.mask, b.mask)
    both = measure_memory(made, [pair])
    single = model(vocabulary=17)
    single.summary.load_state_dict(made.summary.state_dict())
    assert flat(measure_memory(single, [a, b]).to_dict()) == pytest.approx(flat(both.to_dict()))
    assert both.examples == 2


def test_one_cell_and_no_items_have_no_numbers_but_no_nan():
    one = measure_memory(model(memory=1), [batch()]).layers[0]
    assert (one.memory_in.cosine, one.memory_in.centred_cosine) == (None, None)
    assert (one.pack.total_variation, one.unpack.entropy) == (None, None)
    assert (one.memory_in.effective_rank, one.unpack.cells_for_90) == pytest.approx((1.0, 1.0))
    none = measure_memory(model(), [batch((0, 0))]).layers[0]
    assert (none.pack.entropy, none.pack.total_variation, none.pack.norm) == (None, None, None)
    assert (none.unpack.entropy, none.unpack.cells_for_90) == (None, None)
    assert none.memory_out.cosine is not None


def test_a_model_that_diverged_is_measured_all_the_same():
    made = model()
    with torch.no_grad():
        made.summary.encoder.layers[1].pack.projections.to_query.weight.fill_(math.nan)
    first, second = measure_memory(made, [batch()]).layers
    assert first.memory_out.cosine is not None
    assert (second.memory_out.cosine, second.memory_out.effective_rank) == (None, None)
    assert (second.pack.entropy, second.unpack.entropy, second.unpack.cells_for_90) == (None,) * 3


def hooks(made):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in made.modules())


@pytest.mark.parametrize("layer", ["WeibullLunaLayer", "VonMisesFisherLunaLayer"])
def test_nothing_is_left_behind(layer):
    """The same logits and loss, buffers, mode, hooks and random numbers as without a measurement."""
    made, given = model(layer).train(), batch()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    torch.manual_seed(3)
    loss = made.loss(given)
    made.load_state_dict(before)
    torch.manual_seed(3)
    measure_memory(made, [given])
    assert made.training
    assert hooks(made) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert torch.equal(made.loss(given), loss)
    assert loss.requires_grad


def test_hooks_go_when_the_model_fails():
    made = model()
    too_long = SequenceBatch(torch.zeros(1).long(), torch.ones(1, WIDTH + 1).long())
    with pytest.raises(ValueError, match=f"an input has {WIDTH + 1} items"):
        measure_memory(made.train(), [batch(), too_long])
    assert hooks(made) == 0
    assert made.training


def test_no_examples_are_said():
    with pytest.raises(ValueError, match="no examples"):
        measure_memory(model(), [])


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(returned) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return returned


def test_weights_are_never_held_all_at_once(monkeypatch):
    length, cells = 512, 64
    torch.manual_seed(0)
    made = SequenceClassifier(
        17, 2, length, layers=1, dim=8, heads=2, feedforward=8, memory=cells, pooling="mean"
    )
    given = SequenceBatch(torch.zeros(2).long(), torch.randint(1, 17, (2, length)))
    whole = measure_memory(made, [given])
    monkeypatch.setattr(weights, "BLOCK", 2**12)
    with Largest() as largest:
        parts = measure_memory(made, [given])
    assert flat(parts.to_dict()) == pytest.approx(flat(whole.to_dict()), rel=100 * FLOAT32)
    assert largest.elements <= 2 * 2 * length * cells / 8


@pytest.mark.parametrize(
    ("layer", "cosine", "entropy"),
    [("SharedLunaLayer", 0.08, (0.98, 1.0)), ("SimplifiedConvLunaLayer", 0.13, (0.92, 0.98))],
)
def test_an_untrained_model_is_as_others_measured_it(layer, cosine, entropy):
    """Width 64, 4 layers, 16 cells: −0.01 at first, up to 0.08 or 0.13 in the end, rank 15.3 to 15.6; and margins."""
    torch.manual_seed(1)
    made = SequenceClassifier(17, 10, 128, layer, 4, dim=64, feedforward=256, memory=16)
    ids = torch.randint(1, 17, (8, 128))
    layers = measure_memory(made, [SequenceBatch(torch.zeros(8).long(), ids)]).layers
    assert layers[0].memory_in.cosine == pytest.approx(-0.01, abs=0.03)
    assert layers[0].memory_out.cosine < layers[3].memory_out.cosine <= cosine
    for one in layers:
        assert 15.25 <= one.memory_out.effective_rank <= 15.65
        assert entropy[0] <= one.pack.entropy <= entropy[1]
