"""Find the parts of an image that show ridges."""

from __future__ import annotations

import numpy as np

from fingerprint_accel.data.regions import along_blocks, around, block_sums, connected_parts, in_blocks, strips

BLOCK_MM = 0.8  # side of the blocks that are searched for ridges, mm; about two ridges
MIN_CONTRAST = 5.0  # minimum standard deviation of a block with ridges, grey levels


class CanvasError(ValueError):
    """Raised for an image on which no print was found. The message gives the reason."""


def ridge_mask(grey: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    """Mark the blocks of an image that contain ridges.

    A block is marked if its contrast is high and its grey values are spread to both sides of their mean.

    Args:
        grey: (H, W) uint8.
        ppi: resolution of the image, pixels per inch.

    Returns:
        (rows, columns) bool mask with one entry per block, and the side of a block in pixels.

    Raises:
        CanvasError: if the image is too small to hold a print.
    """
    return mask_of_smoothed(smoothed(grey), ppi)


def smoothed(grey: np.ndarray) -> np.ndarray:
    """Blur a (H, W) uint8 image with a 3 x 3 box filter, so that sensor noise is not detected as ridges.

    The result is that of `PIL.ImageFilter.BoxBlur(1)`, which takes four times as long.
    """
    height, width = grey.shape
    result = np.empty_like(grey)
    for some in strips(height, width):
        padded = np.empty((some.stop - some.start + 2, width + 2), np.uint16)
        padded[1:-1, 1:-1] = grey[some]
        padded[0, 1:-1], padded[-1, 1:-1] = grey[max(0, some.start - 1)], grey[min(some.stop, height - 1)]
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
        across = _thirds(padded[:, :-2], padded[:, 1:-1], padded[:, 2:])
        result[some] = _thirds(across[:-2], across[1:-1], across[2:])
    return result


def _thirds(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the mean of three uint16 arrays, rounded to the nearest integer."""
    total: np.ndarray = before + here
    total += after
    total += 1
    total //= 3
    return total


def mask_of_smoothed(smooth: np.ndarray, ppi: float) -> tuple[np.ndarray, int]:
    block = max(4, round(BLOCK_MM / 25.4 * ppi))
    rows, columns = smooth.shape[0] // block, smooth.shape[1] // block
    if rows < 2 or columns < 2:
        raise CanvasError("too small to hold a print: a side is shorter than 1.6 mm, or the ppi is wrong")
    deviation, varied = np.empty((rows, columns), np.float32), np.empty((rows, columns), bool)
    for some in strips(rows, block * block * columns):
        pixels = smooth[some.start * block : some.stop * block, : columns * block]
        deviation[some], varied[some] = _contrast(pixels, block)
    mask = deviation > max(MIN_CONTRAST, 0.35 * float(np.percentile(deviation, 95)))
    return _main_part(neighbours(mask & varied) >= 5), block


def _contrast(pixels: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Measure the contrast of square blocks of pixels (rows * block, columns * block) uint8.

    Returns:
        (rows, columns) float32 standard deviations, and (rows, columns) bool: whether more than 30 % of the pixels of a
        block differ from its mean by more than half of its standard deviation.
    """
    count, middle = block**2, 128
    tiles = in_blocks(pixels, block)
    values = np.subtract(tiles, np.float32(middle))  # small numbers, so that float32 sums of squares are exact
    mean = block_sums(values) / np.float64(count)
    values *= values
    deviation = np.sqrt(np.maximum(0, block_sums(values) / count - mean**2)).astype(np.float32)
    # Pixels are integers, so they can be compared with integers.
    low, high = mean + middle - 0.5 * deviation, mean + middle + 0.5 * deviation
    far = tiles < along_blocks(np.ceil(low).clip(0).astype(np.uint8), block)
    far |= tiles > along_blocks(high.clip(max=255).astype(np.uint8), block)
    return deviation, block_sums(far) / count > 0.3


def neighbours(mask: np.ndarray) -> np.ndarray:
    """Return the number of true values in the 3 x 3 neighbourhood of each mask entry, as a (rows, columns) array."""
    counts: np.ndarray = around(mask.astype(np.int32)).sum(axis=0)
    return counts


def _main_part(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected component of a mask, and all components with at least a quarter of its area."""
    labels = connected_parts(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes >= max(1, sizes.max() // 4))) & mask
