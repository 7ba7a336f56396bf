"""LBANP and LBANPND against the published model in naive float64."""

import numpy as np
import pytest
import torch

from synopsis.processes.heads import GaussianHead
from synopsis.processes.lbanp import LBANP, LBANPND
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests import reference
from tests.reference import below
from tests.tolerances import FLOAT32, FLOAT64, PREDICTION

SMALL = {"dim": 16, "heads": 4, "layers": 3, "latents": 5}
CLOSE = {"rtol": 3 * PREDICTION, "atol": 3 * PREDICTION}
OURS = {
    "raw": lambda: LBANP(2, 2, **SMALL),
    "normed": lambda: LBANP(1, 1, **SMALL, residual="normed"),
    "low rank": lambda: LBANPND(2, 2, **SMALL),
    "Cholesky": lambda: LBANPND(1, 1, **SMALL, residual="normed", head="cholesky"),
}


def small(kind=LBANP, seed: int = 0, **options):
    return reference.enliven(kind(**{"dim_x": 2, "dim_y": 2, **SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(weights, xc, yc, xt, config):
    """Normalised features of every target of one stream, spec 4."""
    heads, residual = config["heads"], config["residual"]
    context = reference.perceptron(below(weights, "embed"), np.concatenate([xc, yc], -1))
    targets = reference.perceptron(below(weights, "decoder.embed"), xt)
    latents = weights["latents"]
    for k in range(config["layers"]):
        layer = below(weights, f"layers.{k}")
        read = below(layer, "read")
        latents = reference.cross_attention(read, latents, context, heads, residual)
        latents = reference.feed_forward(below(layer, "digest"), latents, residual)
        latents = reference.self_attention(below(layer, "attend"), latents, heads, residual)
        latents = reference.feed_forward(below(layer, "transform"), latents, residual)
        layer = below(weights, f"decoder.layers.{k}")
        attend = below(layer, "attend")
        targets = reference.cross_attention(attend, targets, latents, heads, residual)
        targets = reference.feed_forward(below(layer, "transform"), targets, residual)
    return reference.layer_norm(below(weights, "decoder.norm"), targets)


def published(weights, xc, yc, xt, config):
    """Mean and standard deviation of every target."""
    found = features(below(weights, "trunk"), xc, yc, xt, config)
    hidden = np.maximum(reference.linear(below(weights, "head.expand"), found), 0.0)
    mean, raw = np.split(reference.linear(below(weights, "head.predict"), hidden), 2, axis=-1)
    if config["head"] == "bounded-gaussian":
        return mean, 0.05 + 0.95 * np.logaddexp(0.0, raw)
    return mean, np.exp(raw)


@pytest.mark.parametrize(
    ("sizes", "diagonal", "joint"),
    [
        ({}, 792_514, 911_831),
        ({"dim_x": 2}, 792_642, 911_959),
        ({"dim_x": 2, "dim_y": 3}, 793_286, 918_021),
    ],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters(sizes, diagonal, joint):
    processes = LBANP(**sizes), LBANPND(**sizes, head="cholesky")
    unused = GaussianHead(64, sizes.get("dim_y", 1))  # published with the joint one, never trained
    counts = [sum(p.numel() for p in process.parameters()) for process in (*processes, unused)]
    assert counts[0] == diagonal and counts[1] + counts[2] == joint
    fewer = LBANP(**sizes, latents=8)
    assert sum(p.numel() for p in fewer.parameters()) == diagonal - 120 * 64


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


def test_the_joint_process_has_the_same_trunk():
    process = small(LBANPND, head="cholesky").double()
    xc, yc, xt = (draw(1, n, 2, seed=i).double() for i, n in enumerate((9, 9, 4)))
    weights = reference.float64_weights(process)
    arrays = (v[0].numpy() for v in (xc, yc, xt))
    found = features(below(weights, "trunk"), *arrays, process.config)
    mean = reference.perceptron(below(weights, "head.mean"), found)
    np.testing.assert_allclose(
        process(xc, yc, xt).mean[0].detach(), mean, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
    )


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


def test_padded_targets_of_a_joint_prediction_might_as_well_not_be_there():
    real = torch.tensor([[True, False, True, True], [False] * 4])
    process, nan = small(LBANPND), torch.where(real.unsqueeze(-1), 0.0, torch.nan)
    xc, yc, xt, yt = (draw(2, n, 2, seed=i) for i, n in enumerate((6, 6, 4, 4)))
    padded = Batch(xc, yc, xt + nan, yt + nan, target_mask=real)
    alone = process(xc[:1], yc[:1], xt[:1, real[0]]).log_prob(yt[:1, real[0]])
    expected = torch.stack([alone[0], torch.zeros(())])
    torch.testing.assert_close(process.log_likelihood(padded), expected, **CLOSE)
    torch.testing.assert_close(process.loss(padded), -alone[0] / 3, **CLOSE)


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_contract(make, check):
    check(Subject.process(reference.enliven(make())))


@pytest.mark.parametrize("kind", [LBANP, LBANPND])
def test_learns_a_batch(kind):
    torch.manual_seed(0)
    process = kind(2, 2, **SMALL).train()
    given = Batch(*(draw(4, 8, 2, seed=i) for i in range(4)))
    optimiser = torch.optim.Adam(process.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = process.loss(given)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
