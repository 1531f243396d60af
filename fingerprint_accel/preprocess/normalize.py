"""Evens out brightness and contrast around each pixel."""

from __future__ import annotations

import torch

from fingerprint_accel.preprocess.coarse import grow, local_means

CELL = 4  # pixels; statistics vary slowly, so they are computed on a coarser grid
LIMIT = 3.0


def local_normalize(ink: torch.Tensor, window: int, floor: float = 0.06) -> torch.Tensor:
    """Subtracts the local mean and divides by the local standard deviation.

    Args:
        ink: (B, 1, S, S) in 0..1.
        window: side of the neighbourhood, pixels.
        floor: standard deviation that is always added, so that an empty background stays near 0.

    Returns:
        (B, 1, S, S) between -1 and 1, ridges positive.
    """
    cells = max(1, round(window / CELL)) | 1
    mean, square = (local_means(values, CELL, cells) for values in (ink, ink * ink))
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    slope = 1 / (LIMIT * (deviation + floor))
    size = ink.shape[-1]
    return torch.addcmul(grow(-mean * slope, CELL, size), ink, grow(slope, CELL, size)).clamp_(-1, 1)
