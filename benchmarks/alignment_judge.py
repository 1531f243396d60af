"""How far the relative pose that an alignment network gives two real prints of a finger is from where they match best.

Nobody knows the true pose of a real print. The judge is dense matching: one print of a pair stays as the network aligns
it, the other is embedded again in poses around its own, and the pose of the highest masked similarity counts as right.
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
    """Of mated pairs, in both orders.

    Attributes:
        mm: (2n,) distance between the pose of the network and that of the judge.
        degrees: (2n,) turn between them.
        at_edge: share of pairs whose best pose lies at the edge of what was tried, so that the two values are too low.
    """

    mm: torch.Tensor
    degrees: torch.Tensor
    at_edge: float


def disagreement(extractor: FingerprintExtractor, images: torch.Tensor, pairs: np.ndarray) -> Disagreement:
    """Compares relative poses of mated pairs with those of the judge.

    Args:
        extractor: a dense model with an alignment network.
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
    """(N, canvas, canvas) -> (N, K, D), embedded in every pose around that of the network; its own in the middle."""
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
    """(turns, shifts, shifts) -> where the highest is, degrees, mm right and mm down, and whether that is at an edge.

    Between the poses that were tried a parabola through the highest and its two neighbours says where it is.
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
