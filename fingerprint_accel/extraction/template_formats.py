"""Storage formats of templates: shortened embeddings, 8-bit integers, and sign bits.

A dense template consists of one vector for each cell of a grid on the finger; see `similarity`. Cells that the print
does not show are zero. All formats preserve this: cells that are zero remain zero, and no other cell becomes zero. For
the error rates of each format, see docs/extraction.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fingerprint_accel.errors import require
from fingerprint_accel.similarity import mask_of

Kind = Literal["float32", "int8", "binary"]
DTYPES = {"float32": np.float32, "int8": np.int8, "binary": np.uint8}
# Largest value that int8 can store, in units of the standard deviation 1 / sqrt(D). In templates of real prints, 2 in
# 100,000 values are larger. In a dense template that shows a quarter of the cells, the values are twice as large.
CLIP = 6.0
DENSE_CLIP = 12.0


def shortened(embeddings: np.ndarray, length: int, branches: int = 1) -> np.ndarray:
    """Keep the first values of each network branch in embeddings, and rescale the embeddings to unit length.

    The embedding of a failed print (all zeros) remains zero. See Kusupati et al. 2022, "Matryoshka Representation
    Learning".

    Args:
        embeddings: (N, D) float32; the values of the first branch are followed by the values of the second branch.
        length: total number of values to keep, a multiple of `branches`.
        branches: number of branches of the network.

    Returns:
        (N, length) float32.
    """
    parts = embeddings.reshape(len(embeddings), branches, -1)[:, :, : length // branches]
    norm = np.linalg.norm(parts, axis=2, keepdims=True) * np.float32(branches**0.5)
    return (parts / np.maximum(norm, np.float32(1e-12))).reshape(len(embeddings), length)


@dataclass(frozen=True)
class TemplateFormat:
    """Storage format of embeddings.

    Attributes:
        kind: "float32", "int8" or "binary". "int8" stores each value multiplied by the property `scale` and rounded.
            "binary" stores one bit per value, which is 1 if the value is above 0. For dense templates, "binary" appends
            one bit per grid cell, which is 1 if the print shows the cell.
        length: number of values in an embedding.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if the kind is unknown, or if it is "binary" and the length is not a multiple of 8.
    """

    kind: Kind
    length: int
    cells: int = 0

    def __post_init__(self) -> None:
        require(self.kind in DTYPES, f"--template {self.kind}: must be one of {', '.join(DTYPES)}")
        require(
            self.kind != "binary" or self.length % 8 == 0,
            f"--template binary: packs 8 numbers in a byte; give a --length that is a multiple of 8, not {self.length}",
        )

    @property
    def scale(self) -> float:
        """Factor by which embeddings are multiplied to get int8 templates; 1 for the other formats.

        The factor is the same for all prints, so the integers of two templates can be compared directly.
        """
        return 127 * self.length**0.5 / (DENSE_CLIP if self.cells else CLIP) if self.kind == "int8" else 1.0

    @property
    def bytes(self) -> int:
        """Size of a template in bytes."""
        columns = self.length // 8 + -(-self.cells // 8) if self.kind == "binary" else self.length
        return columns * np.dtype(DTYPES[self.kind]).itemsize

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """Convert embeddings (N, length) float32 of unit length to templates in this format, one row per print."""
        if self.kind == "int8":
            return np.clip(np.rint(self._kept(embeddings * self.scale)), -127, 127).astype(np.int8)
        if self.kind == "binary":
            bits = np.packbits(embeddings > 0, axis=1)
            return np.hstack([bits, np.packbits(mask_of(embeddings, self.cells), axis=1)]) if self.cells else bits
        return embeddings.astype(np.float32, copy=False)

    def _kept(self, values: np.ndarray) -> np.ndarray:
        """Change the values of dense templates so that rounding to integers does not set all values of a cell to zero.

        If all values of a cell that the print shows would be rounded to 0, the largest value is replaced by 1 or -1.
        Other templates are not changed.

        Args:
            values: (N, length) float32, embeddings times `scale`.
        """
        if not self.cells:
            return values
        grid = values.reshape(len(values), self.cells, -1)
        largest = np.abs(grid).max(axis=2, keepdims=True)
        lost = (largest > 0) & (largest <= 0.5)  # `np.rint` rounds 0.5 to 0
        return np.where(lost & (np.abs(grid) == largest), np.sign(grid), grid).reshape(values.shape)

    def decode(self, templates: np.ndarray) -> np.ndarray:
        """Convert templates in this storage format to embeddings (N, length) float32 of unit length.

        The dot product of two decoded binary templates is 1 - 2 * h / length if h bits differ. For dense binary
        templates, `similarity.masked_similarity` gives the same relation for the bits of the cells that both prints
        show.
        """
        if self.kind == "float32":
            return templates
        if self.kind == "binary":
            signs = np.unpackbits(templates, axis=1, count=self.length) * np.float32(2) - 1
            if not self.cells:
                return signs / np.float32(self.length**0.5)
            present = np.unpackbits(templates[:, self.length // 8 :], axis=1, count=self.cells)
            shown = present.repeat(self.length // self.cells, axis=1)
            return signs * shown / np.sqrt(np.maximum(shown.sum(axis=1, keepdims=True), 1), dtype=np.float32)
        values = templates.astype(np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1))
