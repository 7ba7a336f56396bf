"""Joint heads: their published sizes, what they do with order and padding, and the loss."""

import copy

import pytest
import torch
from torch import nn

from synopsis.processes.cholesky_gaussian import CholeskyGaussian
from synopsis.processes.joint import (
    CholeskyHead,
    JointProcess,
    LowRankHead,
    build_joint_head,
    joint_loss,
)
from synopsis.processes.joint_gaussians import LowRankGaussian
from synopsis.tasks import Batch
from tests import reference
from tests.tolerances import AUTOCAST, FLOAT32, FLOAT64, PREDICTION

NAMES = pytest.mark.parametrize("name", ["low-rank", "cholesky", "bounded-cholesky"])
NAN = float("nan")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def head(name="low-rank", dim=16, dim_y=2, heads=4):
    return reference.enliven(build_joint_head(name, dim, dim_y, heads)).eval()


def numbers(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_published_sizes():
    published = build_joint_head("cholesky", 64, 1, 4)
    assert numbers(published) == 1_460_951 - 1_341_634  # the paper's two processes, spec 3.2
    assert numbers(published.mean) == 8_449
    encoder = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
    assert numbers(published.interact) == 2 * numbers(encoder)
    widths = [(layer.in_features, layer.out_features) for layer in published.project[::2]]
    assert widths == [(64, 128), (128, 128), (128, 128), (128, 20)]
    low_rank = build_joint_head("low-rank", 64, 1, 4)
    widths = [(layer.in_features, layer.out_features) for layer in low_rank.log_variance[::2]]
    assert widths == [(64, 128), (128, 128), (128, 128), (128, 1)]


def test_names_and_what_they_give():
    features = draw(2, 5, 16)
    assert isinstance(head("low-rank")(features), LowRankGaussian)
    for name, bounded in (("cholesky", False), ("bounded-cholesky", True)):
        found = head(name)
        assert isinstance(found, CholeskyHead) and found.bounded is bounded
        assert isinstance(found(features), CholeskyGaussian)
    with pytest.raises(ValueError, match="unknown joint head 'diagonal'; there are low-rank"):
        build_joint_head("diagonal", 16, 1, 4)
    with pytest.raises(ValueError, match="dim 16 does not divide into 3 heads"):
        build_joint_head("low-rank", 16, 1, 3)


@pytest.mark.parametrize("name", ["low-rank", "bounded-cholesky"])
def test_against_torchs_own_layers_and_distributions(name):
    module, features = head(name).double(), draw(3, 6, 16).double()
    y = draw(3, 6, 2, seed=1).double()
    encoded = features
    for layer in module.interact:
        twin = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True).double()
        twin.load_state_dict(layer.state_dict())
        encoded = twin(encoded)
    rows = module.project(encoded).unflatten(-1, (2, 20)).reshape(3, 12, 20)
    if name == "low-rank":
        own = module.log_variance(features).exp() + 1e-6
        covariance = rows @ rows.mT + torch.diag_embed(own.flatten(1))
        expected = {"covariance_matrix": covariance}
    else:
        lower = (rows @ rows.mT).tril(-1)
        diagonal = 0.05 + 0.95 * torch.tanh((rows * rows).sum(-1))
        expected = {"scale_tril": lower + torch.diag_embed(diagonal)}
    mean = module.mean(features)
    twin = torch.distributions.MultivariateNormal(mean.flatten(1), **expected)
    found = module(features).log_prob(y)
    torch.testing.assert_close(
        found, twin.log_prob(y.flatten(1)), rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
    )


def test_the_order_of_targets_means_nothing_to_the_low_rank_head_alone():
    features, y = draw(2, 7, 16).double(), draw(2, 7, 2, seed=1).double()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    for name, equivariant in (("low-rank", True), ("cholesky", False), ("bounded-cholesky", False)):
        module = head(name).double()
        straight, turned = module(features), module(features[:, order])
        torch.testing.assert_close(turned.mean, straight.mean[:, order])
        excess = (turned.log_prob(y[:, order]) - straight.log_prob(y)).abs().max()
        assert bool(excess < 1e-8) is equivariant  # the papers' covariance depends on the order
        spread = (turned.stddev - straight.stddev[:, order]).abs().max()
        assert bool(spread < 1e-10) is equivariant


@NAMES
@pytest.mark.parametrize("training", [False, True])
def test_a_ragged_batch_is_its_tasks_alone(name, training):
    module, features = head(name).double().train(training), draw(3, 6, 16).double()
    y = draw(3, 6, 2, seed=1).double()
    real = torch.tensor([[True] * 6, [True, False, True, True, False, False], [False] * 6])
    y = y.masked_fill(~real.unsqueeze(-1), NAN)
    together = module(features.masked_fill(~real.unsqueeze(-1), 0.0), real)
    found = together.log_prob(y)
    assert found[2] == 0.0
    for i in range(2):
        alone = module(features[i : i + 1, real[i]])
        expected = alone.log_prob(y[i : i + 1, real[i]])
        torch.testing.assert_close(
            found[i : i + 1], expected, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
        )
        torch.testing.assert_close(
            together.stddev[i, real[i]], alone.stddev[0], rtol=FLOAT32, atol=FLOAT32
        )
    found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


@NAMES
def test_one_target_and_none(name):
    module = head(name)
    one = module(draw(2, 1, 16))
    assert one.log_prob(draw(2, 1, 2)).isfinite().all()
    none = module(draw(2, 0, 16))
    assert none.log_prob(draw(2, 0, 2)).tolist() == [0.0, 0.0]


def test_the_floor_holds_and_no_variance_overflows():
    module = LowRankHead(16, 1, 4, floor=0.02)
    features = draw(1, 5, 16)
    for bias, expected in ((-1e4, 0.02), (1e4, torch.tensor(12.0).exp().item())):
        with torch.no_grad():
            module.log_variance[-1].bias.fill_(bias)
        torch.testing.assert_close(
            module(features).own, torch.full((1, 5, 1), expected), rtol=PREDICTION, atol=0.0
        )


@NAMES
def test_mixed_precision_speaks_float32_and_stays_close(name):
    module = build_joint_head(name, 16, 1, 4)
    features, y = draw(2, 5, 16), draw(2, 5, 1, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(features)
        nats = found.log_prob(y)
        assert found.rsample((2,)).isfinite().all()
    assert nats.dtype == found.mean.dtype == found.stddev.dtype == torch.float32
    if name == "low-rank":
        torch.testing.assert_close(nats, module(features).log_prob(y), rtol=AUTOCAST, atol=AUTOCAST)
    nats.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


def batch(real=None, targets=4) -> Batch:
    values = draw(3, targets, 1)
    return Batch(values[:, :2], values[:, :2], values, values, target_mask=real)


def test_the_loss_per_target_and_as_published():
    nats = torch.tensor([3.0, -6.0, 12.0], dtype=torch.float64)
    assert joint_loss(nats, batch()).item() == pytest.approx(-9 / 12, rel=FLOAT64)
    assert joint_loss(nats, batch(), per_target=False).item() == pytest.approx(-3, rel=FLOAT64)
    real = torch.tensor([[True, False, False, False], [True] * 4, [True, True, False, False]])
    assert joint_loss(nats, batch(real)).item() == pytest.approx(-9 / 7, rel=FLOAT64)


class Unconditional(JointProcess):
    """Predicts from target inputs alone, and remembers what it was given."""

    def __init__(self) -> None:
        self.head = head("low-rank", dim_y=1)

    def jointly(self, xc, yc, xt, mask, real):
        self.given = copy.copy((xc, yc, xt))
        return self.head(xt.expand(-1, -1, 16), real)


def test_a_joint_process_gets_no_padding_and_scores_itself_consistently():
    process, real = Unconditional(), torch.rand(3, 4) < 0.5
    real[0], real[1] = True, False
    full = batch(real)
    hidden = full.xt.masked_fill(~real.unsqueeze(-1), NAN)
    seen = torch.tensor([[True, False]] * 3)
    padded = Batch(
        full.xc.masked_fill(~seen.unsqueeze(-1), NAN), full.yc, hidden, hidden, seen, real
    )
    joint = process.joint(padded)
    assert all(bool(given.isfinite().all()) for given in process.given)
    nats, marginals = process.score(padded)
    assert torch.equal(nats, joint.log_prob(padded.yt)) and nats.isfinite().all()
    assert torch.equal(nats, process.log_likelihood(padded))
    assert torch.equal(marginals.stddev, joint.stddev)
    assert process.loss(padded) == joint_loss(nats, padded)
    process.per_target = False
    assert process.loss(padded) == -nats.mean()
