"""Naive float64 twins in numpy, one stream at a time: written from the papers, not from our code."""

import math

import numpy as np
import torch
from scipy.special import erf

EPSILON = 1e-5  # of layer normalisation


def softmax_attention(query, key, value, mask=None):
    """Output and log-sum-exp of textbook attention of (queries, dim) to (keys, dim), one row at a time.

    Scores are ``query · key``, without a scale; a row that may attend to nothing gives 0 and −∞.
    """
    outputs, lses = [], []
    for i, row in enumerate(np.asarray(query, np.float64)):
        allowed = np.ones(len(key), bool) if mask is None else np.asarray(mask[i], bool)
        scores = np.asarray(key, np.float64)[allowed] @ row
        if not len(scores):
            outputs.append(np.zeros(value.shape[-1]))
            lses.append(-np.inf)
            continue
        weights = np.exp(scores - scores.max())
        outputs.append(weights @ np.asarray(value, np.float64)[allowed] / weights.sum())
        lses.append(scores.max() + math.log(weights.sum()))
    return np.array(outputs).reshape(len(query), value.shape[-1]), np.array(lses)


def float64_weights(module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def below(weights, prefix):
    """The weights of a submodule, under its own names."""
    return {k[len(prefix) + 1 :]: v for k, v in weights.items() if k.startswith(prefix + ".")}


def layer_norm(weights, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * weights["weight"] + weights["bias"]


def linear(weights, x):
    return x @ weights["weight"].T + weights.get("bias", 0.0)


def multihead(weights, x, context, heads):
    """Q, K, V without bias, K and V one matrix, scale d_h^−½, heads concatenated and projected."""
    width = x.shape[-1] // heads
    query = linear(below(weights, "to_query"), x)
    key, value = np.split(linear(below(weights, "to_key_value"), context), 2, axis=-1)
    each = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scaled = query[:, part] / math.sqrt(width)
        each.append(softmax_attention(scaled, key[:, part], value[:, part])[0])
    return linear(below(weights, "to_output"), np.concatenate(each, -1))


def cross_attention(weights, x, context, heads, residual):
    normed = layer_norm(below(weights, "norm"), x)
    seen = layer_norm(below(weights, "norm_context"), context)
    branch = multihead(below(weights, "attention"), normed, seen, heads)
    return branch + (normed if residual == "normed" else x)


def self_attention(weights, x, heads, residual):
    normed = layer_norm(below(weights, "norm"), x)
    branch = multihead(below(weights, "attention"), normed, normed, heads)
    return branch + (normed if residual == "normed" else x)


def feed_forward(weights, x, residual):
    normed = layer_norm(below(weights, "norm"), x)
    first, second = np.split(linear(below(weights, "expand"), normed), 2, axis=-1)
    gelu = 0.5 * second * (1.0 + erf(second / math.sqrt(2.0)))
    branch = linear(below(weights, "contract"), first * gelu)
    return branch + (normed if residual == "normed" else x)


def row(weights, x, heads, residual):
    """FF → SA → FF."""
    x = feed_forward(below(weights, "0"), x, residual)
    x = self_attention(below(weights, "1"), x, heads, residual)
    return feed_forward(below(weights, "2"), x, residual)


def cmab(weights, context, latents, heads, residual):
    """L_out = row(CA₂(L_in, row(CA₁(L_B, D)))), spec 2.1."""
    data = cross_attention(below(weights, "absorb"), weights["latents"], context, heads, residual)
    data = row(below(weights, "digest"), data, heads, residual)
    found = cross_attention(below(weights, "retrieve"), latents, data, heads, residual)
    return row(below(weights, "compose"), found, heads, residual)


def perceptron(weights, x):
    layers = sorted({int(name.split(".")[0]) for name in weights})
    for i, layer in enumerate(layers):
        x = linear(below(weights, str(layer)), x)
        if i + 1 < len(layers):
            x = np.maximum(x, 0.0)
    return x


def cmanp(weights, xc, yc, xt, config):
    """Mean and standard deviation of every target, spec 3.1, Gaussian heads only."""
    heads, residual = config["heads"], config["residual"]
    context = perceptron(below(weights, "embed_context"), np.concatenate([xc, yc], -1))
    targets = perceptron(below(weights, "embed_target"), xt)
    trunk = below(weights, "trunk")
    latents = trunk["latents"]
    for k in range(config["blocks"]):
        latents = cmab(below(trunk, f"stack.blocks.{k}"), context, latents, heads, residual)
        layer = below(trunk, f"decoder.{k}")
        targets = cross_attention(below(layer, "attend"), targets, latents, heads, residual)
        targets = feed_forward(below(layer, "transform"), targets, residual)
    features = layer_norm(below(trunk, "norm"), targets)
    hidden = np.maximum(linear(below(weights, "head.expand"), features), 0.0)
    mean, raw = np.split(linear(below(weights, "head.predict"), hidden), 2, axis=-1)
    if config["head"] == "bounded-gaussian":
        return mean, 0.05 + 0.95 * np.logaddexp(0.0, raw)
    return mean, np.exp(raw)


def bayesian_linear(x, y, xt, precision, shape, rate):
    """Mean and variance of the normal-inverse-gamma predictive Student-t, by inverses.

    One output; x (points, inputs), y (points,), xt (targets, inputs).
    """
    z, zt = (np.concatenate([np.ones((len(v), 1)), v], -1) for v in (x, xt))
    prior = precision * np.eye(z.shape[1])
    after = prior + z.T @ z
    mean = np.linalg.inv(after) @ z.T @ y
    a = shape + len(y) / 2
    b = rate + (y @ y - mean @ after @ mean) / 2
    scale = b / a * (1.0 + np.einsum("ti,ij,tj->t", zt, np.linalg.inv(after), zt))
    return zt @ mean, scale * (2 * a / (2 * a - 2))  # variance of Student-t with 2a degrees


def mixture_density(weights, means, stddevs, y):
    z = (y[..., None] - means) / stddevs
    return (weights * np.exp(-0.5 * z * z) / (stddevs * math.sqrt(2 * math.pi))).sum(-1)


def crps_by_integration(density, y, low, high, steps=200_001):
    """∫ (F(t) − 1[t ≥ y])² dt with F accumulated from the density; everything by the trapezoidal rule."""
    below_y, above_y = np.linspace(low, y, steps), np.linspace(y, high, steps)
    until_y = _accumulated(density(below_y), below_y)
    after_y = until_y[-1] + _accumulated(density(above_y), above_y)
    return float(np.trapezoid(until_y**2, below_y) + np.trapezoid((1.0 - after_y) ** 2, above_y))


def _accumulated(heights, grid):
    steps = np.diff(grid) * (heights[1:] + heights[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(steps)])


def enliven(module, seed=0):
    """Redraw every weight, so that answers depend strongly on what was seen and no two layers are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            spread = 1.0 if name.endswith("latents") else weight.shape[-1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1.0)
    return module
