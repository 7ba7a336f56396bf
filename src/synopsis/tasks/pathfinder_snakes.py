"""Snakes of dashes that grow without touching each other, in hundreds of pictures at once.

Every picture has a wide border that is occupied, so that a dash that would leave it collides.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from synopsis.tasks.pathfinder_dashes import FULL, Dashes, collides

TRIES = 3  # dashes tried for one extension, and directions for one seed
LEAST_WEIGHT = 1e-4  # of all candidates together
TAKEN = 0.3  # a pixel occupied by more than this holds no new snake


Rows = Int[np.ndarray, " chosen"]  # numbers of pictures


@dataclass(eq=False)
class Canvases:
    """Pictures under way.

    Args:
        occupied: 0 … 1 per pixel, the border included.
        bright: brightness per pixel, the border included.
        border: width of the border, pixels.
    """

    occupied: Float32[np.ndarray, "pictures side side"]
    bright: Float32[np.ndarray, "pictures side side"]
    border: int

    @classmethod
    def empty(cls, pictures: int, side: int, border: int, padding: int) -> Self:
        """Dark pictures, of which ``padding`` pixels along the edges are occupied too."""
        whole = side + 2 * border
        occupied = np.ones((pictures, whole, whole), np.float32)
        inner = border + padding
        occupied[:, inner : whole - inner, inner : whole - inner] = 0
        return cls(occupied, np.zeros_like(occupied), border)

    def __len__(self) -> int:
        return len(self.occupied)

    def __getitem__(self, rows: Rows) -> "Canvases":
        """A copy of the chosen pictures."""
        return Canvases(self.occupied[rows], self.bright[rows], self.border)

    def put(self, rows: Rows, others: "Canvases") -> None:
        """Replace the chosen pictures."""
        self.occupied[rows], self.bright[rows] = others.occupied, others.bright

    def draw(
        self,
        rows: Rows,
        places: Int[np.ndarray, "chosen 2"],
        pictures: Float32[np.ndarray, "chosen patch patch"],
    ) -> None:
        """Paint a patch into each chosen picture, round the given pixel."""
        _lighten(self.bright, rows, places, pictures)

    def occupy(
        self,
        rows: Rows,
        places: Int[np.ndarray, "chosen 2"],
        masks: Float32[np.ndarray, "chosen patch patch"],
    ) -> None:
        """Mark a patch of each chosen picture as occupied."""
        _lighten(self.occupied, rows, places, masks)


@dataclass(frozen=True, eq=False)
class Tips:
    """Where snakes end, one in each picture; places include the border.

    Args:
        pivot: the middle of the circle that the last dash lies in.
        direction: of the last dash, radians.
        place: the pixel the last dash was drawn from.
        dash: its number in the tables.
    """

    pivot: Int[np.ndarray, "pictures 2"]
    direction: Float[np.ndarray, " pictures"]
    place: Int[np.ndarray, "pictures 2"]
    dash: Int[np.ndarray, " pictures"]

    def __getitem__(self, rows: np.ndarray) -> "Tips":
        return Tips(self.pivot[rows], self.direction[rows], self.place[rows], self.dash[rows])


def seeded(
    tails: Int[np.ndarray, "pictures 2"], degrees: Int[np.ndarray, " pictures"], table: Dashes
) -> Tips:
    """Snakes of one dash that begin at ``tails``."""
    angle = np.deg2rad(degrees)
    step = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    pivot = np.rint(tails - table.stroke.margin * step).astype(np.int64)
    wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
    return Tips(pivot, wrapped, tails, len(table.circle) + degrees)


def free_tails(
    canvases: Canvases, degrees: Int[np.ndarray, " pictures"], table: Dashes
) -> Bool[np.ndarray, "pictures side side"]:
    """Pixels where a dash of the given direction touches nothing occupied."""
    taken = canvases.occupied > TAKEN
    blocked = np.zeros_like(taken)
    reach, side = table.stroke.reach, taken.shape[1]
    masks = table.masks[len(table.circle) + degrees] >= FULL
    for row, column in np.argwhere(masks.any(axis=0)):
        down, right = row - reach, column - reach
        # np.roll comes round into the border, which is occupied anyway and wider than a patch.
        shifted = np.roll(taken, (-down, -right), axis=(1, 2))
        blocked |= shifted & masks[:, row, column][:, None, None]
    inside = slice(canvases.border, side - canvases.border)
    free = np.zeros_like(taken)
    free[:, inside, inside] = ~blocked[:, inside, inside]
    return free


def extend(
    canvases: Canvases,
    rows: Rows,
    tips: Tips,
    table: Dashes,
    continuity: float,
    rng: np.random.Generator,
) -> tuple[Tips, Bool[np.ndarray, " chosen"]]:
    """Choose the next dash of one snake in each chosen picture.

    Args:
        canvases: what is occupied; nothing is drawn.
        rows: the chosen pictures.
        tips: where the snakes end, one for each row.
        table: the dashes.
        continuity: c ≥ 1; a candidate that turns by θ has weight cos²(min(cθ, π/2)).
        rng: draws the candidates.

    Returns:
        The new ends, and where there was a dash to choose; elsewhere they mean nothing.
    """
    step = np.stack([np.sin(tips.direction), np.cos(tips.direction)], axis=1)
    pivot = np.rint(tips.pivot + table.stroke.stride * step).astype(np.int64)
    sums = _weights(canvases, rows, pivot, tips.direction, table, continuity).cumsum(axis=1)
    possible = sums[:, -1] >= LEAST_WEIGHT
    chosen = np.zeros(len(tips.pivot), np.int64)
    waiting = np.flatnonzero(possible)
    for _ in range(TRIES):
        drawn = rng.random(len(waiting)) * sums[waiting, -1]
        chosen[waiting] = (sums[waiting] > drawn[:, None]).argmax(axis=1)
        places = pivot[waiting] + table.circle[chosen[waiting]]
        windows = canvases.occupied[_patch(rows[waiting], places, table.stroke.reach)]
        waiting = waiting[collides(windows, table.masks[chosen[waiting]])]
    possible[waiting] = False
    return Tips(pivot, table.directions[chosen], pivot + table.circle[chosen], chosen), possible


def _weights(
    canvases: Canvases,
    rows: Rows,
    pivot: Int[np.ndarray, "pictures 2"],
    direction: Float[np.ndarray, " pictures"],
    table: Dashes,
    continuity: float,
) -> Float[np.ndarray, "pictures candidates"]:
    last = canvases.occupied.shape[1] - 1
    around = pivot[:, None, None] + table.circle[:, None] + table.disc  # (P, candidates, disc, 2)
    row, column = np.moveaxis(around.clip(0, last), -1, 0)
    free = 1 - canvases.occupied[rows[:, None, None], row, column].max(axis=-1)
    turn = np.abs(table.directions - direction[:, None])
    turn = np.minimum(turn, 2 * np.pi - turn) * continuity
    return np.cos(np.minimum(turn, np.pi / 2)) ** 2 * free


def _patch(
    rows: Rows, places: Int[np.ndarray, "chosen 2"], reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of a square patch round one pixel of each chosen picture."""
    side = np.arange(-reach, reach + 1)
    down = places[:, 0, None, None] + side[:, None]
    right = places[:, 1, None, None] + side
    return rows[:, None, None], down, right


def _lighten(
    images: Float32[np.ndarray, "pictures side side"],
    rows: Rows,
    places: Int[np.ndarray, "chosen 2"],
    patches: Float32[np.ndarray, "chosen patch patch"],
) -> None:
    where = _patch(rows, places, patches.shape[1] // 2)
    images[where] = np.maximum(images[where], patches)
