"""Quality: what pressure, skin, sensor and a bad touch do to a print. Ink is 0 (none) to 1 (dark)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from fingerprint_accel.config import AugmentConfig
from fingerprint_accel.random import steady, uniform

CONTRAST, GAIN, THICKNESS, NOISE, NOISE_PLACE, OCCLUSION = range(16, 22)  # random streams
TILE = 512


def noise_tile(seed: int) -> torch.Tensor:
    """(TILE, TILE) standard normal noise, from which every print takes a random window."""
    return torch.randn(TILE, TILE, generator=torch.Generator().manual_seed(seed))


def degrade(ink: torch.Tensor, keys: torch.Tensor, config: AugmentConfig, tile: torch.Tensor) -> torch.Tensor:
    """ink (B, 1, S, S), keys (B,) -> the same prints, taken worse or otherwise."""

    def draw(stream: int, low: float, high: float) -> torch.Tensor:
        return uniform(keys, stream, 1, low, high)[:, :, None, None]

    if config.ridge_thickness > 0:
        blend = draw(THICKNESS, -config.ridge_thickness, config.ridge_thickness)
        thick = F.max_pool2d(ink, 3, 1, 1)
        thin = -F.max_pool2d(-ink, 3, 1, 1)
        ink = torch.lerp(ink, torch.where(blend > 0, thick, thin), blend.abs())
    if config.contrast > 0:
        factor = steady(torch.exp, draw(CONTRAST, -1, 1) * math.log1p(config.contrast))
        mean = ink.mean(dim=(2, 3), keepdim=True)
        ink = torch.lerp(mean, ink, factor)
    if config.gain > 0:
        ink = ink * steady(torch.exp, draw(GAIN, -1, 1) * math.log1p(config.gain))
    if config.occlusion > 0:
        ink = ink * _contact(keys, config.occlusion, ink.shape[-1])
    if config.noise > 0:
        ink = ink + draw(NOISE, 0, config.noise) * _noise(keys, tile, ink.shape[-1])
    return ink.clamp(0, 1)


def _noise(keys: torch.Tensor, tile: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 1, size, size): a window of the repeating tile per print."""
    corner = (uniform(keys, NOISE_PLACE, 2) * TILE).long()
    axis = torch.arange(size, device=keys.device)
    rows, columns = (corner[:, :1] + axis) % TILE, (corner[:, 1:] + axis) % TILE
    return tile[rows[:, :, None], columns[:, None, :]][:, None]


def _contact(keys: torch.Tensor, share: float, size: int) -> torch.Tensor:
    """(B, 1, size, size): 0 inside one soft-edged ellipse per print that covers up to `share` of the picture."""
    place = uniform(keys, OCCLUSION, 5)
    area = place[:, 0] * share * 4  # in units of half sides squared
    stretch = steady(torch.exp, place[:, 1] * 2 - 1)
    radius_x, radius_y = (area / math.pi * stretch).sqrt(), (area / math.pi / stretch).sqrt()
    angle = place[:, 2] * math.pi
    axis = (torch.arange(size, device=keys.device) + 0.5) * (2 / size) - 1
    x = axis[None, None, :] - (place[:, 3] * 2 - 1)[:, None, None]
    y = axis[None, :, None] - (place[:, 4] * 2 - 1)[:, None, None]
    cos, sin = steady(torch.cos, angle)[:, None, None], steady(torch.sin, angle)[:, None, None]
    along = (x * cos + y * sin) / radius_x.clamp_min(1e-3)[:, None, None]
    across = (y * cos - x * sin) / radius_y.clamp_min(1e-3)[:, None, None]
    distance = (along.square() + across.square() + 1e-12).sqrt()
    return torch.sigmoid(12 * (distance - 1))[:, None]
