"""Dashes and discs of Pathfinder pictures: drawn finely, shrunk, kept in tables.

A dash begins in the middle of its patch and is drawn at every direction it can have: whole degrees
for the first dash of a snake, the directions of the circle of candidates for the others.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

FINE = 2  # pictures are drawn that many times larger
LANCZOS = 3  # lobes
DEGREES = 360
FULL = 0.8  # of a mask: two places of more than this collide


@dataclass(frozen=True)
class Stroke:
    """How a dash is drawn.

    Args:
        length: pixels.
        thickness: pixels.
        margin: free pixels around a dash.
    """

    length: int
    thickness: float
    margin: int

    @property
    def reach(self) -> int:
        """Pixels from the middle of a patch to its edge."""
        return self.length + int(np.ceil(self.thickness)) + self.margin

    @property
    def radius(self) -> int:
        """Of the circle of candidates for the next end, pixels."""
        return self.length + self.margin

    @property
    def stride(self) -> int:
        """From the middle of one circle of candidates to the next, pixels."""
        return self.length + 2 * self.margin


@dataclass(frozen=True, eq=False)
class Dashes:
    """All dashes of one stroke.

    Args:
        circle: candidates for the end of the next dash, as places (row, column) round its pivot.
        directions: of the candidates, radians, 0 to the right, growing downwards.
        pictures: brightness 0 … 1 of every dash: first those from each candidate back to the
            pivot, then those of 0°, 1° … 359°.
        masks: what each one occupies, 0 … 1.
        disc: places round a pixel no farther than the margin.
    """

    stroke: Stroke
    circle: Int[np.ndarray, "candidates 2"]
    directions: Float[np.ndarray, " candidates"]
    pictures: Float32[np.ndarray, "dashes side side"]
    masks: Float32[np.ndarray, "dashes side side"]
    disc: Int[np.ndarray, "places 2"]


@lru_cache(maxsize=8)
def dashes(stroke: Stroke) -> Dashes:
    """Draw all dashes of a stroke."""
    circle = _circle(stroke.radius)
    directions = np.arctan2(circle[:, 0], circle[:, 1])
    angles = np.concatenate([directions + np.pi, np.deg2rad(np.arange(DEGREES))])
    fine = [_distance(angle, stroke) for angle in angles]
    width = stroke.thickness * FINE / 2
    # A line of half width w and a soft edge of one fine pixel.
    pictures = [_shrunk(np.clip(width + 0.5 - d, 0, 1)) for d in fine]
    masks = [_shrunk(np.clip(width + 0.5 + stroke.margin * FINE - d, 0, 1)) for d in fine]
    return Dashes(
        stroke,
        circle,
        directions,
        np.stack(pictures).astype(np.float32),
        np.stack(masks).astype(np.float32),
        _disc(stroke.margin),
    )


def disc_picture(radius: float) -> Float32[np.ndarray, "side side"]:
    """Brightness of a marker in the middle of its patch."""
    reach = int(np.ceil(radius)) + 1
    rows, columns = _fine_grid(reach)
    return _shrunk((np.hypot(rows, columns) <= radius * FINE).astype(float)).astype(np.float32)


def _circle(radius: int) -> Int[np.ndarray, "candidates 2"]:
    """Pixels on a circle, as many angles tried as it is pixels long."""
    angles = np.arange(0, 2 * np.pi, 1 / radius)
    places = np.stack([radius * np.sin(angles), radius * np.cos(angles)], axis=1)
    return np.unique(np.rint(places).astype(np.int64), axis=0)


def _disc(radius: int) -> Int[np.ndarray, "places 2"]:
    side = np.arange(-radius, radius + 1)
    rows, columns = np.meshgrid(side, side, indexing="ij")
    inside = rows**2 + columns**2 <= radius**2
    return np.stack([rows[inside], columns[inside]], axis=1)


def _fine_grid(reach: int) -> tuple[Float[np.ndarray, "side side"], Float[np.ndarray, "side side"]]:
    """Rows and columns of a finely drawn patch, counted from its middle."""
    side = np.arange((2 * reach + 1) * FINE) - ((2 * reach + 1) * FINE - 1) / 2
    rows, columns = np.meshgrid(side, side, indexing="ij")
    return rows, columns


def _distance(angle: float, stroke: Stroke) -> Float[np.ndarray, "side side"]:
    """Distance of every fine pixel to the line from the middle of the patch, fine pixels."""
    rows, columns = _fine_grid(stroke.reach)
    sine, cosine = np.sin(angle), np.cos(angle)
    along = np.clip(rows * sine + columns * cosine, 0, stroke.length * FINE)
    return np.hypot(rows - along * sine, columns - along * cosine)


def _shrunk(fine: Float[np.ndarray, "fine fine"]) -> Float[np.ndarray, "side side"]:
    """A patch at its real size, by Lanczos' filter, cut to 0 … 1."""
    side = len(fine) // FINE
    places = (np.arange(len(fine)) + 0.5) / FINE
    x = places[None, :] - (np.arange(side) + 0.5)[:, None]
    weights = np.where(np.abs(x) < LANCZOS, np.sinc(x) * np.sinc(x / LANCZOS), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(weights @ fine @ weights.T, 0, 1)


def collides(
    occupied: Float32[np.ndarray, "*batch side side"],
    masks: Float32[np.ndarray, "*batch side side"],
) -> Bool[np.ndarray, " *batch"]:
    """True where a mask overlaps what is occupied."""
    return (occupied + masks).max(axis=(-2, -1)) >= 1 + FULL
