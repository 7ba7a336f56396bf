"""EQTNP against the published model in naive float64."""

import numpy as np
import pytest
import torch

from synopsis.processes.eqtnp import EQTNP
from synopsis.testing import PROCESS_CHECKS, Subject
from tests import reference
from tests.reference import below
from tests.tolerances import FLOAT32, PREDICTION

SMALL = {"dim": 16, "heads": 4, "layers": 3}
CLOSE = {"rtol": 3 * PREDICTION, "atol": 3 * PREDICTION}


def small(seed: int = 0, **options) -> EQTNP:
    return reference.enliven(EQTNP(**{"dim_x": 2, "dim_y": 2, **SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def published(weights, xc, yc, xt, config):
    """Mean and standard deviation of every target of one stream, spec 4."""
    heads, residual = config["heads"], config["residual"]
    items = reference.perceptron(below(weights, "embed"), np.concatenate([xc, yc], -1))
    targets = reference.perceptron(below(weights, "decoder.embed"), xt)
    for k in range(config["layers"]):
        layer = below(weights, f"decoder.layers.{k}")
        attend = below(layer, "attend")
        targets = reference.cross_attention(attend, targets, items, heads, residual)
        targets = reference.feed_forward(below(layer, "transform"), targets, residual)
        if k + 1 < config["layers"]:
            layer = below(weights, f"layers.{k}")
            items = reference.self_attention(below(layer, "attend"), items, heads, residual)
            items = reference.feed_forward(below(layer, "transform"), items, residual)
    features = reference.layer_norm(below(weights, "decoder.norm"), targets)
    hidden = np.maximum(reference.linear(below(weights, "head.expand"), features), 0.0)
    mean, raw = np.split(reference.linear(below(weights, "head.predict"), hidden), 2, axis=-1)
    if config["head"] == "bounded-gaussian":
        return mean, 0.05 + 0.95 * np.logaddexp(0.0, raw)
    return mean, np.exp(raw)


@pytest.mark.parametrize(
    ("sizes", "number"),
    [({}, 492_354), ({"dim_x": 2}, 492_482), ({"dim_x": 2, "dim_y": 3}, 493_126)],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters(sizes, number):
    assert sum(p.numel() for p in EQTNP(**sizes).parameters()) == number


@pytest.mark.parametrize("residual", ["raw", "normed"])
@pytest.mark.parametrize("head", ["gaussian", "bounded-gaussian"])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_is_the_published_model(residual, head, length):
    process = small(residual=residual, head=head).double()
    xc, yc, xt = (draw(1, n, 2, seed=i).double() for i, n in enumerate((length, length, 4)))
    arrays = (v[0].numpy() for v in (xc, yc, xt))
    mean, stddev = published(reference.float64_weights(process), *arrays, process.config)
    found = process(xc, yc, xt)  # heads speak float32
    np.testing.assert_allclose(found.mean[0].detach(), mean, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(found.stddev[0].detach(), stddev, rtol=FLOAT32, atol=FLOAT32)


def test_ragged_batches_are_their_streams_alone_and_targets_never_see_each_other():
    process, (x, y), xt = small(), (draw(3, 20, 2), draw(3, 20, 2, seed=1)), draw(3, 4, 2, seed=9)
    lengths = torch.tensor([20, 7, 0])
    mask = torch.arange(20) < lengths.unsqueeze(1)
    x, y = (v.masked_fill(~mask.unsqueeze(-1), torch.nan) for v in (x, y))
    together = process(x, y, xt, mask)
    for i, length in enumerate(lengths):
        for j in range(4):
            place = slice(i, i + 1), slice(j, j + 1)
            alone = process(x[i : i + 1, :length], y[i : i + 1, :length], xt[place])
            torch.testing.assert_close(together.mean[place], alone.mean, **CLOSE)
            torch.testing.assert_close(together.stddev[place], alone.stddev, **CLOSE)


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("residual", ["raw", "normed"])
def test_contract(check, residual):
    check(Subject.process(small(residual=residual, layers=2)))


def test_one_layer_reads_the_embedding_alone():
    process = small(layers=1)
    assert len(process.layers) == 0
    assert process(draw(1, 3, 2), draw(1, 3, 2), draw(1, 2, 2)).mean.shape == (1, 2, 2)
