"""Float64 twins of the pieces of sequence layers, one sequence at a time, and what every layer is asked."""

import math

import numpy as np
import torch
from scipy.special import erf

from tests.reference import below, enliven, linear, softmax_attention

EPSILON = 1e-6  # of layer normalisation in these layers
DIM, HEADS, HIDDEN = 8, 2, 12
ATTENTION = 4 * (DIM**2 + DIM)
FEEDFORWARD = 2 * DIM * HIDDEN + HIDDEN + DIM
NORM = 2 * DIM


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(module, seed=0):
    """In float64, in evaluation mode, with weights and biases all over the place."""
    return enliven(module.double(), seed).eval()


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def norm(weights, x):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return centred / scale * weights["weight"] + weights["bias"]


def transform(weights, x):
    """Linear, GELU, Linear."""
    hidden = linear(below(weights, "0"), x)
    return linear(below(weights, "3"), 0.5 * hidden * (1.0 + erf(hidden / math.sqrt(2.0))))


def heads_of(x):
    return np.split(x, HEADS, axis=-1)


def attention(weights, x, context, mask=None):
    """Multi-head softmax attention of (queries, dim) to the real rows of (keys, dim)."""
    weights = below(weights, "projections")
    query, key, value = (
        linear(below(weights, f"to_{name}"), rows)
        for name, rows in (("query", x), ("key", context), ("value", context))
    )
    pairs = None if mask is None else np.broadcast_to(mask, (len(x), len(context)))
    each = [
        softmax_attention(q / math.sqrt(DIM // HEADS), k, v, pairs)[0]
        for q, k, v in zip(*map(heads_of, (query, key, value)), strict=True)
    ]
    return linear(below(weights, "to_output"), np.concatenate(each, -1))


def after(weights, x, attended):
    """Post-norm: h = LN(x + attended), LN(h + FFN(h))."""
    h = norm(below(weights, "norm"), x + attended)
    feedforward = below(weights, "feedforward")
    return norm(below(feedforward, "norm"), h + transform(below(feedforward, "transform"), h))


def pre_norm_feedforward(weights, x):
    return x + transform(below(weights, "transform"), norm(below(weights, "norm"), x))


def around(weights, attention_weights, x, context, mask=None):
    """Pre-norm: h = x + attention(LN x, LN context), h + FFN(LN h)."""
    normed, seen = norm(below(weights, "norm"), x), norm(below(weights, "norm_context"), context)
    h = x + attention(attention_weights, normed, seen, mask)
    return pre_norm_feedforward(below(weights, "feedforward"), h)


def vanilla(weights, x, mask=None):
    normed = norm(below(weights, "norm"), x)
    h = x + attention(below(weights, "attention"), normed, normed, mask)
    return pre_norm_feedforward(below(weights, "feedforward"), h)


def memory_transformer(weights, x, memory):
    """Everything attends to everything, post-norm: items and memory."""
    both = np.concatenate([memory, x])
    both = after(below(weights, "after"), both, attention(below(weights, "attention"), both, both))
    return both[len(memory) :], both[: len(memory)]


def ragged(streams, length, seed=5):
    """A mask with one sequence whole, holes in others, and the last with nothing real."""
    mask = draw(streams, length, seed=seed) > 0
    mask[0], mask[-1] = True, False
    return mask


def assert_pads_do_not_matter(layer, x, memory, mask, tolerance):
    """Whatever stands in pads: real items and memory as without them, pads 0, and nothing NaN, gradients included."""
    layer.zero_grad()
    found, kept = layer(x.masked_fill(~mask.unsqueeze(-1), torch.nan), memory, mask)
    if found.isnan().any():  # the layer hands items through as they came
        assert torch.equal(found.isnan().all(-1), ~mask)
        found = found.nan_to_num(0.0)
    assert torch.count_nonzero(found[~mask]) == 0
    for stream, real in enumerate(mask):
        own = None if memory is None else memory[stream : stream + 1]
        alone, left = layer(x[stream : stream + 1, real], own)
        torch.testing.assert_close(found[stream, real], alone[0], rtol=tolerance, atol=tolerance)
        if kept is not None:
            torch.testing.assert_close(kept[stream], left[0], rtol=tolerance, atol=tolerance)
    outputs = [t for t in (found, kept) if t is not None and t.requires_grad]
    sum(t.square().sum() for t in outputs).backward()
    for name, weight in layer.named_parameters():
        assert weight.grad is None or weight.grad.isfinite().all(), name


def assert_gradients(layer, *inputs):
    """Analytic gradients of every output in every input and weight, against differences."""
    names, weights = zip(*layer.named_parameters(), strict=True)
    weights = tuple(w.detach().clone().requires_grad_() for w in weights)

    def outputs(*values):
        given, own = values[: len(inputs)], dict(zip(names, values[len(inputs) :], strict=True))
        found = torch.func.functional_call(layer, own, given)
        return tuple(t for t in found if t is not None)

    given = tuple(t.detach().clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(outputs, (*given, *weights), fast_mode=True)
