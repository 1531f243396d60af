"""Evens out brightness and contrast around each pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
    size = ink.shape[-2:]
    both = torch.cat([ink, ink.square()], dim=1)  # (B, 2, S, S)
    coarse = F.avg_pool2d(both, CELL, ceil_mode=True, count_include_pad=False)
    cells = max(1, round(window / CELL)) | 1
    coarse = F.avg_pool2d(coarse, cells, 1, cells // 2, count_include_pad=False)
    mean, square = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False).split(1, dim=1)
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return ((ink - mean) / (deviation + floor)).clamp(-LIMIT, LIMIT) / LIMIT
