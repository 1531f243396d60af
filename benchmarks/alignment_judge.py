"""Compare the relative pose of two real prints with the pose in which they match best.

The true pose of a real print is unknown. Dense matching serves as judge: one print of a pair stays as the network
aligns it. The other is embedded in a grid of poses around its own. The pose of the highest masked similarity counts as
correct.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.preprocess.geometric import Pose
from fingerprint_accel.similarity import masked_similarity

TURNS = (-12.0, -6.0, 0.0, 6.0, 12.0)  # degrees
SHIFTS = (-2.4, -1.2, 0.0, 1.2, 2.4)  # mm, along each axis


class Disagreement(NamedTuple):
    """Difference between the poses of network and judge, for mated pairs in both orders.

    Attributes:
        mm: (2n,) distance between the two poses.
        degrees: (2n,) turn between the two poses.
        at_edge: Share of pairs whose best pose lies at the edge of the grid. Their distance and turn are too low.
    """

    mm: torch.Tensor
    degrees: torch.Tensor
    at_edge: float


def disagreement(extractor: FingerprintExtractor, images: torch.Tensor, pairs: np.ndarray) -> Disagreement:
    """Compare relative poses of mated pairs with those of the judge.

    Args:
        extractor: A dense model with an alignment network.
        images: (N, canvas, canvas) uint8.
        pairs: (n, 2) rows of two prints of a finger.
    """
    moved = _moved(extractor, images)  # (N, K, D)
    still = moved[:, moved.shape[1] // 2]
    shape = (len(TURNS), len(SHIFTS), len(SHIFTS))
    found = []
    for first, second in [*pairs.tolist(), *pairs[:, ::-1].tolist()]:
        found.append(masked_similarity(moved[second], still[first : first + 1], extractor.cells)[:, 0].reshape(shape))
    peaks, at_edge = zip(*map(_peak, found), strict=True)
    turns, right, down = torch.tensor(peaks, dtype=torch.float32).unbind(1)
    return Disagreement(torch.hypot(right, down), turns.abs(), sum(at_edge) / len(at_edge))


@torch.inference_mode()
def _moved(extractor: FingerprintExtractor, images: torch.Tensor) -> np.ndarray:
    """Embed images (N, canvas, canvas) in K poses, the predicted one in the middle: (N, K, D)."""
    crop, pixel = float(extractor.preprocess_config.crop), MM_PER_INCH / extractor.ppi
    offsets = list(itertools.product(TURNS, SHIFTS, SHIFTS))
    rows = []
    for batch in tqdm(images.split(16), desc="judging", unit="batch", disable=None, leave=False):
        alignment = extractor.alignment(batch)
        found = []
        for degrees, right, down in offsets:
            cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            matrix = torch.tensor([[[cos, -sin], [sin, cos]]], device=batch.device)
            shift = torch.tensor([[right / pixel, down / pixel]], device=batch.device)
            pose = Pose(matrix, shift, None, crop).repeated(len(batch))
            found.append(extractor.network(batch, pose, alignment).embedding)
        rows.append(torch.stack(found, dim=1).cpu())
    return torch.cat(rows).numpy()


def _peak(scores: np.ndarray) -> tuple[tuple[float, float, float], bool]:
    """Find the highest of scores (turns, shifts, shifts).

    A parabola through the highest score and its two neighbours refines the position along each axis.

    Returns:
        The pose (degrees, mm to the right, mm down), and whether it lies at the edge of the grid.
    """
    best = np.unravel_index(int(scores.argmax()), scores.shape)
    place, edge = [], False
    for axis, tried in enumerate((TURNS, SHIFTS, SHIFTS)):
        at = int(best[axis])
        offset = 0.0
        if 0 < at < len(tried) - 1:
            low, middle, high = (float(scores[(*best[:axis], k, *best[axis + 1 :])]) for k in (at - 1, at, at + 1))
            bend = low - 2 * middle + high
            offset = 0.5 * (low - high) / bend if bend < 0 else 0.0
        else:
            edge = True
        place.append(tried[at] + offset * (tried[1] - tried[0]))
    return (place[0], place[1], place[2]), edge
