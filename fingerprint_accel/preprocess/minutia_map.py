"""Draw minutia maps: six heat maps of minutia positions, one for each range of minutia directions.

Minutia maps were introduced by Cao and Jain 2019, "Automated Latent Fingerprint Recognition", IEEE TPAMI 41(4).
DeepPrint uses them as an auxiliary training target (Engelsma, Cao and Jain 2019, arXiv 1909.09901).
"""

from __future__ import annotations

import math

import torch

from fingerprint_accel.random import steady

CHANNELS = 6
MAP_SIZE = 128  # side, pixels, as in DeepPrint
FAR = -30.0  # smallest exponent of a Gaussian; smaller values would be denormal numbers, which are slow on CPUs


def minutia_maps(
    minutiae: torch.Tensor,
    count: torch.Tensor,
    size: int,
    map_size: int = MAP_SIZE,
    sigma: float = 1.5,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw the minutia map of each print: a Gaussian for each minutia in the channels of similar direction.

    Channel k represents the direction k * 60 degrees. A minutia whose direction differs from the direction of a channel
    by d radians contributes to this channel with the weight exp(-d / (2 * (pi / 6)^2)). Gaussians are separable, so a
    batched matrix product draws all of them.

    Args:
        minutiae: (B, M, 4) x and y in input pixels, angle in radians, quality.
        count: (B,) int64 number of valid minutiae of each print.
        size: side of the network input, pixels.
        map_size: side of the map, pixels.
        sigma: standard deviation of the Gaussian, map pixels.
        dtype: data type of the product and of the result.

    Returns:
        (B, 6, map_size, map_size) in 0..1.
    """
    pixel = torch.arange(map_size, device=minutiae.device, dtype=torch.float32) + 0.5
    place = (minutiae[..., :2] * (map_size / size)).transpose(1, 2).contiguous()  # (B, 2, M)
    distance = (pixel[:, None] - place[:, :, None]).square_()  # (B, 2, map, M)
    spread = steady(torch.exp, distance.mul_(-1 / (2 * sigma**2)).clamp_min_(FAR))
    spread_x, spread_y = torch.threshold_(spread, math.exp(FAR + 1), 0).to(dtype).unbind(1)
    weight = direction_weights(minutiae[..., 2])  # (B, 6, M)
    there = torch.arange(minutiae.shape[1], device=minutiae.device) < count[:, None]
    weight = (weight * there[:, None]).to(dtype)
    rows = (weight[:, :, None] * spread_y[:, None]).flatten(1, 2)  # (B, 6 * map, M)
    return (rows @ spread_x.transpose(1, 2)).clamp_(0, 1).unflatten(1, (CHANNELS, map_size))


def direction_weights(angle: torch.Tensor) -> torch.Tensor:
    """Return the weight with which each minutia contributes to each of the six channels of a minutia map.

    Args:
        angle: (..., M) directions of the minutiae, radians.

    Returns:
        (..., 6, M) weights in 0..1.
    """
    centres = torch.arange(CHANNELS, device=angle.device)[:, None] * (2 * math.pi / CHANNELS)
    turn = torch.remainder(angle[..., None, :] - centres + math.pi, 2 * math.pi) - math.pi
    return steady(torch.exp, turn.abs() / (-2 * (math.pi / CHANNELS) ** 2))
