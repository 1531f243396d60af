"""Split images into strips and blocks, and find neighbours and connected components of the entries of an array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

# Pixels that are processed at a time. Numbers wider than the uint8 pixels of a strip then stay in the cache of a core,
# and do not take new pages of memory from the system.
STRIP = 2**16


def strips(rows: int, pixels: int) -> Iterator[slice]:
    """Split rows of `pixels` pixels each into strips of about STRIP pixels, and yield the slice of each strip."""
    at_once = max(1, STRIP // max(1, pixels))
    for start in range(0, rows, at_once):
        yield slice(start, min(rows, start + at_once))


def around(values: np.ndarray, mode: Literal["constant", "edge"] = "constant") -> np.ndarray:
    """Return the 3 x 3 neighbourhood of each entry of an array, as nine shifted copies of the array.

    Args:
        values: (rows, columns) array.
        mode: values outside the array: "constant" pads with 0, "edge" repeats the nearest entry.

    Returns:
        (9, rows, columns) array.
    """
    rows, columns = values.shape
    # `np.pad` gives the same result, but takes ten times as long for such small arrays.
    padded = np.zeros((rows + 2, columns + 2), values.dtype)
    padded[1:-1, 1:-1] = values
    if mode == "edge":
        padded[0], padded[-1] = padded[1], padded[-2]
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
    return np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])


def in_blocks(image: np.ndarray, block: int) -> np.ndarray:
    """View an image (rows * block, columns * block) as rows of square blocks, (rows, block, columns * block)."""
    return image.reshape(-1, block, image.shape[1])


def along_blocks(values: np.ndarray, block: int) -> np.ndarray:
    """Repeat one value per block (rows, columns) along the rows of pixels, (rows, 1, columns * block).

    The result can be broadcast with that of `in_blocks`.
    """
    return values.repeat(block, axis=1)[:, None]


def block_sums(values: np.ndarray) -> np.ndarray:
    """Sum the values of each square block.

    Args:
        values: (rows, block, columns * block) bool or float32, see `in_blocks`. Sums of float32 numbers are exact if
            they are integers up to 2**24.

    Returns:
        (rows, columns): int64 numbers of true values, or float32.
    """
    block = values.shape[1]
    narrow: type[np.generic] = np.float32
    wide: type[np.generic] = np.float32
    if values.dtype == bool:  # a byte holds the count of one column of a block, and a processor adds many bytes at once
        values, narrow, wide = values.view(np.uint8), np.uint8 if block < 256 else np.uint32, np.int64
    # The first sum reads most values. It adds whole rows, which is far faster than adding along the last axis.
    tall = values.sum(axis=1, dtype=narrow)
    sums: np.ndarray = np.add.reduceat(tall, np.arange(0, tall.shape[1], block), axis=1, dtype=wide)
    return sums


def block_ranks(image: np.ndarray, block: int, rank: int) -> np.ndarray:
    """Return the pixel of a given rank of each square block, without sorting.

    Args:
        image: (rows * block, columns * block) uint8.
        block: side of a block.
        rank: number of pixels of the block that lie before it in ascending order.

    Returns:
        (rows, columns) uint8.
    """
    found = np.zeros((image.shape[0] // block, image.shape[1] // block), np.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):  # bisection
        below = block_sums(in_blocks(image, block) <= along_blocks(found + np.uint8(bit - 1), block))
        found += np.uint8(bit) * (below <= rank)
    return found


def interpolated_rows(values: np.ndarray, block: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Enlarge an array along its first axis by linear interpolation. Each value lies in the middle of `block` rows.

    The result is that of Pillow's bilinear `resize` of an image of mode F, bit for bit.

    Args:
        values: (rows, columns) float32.
        block: rows of the result per row of `values`.

    Yields:
        Slice of the rows * block rows of the result, and these rows (n, columns) float32, from top to bottom.
    """
    rows, columns = values.shape
    ends = np.concatenate([values[:1], values, values[-1:]]).astype(np.float64)
    before = block // 2  # rows above the middle of the first value
    # Weights of the values above and below each row. Pillow rounds in this way, and a last bit decides about ties.
    centre = (np.arange((rows + 1) * block).reshape(-1, block) - before + 0.5) * (1 / block)
    above = np.arange(-1, rows)[:, None]
    upper, lower = 1 - np.abs(above - centre + 0.5), 1 - np.abs(above + 1 - centre + 0.5)
    upper, lower = (weight[:, :, None] * (1 / (upper + lower))[:, :, None] for weight in (upper, lower))
    for some in strips(rows + 1, block * columns):
        part = ends[some, None] * upper[some]
        part += ends[some.start + 1 : some.stop + 1, None] * lower[some]
        found, start = part.astype(np.float32).reshape(-1, columns), some.start * block - before
        here = slice(max(0, start), min(rows * block, start + len(found)))
        yield here, found[here.start - start : here.stop - start]


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Label the connected components of a mask. Diagonal neighbours are connected too.

    Args:
        mask: (rows, columns) bool.

    Returns:
        (rows, columns) int: the label of the component, above 0, or 0 for the background. Labels need not be
        consecutive.
    """
    places = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    leader = np.arange(mask.size + 1)  # label of the component of each place, as far as it is known
    while True:
        labels = leader[places]
        spread: np.ndarray = around(labels).max(axis=0) * mask
        if (spread == labels).all():
            return labels
        np.maximum.at(leader, labels.ravel(), spread.ravel())  # each component joins a neighbour with a larger label
        while (further := leader[leader]).sum() != leader.sum():  # labels only grow, so equal sums are equal labels
            leader = further
