"""Dashes and discs of Pathfinder, by their geometry."""

import numpy as np
import pytest

from synopsis.tasks.pathfinder_dashes import Stroke, collides, dashes, disc_picture
from tests.tolerances import FLOAT32

STROKES = [Stroke(2, 0.5, 1), Stroke(5, 1.0, 1), Stroke(5, 1.5, 3)]


@pytest.mark.parametrize("stroke", STROKES)
def test_light_lies_along_the_dash(stroke):
    table = dashes(stroke)
    side = np.arange(-stroke.reach, stroke.reach + 1)
    for degree in (0, 37, 90, 200, 315):
        angle = np.deg2rad(degree)
        picture = table.pictures[len(table.circle) + degree].astype(float)
        centre = np.array([picture.sum(1) @ side, picture.sum(0) @ side]) / picture.sum()
        middle = stroke.length / 2 * np.array([np.sin(angle), np.cos(angle)])
        assert np.abs(centre - middle).max() < 0.2
        # As bright in all as the dash is large, with its round ends.
        area = stroke.length * stroke.thickness
        assert abs(picture.sum() - area) < 0.4 * area + 0.5


@pytest.mark.parametrize("stroke", STROKES)
def test_dashes_of_the_circle_lead_back_to_its_middle(stroke):
    table = dashes(stroke)
    radii = np.hypot(*table.circle.T)
    assert np.abs(radii - stroke.radius).max() < 0.75
    for place, picture, direction in zip(
        table.circle, table.pictures, table.directions, strict=False
    ):
        assert np.allclose(
            np.hypot(*place) * np.array([np.sin(direction), np.cos(direction)]), place
        )
        side = np.arange(-stroke.reach, stroke.reach + 1)
        centre = np.array([picture.sum(1) @ side, picture.sum(0) @ side]) / picture.sum()
        assert centre @ place < 0


@pytest.mark.parametrize("stroke", STROKES)
def test_masks_cover_the_dash_and_its_margin(stroke):
    table = dashes(stroke)
    assert (table.masks >= table.pictures - 0.1).all()  # the filter rings
    flat = table.masks[len(table.circle)]  # to the right
    middle = flat[:, stroke.reach + stroke.length // 2]
    free = int((middle > 0.5).sum())
    assert abs(free - 2 * stroke.margin - stroke.thickness) <= 1


def test_collisions():
    mask = np.zeros((2, 3, 3), np.float32)
    mask[:, 1, 1] = 0.9
    occupied = np.zeros_like(mask)
    occupied[0, 1, 1], occupied[1, 0, 0] = 0.95, 1
    assert collides(occupied, mask).tolist() == [True, False]


@pytest.mark.parametrize("radius", [1.5, 2.5, 3.0])
def test_discs_are_round_and_of_their_size(radius):
    disc = disc_picture(radius)
    assert np.allclose(disc, disc.T, atol=FLOAT32)
    assert np.allclose(disc, disc[::-1], atol=FLOAT32)
    assert disc[len(disc) // 2, len(disc) // 2] > 0.95
    assert abs(disc.sum() - np.pi * radius**2) < 0.15 * np.pi * radius**2
