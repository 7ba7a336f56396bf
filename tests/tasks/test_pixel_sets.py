"""Pictures as pixels, and the nearest mean picture."""

import numpy as np
import pytest
import torch

from synopsis.tasks.pixel_sets import Intensity, PixelSet, nearest_mean


def pixel_set(count=50, seed=0, form="values"):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.uint8)
    pixels = rng.integers(0, 200, (count, 6)) + 10 * labels[:, None]
    return PixelSet(pixels.astype(np.uint8), labels, Intensity(form, 0.25, 0.5))


def test_values_and_ids():
    rows = np.array([4, 1])
    pixels = torch.from_numpy(pixel_set().pixels[rows])
    values = pixel_set().batch(rows).values
    assert torch.allclose(values * 0.5 + 0.25, pixels / 255)
    batch = pixel_set(form="ids").batch(rows)
    assert torch.equal(batch.tokens, pixels.long())
    assert batch.labels.tolist() == pixel_set().labels[rows].tolist()
    with pytest.raises(ValueError, match="pixels is 'bits'; it must be values or ids"):
        Intensity("bits", 0, 1)


def test_nearest_mean_by_distances(monkeypatch):
    train, test = pixel_set(), pixel_set(30, seed=1)
    means = [train.pixels[train.labels == label].mean(axis=0) for label in range(3)]
    right = 0
    for pixels, label in zip(test.pixels, test.labels, strict=True):
        distances = [np.linalg.norm(pixels - mean) for mean in means]
        right += int(np.argmin(distances)) == label
    assert nearest_mean(train, test) == right / 30


def test_checksum_is_of_pixels_and_labels():
    assert pixel_set().checksum == pixel_set(form="ids").checksum
    assert pixel_set().checksum != pixel_set(seed=1).checksum
    assert pixel_set().first(3).checksum != pixel_set().checksum
