"""Minutia maps: six pictures of where minutiae lie, one per direction (Cao and Jain 2019, "Automated Latent Fingerprint
Recognition", IEEE TPAMI 41(4); used by Engelsma, Cao and Jain 2019)."""

from __future__ import annotations

import math

import torch

CHANNELS = 6


def minutia_maps(
    minutiae: torch.Tensor, count: torch.Tensor, size: int, map_size: int = 128, sigma: float = 1.5
) -> torch.Tensor:
    """Draws a Gaussian per minutia into the channels nearest its direction, as one einsum over separable factors.

    Channel k stands for direction k * 60 degrees and gets exp(-d / (2 * (pi / 6)^2)) of a minutia that is turned by
    d radians from it.

    Args:
        minutiae: (B, M, 4) x, y in input pixels, angle (radians), quality.
        count: (B,) int64, how many of the M are there.
        size: side of the input, pixels.
        map_size: side of the map.
        sigma: of the Gaussian, map pixels.

    Returns:
        (B, 6, map_size, map_size) float32 in 0..1.
    """
    scale = map_size / size
    pixel = torch.arange(map_size, device=minutiae.device, dtype=torch.float32) + 0.5
    x, y, angle = minutiae[..., 0] * scale, minutiae[..., 1] * scale, minutiae[..., 2]
    spread_x = torch.exp(-(pixel - x[..., None]).square() / (2 * sigma**2))  # (B, M, map)
    spread_y = torch.exp(-(pixel - y[..., None]).square() / (2 * sigma**2))
    centres = torch.arange(CHANNELS, device=minutiae.device) * (2 * math.pi / CHANNELS)
    turn = torch.remainder(angle[..., None] - centres + math.pi, 2 * math.pi) - math.pi
    weight = torch.exp(-turn.abs() / (2 * (math.pi / CHANNELS) ** 2))  # (B, M, 6)
    there = torch.arange(minutiae.shape[1], device=minutiae.device) < count[:, None]
    maps = torch.einsum("bmc,bmy,bmx->bcyx", weight * there[..., None], spread_y, spread_x)
    return maps.clamp(0, 1)
