"""Split images into strips, and find neighbours and connected components of the entries of an array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

STRIP = 2**20  # pixels that are processed at a time as floating-point numbers, so that large images take little memory


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
