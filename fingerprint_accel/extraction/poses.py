"""Poses for comparisons: a print is embedded with several rotations and shifts, and the highest similarity is used.

The input of the network is a square around the centre of the contact area, the area that the finger touched. Two
impressions of a finger differ in contact area and rotation. Comparing several poses compensates for differences to
which the network is not invariant.
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
    """Set of poses: all combinations of alignments, rotations and shifts, the pose without rotation and shift first.

    Attributes:
        degrees: rotations to try in addition to 0, degrees counter-clockwise.
        shift_mm: shift of the network input along each axis, mm. The unshifted and the eight shifted positions are
            tried; 0 means no shifts.
        hypotheses: number of alignments to try. The alignment network of the model proposes the alignments, the most
            probable first.

    Raises:
        UserError: if a rotation is 0, or a number is out of range.
    """

    degrees: tuple[float, ...] = ()
    shift_mm: float = 0.0
    hypotheses: int = 1

    def __post_init__(self) -> None:
        require(all(self.degrees), "poses: 0 degrees is always tried; leave it out of the rotations")
        require(self.shift_mm >= 0, "poses: shift_mm must not be negative")
        require(self.hypotheses >= 1, "poses: hypotheses must be at least 1")

    def __len__(self) -> int:
        return self.hypotheses * (1 + len(self.degrees)) * (9 if self.shift_mm else 1)

    def all(self, crop: float, ppi: float, device: torch.device) -> list[Pose]:
        """List the combinations of rotations and shifts as `Pose` objects.

        Args:
            crop: side of the network input, canvas pixels.
            ppi: resolution of the canvas, pixels per inch.
            device: device of the tensors of the poses.

        Returns:
            One `Pose` of a single print per combination; the first has neither rotation nor shift.
        """
        step = self.shift_mm * ppi / MM_PER_INCH
        places = sorted(itertools.product((0.0, -step, step), repeat=2), key=lambda place: place != (0.0, 0.0))
        found = []
        for degrees, (x, y) in itertools.product((0.0, *self.degrees), places if step else [(0.0, 0.0)]):
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            matrix = torch.tensor([[[cos, -sin], [sin, cos]]], device=device)
            found.append(Pose(matrix, torch.tensor([[x, y]], device=device), None, crop))
        return found


UPRIGHT = Poses()
"""A single pose, without rotation and shift."""
USUAL = Poses(degrees=(-20.0, -10.0, 10.0, 20.0), shift_mm=2.0)
"""Poses for models without an alignment network. They cover the usual differences between impressions of a finger."""
ALIGNED = Poses(degrees=(-12.0, -6.0, 6.0, 12.0), shift_mm=1.2)
"""Poses for models with an alignment network. They cover the usual errors of the alignment."""
DENSE = Poses(degrees=(-8.0, 8.0), hypotheses=2)
"""Poses for dense models (see `similarity`), which also have an alignment network."""


def best_agreement(reference: np.ndarray, probe: np.ndarray, cells: int = 0) -> tuple[float, int, int]:
    """Compare two prints in several poses, and find the pair of poses with the highest similarity.

    Only pairs in which one of the two prints is in its original pose 0 are compared, as in `similarity.similarity`.

    Args:
        reference: (P, D) float32 of unit length, the templates of one print in P poses.
        probe: (P, D) float32, the templates of the other print in P poses.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        The highest similarity, the index of the reference's pose, and the index of the probe's pose.
    """
    turned_probe = masked_similarity(probe, reference[:1], cells)[:, 0]
    turned_reference = masked_similarity(reference, probe[:1], cells)[:, 0]
    i, j = int(turned_reference.argmax()), int(turned_probe.argmax())
    if turned_reference[i] > turned_probe[j]:
        return float(turned_reference[i]), i, 0
    return float(turned_probe[j]), 0, j
