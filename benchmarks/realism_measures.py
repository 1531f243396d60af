"""Measures of the image of a print, by the same steps for real and synthetic prints."""

from __future__ import annotations

import numpy as np

from fingerprint_accel.data.ridge_mask import ridge_mask

WINDOW_MM = 2.7  # about six ridges
PERIODS_MM = (0.25, 0.9)  # range of ridge periods
SLOW_MM = 1.2  # variation slower than this is pressure, not ridges
CLEAR = 0.4  # least share of the variation around the ridge frequency, where ridges are clear
_GRID = 128  # points of the spectrum along each axis


def image_measures(grey: np.ndarray, ppi: float) -> dict[str, float]:
    """Measure contact area, grey levels in it, and ridge periods of a print.

    Args:
        grey: (H, W) uint8, ridges dark.
        ppi: Resolution of the image.

    Returns:
        `area_cm2`, `grey_mean`, `grey_sd`, `clear_blocks` (share of blocks with clear ridges), and over the clear
        blocks `period_mm` (median) and `period_sd_mm`; NaN without clear blocks.
    """
    mask, block = ridge_mask(grey, ppi)
    inside = np.zeros(grey.shape, bool)
    whole = mask.repeat(block, axis=0).repeat(block, axis=1)
    inside[: whole.shape[0], : whole.shape[1]] = whole
    periods, clear = ridge_periods(grey, mask, block, ppi)
    kept = periods[clear]
    return {
        "area_cm2": float(mask.sum() * (block / ppi * 2.54) ** 2),
        "grey_mean": float(grey[inside].mean()) if inside.any() else float("nan"),
        "grey_sd": float(grey[inside].std()) if inside.any() else float("nan"),
        "clear_blocks": float(clear.mean()) if len(clear) else float("nan"),
        "period_mm": float(np.median(kept)) if len(kept) else float("nan"),
        "period_sd_mm": float(kept.std()) if len(kept) else float("nan"),
    }


def ridge_periods(grey: np.ndarray, mask: np.ndarray, block: int, ppi: float) -> tuple[np.ndarray, np.ndarray]:
    """Measure the ridge period around each block whose neighbours have ridges too, at the peak of the local spectrum.

    Args:
        grey: (H, W) uint8.
        mask: Blocks with ridges, from `ridge_mask`.
        block: Side of a block, from `ridge_mask`.
        ppi: Resolution of the image.

    Returns:
        The periods (k,) in mm, and whether the ridges are clear (k,) bool.
    """
    rows, columns = np.nonzero(_interior(mask))
    side = round(WINDOW_MM / 25.4 * ppi)
    padded = np.pad(grey.astype(np.float32), side, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    top, left = (np.round((at + 0.5) * block).astype(int) + side - side // 2 for at in (rows, columns))
    parts = [
        _peaks(windows[top[i : i + 64], left[i : i + 64]], ppi / 25.4) for i in range(0, len(rows), 64)
    ]  # 64 windows at a time bound the memory
    periods = np.concatenate([part[0] for part in parts]) if parts else np.empty(0)
    share = np.concatenate([part[1] for part in parts]) if parts else np.empty(0)
    return periods, share > CLEAR


def _interior(mask: np.ndarray) -> np.ndarray:
    """Return the blocks whose neighbours are all in the mask."""
    padded = np.pad(mask, 1)
    rows, columns = mask.shape
    return np.all([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=0)


def _peaks(windows: np.ndarray, pixels_per_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the period in mm at the spectral peak of windows (k, side, side), and its share of the variation."""
    count, side = len(windows), windows.shape[1]
    axis = np.hanning(side + 2)[1:-1].astype(np.float32)
    weight = axis[:, None] * axis
    mean = (windows * weight).sum(axis=(1, 2), keepdims=True) / weight.sum()
    power = np.abs(np.fft.fft2((windows - mean) * weight, s=(_GRID, _GRID))) ** 2  # (k, GRID, GRID)
    frequency = np.fft.fftfreq(_GRID) * pixels_per_mm
    radius = np.hypot(frequency[:, None], frequency)
    band = (radius > 1 / PERIODS_MM[1]) & (radius < 1 / PERIODS_MM[0])
    row, column = np.divmod((power * band).reshape(count, -1).argmax(axis=1), _GRID)
    each = np.arange(count)

    def at(down: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
        return np.log(power[each, (row + down) % _GRID, (column + right) % _GRID] + 1e-9)

    fine_row = _signed(row) + _vertex(at(-1, 0), at(0, 0), at(1, 0))
    fine_column = _signed(column) + _vertex(at(0, -1), at(0, 0), at(0, 1))
    period = _GRID / pixels_per_mm / np.hypot(fine_row, fine_column)
    reach = int(np.ceil(2 * _GRID / side))  # half the width of the window's main lobe
    down, right = np.nonzero(np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach)
    lobe = power[each[:, None], (row[:, None] + down - reach) % _GRID, (column[:, None] + right - reach) % _GRID]
    return period, 2 * lobe.sum(axis=1) / (power * (radius > 1 / SLOW_MM)).sum(axis=(1, 2)).clip(1e-9)


def _signed(index: np.ndarray) -> np.ndarray:
    """Convert indices of the spectrum to signed frequencies."""
    return np.where(index < _GRID // 2, index, index - _GRID)


def _vertex(before: np.ndarray, middle: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the extreme of the parabola through three equally spaced values, relative to the middle one."""
    bend = before - 2 * middle + after
    return np.clip(0.5 * (before - after) / np.where(bend < -1e-9, bend, -1e9), -0.5, 0.5)
