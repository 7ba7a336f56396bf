"""TNPA: what it scores against torch's own Transformer, and what it draws against what it scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

from synopsis.processes.tnp_autoregressive import TNPA
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests.reference import enliven
from tests.tolerances import FLOAT32, PREDICTION

SMALL = {"dim": 16, "heads": 4, "layers": 3}
CLOSE = {"rtol": 3 * PREDICTION, "atol": 3 * PREDICTION}  # of a log-density, a sum of squares


def small(seed: int = 0, **options) -> TNPA:
    return enliven(TNPA(**{"dim_x": 2, "dim_y": 2, **SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(context: int, targets: int, streams: int = 2, **masks) -> Batch:
    sizes = (context, context, targets, targets)
    return Batch(*(draw(streams, size, 2, seed=i) for i, size in enumerate(sizes)), **masks)


def published(process, given):
    """Density of each target, with who sees whom written out one pair at a time."""
    n, m = given.xc.shape[1], given.xt.shape[1]
    seen = torch.zeros(n + 2 * m, n + 2 * m, dtype=torch.bool)
    seen[:, :n] = True
    for j in range(m):
        for i in range(m):
            seen[n + j, n + i] = i <= j
            seen[n + m + j, n + i] = i < j
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).double()
    encoder.layers.load_state_dict(process.trunk.layers.state_dict())
    known, told = (torch.cat(p, -1) for p in ((given.xc, given.yc), (given.xt, given.yt)))
    asked = torch.cat([given.xt, torch.zeros_like(given.yt)], -1)
    tokens = process.trunk.embed(torch.cat([known, told, asked], dim=1).double())
    features = encoder(tokens, mask=~seen)[:, n + m :]
    mean, raw = process.head.predict(process.head.expand(features).relu()).chunk(2, -1)
    return Normal(mean, raw.exp()).log_prob(given.yt.double()).sum(-1)


@pytest.mark.parametrize(
    ("sizes", "number"),
    [({}, 222_082), ({"dim_x": 2}, 222_146), ({"dim_x": 2, "dim_y": 3}, 222_790)],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters(sizes, number):
    assert sum(p.numel() for p in TNPA(**sizes).parameters()) == number


@pytest.mark.parametrize(("context", "targets"), [(1, 1), (4, 6)])
def test_scores_are_torchs_transformer_under_the_published_mask(context, targets):
    process, given = small(), batch(context, targets)
    found = process.target_log_likelihood(given)
    expected = published(small().double(), given)
    torch.testing.assert_close(
        found.double(), expected, rtol=100 * FLOAT32, atol=100 * FLOAT32
    )  # float32
    torch.testing.assert_close(process.log_likelihood(given), found.sum(-1), **CLOSE)
    torch.testing.assert_close(process.loss(given), -found.mean(), **CLOSE)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
def test_draws_follow_the_density_that_is_scored(context, targets, masked, seed):
    """The Gaussian behind each drawn value is the one by which teacher forcing scores it."""
    process, given_ = small(), batch(context, targets)
    mask = draw(2, context, seed=seed) > 0 if masked else None
    hidden = 0.0 if mask is None else (~mask).float().unsqueeze(-1)
    xc, yc = given_.xc * (1 - hidden), given_.yc * (1 - hidden)
    order = torch.rand(3, targets, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    drawn = process.draw(xc, yc, given_.xt, mask, order, draw(2, 3, targets, 2, seed=seed))
    density = Normal(drawn.mean, drawn.stddev).log_prob(drawn.y).sum(-1)
    for function, permutation in enumerate(order):
        xt, yt = given_.xt[:, permutation], drawn.y[:, function, permutation]
        scored = process.target_log_likelihood(Batch(xc, yc, xt, yt, context_mask=mask))
        torch.testing.assert_close(
            scored, density[:, function, permutation], rtol=100 * FLOAT32, atol=100 * FLOAT32
        )


def test_a_target_is_scored_by_the_targets_before_it_and_no_other():
    process, given = small(), batch(4, 5, streams=1)
    yt = given.yt.requires_grad_()
    given = Batch(given.xc, given.yc, given.xt, yt)
    for j in range(5):
        each = process.target_log_likelihood(given)[0, j]
        felt = torch.autograd.grad(each, yt)[0][0].abs().sum(-1)
        assert (felt[: j + 1] > 0).all() and (felt[j + 1 :] == 0).all()


def test_padded_targets_might_as_well_not_be_there():
    real = torch.tensor([[True, False, True, True], [False] * 4])
    process, full = small(), batch(6, 4)
    nan = torch.where(real.unsqueeze(-1), 0.0, torch.nan)
    context_mask = torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    padded = Batch(full.xc, full.yc, full.xt + nan, full.yt + nan, context_mask, real)
    xt, yt = (v[:1, real[0]] for v in (full.xt, full.yt))
    alone = process.target_log_likelihood(Batch(full.xc[:1, :4], full.yc[:1, :4], xt, yt))
    found = process.target_log_likelihood(padded)
    torch.testing.assert_close(found[:1, real[0]], alone, **CLOSE)
    assert (found[~real] == 0).all()
    loss = process.train().loss(padded)
    torch.testing.assert_close(loss, -alone.mean(), **CLOSE)
    loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in process.parameters())


def test_one_target_is_predicted_as_it_is_scored():
    process, given = small(), batch(7, 1)
    predicted = process(given.xc, given.yc, given.xt).log_prob(given.yt)
    torch.testing.assert_close(predicted, process.target_log_likelihood(given), **CLOSE)


def test_about_half_of_the_functions_predict_either_of_two_targets_first():
    process, given = small(), batch(7, 2, streams=1)
    predicted = process(given.xc, given.yc, given.xt)
    means = predicted.base_dist.component_distribution.loc  # (1, 2 targets, 2 outputs, 50)
    first = torch.stack(
        [process(given.xc, given.yc, given.xt[:, i : i + 1]).mean[:, 0] for i in (0, 1)], dim=1
    )
    as_first = ((means - first.unsqueeze(-1)).abs() < 1e-4).all(2)[0]
    assert means.shape[-1] == 50
    assert (as_first.sum(0) == 1).all()  # in every function one of the two comes first
    assert 15 <= int(as_first[0].sum()) <= 35


def test_predictions_with_and_without_a_graph_agree():
    process, given = small(), batch(7, 6)
    with_graph = process(given.xc, given.yc, given.xt)
    with torch.no_grad():
        without = process(given.xc, given.yc, given.xt)
    assert with_graph.mean.requires_grad and not without.mean.requires_grad
    torch.testing.assert_close(with_graph.mean, without.mean, **CLOSE)
    torch.testing.assert_close(with_graph.stddev, without.stddev, **CLOSE)


def test_samples_are_reproducible_whole_functions():
    process, given = small(dim_y=1), batch(7, 3)
    state = process.update(process.init((2,)), given.xc, given.yc[..., :1])
    one, same, other = (
        process.sample(state, given.xt, 4, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert one.shape == (4, 2, 3, 1) and not one.requires_grad
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert process.sample(state, given.xt[:, :0]).shape == (50, 2, 0, 1)


def test_samples_of_one_target_have_the_predicted_moments():
    process, given = small(), batch(7, 1, streams=1)
    state = process.update(process.init(), given.xc, given.yc)
    drawn = process.sample(state, given.xt, 10_000, torch.Generator().manual_seed(0))
    predicted = process.predict(state, given.xt)
    error = predicted.stddev / 100  # of a mean of 10,000
    assert ((drawn.mean(0) - predicted.mean).abs() < 5 * error).all()
    assert ((drawn.std(0) - predicted.stddev).abs() < 5 * error).all()


@pytest.mark.parametrize("head", ["gaussian", "bounded-gaussian"])
def test_training_blurs_what_targets_see_with_bounded_heads_only(head):
    process, given = small(head=head), batch(4, 5)
    exact = process.target_log_likelihood(given)
    torch.manual_seed(0)
    blurred = process.train().target_log_likelihood(given)
    torch.testing.assert_close(blurred[:, 0], exact[:, 0], **CLOSE)  # it sees no other target
    differs = (blurred[:, 1:] - exact[:, 1:]).abs() > 1e-3
    assert bool(differs.all()) if head == "bounded-gaussian" else not differs.any()


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(Subject.process(enliven(TNPA(1, 2, dim=16, heads=2, layers=2))))


def test_learns_a_batch():
    torch.manual_seed(0)
    process, given = TNPA(2, 2, **SMALL).train(), batch(8, 8, streams=4)
    optimiser = torch.optim.Adam(process.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = process.loss(given)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_other_heads_and_states_are_refused():
    with pytest.raises(ValueError, match="head 'mixture-3'; TNPA takes gaussian"):
        TNPA(**SMALL, head="mixture-3")
    process = small()
    with pytest.raises(ValueError, match="not by this one"):
        process.sample(small(seed=1).init(), draw(1, 2, 2))
    with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 2, 1\)"):
        process.sample(process.init(), draw(1, 2, 1))
