"""Whether minutiae belong to a print: they lie on its ridges, and point along them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fingerprint_accel.data.ridges import MM_PER_INCH

WORKING_PPI = 250  # enough to see which way ridges run
AROUND_MM = 1.2  # side of the square in which the flow is measured
CLEAR = 0.35  # coherence of the flow, 0 to 1, from which a place counts as ridges
FEWEST = 6  # minutiae below which nothing is said
PAPER = 0.05  # of the usual strength of ridges: below it is paper
LEAST_ON_RIDGES = 0.35  # share of the minutiae of a print that lie on clear ridges
LARGEST_ERROR = 24.0  # degrees, median: 22 at most of 260 prints with their own minutiae, about 33 with those of others


def why_foreign(grey: np.ndarray, ppi: float, minutiae: np.ndarray) -> str:
    """Why minutiae cannot be those of a print; empty if they can.

    Args:
        grey: (H, W) uint8.
        ppi: of the image.
        minutiae: (n, 4) x, y, angle in radians, quality in pixels of the image.
    """
    if len(minutiae) < FEWEST:
        return ""
    flow, clear = _flow_at(grey, ppi, minutiae)
    if clear.sum() < LEAST_ON_RIDGES * len(minutiae):
        return f"fit no ridges: {clear.sum()} of {len(minutiae)} lie on them"
    error = np.abs((np.degrees(minutiae[:, 2] - flow)[clear] + 90) % 180 - 90)
    if np.median(error) > LARGEST_ERROR:
        return f"fit no ridges: directions differ by {np.median(error):.0f} degrees (median)"
    return ""


def _flow_at(grey: np.ndarray, ppi: float, minutiae: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) direction of the ridges at each minutia, radians counter-clockwise from +x, and (n,) bool whether there are
    clear ones, by the structure tensor (Bazen and Gerez 2002)."""
    scale = min(1.0, WORKING_PPI / ppi)
    size = (max(2, round(grey.shape[1] * scale)), max(2, round(grey.shape[0] * scale)))
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), np.float32)
    x, y = (np.floor(minutiae[:, axis] * scale).astype(int) for axis in (0, 1))
    inside = (x >= 0) & (x < size[0]) & (y >= 0) & (y < size[1])
    down, across = (np.asarray(slope) for slope in np.gradient(small))
    radius = max(1, round(AROUND_MM / 2 / MM_PER_INCH * min(ppi, WORKING_PPI)))
    places = np.where(inside, y, 0), np.where(inside, x, 0)
    tables = [_table(values, radius) for values in (across * across, down * down, across * down)]
    xx, yy, xy = (_sums(table, radius, *places) for table in tables)
    every = np.mgrid[: size[1] : 8, : size[0] : 8].reshape(2, -1)
    usual = np.percentile(_sums(tables[0], radius, *every) + _sums(tables[1], radius, *every), 90)
    coherence = np.hypot(xx - yy, 2 * xy) / np.maximum(xx + yy, 1e-6)
    # across the ridges is where grey values change most; y counts downwards, angles upwards
    flow = np.pi / 2 - 0.5 * np.arctan2(2 * xy, xx - yy)
    return flow, inside & (coherence > CLEAR) & (xx + yy > PAPER * usual)


def _table(values: np.ndarray, radius: int) -> np.ndarray:
    """(h, w) -> sums over all that lies above and to the left, with a margin, for `_sums`."""
    return np.pad(values, radius + 1)[:-1, :-1].cumsum(axis=0, dtype=np.float64).cumsum(axis=1)


def _sums(table: np.ndarray, radius: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n,) sums over the square of this radius around places of the array that a table was made of."""
    side = 2 * radius + 1
    return table[y + side, x + side] - table[y, x + side] - table[y + side, x] + table[y, x]
