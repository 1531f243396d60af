"""Smaller templates: embeddings cut to their first numbers, in 8 bits, or as sign bits.

docs/evaluation.md says what each costs in error rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fingerprint_accel.errors import require

Kind = Literal["float32", "int8", "binary"]
DTYPES = {"float32": np.float32, "int8": np.int8, "binary": np.uint8}
CLIP = 6.0  # standard deviations, 1 / sqrt(D), at which int8 is full: of real prints' numbers 2 in 100,000 are larger


def shortened(embeddings: np.ndarray, length: int, branches: int = 1) -> np.ndarray:
    """The first numbers of each branch's embedding, scaled to unit length (Kusupati et al. 2022, "Matryoshka").

    Args:
        embeddings: (N, D) float32, the branches side by side.
        length: numbers to keep in all.
        branches: of the network.

    Returns:
        (N, length) float32; rows of zeros stay zeros.
    """
    parts = embeddings.reshape(len(embeddings), branches, -1)[:, :, : length // branches]
    norm = np.linalg.norm(parts, axis=2, keepdims=True) * np.float32(branches**0.5)
    return (parts / np.maximum(norm, np.float32(1e-12))).reshape(len(embeddings), length)


@dataclass(frozen=True)
class TemplateFormat:
    """How an embedding is stored.

    Attributes:
        kind: float32; int8, numbers times `scale`; binary, a bit for each number, 1 where it is above 0.
        length: numbers of an embedding.

    Raises:
        UserError: binary, and not a multiple of 8 numbers.
    """

    kind: Kind
    length: int

    def __post_init__(self) -> None:
        require(self.kind in DTYPES, f"--template {self.kind}: there are {', '.join(DTYPES)}")
        require(
            self.kind != "binary" or self.length % 8 == 0,
            f"--template binary: packs 8 numbers in a byte; give a --length that is a multiple of 8, not {self.length}",
        )

    @property
    def scale(self) -> float:
        """What numbers of an int8 template are divided by to get those of the embedding; the same for all prints, so
        that similarities may be computed from the integers."""
        return 127 * self.length**0.5 / CLIP if self.kind == "int8" else 1.0

    @property
    def columns(self) -> int:
        """Numbers of a stored row."""
        return self.length // 8 if self.kind == "binary" else self.length

    @property
    def bytes(self) -> int:
        """Of one template."""
        return self.columns * np.dtype(DTYPES[self.kind]).itemsize

    def encode(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, length) float32 of unit length -> (N, columns) as stored."""
        if self.kind == "int8":
            return np.clip(np.rint(embeddings * self.scale), -127, 127).astype(np.int8)
        if self.kind == "binary":
            return np.packbits(embeddings > 0, axis=1)
        return embeddings.astype(np.float32, copy=False)

    def decode(self, templates: np.ndarray) -> np.ndarray:
        """(N, columns) as stored -> (N, length) float32 of unit length: what `search` and `similarity` compare.

        Two binary templates then have the similarity 1 - 2 * (bits that differ) / length.
        """
        if self.kind == "float32":
            return templates
        if self.kind == "binary":
            return (np.unpackbits(templates, axis=1) * np.float32(2) - 1) / np.float32(self.length**0.5)
        values = templates.astype(np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1))
