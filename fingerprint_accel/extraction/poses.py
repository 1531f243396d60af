"""Poses at comparison: a print is embedded turned and shifted in several ways, and the best agreement counts.

The network sees a square around the middle of the contact. Two touches of a finger have different middles and turns;
what training has not taught the network to ignore, trying it out does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.errors import require
from fingerprint_accel.preprocess.geometric import Pose
from fingerprint_accel.preprocess.pipeline import MM_PER_INCH
from fingerprint_accel.similarity import masked_similarity


@dataclass(frozen=True)
class Poses:
    """Hypotheses, turns and shifts to try, in every combination; the print as it is comes first.

    Attributes:
        degrees: turns besides 0, counter-clockwise.
        shift_mm: also moves the window to eight places around the middle, by so much along each axis; 0 tries none.
        hypotheses: so many poses that the alignment network finds most probable; 1 takes its best.

    Raises:
        UserError: a turn of 0, or a number out of range.
    """

    degrees: tuple[float, ...] = ()
    shift_mm: float = 0.0
    hypotheses: int = 1

    def __post_init__(self) -> None:
        require(all(self.degrees), "poses: 0 degrees is tried anyway; name other turns")
        require(self.shift_mm >= 0, "poses: shift_mm must not be negative")
        require(self.hypotheses >= 1, "poses: hypotheses must be at least 1")

    def __len__(self) -> int:
        return self.hypotheses * (1 + len(self.degrees)) * (9 if self.shift_mm else 1)

    def all(self, crop: float, ppi: float, device: torch.device) -> list[Pose]:
        """Turns and shifts, each as a pose of one print; `crop` is the side of the network's window, canvas pixels."""
        step = self.shift_mm * ppi / MM_PER_INCH
        places = sorted(itertools.product((0.0, -step, step), repeat=2), key=lambda place: place != (0.0, 0.0))
        found = []
        for degrees, (x, y) in itertools.product((0.0, *self.degrees), places if step else [(0.0, 0.0)]):
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            matrix = torch.tensor([[[cos, -sin], [sin, cos]]], device=device)
            found.append(Pose(matrix, torch.tensor([[x, y]], device=device), None, crop))
        return found


UPRIGHT = Poses()
USUAL = Poses(degrees=(-20.0, -10.0, 10.0, 20.0), shift_mm=2.0)
"""What touches differ by."""
ALIGNED = Poses(degrees=(-12.0, -6.0, 6.0, 12.0), shift_mm=1.2)
"""What an alignment network errs by."""
DENSE = Poses(degrees=(-8.0, 8.0), hypotheses=2)
"""The same for dense embeddings."""


def best_agreement(reference: np.ndarray, probe: np.ndarray, cells: int = 0) -> tuple[float, int, int]:
    """Two prints in P poses, (P, D) float32 of unit length -> their `similarity`, and the pose of each, as in
    `FingerprintExtractor.forward`, where it was reached; one of the two is 0, the print as it is."""
    turned_probe = masked_similarity(probe, reference[:1], cells)[:, 0]
    turned_reference = masked_similarity(reference, probe[:1], cells)[:, 0]
    i, j = int(turned_reference.argmax()), int(turned_probe.argmax())
    if turned_reference[i] > turned_probe[j]:
        return float(turned_reference[i]), i, 0
    return float(turned_probe[j]), 0, j
