"""CMANP against the published model in naive float64, and as a stream."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.processes import CMANP
from synopsis.processes.base import load
from synopsis.states import State
from tests import reference
from tests.tolerances import FLOAT32, FLOAT64, PREDICTION, STATE

SMALL = {"dim": 16, "heads": 4, "blocks": 3, "latents": 5}
CLOSE = {"rtol": 3 * PREDICTION, "atol": 3 * PREDICTION}  # of a log-density, a sum of squares


def small(seed: int = 0, **options) -> CMANP:
    arguments = {"dim_x": 2, "dim_y": 2, **SMALL, **options}
    return reference.enliven(CMANP(**arguments), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(length: int, streams: int = 1, seed: int = 0):
    return draw(streams, length, 2, seed=seed), draw(streams, length, 2, seed=seed + 1)


def same(found, expected, tolerance=PREDICTION):
    for name in ("mean", "stddev"):
        torch.testing.assert_close(
            getattr(found, name).double(),
            getattr(expected, name).double(),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize(
    ("sizes", "number"),
    [({}, 1_341_634), ({"dim_x": 2}, 1_341_762), ({"dim_x": 2, "dim_y": 3}, 1_342_406)],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters(sizes, number):
    process = CMANP(**sizes)
    assert sum(p.numel() for p in process.parameters()) == number
    assert sum(p.numel() for p in process.trunk.decoder[0].parameters()) == 41_728
    if not sizes:
        assert sum(p.numel() for p in process.embed_context.parameters()) == 12_672
        assert sum(p.numel() for p in process.embed_target.parameters()) == 12_608


def test_the_state_of_the_published_sizes_is_400_kilobytes():
    state = CMANP().init()
    assert (
        state.nbytes == 6 * 4 * 128 * (16 + 2) * 8 + 8
    )  # float64 sums: twice the published 208,896


@pytest.mark.parametrize("residual", ["raw", "normed"])
@pytest.mark.parametrize("head", ["gaussian", "bounded-gaussian"])
@pytest.mark.parametrize("length", [1, 30])
def test_is_the_published_model(residual, head, length):
    process = small(residual=residual, head=head).double()
    (xc, yc), xt = (v.double() for v in points(length)), draw(1, 4, 2, seed=5).double()
    weights = reference.float64_weights(process)
    mean, stddev = reference.cmanp(weights, *(v[0].numpy() for v in (xc, yc, xt)), process.config)
    found = process(xc, yc, xt)  # heads speak float32
    np.testing.assert_allclose(found.mean[0].detach(), mean, rtol=FLOAT32, atol=FLOAT32)
    np.testing.assert_allclose(found.stddev[0].detach(), stddev, rtol=FLOAT32, atol=FLOAT32)
    in_float32 = process.float()(xc.float(), yc.float(), xt.float())
    np.testing.assert_allclose(
        in_float32.mean[0].detach(), mean, rtol=100 * FLOAT32, atol=100 * FLOAT32
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 70), st.data())
def test_any_pieces_in_any_order_with_any_padding(seed, length, data):
    process, (x, y), xt = small(), points(length, seed=seed), draw(1, 4, 2, seed=9)
    expected = process(x, y, xt)
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    state = process.init()
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        x_, y_ = (
            torch.nn.functional.pad(v[:, order[start:end]], (0, 0, 0, 2), value=torch.nan)
            for v in (x, y)
        )
        mask = torch.arange(x_.shape[1]).unsqueeze(0) < end - start
        state = process.update(state, x_, y_, mask)
    same(process.predict(state, xt), expected)
    assert state.count.tolist() == [length]


def test_three_thousand_single_points_predict_as_one_float64_batch():
    process, (x, y), xt = small(blocks=2), points(3_000, seed=3), draw(1, 8, 2, seed=9)
    state = process.init()
    for piece in zip(x.split(1, 1), y.split(1, 1), strict=True):
        state = process.update(state, *piece)
    exact = small(blocks=2).double()
    twin = exact.update(exact.init(), x.double(), y.double())
    for name in ("output", "lse"):
        torch.testing.assert_close(
            getattr(state.blocks.summary, name),
            getattr(twin.blocks.summary, name),
            rtol=0.0,
            atol=STATE,
        )
    same(process.predict(state, xt), exact.predict(twin, xt.double()))


def test_ragged_batches_are_their_streams_alone_in_both_modes():
    process, (x, y), xt = small(), points(20, streams=3), draw(1, 4, 2, seed=9).expand(3, -1, -1)
    lengths = torch.tensor([20, 7, 0])
    mask = torch.arange(20) < lengths.unsqueeze(1)
    x, y = (v.masked_fill(~mask.unsqueeze(-1), torch.nan) for v in (x, y))
    for training in (False, True):
        together = process.train(training)(x, y, xt, mask)
        for i, length in enumerate(lengths):
            alone = process(x[i : i + 1, :length], y[i : i + 1, :length], xt[:1])
            torch.testing.assert_close(together.mean[i], alone.mean[0], **CLOSE)
            torch.testing.assert_close(together.stddev[i], alone.stddev[0], **CLOSE)


def test_targets_never_see_each_other():
    process, (x, y), xt = small(), points(20), draw(1, 6, 2, seed=9)
    together = process(x, y, xt)
    for i in range(6):
        alone = process(x, y, xt[:, i : i + 1])
        torch.testing.assert_close(together.mean[:, i : i + 1], alone.mean, **CLOSE)
    assert process(x, y, xt[:, :0]).mean.shape == (1, 0, 2)


def test_a_saved_state_goes_on_bit_for_bit():
    process, (x, y) = small(), points(60)
    straight = process.update(
        process.update(process.init(), x[:, :30], y[:, :30]), x[:, 30:], y[:, 30:]
    )
    half = State.deserialize(process.update(process.init(), x[:, :30], y[:, :30]).serialize())
    assert process.update(half, x[:, 30:], y[:, 30:]).serialize() == straight.serialize()


def test_training_mode_streams_keep_their_graph_and_evaluation_mode_none():
    process, (x, y) = small().train(), points(10)
    state = process.update(process.init(), x, y)
    process.predict(state, x[:, :2]).mean.sum().backward()
    assert all(weight.grad is not None for weight in process.embed_context.parameters())
    assert not process.eval().update(process.init(), x, y).blocks.summary.numerator.requires_grad


def test_gradients_of_both_training_paths_agree():
    process = small().double().train()
    (x, y), xt = (v.double() for v in points(12)), draw(1, 4, 2, seed=9).double()
    weights = [p for n, p in process.named_parameters() if not n.startswith("head")]

    def gradients(features):
        return torch.autograd.grad(features.square().sum(), weights)

    context = process.embed_context(torch.cat([x, y], -1))
    targets = process.embed_target(xt)
    fused = gradients(process.trunk.decode(targets, process.trunk.encode(context, None)))
    state = process.update(process.init(), x, y)
    targets = process.embed_target(xt)
    streamed = gradients(process.trunk.decode(targets, process.trunk.read(state.blocks)))
    for found, expected in zip(streamed, fused, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e5 * FLOAT64, atol=1e5 * FLOAT64)


def test_points_that_do_not_fit_are_refused_with_their_shapes():
    process, (x, y) = small(), points(3)
    for mode in (True, False):
        process.train(mode)
        with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 3, 1\)"):
            process(x[..., :1], y, x)
        with pytest.raises(
            ValueError, match=r"y must be \(1, 3, 2\) to go with .* not \(1, 3, 1\)"
        ):
            process(x, y[..., :1], x)
    with pytest.raises(ValueError, match=r"x must be"):
        process.predict(process.init(), x[..., :1])
    with pytest.raises(ValueError, match="dim 16 does not divide into 3 heads"):
        CMANP(**SMALL | {"heads": 3})
    with pytest.raises(ValueError, match="unknown head 'wide'"):
        CMANP(**SMALL, head="wide")


def test_what_a_fused_optimiser_changed_is_seen_after_a_change_of_mode():
    process, (x, y) = small().eval(), points(20)
    before = process.init().fingerprint
    process.update(process.init(), x, y)  # fills the caches
    process.train()
    process(x, y, x).log_prob(y).mean().backward()
    torch.optim.Adam(process.parameters(), lr=0.1, fused=True).step()
    process.eval()
    assert process.init().fingerprint != before
    state = process.update(process.init(), x, y)
    fresh = small()
    fresh.load_state_dict(process.state_dict())
    same(process.predict(state, x), fresh.eval()(x, y, x))


def test_blocks_start_as_copies_of_one_where_that_is_asked_for():
    def equal(layers) -> list[bool]:
        first, *others = (list(layer.parameters()) for layer in layers)
        return [all(map(torch.equal, first, other)) for other in others]

    trunk = CMANP(**SMALL, initial="copies").trunk
    assert all(equal(trunk.stack.blocks)) and all(equal(trunk.decoder))
    assert not any(equal(CMANP(**SMALL).trunk.stack.blocks))


def test_the_choice_of_initial_weights_leaves_older_fingerprints_alone(tmp_path):
    """Weights of before there was a choice have a configuration without it, and are what they were."""
    assert "initial" not in CMANP(**SMALL).config
    process = CMANP(**SMALL, initial="copies").eval()
    process.save_pretrained(tmp_path)
    assert load(tmp_path).fingerprint == process.fingerprint
    assert load(tmp_path).config["initial"] == "copies"
