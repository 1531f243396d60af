"""Measure how 8-bit convolutions change the templates of a model and the similarities between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from fingerprint_accel.errors import require
from fingerprint_accel.extraction.example_prints import example_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.similarity import pair_similarity, similarity

Run: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Function that embeds canvases (N, canvas, canvas) uint8, and returns (N, D) float32 of unit length."""
LARGEST_CHANGE = 0.04  # root mean square of the changes of similarities; larger changes are refused
FIRST, FINGERS, IMPRESSIONS = 1000, 16, 4  # fingers that the ranges were not measured on, and prints of each
BATCH_SIZE = 8


@dataclass(frozen=True)
class Changes:
    """Differences between a quantised model and the original model on N rendered prints.

    Attributes:
        prints: number of prints, N.
        rms: root mean square of the change of the similarity of two different prints, over all N (N - 1) / 2 pairs.
        median: median over the prints of the similarity of the two templates of a print.
        lowest: lowest similarity of the two templates of a print.
    """

    prints: int
    rms: float
    median: float
    lowest: float

    def check(self) -> None:
        """Raise a UserError if similarities change too much."""
        require(
            self.rms <= LARGEST_CHANGE,
            f"8 bits change the similarity of two prints by {self.rms:.3f} (root mean square), and at most "
            f"{LARGEST_CHANGE} is allowed; export this model without --int8",
        )

    def text(self) -> str:
        """Return the differences as text for the user."""
        return (
            f"similarities of two prints differ from PyTorch by {self.rms:.3f} (root mean square, allowed "
            f"{LARGEST_CHANGE}); similarity of a template to that of PyTorch: median {self.median:.4f}, lowest "
            f"{self.lowest:.4f}"
        )

    def described(self, calibrated: int) -> dict[str, str]:
        """Return the differences as metadata of the file.

        Args:
            calibrated: number of prints on which the ranges were measured.
        """
        return {
            "quantisation": "static, uint8 activations, int8 weights per channel",
            "float32_layers": "preprocessing, alignment network, first layers, residual sums, head",
            "calibration_prints": f"{calibrated} synthetic",
            "checked_prints": f"{self.prints} synthetic",
            "similarity_change_rms": f"{self.rms:.5f}",
            "similarity_change_rms_allowed": str(LARGEST_CHANGE),
            "similarity_to_original_median": f"{self.median:.5f}",
            "similarity_to_original_lowest": f"{self.lowest:.5f}",
        }


def changes(extractor: FingerprintExtractor, run: Run) -> Changes:
    """Embed rendered prints with the original and the quantised model, and compare templates and similarities.

    Args:
        extractor: original model.
        run: function that embeds canvases with the quantised model.
    """
    images = example_prints(extractor.print_info, FIRST, FINGERS, IMPRESSIONS)
    extractor, rows = extractor.cpu(), np.arange(len(images))
    parts = np.split(images, range(BATCH_SIZE, len(images), BATCH_SIZE))
    theirs = np.concatenate([extractor(torch.from_numpy(part)).numpy() for part in parts])
    ours = np.concatenate([run(part) for part in parts])
    same = pair_similarity(theirs, ours, np.stack([rows, rows], axis=1), extractor.cells)
    change = similarity(ours, ours, extractor.cells) - similarity(theirs, theirs, extractor.cells)
    pairs = change[np.triu_indices(len(images), 1)]
    return Changes(len(images), float(np.sqrt((pairs**2).mean())), float(np.median(same)), float(same.min()))
