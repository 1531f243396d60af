"""Degrade prints at random: ridge thickness, contrast, gain, occlusion and noise (photometric augmentation).

Images of ink have values from 0 (no ink, white) to 1 (black).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fingerprint_accel.config import AugmentConfig
from fingerprint_accel.preprocess.coarse import grow
from fingerprint_accel.random import between, steady, steady_mean, uniforms

CONTRAST, GAIN, THICKNESS, NOISE, NOISE_PLACE, OCCLUSION = range(16, 22)  # random streams
DRAWN = ((CONTRAST, 1), (GAIN, 1), (THICKNESS, 1), (NOISE, 1), (NOISE_PLACE, 2), (OCCLUSION, 5))
TILE = 512  # period of the noise, pixels
CELLS = 64  # smallest number of cells along a side of the coarse grid on which occlusions are drawn


@dataclass(frozen=True)
class Quality:
    """Parameters for the degradation of B prints. A parameter is None if its option is 0.

    Attributes:
        thickness: (B, 1, 1, 1) weight with which the local maximum (if above 0) or the local minimum (if below 0) is
            blended in.
        contrast: (B, 1, 1, 1) factor applied to the difference from the mean of the print.
        gain: (B, 1, 1, 1) factor applied to all pixels.
        contact: (B, 1, n, n) share of the ink that the occlusion leaves in each of n x n cells. A cell has `_cell(S)`
            pixels, where S is the side of the network input.
        noise: (B, 1, 1, 1) standard deviation of the noise.
        corner: (B, 2) first row and column of the window of the noise tile (see `noise_tile`) that is added to the
            print.
    """

    thickness: torch.Tensor | None
    contrast: torch.Tensor | None
    gain: torch.Tensor | None
    contact: torch.Tensor | None
    noise: torch.Tensor | None
    corner: torch.Tensor

    def __getitem__(self, rows: slice) -> Quality:
        parts = {name: value[rows] for name, value in vars(self).items() if value is not None}
        return replace(self, **parts)


def noise_tile(seed: int, size: int) -> torch.Tensor:
    """Make a periodic tile of noise with mean 0 and standard deviation 1.

    Each print uses a random window of the tile.

    Args:
        seed: random seed.
        size: side of a window, pixels.

    Returns:
        (TILE + size - 1, TILE + size - 1) noise with the period TILE.
    """
    tile = torch.randn(TILE, TILE, generator=torch.Generator().manual_seed(seed))
    around = torch.arange(TILE + size - 1) % TILE
    return tile[around[:, None], around]


def random_quality(keys: torch.Tensor, config: AugmentConfig, size: int) -> Quality:
    """Draw the parameters for the degradation of each print.

    Args:
        keys: (B,) int64 random key of each print.
        config: largest amplitudes of the augmentation.
        size: side of the network input, pixels.
    """
    drawn = uniforms(keys, DRAWN)

    def draw(stream: int, low: float, high: float) -> torch.Tensor:
        return between(drawn[stream], low, high)[:, :, None, None]

    def factor(stream: int, change: float) -> torch.Tensor | None:
        return steady(torch.exp, draw(stream, -1, 1) * math.log1p(change)) if change > 0 else None

    thickness = config.ridge_thickness
    return Quality(
        thickness=draw(THICKNESS, -thickness, thickness) if thickness > 0 else None,
        contrast=factor(CONTRAST, config.contrast),
        gain=factor(GAIN, config.gain),
        contact=_contact(drawn[OCCLUSION], config.occlusion, size) if config.occlusion > 0 else None,
        noise=draw(NOISE, 0, config.noise) if config.noise > 0 else None,
        corner=(drawn[NOISE_PLACE] * TILE).long(),
    )


def degrade(ink: torch.Tensor, quality: Quality, tile: torch.Tensor) -> torch.Tensor:
    """Change ridge thickness, contrast and gain of prints, occlude a part of each print, and add noise.

    Args:
        ink: (B, 1, S, S) in 0..1.
        quality: parameters of the degradation.
        tile: `noise_tile(seed, S)`.

    Returns:
        (B, 1, S, S) in 0..1.
    """
    size = ink.shape[-1]
    scale = torch.ones_like(ink[:, :, :1, :1])
    if quality.thickness is not None:  # erosion is dilation of the negative image, so one maximum filter does both
        scale = torch.where(quality.thickness > 0, 1.0, -1.0)
    ink = ink * scale
    if quality.thickness is not None:
        ink.lerp_(_maximum(_maximum(ink, 2), 3), quality.thickness.abs())
    if quality.gain is not None:
        scale = scale * quality.gain
    if quality.contrast is not None:
        mean = steady_mean(ink)
        ink.mul_(scale * quality.contrast).add_(scale * (1 - quality.contrast) * mean)
    else:
        ink.mul_(scale)
    if quality.contact is not None:
        ink.mul_(grow(quality.contact, _cell(size), size))
    if quality.noise is not None:
        windows = tile.unfold(0, size, 1).unfold(1, size, 1)  # (TILE, TILE, S, S), a view
        ink.addcmul_(windows[quality.corner[:, 0], quality.corner[:, 1]][:, None], quality.noise)
    return ink.clamp_(0, 1)


def _maximum(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Replace each value by the maximum of itself and its two neighbours along dimension `dim`."""
    last = values.shape[dim] - 1
    largest = values.clone()
    largest.narrow(dim, 0, last).clamp_(min=values.narrow(dim, 1, last))
    largest.narrow(dim, 1, last).clamp_(min=values.narrow(dim, 0, last))
    return largest


def _cell(size: int) -> int:
    return max(1, size // CELLS)


def _contact(place: torch.Tensor, share: float, size: int) -> torch.Tensor:
    """Draw one occlusion per print: an ellipse with a soft edge that hides a part of the print.

    Args:
        place: (B, 5) random numbers in [0, 1) that determine area, aspect ratio, angle and centre.
        share: largest area of the ellipse divided by the area of the input.
        size: side of the input, pixels.

    Returns:
        (B, 1, n, n) share of the ink that remains in each cell of `_cell(size)` pixels: 0 inside the ellipse and 1
        outside.
    """
    area = place[:, 0] * share * 4  # in units of half sides squared
    stretch = steady(torch.exp, place[:, 1] * 2 - 1)
    radius_x, radius_y = (area / math.pi * stretch).sqrt(), (area / math.pi / stretch).sqrt()
    angle = place[:, 2] * math.pi
    cell = _cell(size)
    axis = (torch.arange(-(-size // cell), device=place.device) + 0.5) * (2 * cell / size) - 1
    x = axis[None, None, :] - (place[:, 3] * 2 - 1)[:, None, None]
    y = axis[None, :, None] - (place[:, 4] * 2 - 1)[:, None, None]
    cos, sin = steady(torch.cos, angle)[:, None, None], steady(torch.sin, angle)[:, None, None]
    along = (x * cos + y * sin) / radius_x.clamp_min(1e-3)[:, None, None]
    across = (y * cos - x * sin) / radius_y.clamp_min(1e-3)[:, None, None]
    distance = (along.square() + across.square() + 1e-12).sqrt()
    return steady(torch.sigmoid, 12 * (distance - 1))[:, None]
