"""BNP and BANP: resampling, residuals and their centre against a loop, and predictions free of chance and order."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from synopsis.processes import bootstrap
from synopsis.processes.bootstrap import BANP, BNP, in_order_of_values, resampled
from synopsis.processes.conditional import CANP, CNP, Points, context_of
from synopsis.processes.pooling import CELEBA, EMNIST, GP
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests import reference
from tests.processes.test_conditional import (
    alone,
    draw,
    naive_decoder,
    naive_perceptron,
    naive_pooling,
    ragged_batch,
)
from tests.processes.test_latent import double
from tests.reference import below, linear
from tests.tolerances import FLOAT64, PREDICTION

SMALL = {"dim_x": 2, "dim_y": 2, "dim": 16, "depths": (4, 2, 3, 4, 2), "samples": 6}
BOTH = pytest.mark.parametrize("kind", [BNP, BANP])


def small(kind, seed: int = 0, **options):
    return reference.enliven(kind(**SMALL | options), seed).eval()


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(BNP, (248_450, 331_394, 381_958)), (BANP, (364_674, 447_746, 498_310))],
)
def test_the_published_number_of_parameters(kind, numbers):
    sizes = ((1, 1, GP), (2, 1, EMNIST), (2, 3, CELEBA))
    found = [kind(x, y, depths=depths).parameters() for x, y, depths in sizes]
    assert tuple(sum(p.numel() for p in parameters) for parameters in found) == numbers
    assert sum(p.numel() for p in kind().parameters()) == numbers[0]


@BOTH
@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(kind, check):
    check(Subject.process(small(kind, depths=(3, 1, 2, 3, 1))))


def naive_outputs(weights, x, y, first, second):
    """One bootstrapped context: fit to points chosen by first, residuals chosen by second, centred."""

    def encode(xc, yc):
        points = np.concatenate([xc, yc], -1)
        return [
            naive_pooling(below(weights, f"encodings.{n}"), points) for n in ("first", "second")
        ]

    n = len(x)
    chosen = [int(u * n) for u in first]
    mean, stddev = naive_decoder(below(weights, "decoder"), x, encode(x[chosen], y[chosen]))
    residuals = ((y - mean) / stddev)[[int(u * n) for u in second]]
    return mean + stddev * (residuals - residuals.mean(0))


@pytest.mark.parametrize("length", [1, 7])
def test_every_component_is_the_published_bootstrap(length):
    process = small(BNP).double()
    xc, yc = draw(1, length, 2).double(), draw(1, length, 2, seed=1).double()
    xt, draws = draw(1, 4, 2, seed=2).double(), process._fixed_draws(length)
    found = process(xc, yc, xt)._parts[1:]
    weights, order = reference.float64_weights(process), xc[0, :, 0].argsort()
    x, y = xc[0, order].numpy(), yc[0, order].numpy()
    decoder = below(weights, "decoder")
    for copy in range(6):
        outputs = naive_outputs(weights, x, y, *draws[:, copy, 0].tolist())
        pairs = (np.concatenate([x, values], -1) for values in (y, outputs))
        base, new = (
            np.concatenate(
                [naive_pooling(below(weights, f"encodings.{n}"), p) for n in ("first", "second")]
            )
            for p in pairs
        )
        at = np.concatenate([np.tile(base, (4, 1)), xt[0].numpy()], -1)
        entered = linear(below(decoder, "enter"), at) + linear(below(decoder, "enter_copies"), new)
        raw = naive_perceptron(below(decoder, "transform"), np.maximum(entered, 0.0))
        expected = raw[:, :2], 0.1 + 0.9 * np.logaddexp(0.0, raw[:, 2:])
        for values, right in zip(found, expected, strict=True):
            values = values[0, ..., copy].detach()
            np.testing.assert_allclose(values, right, rtol=0, atol=1e3 * FLOAT64)


@BOTH
def test_residuals_are_resampled_among_real_points_and_centred(kind):
    process, batch = small(kind).double(), double(ragged_batch())
    context = in_order_of_values(context_of(batch))
    draws = uniform(2, 5, 3, 6)
    outputs = process.bootstrapped_outputs(context, draws)
    assert not outputs.requires_grad and outputs.shape == (5, 3, 6, 2)
    for stream, number in enumerate(context.number.tolist()):
        assert not outputs[:, stream, number:].any()
        x, y = context.x[stream : stream + 1, :number], context.y[stream : stream + 1, :number]
        for copy in range(5 if number else 0):
            first, second = (draws[i, copy, stream, :number] * number for i in (0, 1))
            chosen = first.long()
            encoded = process.encodings(x[:, chosen], y[:, chosen], x, None)
            fit = process.decoder(x, encoded)
            residuals = ((y - fit.mean) / fit.stddev)[0]
            added = ((outputs[copy, stream, :number] - fit.mean) / fit.stddev)[0]
            expected = residuals[second.long()]
            expected = expected - expected.mean(0)
            torch.testing.assert_close(added, expected, rtol=0, atol=1e4 * FLOAT64)
            torch.testing.assert_close(
                added.mean(0), torch.zeros(2).double(), rtol=0, atol=1e4 * FLOAT64
            )


def test_draws_choose_each_real_point_equally_often():
    values = torch.arange(4.0).view(1, 4, 1)
    chosen = resampled(values, torch.tensor([[3]]), uniform(3_000, 1, 4)).flatten()
    share = torch.bincount(chosen.long(), minlength=4) / chosen.numel()
    torch.testing.assert_close(share[:3], torch.full((3,), 1 / 3), rtol=0, atol=0.03)
    assert share[3] == 0
    assert resampled(values, torch.tensor([[0]]), uniform(2, 1, 4)).shape == (2, 1, 4, 1)


def test_points_are_sorted_by_their_values_and_padding_comes_last():
    x = torch.tensor([[[2.0], [0.0], [1.0], [0.0], [1.0]]])
    y = torch.tensor([[[5.0], [0.0], [4.0], [0.0], [-4.0]]])
    real = torch.tensor([[True, False, True, False, True]])
    found = in_order_of_values(Points(x, y, real))
    assert found.x.flatten().tolist() == [1.0, 1.0, 2.0, 0.0, 0.0]
    assert found.y.flatten().tolist() == [-4.0, 4.0, 5.0, 0.0, 0.0]
    assert found.real.flatten().tolist() == [True, True, True, False, False]
    turned = in_order_of_values(Points(x.flip(1), y.flip(1), None))
    assert turned.x.flatten().tolist() == [0.0, 0.0, 1.0, 1.0, 2.0]
    assert turned.y.flatten().tolist() == [0.0, 0.0, -4.0, 4.0, 5.0]


@BOTH
def test_neither_chance_nor_order_nor_company_changes_a_prediction(kind):
    process, xt = small(kind), draw(3, 4, 2, seed=2)
    x, y = draw(3, 9, 2), draw(3, 9, 2, seed=1)
    x[:, 4:] = x[:, :1]  # ties in the inputs
    torch.manual_seed(3)
    expected = process(x, y, xt)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    found = process(x[:, order], y[:, order], xt)
    for name in ("mean", "stddev"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(mine, theirs, rtol=PREDICTION, atol=PREDICTION)
    process.config["seed"] = 2
    assert not torch.allclose(process(x, y, xt).mean, expected.mean)


@BOTH
def test_copies_in_groups_are_copies_at_once(monkeypatch, kind):
    process, batch = small(kind), ragged_batch()
    expected = process(batch.xc, batch.yc, batch.xt.nan_to_num(), batch.context_mask)
    monkeypatch.setattr(bootstrap, "_ROWS", 2 * 3 * 6)
    found = process(batch.xc, batch.yc, batch.xt.nan_to_num(), batch.context_mask)
    assert found._parts[1].shape == expected._parts[1].shape
    for mine, theirs in zip(found._parts, expected._parts, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=PREDICTION, atol=PREDICTION)


@BOTH
def test_the_loss_is_that_of_the_base_and_of_the_mixture(kind):
    process, batch = small(kind).double().train(), double(ragged_batch())
    torch.manual_seed(5)
    found = process.loss(batch)
    torch.manual_seed(5)
    draws, context = torch.rand(2, 4, 3, 6, dtype=torch.float64), context_of(batch)
    context, base, mixed = in_order_of_values(context), [], []
    outputs = process.bootstrapped_outputs(context, draws)
    for i, number in enumerate(context.number.tolist()):
        xc, yc, xt, yt = alone(batch, i)
        x, y = torch.cat([xc, xt], 1), torch.cat([yc, yt], 1)
        encoded = process.encodings(xc, yc, x, None)
        predicted = process.decoder(x, encoded)
        base.append(Normal(predicted.mean, predicted.stddev).log_prob(y).sum(-1).flatten())
        each = []
        for copy in range(4):
            new = outputs[copy, i : i + 1, :number]
            bootstrapped = process.encodings(context.x[i : i + 1, :number], new, x, None)
            predicted = process.decoder.with_copies(x, encoded, bootstrapped)
            each.append(Normal(predicted.mean, predicted.stddev).log_prob(y).sum(-1).flatten())
        mixed.append(torch.stack(each).exp().mean(0).log())
    expected = -torch.cat(base).mean() - torch.cat(mixed).mean()
    torch.testing.assert_close(found, expected, rtol=1e4 * FLOAT64, atol=0)


@BOTH
def test_every_weight_learns_from_the_loss_and_padding_reaches_none(kind):
    process = small(kind).train()
    process.loss(ragged_batch()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in process.parameters())


@pytest.mark.parametrize(("kind", "base"), [(BNP, CNP), (BANP, CANP)])
def test_without_its_copies_it_is_the_conditional_process(kind, base):
    process = small(kind)
    sizes = {name: value for name, value in SMALL.items() if name != "samples"}
    plain = base(**sizes).eval()
    plain.load_state_dict({n: p for n, p in process.state_dict().items() if "copies" not in n})
    with torch.no_grad():
        process.decoder.enter_copies.weight.zero_()
    for length in (0, 5):
        points = draw(1, length, 2), draw(1, length, 2, seed=1), draw(1, 4, 2, seed=2)
        found, expected = process(*points), plain(*points)
        torch.testing.assert_close(found.mean, expected.mean, rtol=PREDICTION, atol=PREDICTION)
        torch.testing.assert_close(found.stddev, expected.stddev, rtol=PREDICTION, atol=PREDICTION)


@BOTH
def test_what_does_not_fit_is_refused(kind):
    for name in ("samples", "train_samples", "seed"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            kind(**{name: 0})
    process = small(kind).train()
    with pytest.raises(ValueError, match=r"y must be \(1, 3, 2\) to go with"):
        process.loss(Batch(draw(1, 3, 2), draw(1, 3, 1), draw(1, 3, 2), draw(1, 3, 1)))
