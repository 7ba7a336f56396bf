"""TNPD and TNPND against torch's own Transformer under the published mask, and without it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synopsis.processes.tnp import TNPD, TNPND
from synopsis.processes.transformer import TransformerLayer
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests.reference import enliven
from tests.tolerances import FLOAT64, PREDICTION

SMALL = {"dim": 16, "heads": 4, "layers": 3}
CLOSE = {"rtol": 3 * PREDICTION, "atol": 3 * PREDICTION}  # of a log-density, a sum of squares
EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}  # after three layers
OURS = {
    "TNPD": lambda: TNPD(2, 2, **SMALL),
    "TNPD, bounded": lambda: TNPD(1, 1, **SMALL, head="bounded-gaussian"),
    "TNPND, low rank": lambda: TNPND(2, 2, **SMALL),
    "TNPND, Cholesky": lambda: TNPND(1, 1, **SMALL, head="cholesky"),
}


def small(kind=TNPD, seed: int = 0, **options):
    return enliven(kind(**{"dim_x": 2, "dim_y": 2, **SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(context: int, targets: int, streams: int = 2, **masks) -> Batch:
    sizes = (context, context, targets, targets)
    return Batch(*(draw(streams, size, 2, seed=i) for i, size in enumerate(sizes)), **masks)


def published(process, xc, yc, xt, mask=None):
    """Features of the targets from torch's layers and a dense mask over all pairs of tokens."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double()
    encoder.layers.load_state_dict(process.trunk.layers.state_dict())
    context, targets = xc.shape[1], xt.shape[1]
    hidden = torch.ones(len(xc), context + targets, context + targets, dtype=torch.bool)
    hidden[:, :, :context] = False if mask is None else ~mask[:, None, :]
    points = torch.cat([xc, yc], -1), torch.cat([xt, torch.zeros(*xt.shape[:2], 2)], -1)
    tokens = process.trunk.embed(torch.cat(points, dim=1))
    return encoder(tokens, mask=hidden.repeat_interleave(4, dim=0))[:, context:]


@pytest.mark.parametrize(
    ("sizes", "diagonal", "joint"),
    [
        ({}, 222_082, 332_821),
        ({"dim_x": 2}, 222_146, 332_885),
        ({"dim_x": 2, "dim_y": 3}, 222_790, 338_431),
    ],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters(sizes, diagonal, joint):
    processes = TNPD(**sizes), TNPND(**sizes, head="cholesky")
    assert [sum(p.numel() for p in process.parameters()) for process in processes] == [
        diagonal,
        joint,
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("context", [1, 9])
def test_is_torchs_transformer_under_the_published_mask(context, masked):
    process, given = small().double(), batch(context, 5)
    xc, yc, xt = (v.double() for v in (given.xc, given.yc, given.xt))
    mask = draw(2, context, seed=7) > 0 if masked else None
    if masked:
        mask[:, 0] = True  # torch's softmax over nothing is NaN
    expected = published(process, xc, yc, xt, mask)
    found = process.trunk(
        torch.cat([xc, yc], -1),
        nn.functional.pad(xt, (0, 2)),
        None if mask is None else mask[:, None, None],
    )
    torch.testing.assert_close(found, expected, **EXACT)
    predicted = process(xc, yc, xt, mask)
    torch.testing.assert_close(predicted.mean, process.head(expected).mean, **CLOSE)
    torch.testing.assert_close(predicted.stddev, process.head(expected).stddev, **CLOSE)


def test_gradients_are_those_of_torchs_transformer():
    process, given = small().double(), batch(6, 4)
    points = [v.double() for v in (given.xc, given.yc, given.xt)]
    asked = nn.functional.pad(points[2], (0, 2))
    weights = list(process.trunk.embed.parameters())
    found, expected = (
        torch.autograd.grad(features.pow(3).sum(), weights)
        for features in (
            process.trunk(torch.cat(points[:2], -1), asked),
            published(process, *points),
        )
    )
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64 * scale)


def test_layers_start_as_torchs_and_unlike_each_other():
    torch.manual_seed(0)
    ours = TransformerLayer(16, 4).state_dict()
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(16, 4, 32).state_dict()
    assert list(ours) == list(theirs)
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    first, second = (layer.linear1.weight for layer in TNPD(**SMALL).trunk.layers[:2])
    assert not torch.equal(first, second)


def test_many_targets_never_make_a_mask_over_pairs():
    """300,000 targets: one byte for every pair of tokens would be 90 GB."""
    process, xc = small(dim=8, heads=2, layers=2), draw(1, 4, 2)
    with torch.no_grad():
        predicted = process(xc, xc, draw(1, 300_000, 2), torch.tensor([[True, True, False, True]]))
    assert predicted.mean.shape == (1, 300_000, 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 10**6))
def test_targets_and_padding_might_as_well_not_be_there(context, targets, seed):
    process, given_ = small(), batch(context, targets + 1)
    mask = draw(2, context, seed=seed) > 0
    padded = (v.masked_fill(~mask.unsqueeze(-1), torch.nan) for v in (given_.xc, given_.yc))
    together = process(*padded, given_.xt, mask)
    for i, real in enumerate(mask):
        xc, yc = (v[i : i + 1, real] for v in (given_.xc, given_.yc))
        alone = process(xc, yc, given_.xt[i : i + 1, :1])
        torch.testing.assert_close(together.mean[i, :1], alone.mean[0], **CLOSE)
        torch.testing.assert_close(together.stddev[i, :1], alone.stddev[0], **CLOSE)


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_contract(make, check):
    check(Subject.process(enliven(make())))


def test_padded_targets_of_a_joint_prediction_might_as_well_not_be_there():
    real = torch.tensor([[True, False, True, True], [False] * 4])
    process, padded = small(TNPND), batch(6, 4, target_mask=real)
    nan = torch.where(real.unsqueeze(-1), 0.0, torch.nan)
    padded = Batch(padded.xc, padded.yc, padded.xt + nan, padded.yt + nan, None, real)
    xt, yt = (v[:1, real[0]] for v in (padded.xt, padded.yt))
    alone = process(padded.xc[:1], padded.yc[:1], xt).log_prob(yt)
    expected = torch.stack([alone[0], torch.zeros(())])
    torch.testing.assert_close(process.log_likelihood(padded), expected, **CLOSE)
    torch.testing.assert_close(process.loss(padded), -alone[0] / 3, **CLOSE)


def test_the_published_joint_loss_is_not_divided_by_targets():
    process, given = small(TNPND, per_target=False), batch(6, 4)
    density = process(given.xc, given.yc, given.xt).log_prob(given.yt)
    torch.testing.assert_close(process.loss(given), -density.mean(), **CLOSE)
    assert TNPND(**process.config).per_target is False


@pytest.mark.parametrize("kind", [TNPD, TNPND])
def test_learns_a_batch(kind):
    torch.manual_seed(0)
    process, given = kind(2, 2, **SMALL).train(), batch(8, 8, streams=4)
    optimiser = torch.optim.Adam(process.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = process.loss(given)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="dim 16 does not divide into 3 heads"):
        TNPD(**SMALL | {"heads": 3})
    with pytest.raises(ValueError, match="unknown head 'wide'"):
        TNPD(**SMALL, head="wide")
    with pytest.raises(ValueError, match="unknown joint head 'gaussian'"):
        TNPND(**SMALL, head="gaussian")
    with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 3, 1\)"):
        small()(draw(1, 3, 1), draw(1, 3, 2), draw(1, 3, 2))
