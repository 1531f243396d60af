"""Smaller templates: embeddings cut to their first numbers, in 8 bits, or as sign bits.

Dense templates (see `similarity`) keep their mask: a cell of zeros stays one, and no other becomes one.

docs/evaluation.md says what each costs in error rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fingerprint_accel.errors import require
from fingerprint_accel.similarity import mask_of

Kind = Literal["float32", "int8", "binary"]
DTYPES = {"float32": np.float32, "int8": np.int8, "binary": np.uint8}
CLIP = 6.0  # standard deviations, 1 / sqrt(D), at which int8 is full: of real prints' numbers 2 in 100,000 are larger
DENSE_CLIP = 12.0  # of dense templates: a print that shows a quarter of the cells has numbers twice as large


def shortened(embeddings: np.ndarray, length: int, branches: int = 1) -> np.ndarray:
    """(N, D) float32, branches side by side -> (N, length): the first numbers of each branch, scaled to unit length.

    Rows of zeros stay zeros. From Kusupati et al. 2022, "Matryoshka Representation Learning".
    """
    parts = embeddings.reshape(len(embeddings), branches, -1)[:, :, : length // branches]
    norm = np.linalg.norm(parts, axis=2, keepdims=True) * np.float32(branches**0.5)
    return (parts / np.maximum(norm, np.float32(1e-12))).reshape(len(embeddings), length)


@dataclass(frozen=True)
class TemplateFormat:
    """How an embedding is stored.

    Attributes:
        kind: float32; int8, numbers times `scale`; binary, a bit for each number, 1 where it is above 0, and for
            dense templates a bit for each cell behind them, 1 where it is present.
        length: numbers of an embedding.
        cells: of dense templates, 0 for others.

    Raises:
        UserError: binary, and not a multiple of 8 numbers.
    """

    kind: Kind
    length: int
    cells: int = 0

    def __post_init__(self) -> None:
        require(self.kind in DTYPES, f"--template {self.kind}: there are {', '.join(DTYPES)}")
        require(
            self.kind != "binary" or self.length % 8 == 0,
            f"--template binary: packs 8 numbers in a byte; give a --length that is a multiple of 8, not {self.length}",
        )

    @property
    def scale(self) -> float:
        """What an int8 template is divided by to get the embedding; one for all prints, so that integers compare."""
        return 127 * self.length**0.5 / (DENSE_CLIP if self.cells else CLIP) if self.kind == "int8" else 1.0

    @property
    def bytes(self) -> int:
        """Of one template."""
        columns = self.length // 8 + -(-self.cells // 8) if self.kind == "binary" else self.length
        return columns * np.dtype(DTYPES[self.kind]).itemsize

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, length) float32 of unit length -> rows as they are stored."""
        if self.kind == "int8":
            return np.clip(np.rint(self._kept(embeddings * self.scale)), -127, 127).astype(np.int8)
        if self.kind == "binary":
            bits = np.packbits(embeddings > 0, axis=1)
            return np.hstack([bits, np.packbits(mask_of(embeddings, self.cells), axis=1)]) if self.cells else bits
        return embeddings.astype(np.float32, copy=False)

    def _kept(self, values: np.ndarray) -> np.ndarray:
        """(N, length) about to be rounded, so changed that no present cell of a dense template rounds to zeros."""
        if not self.cells:
            return values
        grid = values.reshape(len(values), self.cells, -1)
        largest = np.abs(grid).max(axis=2, keepdims=True)
        lost = (largest > 0) & (largest <= 0.5)  # 0.5 is rounded to 0
        return np.where(lost & (np.abs(grid) == largest), np.sign(grid), grid).reshape(values.shape)

    def decode(self, templates: np.ndarray) -> np.ndarray:
        """Rows as they are stored -> (N, length) float32 of unit length: what `search` and `similarity` compare.

        Two binary templates then have the similarity 1 - 2 * (bits that differ) / length; dense ones the same over the
        bits of the cells that both have.
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
