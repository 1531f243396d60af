"""Check whether minutiae belong to a print: they must lie on its ridges and have the direction of the ridges."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fingerprint_accel.data.ridges import MM_PER_INCH

WORKING_PPI = 250  # resolution at which the ridge direction is measured, pixels per inch
MOST_PIXELS = 6_250_000  # an image is shrunk to this size; it is that of 25 megapixels at 500 ppi
AROUND_MM = 1.2  # side of the square in which the ridge direction is measured, mm
CLEAR = 0.35  # minimum coherence (0 to 1) of the ridge direction on clear ridges
LEAST_INSIDE = 0.5  # minimum share of the minutiae that lie on the image
FEWEST = 6  # the ridges of prints with fewer minutiae are not checked
PAPER = 0.05  # a place with a lower share of the typical gradient energy counts as paper
LEAST_ON_RIDGES = 0.35  # minimum share of the minutiae that lie on clear ridges
# Largest median error of the direction, degrees. For 260 prints, the median error is at most 22 degrees with the
# minutiae of the same print, and about 33 degrees with the minutiae of a different print.
LARGEST_ERROR = 24.0


def why_foreign(grey: np.ndarray, ppi: float, minutiae: np.ndarray) -> str:
    """Return the reason why minutiae cannot belong to a print; empty if they can.

    Args:
        grey: (H, W) uint8 image of the print.
        ppi: resolution of the image, pixels per inch.
        minutiae: (n, 4) x, y (image pixels), angle (radians) and quality of n minutiae.
    """
    inside = ((minutiae[:, :2] >= 0) & (minutiae[:, :2] < grey.shape[::-1])).all(axis=1)
    if inside.sum() < LEAST_INSIDE * len(minutiae):
        return f"lie outside the image: {len(minutiae) - inside.sum()} of {len(minutiae)}"
    if len(minutiae) < FEWEST:
        return ""
    flow, clear = _flow_at(grey, ppi, minutiae)
    if clear.sum() < LEAST_ON_RIDGES * len(minutiae):
        return f"fit no ridges: only {clear.sum()} of {len(minutiae)} minutiae lie on clear ridges"
    error = np.abs((np.degrees(minutiae[:, 2] - flow)[clear] + 90) % 180 - 90)
    if np.median(error) > LARGEST_ERROR:
        return f"fit no ridges: directions differ by {np.median(error):.0f} degrees (median) from those of the ridges"
    return ""


def _flow_at(grey: np.ndarray, ppi: float, minutiae: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the ridge direction at each minutia with the structure tensor (Bazen and Gerez 2002).

    The arguments are those of `why_foreign`.

    Returns:
        Two arrays: (n,) ridge directions in radians, counter-clockwise from +x, and an (n,) bool mask that is True for
        minutiae on clear ridges.
    """
    scale = min(1.0, WORKING_PPI / ppi, (MOST_PIXELS / grey.size) ** 0.5)
    size = (max(2, round(grey.shape[1] * scale)), max(2, round(grey.shape[0] * scale)))
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), np.float32)
    x, y = (np.floor(minutiae[:, axis] * scale).astype(int) for axis in (0, 1))
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    down, across = (np.asarray(slope) for slope in np.gradient(small))
    radius = max(1, round(AROUND_MM / 2 / MM_PER_INCH * ppi * scale))
    places = np.where(inside, y, 0), np.where(inside, x, 0)
    tables = [_table(values, radius) for values in (across * across, down * down, across * down)]
    xx, yy, xy = (_sums(table, radius, *places) for table in tables)
    every = np.mgrid[: size[1] : 8, : size[0] : 8].reshape(2, -1)
    usual = np.percentile(_sums(tables[0], radius, *every) + _sums(tables[1], radius, *every), 90)
    coherence = np.hypot(xx - yy, 2 * xy) / np.maximum(xx + yy, 1e-6)
    # The gradient is largest across the ridges, hence pi / 2. The sign changes because y counts downwards.
    flow = np.pi / 2 - 0.5 * np.arctan2(2 * xy, xx - yy)
    return flow, inside & (coherence > CLEAR) & (xx + yy > PAPER * usual)


def _table(values: np.ndarray, radius: int) -> np.ndarray:
    """Return the summed-area table of an (h, w) array, padded so that `_sums` can use it with the same `radius`."""
    return np.pad(values, radius + 1)[:-1, :-1].cumsum(axis=0, dtype=np.float64).cumsum(axis=1)


def _sums(table: np.ndarray, radius: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the sums of an array over squares around n places, using the summed-area table of the array.

    Args:
        table: result of `_table` for the array.
        radius: half the side of the squares; the side is 2 * radius + 1.
        y: (n,) rows of the places.
        x: (n,) columns of the places.

    Returns:
        (n,) sums.
    """
    side = 2 * radius + 1
    return table[y + side, x + side] - table[y, x + side] - table[y + side, x] + table[y, x]
