"""Pathfinder pictures: are the two discs at the ends of one dashed snake, or of two?

Two target snakes grow from the middle, then shorter distractor snakes where there is room, and two
discs are put at an end of a target snake and at the other end of it (label 1) or of the other
target snake (label 0). Whether a snake can grow does not depend on the label.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from synopsis.tasks.pathfinder_dashes import DEGREES, Dashes, Stroke, dashes, disc_picture
from synopsis.tasks.pathfinder_snakes import TAKEN, Canvases, Tips, extend, free_tails, seeded

Side = Literal[32, 64, 128]
Difficulty = Literal["easy", "intermediate", "hard"]

CONTOUR_LENGTHS: dict[Difficulty, int] = {"easy": 6, "intermediate": 9, "hard": 14}
TRIAL = 256  # pairs of target snakes at once
DISTRACTOR_TRIES = 5
LEAST_FREE = 0.01  # of the pixels: with less, no more distractors are tried


@dataclass(frozen=True)
class PictureLaw:
    """How pictures of one size are made.

    Args:
        side: height and width, pixels.
        margins: free pixels around dashes; one of these is drawn for each picture.
        dash: length of dashes, pixels.
        thickness: of dashes, pixels.
        marker: radius of the discs, pixels.
        seeds: distance between the first pixels of the two target snakes.
        dashes_of_distractors: about so many in all.
        continuity: how straight snakes are; see ``extend``.
        target: brightness of the dashes of target snakes.
        distractor: brightness of the others; the discs have 1.
        padding: pixels along the edges that stay dark.
    """

    side: int
    margins: tuple[int, ...]
    dash: int
    thickness: float
    marker: float
    seeds: int
    dashes_of_distractors: int
    continuity: float
    target: float
    distractor: float
    padding: int = 1


# As published with the Long Range Arena; the hard 32 is its Pathfinder, the hard 128 its Path-X.
LAWS: dict[int, PictureLaw] = {
    32: PictureLaw(32, (1,), 2, 0.5, 1.5, 7, 20, 1.0, 1.5, 2.0),
    64: PictureLaw(64, (1,), 5, 1.0, 2.5, 12, 22, 1.8, 0.8, 0.8),
    128: PictureLaw(128, (2, 3), 5, 1.5, 3.0, 20, 35, 1.8, 0.9, 0.9),
}


class Pictures(NamedTuple):
    """Pictures with their labels, in the order they were drawn."""

    images: UInt8[np.ndarray, "pictures side side"]
    labels: UInt8[np.ndarray, " pictures"]


def random_pictures(
    count: int, side: Side, difficulty: Difficulty, rng: np.random.Generator
) -> Pictures:
    """Draw pictures, half of them of either label.

    Args:
        count: how many; with an odd number, label 0 has one more.
        side: 32, 64 or 128.
        difficulty: target snakes of 6, 9 or 14 dashes; distractors of a third of it.
        rng: all randomness.

    Example:
        >>> pictures = random_pictures(4, 32, "easy", np.random.default_rng(0))
        >>> pictures.images.shape, sorted(pictures.labels.tolist())
        ((4, 32, 32), [0, 0, 1, 1])

    Source: Linsley et al., 2018, and Kim et al., 2020, with the settings of Tay et al., 2021 (Long
    Range Arena). Departures: labels are balanced, not tossed; places are rounded to the nearest
    pixel, not up (which makes the published snakes drift to one corner); the last dash of both
    target snakes keeps its place free, not only of one; lines are anti-aliased analytically.
    """
    law, contour = LAWS[side], CONTOUR_LENGTHS[difficulty]
    labels = rng.permutation(np.arange(count) % 2).astype(np.uint8)
    margins = rng.choice(law.margins, count)
    images = np.empty((count, side, side), np.uint8)
    for margin in law.margins:
        rows = np.flatnonzero(margins == margin)
        if len(rows) == 0:
            continue
        table = dashes(Stroke(law.dash, law.thickness, margin))
        images[rows] = _pictures(labels[rows], law, contour, table, rng)
    return Pictures(images, labels)


def _pictures(
    labels: UInt8[np.ndarray, " pictures"],
    law: PictureLaw,
    contour: int,
    table: Dashes,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "pictures side side"]:
    canvases, ends = _targets(len(labels), law, contour, table, rng)
    distractor = contour // 3
    for _ in range(law.dashes_of_distractors // distractor):
        _distract(canvases, law, distractor, table, rng)
    inner = slice(canvases.border, canvases.border + law.side)
    _mark(canvases, ends, labels, disc_picture(law.marker), rng)
    bright = canvases.bright[:, inner, inner]
    most = bright.max(axis=(1, 2), keepdims=True)
    return np.rint(bright / most * 255).astype(np.uint8)


# --- target snakes

Ends = Int[np.ndarray, "pictures snakes ends 2"]


def _targets(
    count: int, law: PictureLaw, contour: int, table: Dashes, rng: np.random.Generator
) -> tuple[Canvases, Ends]:
    """Pictures of two whole snakes; pictures in which one gets stuck are thrown away."""
    border = 2 * table.stroke.reach
    whole = Canvases.empty(count, law.side, border, law.padding)
    ends = np.zeros((count, 2, 2, 2), np.int64)
    done = 0
    while done < count:
        trial = Canvases.empty(TRIAL, law.side, border, law.padding)
        grown, found = _two_snakes(trial, law, contour, table, rng)
        grown = grown[: count - done]
        rows = np.arange(done, done + len(grown))
        whole.put(rows, trial[grown])
        ends[rows] = found[: len(grown)]
        done += len(grown)
    return whole, ends


def _two_snakes(
    canvases: Canvases, law: PictureLaw, contour: int, table: Dashes, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " whole"], Ends]:
    """Grow two snakes by turns; returns the pictures in which both are whole, and their ends."""
    tips, inside = _two_seeds(len(canvases), law, canvases.border, table, rng)
    rows, tips = np.flatnonzero(inside), [tip[inside] for tip in tips]
    origins = np.stack([tip.place for tip in tips], axis=1)
    for tip in tips:
        canvases.draw(rows, tip.place, law.target * table.pictures[tip.dash])
    for turn in range(2 * (contour - 1)):
        last = tips[turn % 2]
        tips[turn % 2], grows = extend(canvases, rows, last, table, law.continuity, rng)
        # Only now: neighbours of one snake may touch.
        canvases.occupy(rows, last.place, table.masks[last.dash])
        rows, origins, tips = rows[grows], origins[grows], [tip[grows] for tip in tips]
        tip = tips[turn % 2]
        canvases.draw(rows, tip.place, law.target * table.pictures[tip.dash])
    for tip in tips:
        canvases.occupy(rows, tip.place, table.masks[tip.dash])
    terminals = np.stack([tip.place for tip in tips], axis=1)
    return rows, np.stack([origins, terminals], axis=2)


def _two_seeds(
    count: int, law: PictureLaw, border: int, table: Dashes, rng: np.random.Generator
) -> tuple[list[Tips], Bool[np.ndarray, " pictures"]]:
    """First dashes: one near the middle, one at ``seeds`` pixels from it; and where both fit."""
    middle = rng.integers(2 * law.seeds, law.side - 2 * law.seeds, (count, 2))
    angle = np.deg2rad(rng.integers(0, DEGREES, count))
    away = law.seeds * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    tails = [middle + border, np.rint(middle + away).astype(np.int64) + border]
    tips = [seeded(tail, rng.integers(0, DEGREES, count), table) for tail in tails]
    fits = [_within(tip, border, law.side, table) for tip in tips]
    return tips, fits[0] & fits[1]


def _within(tips: Tips, border: int, side: int, table: Dashes) -> Bool[np.ndarray, " pictures"]:
    """Where the pivot and both ends of a first dash are in the picture."""
    step = np.stack([np.sin(tips.direction), np.cos(tips.direction)], axis=1)
    head = np.rint(tips.place + table.stroke.length * step)
    points = np.stack([tips.place, head, tips.pivot], axis=1) - border
    return np.logical_and.reduce((points >= 0) & (points < side), axis=(1, 2))


# --- distractors and discs


def _distract(
    canvases: Canvases, law: PictureLaw, length: int, table: Dashes, rng: np.random.Generator
) -> None:
    """Add one snake to every picture that has room for it."""
    waiting = np.arange(len(canvases))
    for _ in range(DISTRACTOR_TRIES):
        if len(waiting) == 0:
            return
        trial = canvases[waiting]
        grown = _one_snake(trial, law, length, table, rng)
        canvases.put(waiting[grown], trial[grown])
        waiting = np.delete(waiting, grown)


def _one_snake(
    canvases: Canvases, law: PictureLaw, length: int, table: Dashes, rng: np.random.Generator
) -> Int[np.ndarray, " whole"]:
    """Draw one snake; returns the pictures in which it is whole. The others are spoilt."""
    degrees = rng.integers(0, DEGREES, len(canvases))
    tails, some = _chosen(free_tails(canvases, degrees, table), rng)
    tips = seeded(tails, degrees, table)
    fits = some & _room(canvases, law) & _within(tips, canvases.border, law.side, table)
    rows, tips = np.flatnonzero(fits), tips[fits]
    canvases.draw(rows, tips.place, law.distractor * table.pictures[tips.dash])
    for _ in range(length - 1):
        last = tips
        tips, grows = extend(canvases, rows, last, table, law.continuity, rng)
        canvases.occupy(rows, last.place, table.masks[last.dash])
        rows, tips = rows[grows], tips[grows]
        canvases.draw(rows, tips.place, law.distractor * table.pictures[tips.dash])
    canvases.occupy(rows, tips.place, table.masks[tips.dash])
    return rows


def _room(canvases: Canvases, law: PictureLaw) -> Bool[np.ndarray, " pictures"]:
    free = (canvases.occupied <= TAKEN).sum(axis=(1, 2))
    return free >= LEAST_FREE * law.side**2


def _chosen(
    free: Bool[np.ndarray, "pictures side side"], rng: np.random.Generator
) -> tuple[Int[np.ndarray, "pictures 2"], Bool[np.ndarray, " pictures"]]:
    """One free pixel of every picture, each as likely; and where there was one."""
    flat = free.reshape(len(free), -1)
    sums = flat.cumsum(axis=1)
    wanted = (rng.random(len(free)) * sums[:, -1]).astype(np.int64)
    place = (sums > wanted[:, None]).argmax(axis=1)
    return np.stack(np.divmod(place, free.shape[2]), axis=1), sums[:, -1] > 0


def _mark(
    canvases: Canvases,
    ends: Ends,
    labels: UInt8[np.ndarray, " pictures"],
    disc: np.ndarray,
    rng: np.random.Generator,
) -> None:
    rows = np.arange(len(labels))
    origin = rng.integers(0, 2, len(labels))
    terminal = np.where(labels == 1, origin, 1 - origin)
    discs = np.broadcast_to(disc, (len(labels), *disc.shape))
    canvases.draw(rows, ends[rows, origin, 0], discs)
    canvases.draw(rows, ends[rows, terminal, 1], discs)
