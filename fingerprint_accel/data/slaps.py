"""Several fingers on one image: finds them, and cuts the distal phalanx of each out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fingerprint_accel.data.canvas import WHITE, around, connected_parts
from fingerprint_accel.data.image_record import RecordError
from fingerprint_accel.data.ridges import MM_PER_INCH, RidgeMap, measure_ridges

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
WINDOW_MM = 1.6
PERIODS_MM = (0.3, 0.65)
# A distal phalanx as it lies on a sensor or card, mm. Rolled prints and thumbs are the widest.
LEAST_WIDTH, LARGEST_WIDTH = 7.0, 34.0
LEAST_HEIGHT, LARGEST_HEIGHT = 9.0, 38.0
LEAST_FILL = 0.55  # share of its box that a finger covers; an ellipse covers 0.79
LEVELS = np.arange(0.30, 0.86, 0.04)  # shares of energy at which the image is cut into parts
LEAST_TWO_MM = 28.0  # width of two little fingers side by side
DISTAL_SHARE = 0.45  # of the energy: ridges of a distal phalanx have more, those of lower phalanges less
GROWTH = 3  # entries of the map by which a high level wears a finger off
LEAST_ABOVE_CREASE, LEAST_BELOW_CREASE = 13.0, 3.0  # mm
CREASE_BELOW = 7.0  # mm from where ridges grow weaker
LEAST_STEP = 0.12  # by which the share of energy falls at the crease
MARGIN_MM = 1.0  # around a finger that is cut out
INTRUDER = 0.6  # of the smallest finger's area: what is smaller is a piece of another print


@dataclass(frozen=True)
class Finger:
    """A finger on an image: `mask` (rows, columns) bool of the ridge map, and its box in entries of the map."""

    mask: np.ndarray
    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Entries of the map that it covers."""
        return int(self.mask.sum())

    def is_above(self, other: Finger) -> bool:
        """Whether `other` lies where the lower phalanges of this finger would."""
        rows, columns = np.nonzero(self.mask)
        # the main axis leans as the finger does; that of a round print means nothing
        spread = np.cov(rows, columns)
        lean = spread[0, 1] / spread[0, 0] if spread[0, 0] > 1.3 * spread[1, 1] else 0.0
        down = (other.top + other.bottom) / 2 - rows.mean()
        across = (other.left + other.right) / 2 - columns.mean() - lean * down
        return bool(other.top > rows.mean() and abs(across) < 0.5 * (self.right - self.left))


def cut_fingers(grey: np.ndarray, ppi: float, expected: int) -> tuple[list[Box], list[np.ndarray]]:
    """Finds the distal phalanges on an image and cuts them out, from left to right.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: of the image.
        expected: number of fingers.

    Returns:
        Boxes (left, top, right, bottom) in pixels, and for each box (h, w) uint8 with white in place of neighbouring
        fingers.

    Raises:
        RecordError: another number of fingers was found.
    """
    measured = measure_ridges(grey, ppi, WINDOW_MM, PERIODS_MM)
    fingers = _expected(measured, ppi, expected)
    boxes = [_box(finger, measured, grey.shape, ppi) for finger in fingers]
    cut = []
    for finger, (left, top, right, bottom) in zip(fingers, boxes, strict=True):
        others = np.logical_or.reduce([other.mask for other in fingers if other is not finger] or [finger.mask & False])
        size = ((others.shape[1] + 1) * measured.step, (others.shape[0] + 1) * measured.step)
        covered = np.asarray(Image.fromarray(_spread(others)).resize(size, Image.Resampling.NEAREST))
        part = grey[top:bottom, left:right].copy()
        hidden = covered[top:bottom, left:right]
        part[: hidden.shape[0], : hidden.shape[1]][hidden] = WHITE
        cut.append(part)
    return boxes, cut


def holds_several_fingers(grey: np.ndarray, ppi: float) -> bool:
    """Whether an image (H, W) uint8 shows fingers side by side; takes no time where it is too narrow for two."""
    if grey.shape[1] / ppi * MM_PER_INCH < LEAST_TWO_MM:
        return False
    measured = measure_ridges(grey, ppi, WINDOW_MM, PERIODS_MM)
    smooth = _box_mean(measured.share)
    at_levels = [_fingers(smooth, ppi / MM_PER_INCH / measured.step, level) for level in LEVELS]
    best = max(at_levels, key=lambda fingers: _ridges(fingers, smooth))
    # pieces of a print that has the shape of no finger, as at another resolution, are not fingers
    return len(best) > 1 and sum(finger.area for finger in best) >= 0.5 * (smooth > DISTAL_SHARE).sum()


def _ridges(fingers: list[Finger], share: np.ndarray) -> float:
    """How much there is of the ridges of distal phalanges; lower phalanges, whose ridges are weaker, do not count."""
    return sum(float((share[finger.mask] - DISTAL_SHARE).sum()) for finger in fingers)


def _expected(measured: RidgeMap, ppi: float, expected: int) -> list[Finger]:
    """The fingers, from left to right, at the level that shows this number of them and most of their ridges."""
    smooth = _box_mean(measured.share)
    best, most, found = [], 0.0, 0
    for level in LEVELS:
        fingers = sorted(_fingers(smooth, ppi / MM_PER_INCH / measured.step, level), key=lambda finger: -finger.area)
        found = max(found, len(fingers))
        if len(fingers) < expected or any(
            finger.area > INTRUDER * fingers[expected - 1].area for finger in fingers[expected:]
        ):
            continue
        ridges = _ridges(fingers[:expected], smooth)
        if ridges > most:
            best, most = fingers[:expected], ridges
    if not best:
        plural = "" if expected == 1 else "s"
        raise RecordError(f"{expected} finger{plural} expected on the image, {found} found")
    return sorted(_grown(best, smooth > DISTAL_SHARE), key=lambda finger: finger.left + finger.right)


def _grown(fingers: list[Finger], ridges: np.ndarray) -> list[Finger]:
    """Fingers that a high level has worn off, spread over the ridges around them and not over each other."""
    masks = [finger.mask for finger in fingers]
    for _ in range(GROWTH):
        taken = np.logical_or.reduce(masks)
        masks = [mask | (_spread(mask) & ridges & ~taken) for mask in masks]
    return [_finger(mask) for mask in masks]


def _finger(mask: np.ndarray) -> Finger:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Finger(mask, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _fingers(share: np.ndarray, per_mm: float, level: float) -> list[Finger]:
    """Parts of the map above a level that have the shape of a distal phalanx and no other above them."""
    labels = connected_parts(_without_lines(share > level))
    found = []
    for label in np.unique(labels[labels > 0]):
        mask = _above_crease(labels == label, share, per_mm)
        if mask.sum() < LEAST_FILL * LEAST_WIDTH * LEAST_HEIGHT * per_mm**2:
            continue
        finger = _finger(mask)
        across, down = finger.right - finger.left, finger.bottom - finger.top
        if (
            LEAST_WIDTH <= across / per_mm <= LARGEST_WIDTH
            and LEAST_HEIGHT <= down / per_mm <= LARGEST_HEIGHT
            and finger.area >= LEAST_FILL * across * down
        ):
            found.append(finger)
    return [finger for finger in found if not any(other.is_above(finger) for other in found if other is not finger)]


def _above_crease(mask: np.ndarray, share: np.ndarray, per_mm: float) -> np.ndarray:
    """A part of the map without what lies under the crease, where ridges are weaker: the lower phalanges."""
    rows = np.flatnonzero(mask.any(axis=1))
    width = mask.sum(axis=1)[rows]
    strength = (share * mask).sum(axis=1)[rows] / np.maximum(1, width)
    least, below = round(LEAST_ABOVE_CREASE * per_mm), round(LEAST_BELOW_CREASE * per_mm)
    best, cut = LEAST_STEP, 0
    for row in range(least, len(rows) - below + 1):
        step = np.median(strength[max(0, row - 2 * least) : row]) - np.median(strength[row : row + least])
        if step > best:
            best, cut = step, row
    if cut:  # ridges grow weaker before the crease, and are weakest in it
        cut += int(strength[cut : cut + round(CREASE_BELOW * per_mm)].argmin())
        mask = mask.copy()
        mask[rows[cut] :] = False
    return mask


def _without_lines(mask: np.ndarray) -> np.ndarray:
    """A mask without what is thinner than five entries: print and handwriting on cards, frames."""
    worn = _box_mean(_box_mean(mask) > 0.999) > 0.999
    return _spread(_spread(worn)) & mask


def _box(finger: Finger, measured: RidgeMap, shape: tuple[int, ...], ppi: float) -> Box:
    margin = MARGIN_MM / MM_PER_INCH * ppi
    left, top = (max(0, round((edge + 0.5) * measured.step - margin)) for edge in (finger.left, finger.top))
    right = min(shape[1], round((finger.right + 0.5) * measured.step + margin))
    bottom = min(shape[0], round((finger.bottom + 0.5) * measured.step + margin))
    return left, top, right, bottom


def _box_mean(values: np.ndarray) -> np.ndarray:
    """(rows, columns) -> mean of each entry and its eight neighbours."""
    mean: np.ndarray = around(values.astype(np.float32)).mean(axis=0)
    return mean


def _spread(mask: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: also the neighbours of each entry."""
    return np.logical_or.reduce(around(mask))
