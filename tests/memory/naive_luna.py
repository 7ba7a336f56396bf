"""The Luna family in naive float64 numpy, one stream at a time: written from the papers, not from our code."""

import math

import numpy as np

from tests import reference
from tests.reference import below, linear

EPSILON = 1e-6  # of layer normalisation here


def layer_norm(weights, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * weights["weight"] + weights["bias"]


def filtered(x, heads, kind="convolution", kernel=1, stride=1, taps=None, mask=None):
    """Windows of (length, dim) and which of them hold anything real, one window and channel at a time."""
    length, dim = x.shape
    real = np.ones(length, bool) if mask is None else np.asarray(mask, bool)
    left = right = 0
    if kind != "max" and stride == 1:
        left, right = (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2
    elif 0 < length < kernel:
        right = kernel - length
    starts = range(-left, length + right - kernel + 1, stride) if length else range(0)
    rows, valid = [], []
    for start in starts:
        inside = [i for i in range(start, start + kernel) if 0 <= i < length and real[i]]
        row = np.zeros(dim)
        for channel in range(dim):
            values = [x[i, channel] for i in inside]
            if kind == "max" and values:
                row[channel] = max(values)
            elif kind == "mean":
                row[channel] = sum(values) / kernel
            elif kind == "convolution":
                head = channel // (dim // heads)
                row[channel] = sum(taps[head][i - start] * x[i, channel] for i in inside)
        rows.append(row)
        valid.append(bool(inside))
    return np.array(rows).reshape(len(rows), dim), np.array(valid, bool)


def attention(weights, query_input, context, heads, temperature, mask=None, sieve=None, tied=False):
    """Memory attention before the output matrix; ``sieve`` filters keys and values."""
    query, key = (
        linear(below(weights, n), x) for n, x in (("to_query", query_input), ("to_key", context))
    )
    value = context
    if "to_value.weight" in weights:
        value = linear(below(weights, "to_value"), context)
    elif tied:
        value = key
    seen = np.ones(len(context), bool) if mask is None else np.asarray(mask, bool)
    if sieve is not None:
        (key, kept), (value, _) = (filtered(t, heads, mask=seen, **sieve) for t in (key, value))
        seen = kept
    width, each = query.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        allowed = np.broadcast_to(seen, (len(query), len(seen)))
        each.append(
            reference.softmax_attention(
                query[:, part] / temperature, key[:, part], value[:, part], allowed
            )[0]
        )
    return np.concatenate(each, -1)


def feed_forward(weights, x):
    hidden = linear(below(weights, "transform.0"), x)
    hidden = 0.5 * hidden * (1.0 + reference.erf(hidden / math.sqrt(2.0)))
    return layer_norm(below(weights, "norm"), x + linear(below(weights, "transform.3"), hidden))


def after(weights, x, memory, packed, unpacked, mask):
    """Norms, skips and the feed-forward; pads are 0."""
    out = feed_forward(
        below(weights, "feedforward"), layer_norm(below(weights, "norm"), x + unpacked)
    )
    if mask is not None:
        out[~np.asarray(mask, bool)] = 0.0
    return out, layer_norm(below(weights, "norm_memory"), memory + packed)


def layer(weights, x, memory, heads, temperatures, mask=None, sieve=None):
    """A layer with one set of projections: shared Luna, ConvLuna in full or simplified."""
    if mask is not None:
        x = np.where(np.asarray(mask, bool)[:, None], x, 0.0)
    shared = below(weights, "pack.projections")
    output = below(shared, "to_output")
    packed = linear(output, attention(shared, memory, x, heads, temperatures[0], mask, sieve))
    unpacked = linear(output, attention(shared, x, packed, heads, temperatures[1]))
    return after(weights, x, memory, packed, unpacked, mask)


def luna(weights, x, memory, heads, pack_heads, tied, mask=None):
    """A layer of the first paper: separate projections, none on what was packed."""
    if mask is not None:
        x = np.where(np.asarray(mask, bool)[:, None], x, 0.0)
    width = x.shape[-1]
    first, second = (below(weights, f"{n}.projections") for n in ("pack", "unpack"))
    packed = attention(
        first, memory, x, pack_heads, math.sqrt(width / pack_heads), mask, None, tied
    )
    found = attention(second, x, packed, heads, math.sqrt(width / heads), None, None, tied)
    return after(weights, x, memory, packed, linear(below(second, "to_output"), found), mask)
