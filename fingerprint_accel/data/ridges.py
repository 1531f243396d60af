"""Find ridges in an image and measure the distance between ridges, from Fourier spectra of small windows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.data.regions import strips

MM_PER_INCH = 25.4
FLAT = 6.0  # a window with a lower standard deviation of its grey levels is paper


@dataclass(frozen=True)
class RidgeMap:
    """Ridges in the windows of an image.

    Attributes:
        share: (rows, columns) float32 share of the spectral energy of a window that is near its strongest ridge
            frequency; 0 on paper.
        period: (rows, columns) float32, distance of ridges in each window, pixels.
        step: stride between neighbouring windows, pixels; window (i, j) starts at pixel (i * step, j * step).
    """

    share: np.ndarray
    period: np.ndarray
    step: int


def measure_ridges(
    grey: np.ndarray,
    ppi: float,
    window_mm: float,
    periods_mm: tuple[float, float],
    overlap: bool = True,
    most: int | None = None,
) -> RidgeMap:
    """Find the strongest ridge frequency in each window of an image.

    Args:
        grey: (H, W) uint8 or int16 image.
        ppi: resolution of the image, pixels per inch.
        window_mm: side of a window, mm.
        periods_mm: smallest and largest distance of ridges, mm.
        overlap: whether windows overlap by half of their side. Without overlap, the function takes a quarter of the
            time that it takes with overlap.
        most: measure only this many windows, those with the highest contrast. Default: all windows.
    """
    side = 2 * max(4, round(window_mm / 2 / MM_PER_INCH * ppi))
    step = side // 2 if overlap else side
    padded = np.pad(grey, [(0, max(0, side - length)) for length in grey.shape], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))[::step, ::step]
    shape = windows.shape[:2]
    deviation = np.concatenate([_centred(windows[some])[1] for some in strips(shape[0], shape[1] * side * side)])
    lively = np.argsort(-deviation)[:most]
    lively = lively[deviation[lively] >= FLAT]
    smallest, largest = (period / MM_PER_INCH * ppi for period in periods_mm)
    share, period = (np.zeros(len(deviation), np.float32) for _ in range(2))
    for some in strips(len(lively), side * side):
        tiles = _centred(windows[np.unravel_index(lively[some], shape)])[0]
        share[lively[some]], period[lively[some]] = _strongest(tiles, side, smallest, largest)
    return RidgeMap(share.reshape(shape), period.reshape(shape), step)


def _centred(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy windows (..., side, side) to tiles (n, side, side) float32 of mean 0; also return standard deviations."""
    side = windows.shape[-1]
    tiles = windows.reshape(-1, side, side).astype(np.float32)
    tiles -= tiles.mean(axis=(1, 2), keepdims=True)
    return tiles, tiles.std(axis=(1, 2))


def _strongest(tiles: np.ndarray, side: int, smallest: float, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the strongest ridge frequency of each tile.

    Args:
        tiles: (n, side, side) float32 with mean 0.
        side: side of a tile, pixels.
        smallest: smallest period of ridges, pixels.
        largest: largest period of ridges, pixels.

    Returns:
        (n,) share of the energy around the strongest frequency, and (n,) period of that frequency in pixels.
    """
    taper, radius, band = _frequencies(side, smallest, largest)
    half = np.abs(np.fft.rfft2(tiles * taper)) ** 2  # (n, side, side // 2 + 1); the other half is its mirror image
    mirrored = np.roll(half[:, ::-1, 1:2], 1, axis=1)  # first column of the other half, a neighbour of the axis
    power = np.fft.fftshift(np.concatenate([mirrored, half], axis=2), axes=1)
    total = half.sum(axis=(1, 2)) + half[:, :, 1:].sum(axis=(1, 2)) - half[:, 0, 0]
    padded = np.pad(power, ((0, 0), (1, 1), (1, 1)))
    offsets = [(i, j) for i in range(3) for j in range(3)]
    near = [padded[:, i : i + side, j : j + power.shape[2]] for i, j in offsets]
    around = np.where(band, sum(near), 0).reshape(len(tiles), -1)
    best = around.argmax(axis=1)
    rows = np.arange(len(tiles))
    energy = around[rows, best]
    distance = np.pad(radius, 1)
    weighted = sum(
        values.reshape(len(tiles), -1)[rows, best] * distance[i : i + side, j : j + power.shape[2]].reshape(-1)[best]
        for values, (i, j) in zip(near, offsets, strict=True)
    )
    return 2 * energy / np.maximum(total, 1e-6), energy / np.maximum(weighted, 1e-6)


@functools.lru_cache(maxsize=16)
def _frequencies(side: int, smallest: float, largest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the constants that `_strongest` needs for tiles of one size.

    Args:
        side: side of a tile, pixels.
        smallest: smallest period of ridges, pixels.
        largest: largest period of ridges, pixels.

    Returns:
        (side, side) Hann window; (side, side // 2 + 2) absolute frequencies in cycles per pixel; and a bool mask of the
        same shape, true for frequencies of ridges.
    """
    hann = np.hanning(side + 1)[:side].astype(np.float32)
    vertical = np.fft.fftshift(np.fft.fftfreq(side))
    horizontal = np.arange(-1, side // 2 + 1) / side
    radius = np.hypot(vertical[:, None], horizontal[None, :]).astype(np.float32)
    band = (radius >= 1 / largest) & (radius <= 1 / smallest)
    band[:, 0] = False  # the mirrored column only contributes to the sums of its neighbours
    return np.outer(hann, hann), radius, band
