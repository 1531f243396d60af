"""Where the finger touches: as the network's input shows it, and read from the ink of a canvas."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from fingerprint_accel.data.truth import GRID, overlaps
from fingerprint_accel.preprocess.augment import Pose, resample
from fingerprint_accel.preprocess.coarse import cell_means

REACH = 0.5  # cells of the canvas by which a neighbourhood extends beyond a cell on each side
DARKNESS = 0.08  # mean over a neighbourhood that holds ridges, 0 for white and 1 for black


@torch.no_grad()
def contact_grid(contact: torch.Tensor, pose: Pose, cells: int, canvas: int) -> torch.Tensor:
    """How much of each cell of the network's input is in contact.

    Args:
        contact: (B, GRID, GRID) bool or 0..1, over the canvas (`Batch.contact`, `ink_contact`).
        pose: in which the input is taken; its elastic part is left out.
        cells: along each side of the input.
        canvas: side of the canvas, pixels.

    Returns:
        (B, cells, cells) float32 in 0..1; 0 beyond the canvas.
    """
    unit = canvas / GRID  # of the contact's cells, canvas pixels
    in_cells = Pose(pose.matrix, pose.shift / unit, None, pose.crop / unit)
    samples = max(1, math.ceil(2 * in_cells.crop / cells))  # along a cell: two for each cell of the contact
    with torch.autocast(contact.device.type, enabled=False):
        taken = resample(contact[:, None].float(), in_cells, cells * samples)
        return cell_means(taken, samples)[:, 0]


@torch.no_grad()
def ink_contact(images: torch.Tensor) -> torch.Tensor:
    """The contact of prints without truth: an import leaves white beyond the print, so cells with ink around count.

    Args:
        images: (B, S, S) uint8 canvases, ridges dark.

    Returns:
        (B, GRID, GRID) bool.
    """
    means = _neighbourhoods(images.shape[-1], images.device)
    with torch.autocast(images.device.type, enabled=False):
        ink = images.bitwise_not().float()
        return means @ ink @ means.T > 255 * DARKNESS


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # whoever asks first: others may differentiate or export
def _neighbourhoods(size: int, device: torch.device) -> torch.Tensor:
    """(GRID, size): pixels along one side -> means over each cell and REACH cells beyond it, cut off at the border."""
    low = (np.arange(GRID) - REACH).clip(0) * size / GRID
    high = (np.arange(GRID) + 1 + REACH).clip(max=GRID) * size / GRID
    pixels = np.arange(size + 1)
    shares = np.concatenate([overlaps(np.array(edges), pixels) for edges in zip(low, high, strict=True)])
    return torch.from_numpy(shares / (high - low)[:, None]).float().to(device)
