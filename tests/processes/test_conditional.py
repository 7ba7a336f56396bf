"""CNP and CANP against the published models in naive float64, and CNP as a stream."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.processes.conditional import CANP, CNP, CNPState, everything_of
from synopsis.processes.pooling import CELEBA, EMNIST, GP
from synopsis.states import State, StateFormatError
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests import reference
from tests.processes.test_pooling import naive_attention
from tests.reference import below, linear
from tests.tolerances import FLOAT64, PREDICTION, STATE

SMALL = {"dim_x": 2, "dim_y": 2, "dim": 16, "depths": (4, 2, 3, 4, 2)}
BOTH = pytest.mark.parametrize("kind", [CNP, CANP])


def small(kind, seed: int = 0, **options):
    return reference.enliven(kind(**SMALL | options), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ragged_batch(streams: int = 3, context: int = 6, targets: int = 4) -> Batch:
    """Streams with everything, with holes and without any context; NaN in padding."""
    xc, yc = draw(streams, context, 2), draw(streams, context, 2, seed=1)
    xt, yt = draw(streams, targets, 2, seed=2), draw(streams, targets, 2, seed=3)
    context_mask = draw(streams, context, seed=4) > -0.5
    target_mask = draw(streams, targets, seed=5) > -0.5
    context_mask[0], context_mask[-1], target_mask[0] = True, False, True
    for values, mask in ((xc, context_mask), (yc, context_mask), (xt, target_mask)):
        values[~mask] = torch.nan
    yt[~target_mask] = torch.nan
    return Batch(xc, yc, xt, yt, context_mask, target_mask)


def alone(batch: Batch, i: int):
    """The real context and targets of one task."""
    context, targets = batch.context_mask[i], batch.target_mask[i]
    pairs = ((batch.xc, context), (batch.yc, context), (batch.xt, targets), (batch.yt, targets))
    return tuple(values[i : i + 1, mask] for values, mask in pairs)


def naive_perceptron(weights, x):
    layers = sorted({int(name.split(".")[0]) for name in weights})
    for layer in layers[:-1]:
        x = np.maximum(linear(below(weights, str(layer)), x), 0.0)
    return linear(below(weights, str(layers[-1])), x)


def naive_pooling(weights, points):
    embedded = naive_perceptron(below(weights, "before"), points)
    mean = embedded.mean(0) if len(points) else np.zeros(embedded.shape[1])
    return naive_perceptron(below(weights, "after"), mean)


def naive_decoder(weights, xt, encodings, floor=0.1):
    rows = [
        np.concatenate([*(e[i] if e.ndim > 1 else e for e in encodings), x])
        for i, x in enumerate(xt)
    ]
    entered = np.maximum(linear(below(weights, "enter"), np.stack(rows)), 0.0)
    mean, raw = np.split(naive_perceptron(below(weights, "transform"), entered), 2, axis=-1)
    return mean, floor + (1 - floor) * np.logaddexp(0.0, raw)


def naive_canp(weights, xc, yc, xt):
    points, cross = np.concatenate([xc, yc], -1), below(weights, "encodings.first")
    value = naive_perceptron(below(cross, "value"), points)
    value = naive_attention(below(cross, "attend_values"), value, value, value)
    query, key = (naive_perceptron(below(cross, "query_key"), v) for v in (xt, xc))
    first = naive_attention(below(cross, "attend"), query, key, value)
    pool = below(weights, "encodings.second")
    seen = np.maximum(naive_perceptron(below(pool, "before"), points), 0.0)
    seen = naive_attention(below(pool, "attend"), seen, seen, seen)
    mean = seen.mean(0) if len(seen) else np.zeros(value.shape[1])
    second = naive_perceptron(below(pool, "after"), mean)
    return naive_decoder(below(weights, "decoder"), xt, (first, second))


def naive_cnp(weights, xc, yc, xt):
    points = np.concatenate([xc, yc], -1)
    both = [naive_pooling(below(weights, f"encodings.{n}"), points) for n in ("first", "second")]
    return naive_decoder(below(weights, "decoder"), xt, both)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(CNP, (215_682, 298_626, 349_190)), (CANP, (331_906, 414_978, 465_542))],
)
def test_the_published_number_of_parameters(kind, numbers):
    sizes = ((1, 1, GP), (2, 1, EMNIST), (2, 3, CELEBA))
    found = [kind(x, y, depths=depths).parameters() for x, y, depths in sizes]
    assert tuple(sum(p.numel() for p in parameters) for parameters in found) == numbers
    assert sum(p.numel() for p in kind().parameters()) == numbers[0]


@BOTH
@pytest.mark.parametrize("length", [0, 1, 9])
def test_is_the_published_model(kind, length):
    process, twin = small(kind).double(), {CNP: naive_cnp, CANP: naive_canp}[kind]
    xc, yc, xt = draw(1, length, 2), draw(1, length, 2, seed=1), draw(1, 4, 2, seed=2)
    arrays = [v[0].double().numpy() for v in (xc, yc, xt)]
    mean, stddev = twin(reference.float64_weights(process), *arrays)
    for training in (False, True):
        found = process.train(training)(xc.double(), yc.double(), xt.double())
        np.testing.assert_allclose(found.mean[0].detach(), mean, rtol=0, atol=100 * FLOAT64)
        np.testing.assert_allclose(found.stddev[0].detach(), stddev, rtol=0, atol=100 * FLOAT64)


@BOTH
@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(kind, check):
    check(Subject.process(small(kind, depths=(3, 1, 2, 3, 1))))


@BOTH
def test_the_loss_is_a_loop_over_real_points_of_context_and_targets(kind):
    process, batch, terms = small(kind).train(), ragged_batch(), []
    for i in range(3):
        xc, yc, xt, yt = alone(batch, i)
        for x, y in zip((*xc[0], *xt[0]), (*yc[0], *yt[0]), strict=True):
            at = process(xc, yc, x.view(1, 1, -1))
            terms.append(torch.distributions.Normal(at.mean, at.stddev).log_prob(y).sum())
    expected = -torch.stack(terms).mean()
    torch.testing.assert_close(process.loss(batch), expected, rtol=PREDICTION, atol=PREDICTION)
    whole = Batch(*alone(batch, 0))
    both = Batch(*alone(batch, 0), *(torch.ones(1, n, dtype=torch.bool) for n in (6, 4)))
    torch.testing.assert_close(
        process.loss(whole), process.loss(both), rtol=PREDICTION, atol=PREDICTION
    )


@BOTH
def test_padding_reaches_no_gradient_of_the_loss(kind):
    process = small(kind).train()
    process.loss(ragged_batch()).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in process.parameters())


@pytest.mark.parametrize("masked", ["context_mask", "target_mask"])
def test_one_mask_alone_is_enough(masked):
    batch = ragged_batch()
    masks = {"context_mask": None, "target_mask": None, masked: getattr(batch, masked)}
    points = everything_of(Batch(batch.xc, batch.yc, batch.xt, batch.yt, **masks))
    expected = [6 + 4 - int((~real).sum()) for real in masks[masked]]
    assert points.number.tolist() == expected and points.real.shape == points.x.shape[:2]
    assert everything_of(Batch(batch.xc, batch.yc, batch.xt, batch.yt)).number.tolist() == [10] * 3


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.data())
def test_any_pieces_in_any_order_leave_the_sums_of_all(seed, length, data):
    process, x, y = small(CNP), draw(1, length, 2, seed=seed), draw(1, length, 2, seed=seed + 1)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    pieces = list(zip([0, *cuts], [*cuts, length], strict=True))
    states = [process.update(process.init(), x[:, i:j], y[:, i:j]) for i, j in pieces]
    order = data.draw(st.permutations(range(len(states))))
    merged = process.init()
    for i in order:
        merged = process.merge(merged, states[i])
    at_once = process.update(process.init(), x, y)
    assert merged.count.tolist() == [length]
    torch.testing.assert_close(merged.totals, at_once.totals, rtol=STATE, atol=STATE)


def test_a_stream_is_two_sums_and_a_count():
    process = CNP()
    state = process.update(process.init((3,)), draw(3, 7, 1), draw(3, 7, 1, seed=1))
    assert isinstance(state, CNPState)
    assert state.nbytes == 3 * (2 * 128 * 8 + 8)
    with pytest.raises(StateFormatError, match=r"sums \(3, 1, 128\) of 3 streams"):
        broken = CNPState(state.totals[:, :1], state.count, state.fingerprint)
        State.deserialize(broken.serialize())


@BOTH
def test_points_that_do_not_fit_are_refused_with_their_shapes(kind):
    process = small(kind)
    for training in (True, False):
        process.train(training)
        with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 3, 1\)"):
            process(draw(1, 3, 1), draw(1, 3, 2), draw(1, 3, 2))
        with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 3, 1\)"):
            process(draw(1, 3, 2), draw(1, 3, 2), draw(1, 3, 1))
    with pytest.raises(ValueError, match="floor must be between 0 and 1, not 2"):
        kind(floor=2.0)


@BOTH
def test_a_lower_floor_is_an_option(kind):
    xc, yc, xt = draw(1, 5, 2), draw(1, 5, 2, seed=1), draw(1, 4, 2, seed=2)
    usual, low = small(kind)(xc, yc, xt), small(kind, floor=0.01)(xc, yc, xt)
    expected = 0.01 + 0.99 * (usual.stddev - 0.1) / 0.9
    torch.testing.assert_close(low.stddev, expected, rtol=PREDICTION, atol=PREDICTION)
