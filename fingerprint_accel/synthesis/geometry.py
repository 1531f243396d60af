"""Coordinate system of synthetic fingers: millimetres from the centre of the master image, x to the right, y up.

A master is the complete ridge image of a finger, from which impressions are rendered.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from fingerprint_accel.data.truth import GRID, overlaps

PIXELS_PER_MM = 10
HEIGHT, WIDTH = 320, 256
"""Size of a master in pixels, 32 x 25.6 mm. It covers a whole fingertip with a margin for distortion."""


def frame(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coordinates of the pixel centres of a master in mm: x (1, W) and y (H, 1)."""
    x = (torch.arange(WIDTH, device=device) + 0.5 - WIDTH / 2) / PIXELS_PER_MM
    y = (HEIGHT / 2 - torch.arange(HEIGHT, device=device) - 0.5) / PIXELS_PER_MM
    return x[None, :], y[:, None]


def bell(distance: torch.Tensor) -> torch.Tensor:
    """Compute exp(-distance^2) without denormal numbers, which are slow on CPUs."""
    return torch.exp(-distance.square().clamp_max(30.0))


@lru_cache(maxsize=64)
def cubic_basis(size: int, points: int, device: torch.device) -> torch.Tensor:
    """Return uniform cubic B-spline weights of the control points for each pixel, (size, points).

    The outermost control points lie one knot outside the image. The result is cached, because every smooth field uses
    it.
    """
    position = torch.arange(size, device=device, dtype=torch.float64) / max(1, size - 1) * (points - 3)
    distance = (position[:, None] + 1 - torch.arange(points, device=device)).abs()
    near = 2 / 3 - distance.square() + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far).float()


def smooth_field(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Interpolate control points (..., P, Q) by a cubic B-spline surface (..., height, width)."""
    rows = cubic_basis(height, values.shape[-2], values.device)
    columns = cubic_basis(width, values.shape[-1], values.device)
    return rows @ values @ columns.T


def contact_cells(skin: torch.Tensor) -> torch.Tensor:
    """Reduce a contact mask to cells; a cell counts if at least half of its area is in contact.

    Areas are computed with integers, so that the result does not depend on the batch or the device.

    Args:
        skin: (B, S, S) bool.

    Returns:
        (B, GRID, GRID) bool.
    """
    size = skin.shape[-1]
    shares = cell_shares(size, skin.device)
    return 2 * (shares @ skin.float() @ shares.T) >= size**2  # a cell has (size / GRID) ** 2 pixels of GRID ** 2 units


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def cell_shares(size: int, device: torch.device) -> torch.Tensor:
    """Return the overlap of each pixel with each cell along one axis in units of 1 / GRID pixel, (GRID, size)."""
    shares = overlaps(np.arange(GRID + 1) * size, np.arange(size + 1) * GRID)
    return torch.from_numpy(shares).float().to(device)
