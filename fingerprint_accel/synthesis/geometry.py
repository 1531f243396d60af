"""The frame that fingers live in: millimetres from the middle of the master, x to the right, y up."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from fingerprint_accel.data.truth import GRID, overlaps

PIXELS_PER_MM = 10
HEIGHT, WIDTH = 320, 256
"""Size of a master, pixels: 32 x 25.6 mm, a whole fingertip with room for what distortion pulls in."""


def frame(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x (1, W) and y (H, 1) of the pixel centres of a master, mm."""
    x = (torch.arange(WIDTH, device=device) + 0.5 - WIDTH / 2) / PIXELS_PER_MM
    y = (HEIGHT / 2 - torch.arange(HEIGHT, device=device) - 0.5) / PIXELS_PER_MM
    return x[None, :], y[:, None]


def bell(distance: torch.Tensor) -> torch.Tensor:
    """exp(-distance^2), cut off where it is nothing: CPUs are slow at numbers near the smallest."""
    return torch.exp(-distance.square().clamp_max(30.0))


@lru_cache(maxsize=64)
def cubic_basis(size: int, points: int, device: torch.device) -> torch.Tensor:
    """(size, points) uniform cubic B-spline weights: row i holds how much each control point counts at pixel i.

    The outermost control points lie one knot beyond the ends. Kept, because every slow field needs it.
    """
    position = torch.arange(size, device=device, dtype=torch.float64) / max(1, size - 1) * (points - 3)
    distance = (position[:, None] + 1 - torch.arange(points, device=device)).abs()
    near = 2 / 3 - distance.square() + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far).float()


def smooth_field(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Control points (..., P, Q) -> smooth field (..., height, width): a cubic B-spline surface, as two products."""
    rows = cubic_basis(height, values.shape[-2], values.device)
    columns = cubic_basis(width, values.shape[-1], values.device)
    return rows @ values @ columns.T


def contact_cells(skin: torch.Tensor) -> torch.Tensor:
    """skin (B, S, S) bool -> (B, GRID, GRID) bool: the cells at least half of whose area is skin.

    Areas are counted in whole numbers, so a print has the same cells in any batch and on any device.
    """
    size = skin.shape[-1]
    shares = cell_shares(size, skin.device)
    return 2 * (shares @ skin.float() @ shares.T) >= size**2  # of a cell: (size / GRID) ** 2 pixels of GRID ** 2 each


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def cell_shares(size: int, device: torch.device) -> torch.Tensor:
    """(GRID, size): what part of each pixel along one side lies in each cell, in units of 1 / GRID pixel."""
    shares = overlaps(np.arange(GRID + 1) * size, np.arange(size + 1) * GRID)
    return torch.from_numpy(shares).float().to(device)
