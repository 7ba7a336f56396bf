"""Growth of Pathfinder's snakes, one extension at a time, against loops over pixels."""

import numpy as np
import pytest

from synopsis.tasks.pathfinder_dashes import FULL, Stroke, dashes
from synopsis.tasks.pathfinder_snakes import TAKEN, Canvases, extend, free_tails, seeded

TABLE = dashes(Stroke(2, 0.5, 1))
BORDER = 2 * TABLE.stroke.reach


def canvases(pictures=400, side=32):
    return Canvases.empty(pictures, side, BORDER, 1)


def tips(pictures, degree, place=(16, 16)):
    tails = np.tile(np.array(place) + BORDER, (pictures, 1))
    return seeded(tails, np.full(pictures, degree), TABLE)


def extended(field, degree, continuity=1.0, place=(16, 16)):
    rows = np.arange(len(field))
    return extend(
        field, rows, tips(len(field), degree, place), TABLE, continuity, np.random.default_rng(0)
    )


def test_candidates_are_drawn_by_how_little_they_turn():
    field = canvases(20_000)
    ends, grows = extended(field, 0)
    assert grows.all()
    turn = np.abs(TABLE.directions)
    weights = np.cos(np.minimum(turn, np.pi / 2)) ** 2
    shares = np.bincount(ends.dash, minlength=len(turn)) / len(field)
    assert np.abs(shares - weights / weights.sum()).max() < 4 * np.sqrt(0.25 / len(field))
    # The pivot is a stride further on, and the end on the circle around it.
    start = tips(1, 0).pivot[0]
    assert (ends.pivot == start + np.array([0, TABLE.stroke.stride])).all()
    assert (ends.place == ends.pivot + TABLE.circle[ends.dash]).all()


def test_continuity_straightens():
    spreads = [
        np.abs(TABLE.directions[extended(canvases(), 0, c)[0].dash]).mean() for c in (1.0, 1.8, 3.0)
    ]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 2 * spreads[2]


def test_the_occupied_is_avoided_and_walls_stop():
    field = canvases()
    column = BORDER + 16 + TABLE.stroke.stride
    field.occupied[:, : BORDER + 17, column:] = 1  # above the snake's height
    ends, grows = extended(field, 0)
    assert grows.sum() > 100
    drawn = TABLE.masks[ends.dash[grows]]
    for (row, col), mask in zip(ends.place[grows], drawn, strict=True):
        reach = TABLE.stroke.reach
        window = field.occupied[0, row - reach : row + reach + 1, col - reach : col + reach + 1]
        assert (window + mask).max() < 1 + FULL
    field.occupied[:, :, column - 2 :] = 1
    assert not extended(field, 0)[1].any()


@pytest.mark.parametrize(("degree", "place"), [(0, (16, 30)), (270, (1, 16)), (135, (30, 1))])
def test_snakes_stay_inside(degree, place):
    ends, grows = extended(canvases(), degree, place=place)
    inside = (ends.place >= BORDER + 1) & (ends.place < BORDER + 31)
    assert inside[grows].all()


def test_free_tails_by_loops():
    rng = np.random.default_rng(0)
    field = canvases(6, side=12)
    inner = slice(BORDER, BORDER + 12)
    field.occupied[:, inner, inner] = np.maximum(
        field.occupied[:, inner, inner], rng.random((6, 12, 12)) > 0.93
    )
    degrees = rng.integers(0, 360, 6)
    found = free_tails(field, degrees, TABLE)
    reach = TABLE.stroke.reach
    for picture, degree in enumerate(degrees):
        mask = TABLE.masks[len(TABLE.circle) + degree] >= FULL
        expected = np.zeros_like(found[picture])
        for row in range(BORDER, BORDER + 12):
            for column in range(BORDER, BORDER + 12):
                window = field.occupied[
                    picture, row - reach : row + reach + 1, column - reach : column + reach + 1
                ]
                expected[row, column] = not (window[mask] > TAKEN).any()
        assert (found[picture] == expected).all()
    assert found.any()
    assert not found.all(axis=0)[inner, inner].all()
