"""Define the coordinates of synthetic fingers, and interpolate smooth fields over them.

A master is an image of the complete ridge pattern of a finger. Impressions are rendered from it. Finger coordinates are
in millimetres from the centre of the master, with x to the right and y up.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from fingerprint_accel.data.truth import GRID, overlaps

PIXELS_PER_MM = 10
HEIGHT, WIDTH = 320, 256
"""Height and width of a master in pixels, 32 x 25.6 mm: a whole fingertip with a margin for distortion."""


def frame(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the finger coordinates of the pixel centres of a master (the complete ridge image of a finger).

    Coordinates are in mm from the centre of the master, with x to the right and y up.

    Returns:
        x of each column, (1, WIDTH), and y of each row, (HEIGHT, 1).
    """
    x = (torch.arange(WIDTH, device=device) + 0.5 - WIDTH / 2) / PIXELS_PER_MM
    y = (HEIGHT / 2 - torch.arange(HEIGHT, device=device) - 0.5) / PIXELS_PER_MM
    return x[None, :], y[:, None]


def bell(distance: torch.Tensor) -> torch.Tensor:
    """Compute exp(-distance^2) for each element of a tensor.

    The squared distance is clamped to 30, because smaller results would be denormal numbers, which are slow on CPUs.
    """
    return torch.exp(-distance.square().clamp_max(30.0))


@lru_cache(maxsize=64)
def cubic_basis(size: int, points: int, device: torch.device) -> torch.Tensor:
    """Return the weights that interpolate control points along one axis of an image by a uniform cubic B-spline.

    The outermost control points lie one knot outside the image. The result is cached, because all smooth fields use the
    same weights.

    Args:
        size: number of pixels along the axis.
        points: number of control points along the axis.
        device: device of the result.

    Returns:
        (size, points) weight of each control point for each pixel.
    """
    position = torch.arange(size, device=device, dtype=torch.float64) / max(1, size - 1) * (points - 3)
    distance = (position[:, None] + 1 - torch.arange(points, device=device)).abs()
    near = 2 / 3 - distance.square() + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far).float()


def smooth_field(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Interpolate grids of control points to images with a cubic B-spline surface.

    Args:
        values: (..., P, Q) values at P x Q control points.
        height: number of rows of the result.
        width: number of columns of the result.

    Returns:
        (..., height, width).
    """
    rows = cubic_basis(height, values.shape[-2], values.device)
    columns = cubic_basis(width, values.shape[-1], values.device)
    return rows @ values @ columns.T


def contact_cells(skin: torch.Tensor) -> torch.Tensor:
    """Reduce contact masks of pixels to contact masks of GRID x GRID cells.

    A contact mask marks where the finger touches the sensor. A cell is in contact if at least half of its area is in
    contact. Areas are computed with integers, so that the result does not depend on the batch or the device.

    Args:
        skin: (B, S, S) bool, pixels that the finger touches.

    Returns:
        (B, GRID, GRID) bool, cells that the finger touches.
    """
    size = skin.shape[-1]
    shares = cell_shares(size, skin.device)
    return 2 * (shares @ skin.float() @ shares.T) >= size**2  # the area of a cell is size ** 2 in these units


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # the cached tensor may later be used in autograd or export
def cell_shares(size: int, device: torch.device) -> torch.Tensor:
    """Compute the overlap of each pixel with each of GRID equal cells along one axis of an image.

    Args:
        size: number of pixels along the axis.
        device: device of the result.

    Returns:
        (GRID, size) float32, in units of 1 / GRID of a pixel: GRID if the pixel lies completely in the cell.
    """
    shares = overlaps(np.arange(GRID + 1) * size, np.arange(size + 1) * GRID)
    return torch.from_numpy(shares).float().to(device)
