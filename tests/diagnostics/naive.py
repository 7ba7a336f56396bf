"""The statistics written out in Python, one number at a time, from nothing but vectors and weights."""

import math
from itertools import combinations

import numpy as np


def cosine(vectors):
    """Mean over pairs of vectors that are not 0; None without a pair."""
    vectors = [v for v in np.asarray(vectors, np.float64) if np.linalg.norm(v)]
    pairs = list(combinations(vectors, 2))
    found = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in pairs]
    return sum(found) / len(found) if found else None


def centred_cosine(vectors):
    vectors = np.asarray(vectors, np.float64)
    return cosine(vectors - vectors.mean(0)) if len(vectors) > 1 else None


def effective_rank(vectors):
    values = np.linalg.svd(np.asarray(vectors, np.float64), compute_uv=False)
    return math.exp(entropy(values / values.sum()))


def entropy(shares):
    return -sum(p * math.log(p) for p in map(float, shares) if p > 0)


def pack_entropy(weights, seen):
    """Of weights (heads, cells, keys); None without two keys."""
    keys = int(seen.sum())
    if keys < 2:
        return None
    found = [entropy(row[seen]) for head in weights for row in head]
    return sum(found) / len(found) / math.log(keys)


def total_variation(weights, seen):
    """Of weights (heads, cells, keys); None without two cells and two keys."""
    found = [
        sum(abs(float(p) - float(q)) for p, q in zip(a, b, strict=True)) / 2
        for head in weights
        for a, b in combinations(head, 2)
    ]
    return sum(found) / len(found) if found and int(seen.sum()) > 1 else None


def unpack_entropy(weights, real):
    """Of weights (heads, items, cells); None for one cell or no real item."""
    cells = weights.shape[-1]
    found = [entropy(head[i]) for head in weights for i in range(len(real)) if real[i]]
    return sum(found) / len(found) / math.log(cells) if cells > 1 and found else None


def cells_for_90(weights, real):
    """Of weights (heads, items, cells); None without a real item."""
    mass = sum(head[i] for head in weights for i in range(len(real)) if real[i])
    if not real.any():
        return None
    mass, held = sorted(map(float, mass), reverse=True), 0.0
    for number, one in enumerate(mass, start=1):
        held += one
        if held >= 0.9 * sum(mass) * (1 - 1e-9):
            return number
    raise AssertionError("all cells hold everything")


def mean(found):
    """Over sequences that have the number; None if none has."""
    found = [number for number in found if number is not None]
    return sum(found) / len(found) if found else None
