"""The parts of conditional, latent and bootstrapping processes against formulas written anew in float64."""

import math

import numpy as np
import pytest
import torch

from synopsis.processes import pooling
from synopsis.processes.pooling import (
    GP,
    AttendedEncodings,
    AttentivePoolingEncoder,
    Decoder,
    FullWidthAttention,
    PoolingEncoder,
    checked_depths,
    linear_of_parts,
    pooled,
)
from tests import reference
from tests.reference import below, enliven, layer_norm, linear
from tests.tolerances import FLOAT32, FLOAT64

LOW = pooling.Depths(3, 1, 2, 3, 1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def naive_attention(weights, query, key, value):
    """Eight heads, scores over √dim, the residual stream starting at the projected query."""
    dim = query.shape[-1]
    query, key, value = (
        linear(below(weights, f"to_{name}"), part)
        for name, part in (("query", query), ("key", key), ("value", value))
    )
    heads = []
    for columns in np.split(np.arange(dim), 8):
        scaled = query[:, columns] / math.sqrt(dim)
        heads.append(reference.softmax_attention(scaled, key[:, columns], value[:, columns])[0])
    out = layer_norm(below(weights, "norm_attended"), query + np.concatenate(heads, -1))
    added = np.maximum(linear(below(weights, "transform"), out), 0.0)
    return layer_norm(below(weights, "norm_transformed"), out + added)


@pytest.mark.parametrize("real", [5, 2, 0])
def test_attention_divides_by_the_full_width_and_gives_0_over_nothing(real):
    attention = enliven(FullWidthAttention(16)).double()
    query, key, value = draw(1, 3, 16), draw(1, 5, 16, seed=1), draw(1, 5, 16, seed=2)
    mask = torch.arange(5).unsqueeze(0) < real
    found = attention(query, key, value, mask)[0].detach()
    weights = reference.float64_weights(attention)
    parts = (v[0].numpy() for v in (query, key[:, :real], value[:, :real]))
    np.testing.assert_allclose(found, naive_attention(weights, *parts), rtol=0, atol=FLOAT64)
    if real in (0, 5):
        bare = attention(query, key[:, :real], value[:, :real], None)[0].detach()
        np.testing.assert_allclose(found, bare, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("length", [0, 1, 10])
def test_pooling_in_pieces_is_pooling_at_once(monkeypatch, length):
    monkeypatch.setattr(pooling, "_PIECE", 3)
    encoder, points = enliven(PoolingEncoder(3, 16, 16, LOW)).double(), draw(2, length, 3)
    mask = torch.arange(length) < torch.tensor([[length], [length // 2]])
    points = points.masked_fill(~mask.unsqueeze(-1), 7.0)
    mean = encoder.total(points, mask) / mask.sum(1, keepdim=True).clamp(min=1)
    found, expected = encoder.read(mean), encoder(points, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT64)
    whole = encoder.total(points, None) / max(length, 1)
    torch.testing.assert_close(encoder.read(whole), encoder(points, None), rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("kind", [PoolingEncoder, AttentivePoolingEncoder])
def test_the_mean_over_nothing_is_0(kind):
    encoder = enliven(kind(3, 16, 16, LOW)).double()
    expected = encoder.after(torch.zeros(1, 16).double())[:, None]
    torch.testing.assert_close(encoder(draw(1, 0, 3), None), expected, rtol=0, atol=0)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    torch.testing.assert_close(encoder(draw(1, 4, 3), nothing), expected, rtol=0, atol=0)


def test_a_masked_mean_is_a_loop_over_real_points():
    features, mask = draw(3, 6, 2), draw(3, 6, seed=1) > 0
    features[~mask] = torch.nan
    for row, real, found in zip(features, mask, pooled(features, mask), strict=True):
        expected = sum(v for v, r in zip(row, real, strict=True) if r) / int(real.sum())
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT64)


def test_targets_read_the_context_by_cross_attention():
    encodings = enliven(AttendedEncodings(2, 1, 16, 8, LOW)).double()
    xc, yc, xt = draw(1, 5, 2), draw(1, 5, 1, seed=1), draw(1, 3, 2, seed=2)
    first, second = (v[0].detach().numpy() for v in encodings(xc, yc, xt, None))
    weights = reference.float64_weights(encodings)
    x, y, at = (v[0].numpy() for v in (xc, yc, xt))
    cross = below(weights, "first")
    value = linear(below(cross, "value.0"), np.concatenate([x, y], -1))
    value = naive_attention(below(cross, "attend_values"), value, value, value)
    query, key = (linear(below(cross, "query_key.0"), v) for v in (at, x))
    expected = naive_attention(below(cross, "attend"), query, key, value)
    np.testing.assert_allclose(first, expected, rtol=0, atol=10 * FLOAT64)
    pool = below(weights, "second")
    points = np.maximum(linear(below(pool, "before.0"), np.concatenate([x, y], -1)), 0.0)
    points = naive_attention(below(pool, "attend"), points, points, points)
    expected = linear(below(pool, "after.0"), points.mean(0, keepdims=True))
    np.testing.assert_allclose(second, expected, rtol=0, atol=10 * FLOAT64)


def test_a_layer_of_parts_is_the_layer_of_all_side_by_side():
    layer, parts = torch.nn.Linear(6, 4).double(), (draw(5, 1, 1, 3), draw(2, 1, 1), draw(2, 7, 2))
    expected = layer(torch.cat([part.expand(5, 2, 7, -1) for part in parts], -1))
    torch.testing.assert_close(linear_of_parts(layer, parts), expected, rtol=0, atol=FLOAT64)
    layer = torch.nn.Linear(6, 4, bias=False).double()
    expected = layer(torch.cat([part.expand(5, 2, 7, -1) for part in parts], -1))
    torch.testing.assert_close(linear_of_parts(layer, parts), expected, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("floor", [0.1, 0.01])
def test_the_standard_deviation_has_a_floor(floor):
    decoder = enliven(Decoder(1, 2, (3,), 8, 2, floor)).double()
    predicted = decoder(draw(1, 4, 1), (draw(1, 1, 3, seed=1),))
    entered = torch.cat([draw(1, 1, 3, seed=1).expand(1, 4, 3), draw(1, 4, 1)], -1)
    raw = decoder.transform(decoder.enter(entered).clamp(min=0.0))
    stddev = floor + (1 - floor) * raw[..., 2:].exp().log1p()
    torch.testing.assert_close(predicted.mean, raw[..., :2], rtol=0, atol=FLOAT64)
    torch.testing.assert_close(predicted.stddev, stddev, rtol=0, atol=FLOAT64)
    with torch.no_grad():
        decoder.transform[-1].bias[2:] = -1e4
    sharp = decoder(draw(1, 4, 1), (draw(1, 1, 3, seed=1),))
    best = sharp.log_prob(sharp.mean) / 2
    cap = -math.log(floor * math.sqrt(2 * math.pi))  # 1.384 nats for the published floor
    torch.testing.assert_close(best, torch.full_like(best, cap), rtol=FLOAT32, atol=0)


def test_sizes_that_do_not_fit_are_refused():
    assert checked_depths([4, 2, 3, 4, 2]) == GP
    for wrong in ([2, 2, 3, 4, 2], [4, 2, 1, 4, 2], [4, 2, 3, 2, 2], [4, 2, 3, 4], [4, 0, 3, 4, 2]):
        with pytest.raises(ValueError, match="depths must be five numbers of at least"):
            checked_depths(wrong)
    with pytest.raises(ValueError, match="dim 12 does not divide into 8 heads"):
        FullWidthAttention(12)
    for floor in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"floor must be between 0 and 1, not {floor}"):
            Decoder(1, 1, (4,), 8, 2, floor)
