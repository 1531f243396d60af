"""Find the fingers on a slap (one image of several fingers), and cut out their fingertips.

A fingertip is the part of a finger above the last joint, the distal phalanx.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fingerprint_accel.data.canvas import WHITE
from fingerprint_accel.data.image_record import RecordError
from fingerprint_accel.data.regions import around, connected_parts
from fingerprint_accel.data.ridges import MM_PER_INCH, RidgeMap, measure_ridges

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
WINDOW_MM = 1.6  # side of a window in which ridges are measured, mm
PERIODS_MM = (0.3, 0.65)  # smallest and largest distance of ridges, mm
# Size of a distal phalanx on a sensor or card, mm. Rolled prints and thumbs are the widest.
LEAST_WIDTH, LARGEST_WIDTH = 7.0, 34.0
LEAST_HEIGHT, LARGEST_HEIGHT = 9.0, 38.0
LEAST_FILL = 0.55  # minimum share of its box that a finger covers; an ellipse covers 0.79
LEVELS = np.arange(0.30, 0.86, 0.04)  # thresholds of the share of energy that split the image into components
LEAST_TWO_MM = 28.0  # minimum width of an image of two fingers side by side, mm
DISTAL_SHARE = 0.45  # share of energy that separates ridges of a distal phalanx (more) from lower phalanges (less)
GROWTH = 3  # number of map entries by which fingers are grown, because a high threshold shrinks them
LEAST_ABOVE_CREASE, LEAST_BELOW_CREASE = 13.0, 3.0  # minimum length of the finger on both sides of the crease, mm
CREASE_BELOW = 7.0  # largest distance of the crease from the place where ridges become weaker, mm
LEAST_STEP = 0.12  # minimum decrease of the share of energy at the crease
MARGIN_MM = 1.0  # margin around a finger that is cut out, mm
MOST_COMPONENTS = 40  # an image with more components of the size of a fingertip is not a slap
INTRUDER = 0.6  # a component smaller than this share of the smallest finger is a part of a different print


@dataclass(frozen=True)
class Finger:
    """One finger on a ridge map (the result of `ridges.measure_ridges`).

    Attributes:
        mask: (rows, columns) bool, entries of the map that the finger covers.
        left: left edge of the bounding box, map entries.
        top: top edge of the bounding box, map entries.
        right: right edge of the bounding box (exclusive), map entries.
        bottom: bottom edge of the bounding box (exclusive), map entries.
    """

    mask: np.ndarray
    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Number of map entries that the finger covers."""
        return int(self.mask.sum())

    def is_above(self, other: Finger) -> bool:
        """Return whether `other` lies where the lower phalanges of this finger are expected."""
        rows, columns = np.nonzero(self.mask)
        # The main axis gives the inclination of the finger. A round print has no reliable axis.
        spread = np.cov(rows, columns)
        lean = spread[0, 1] / spread[0, 0] if spread[0, 0] > 1.3 * spread[1, 1] else 0.0
        down = (other.top + other.bottom) / 2 - rows.mean()
        across = (other.left + other.right) / 2 - columns.mean() - lean * down
        return bool(other.top > rows.mean() and abs(across) < 0.5 * (self.right - self.left))


def cut_fingers(grey: np.ndarray, ppi: float, expected: int) -> tuple[list[Box], list[np.ndarray]]:
    """Find the fingertips (distal phalanges) on an image, and cut them out from left to right.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: resolution of the image, pixels per inch.
        expected: number of fingers on the image.

    Returns:
        Boxes (left, top, right, bottom) in pixels, and the image (h, w) uint8 of each box. Other fingers in a box are
        covered with white.

    Raises:
        RecordError: if the expected number of fingers was not found.
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
    """Return whether a (H, W) uint8 image shows several fingers side by side.

    For an image that is too narrow for two fingers, the function returns False without measuring ridges.
    """
    if grey.shape[1] / ppi * MM_PER_INCH < LEAST_TWO_MM:
        return False
    measured = measure_ridges(grey, ppi, WINDOW_MM, PERIODS_MM)
    smooth = _box_mean(measured.share)
    at_levels = [_fingers(smooth, ppi / MM_PER_INCH / measured.step, level) for level in LEVELS]
    best = max(at_levels, key=lambda fingers: _ridges(fingers, smooth))
    # If the ppi is wrong, a print can break into pieces that look like fingers. They cover few of its ridges.
    return len(best) > 1 and sum(finger.area for finger in best) >= 0.5 * (smooth > DISTAL_SHARE).sum()


def _ridges(fingers: list[Finger], share: np.ndarray) -> float:
    """Return a score of how well fingers cover the ridges of fingertips. A larger score is better.

    Ridges of lower phalanges are weaker than DISTAL_SHARE and reduce the score.

    Args:
        fingers: the fingers.
        share: (rows, columns) share of energy of the ridge map, `RidgeMap.share`.
    """
    return sum(float((share[finger.mask] - DISTAL_SHARE).sum()) for finger in fingers)


def _expected(measured: RidgeMap, ppi: float, expected: int) -> list[Finger]:
    """Find the expected number of fingers on a ridge map, and sort them from left to right.

    Several thresholds are tried. The threshold with the highest score of `_ridges` is used.

    Args:
        measured: ridge map of the image.
        ppi: resolution of the image, pixels per inch.
        expected: number of fingers.

    Raises:
        RecordError: if no threshold gives the expected number of fingers.
    """
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
        raise RecordError(f"{expected} finger{plural} expected on the image, {found} found: check position and ppi")
    return sorted(_grown(best, smooth > DISTAL_SHARE), key=lambda finger: finger.left + finger.right)


def _grown(fingers: list[Finger], ridges: np.ndarray) -> list[Finger]:
    """Extend fingers over adjacent ridges without overlap, because a high threshold makes fingers too small.

    Args:
        fingers: the fingers.
        ridges: (rows, columns) bool, map entries with strong ridges.
    """
    masks = [finger.mask for finger in fingers]
    for _ in range(GROWTH):
        taken = np.logical_or.reduce(masks)
        masks = [mask | (_spread(mask) & ridges & ~taken) for mask in masks]
    return [_finger(mask) for mask in masks]


def _finger(mask: np.ndarray) -> Finger:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Finger(mask, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _fingers(share: np.ndarray, per_mm: float, level: float) -> list[Finger]:
    """Find connected components of the ridge map that have the shape of a fingertip.

    A component below a fingertip is a lower phalanx and is dropped.

    Args:
        share: (rows, columns) share of energy of the ridge map.
        per_mm: map entries per mm.
        level: threshold of the share of energy.
    """
    labels = connected_parts(_without_lines(share > level))
    least = LEAST_FILL * LEAST_WIDTH * LEAST_HEIGHT * per_mm**2
    sizes = np.bincount(labels.ravel())
    large = np.flatnonzero(sizes[1:] >= least) + 1
    found: list[Finger] = []
    for label in large if len(large) <= MOST_COMPONENTS else ():
        mask = _above_crease(labels == label, share, per_mm)
        if mask.sum() < least:
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
    """Remove the lower phalanges, below the crease of the finger joint, from a component of the ridge map.

    A component is a connected part of the map that shows a finger.

    The crease is found by the decrease of ridge strength from top to bottom. Without a clear decrease the component is
    returned unchanged.

    Args:
        mask: (rows, columns) bool, map entries of the component.
        share: (rows, columns) share of energy of the ridge map.
        per_mm: map entries per mm.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    width = mask.sum(axis=1)[rows]
    strength = (share * mask).sum(axis=1)[rows] / np.maximum(1, width)
    least, below = round(LEAST_ABOVE_CREASE * per_mm), round(LEAST_BELOW_CREASE * per_mm)
    best, cut = LEAST_STEP, 0
    for row in range(least, len(rows) - below + 1):
        step = np.median(strength[max(0, row - 2 * least) : row]) - np.median(strength[row : row + least])
        if step > best:
            best, cut = step, row
    if cut:  # ridges become weaker before the crease and are weakest at the crease
        cut += int(strength[cut : cut + round(CREASE_BELOW * per_mm)].argmin())
        mask = mask.copy()
        mask[rows[cut] :] = False
    return mask


def _without_lines(mask: np.ndarray) -> np.ndarray:
    """Remove lines thinner than five entries from a mask, such as frames and handwriting on cards."""
    worn = _box_mean(_box_mean(mask) > 0.999) > 0.999
    return _spread(_spread(worn)) & mask


def _box(finger: Finger, measured: RidgeMap, shape: tuple[int, ...], ppi: float) -> Box:
    margin = MARGIN_MM / MM_PER_INCH * ppi
    left, top = (max(0, round((edge + 0.5) * measured.step - margin)) for edge in (finger.left, finger.top))
    right = min(shape[1], round((finger.right + 0.5) * measured.step + margin))
    bottom = min(shape[0], round((finger.bottom + 0.5) * measured.step + margin))
    return left, top, right, bottom


def _box_mean(values: np.ndarray) -> np.ndarray:
    """Return a (rows, columns) float32 array with the mean over the 3 x 3 neighbourhood of each entry."""
    mean: np.ndarray = around(values.astype(np.float32)).mean(axis=0)
    return mean


def _spread(mask: np.ndarray) -> np.ndarray:
    """Dilate a (rows, columns) bool mask by one entry in all eight directions."""
    return np.logical_or.reduce(around(mask))
