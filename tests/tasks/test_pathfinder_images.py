"""Whole Pathfinder pictures: balance, brightness, discs, and the label by tracing."""

import numpy as np
import pytest

from synopsis.tasks import pathfinder_images
from synopsis.tasks.pathfinder_dashes import Stroke, dashes
from synopsis.tasks.pathfinder_images import CONTOUR_LENGTHS, LAWS, random_pictures


def draw(count, side=32, difficulty="easy", seed=0):
    return random_pictures(count, side, difficulty, np.random.default_rng(seed))


@pytest.mark.parametrize(("side", "difficulty"), [(32, "hard"), (64, "easy"), (128, "easy")])
def test_pictures_are_what_they_should_be(side, difficulty):
    pictures = draw(8, side, difficulty)
    assert pictures.images.shape == (8, side, side)
    assert pictures.images.dtype == pictures.labels.dtype == np.uint8
    assert pictures.labels.sum() == 4
    assert (pictures.images.max(axis=(1, 2)) == 255).all()
    lit = (pictures.images > 60).mean(axis=(1, 2))
    assert ((lit > 0.01) & (lit < 0.4)).all()


def test_a_seed_names_the_pictures():
    assert (draw(6).images == draw(6).images).all()
    assert (draw(6).images != draw(6, seed=1).images).any()


def test_brightness_and_places_do_not_tell_the_label():
    pictures = draw(600)
    means = [pictures.images[pictures.labels == label].mean(axis=0) for label in (0, 1)]
    spread = pictures.images.std(axis=0) * np.sqrt(4 / 600)
    seen = spread > 1
    assert (np.abs(means[0] - means[1])[seen] / spread[seen]).max() < 5
    total = pictures.images.mean(axis=(1, 2))
    difference = total[pictures.labels == 1].mean() - total[pictures.labels == 0].mean()
    assert abs(difference) < 4 * total.std() * np.sqrt(4 / 600)


def test_discs_join_the_snake_that_the_label_says(monkeypatch):
    """Where the two target snakes really end is recorded, and compared to where discs are."""
    seen = {}
    mark = pathfinder_images._mark

    def recorded(canvases, ends, labels, disc, rng):
        before = canvases.bright.copy()
        mark(canvases, ends, labels, disc, rng)
        seen.update(ends=ends, changed=canvases.bright > before, disc=disc)

    monkeypatch.setattr(pathfinder_images, "_mark", recorded)
    pictures = draw(40)
    reach = len(seen["disc"]) // 2
    for ends, changed, label in zip(seen["ends"], seen["changed"], pictures.labels, strict=True):
        joined = [ends[snake] for snake in (0, 1)]
        apart = [np.stack([ends[snake, 0], ends[1 - snake, 1]]) for snake in (0, 1)]
        fits = {1: [], 0: []}
        for claim, options in ((1, joined), (0, apart)):
            for places in options:
                allowed = np.zeros_like(changed)
                for row, column in places:
                    allowed[row - reach : row + reach + 1, column - reach : column + reach + 1] = (
                        True
                    )
                fits[claim].append(bool(changed.any()) and not (changed & ~allowed).any())
        assert any(fits[int(label)])


def test_target_snakes_have_all_their_dashes():
    law = LAWS[32]
    table = dashes(Stroke(law.dash, law.thickness, 1))
    for contour in CONTOUR_LENGTHS.values():
        canvases, ends = pathfinder_images._targets(
            4, law, contour, table, np.random.default_rng(0)
        )
        light = canvases.bright.sum(axis=(1, 2)) / law.target
        dash = table.pictures.sum(axis=(1, 2)).mean()
        # Neighbouring dashes may overlap a little.
        assert (light > 2 * contour * dash * 0.75).all()
        assert (light < 2 * contour * dash * 1.15).all()
        gaps = np.hypot(*(ends[:, 0, 0] - ends[:, 1, 0]).T)
        assert np.abs(gaps - law.seeds).max() < 1
