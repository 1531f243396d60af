"""How much a print has to compare by, 0 to 1: area with clear ridges, and how strongly the network answers to it.

Ridges are looked for by the structure tensor of the canvas (Kass and Witkin 1987; for prints: Bazen and Gerez 2002):
where all gradients of a neighbourhood lie along one line, and alternate about as often as ridges do. The length of an
embedding before it is scaled to unit length is larger for prints that the network recognises (Meng et al. 2021,
"MagFace"); noise has long embeddings as well, so that both are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.data.canvas import CanvasError, ridge_mask
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.preprocess.coarse import local_means

CELL_MM = 0.68  # side of a cell: about a ridge and a half; neighbourhoods have three cells to a side
RIDGES_PER_MM = (1.0, 3.0)  # what can be ridges; usual prints have about 2
CLEAR_CONTRAST = 0.08  # standard deviation of the ink, 0 to 1, from which more contrast is no better
NOISE = 1e-6  # square of a deviation, below which there is nothing
AMPLE_AREA = 200.0  # mm^2 of clear ridges, from which more is no better
STEEPNESS = 4  # of the answer's curve


def _filters() -> torch.Tensor:
    """(3, 1, 5, 5): slope along x, along y, and brightness, of the picture averaged over 3 x 3 pixels."""
    mean = torch.tensor([0.0, 1, 1, 1, 0]) / 3
    slope = torch.tensor([-1.0, -1, 0, 1, 1]) / 6
    return torch.stack([torch.outer(mean, slope), torch.outer(slope, mean), torch.outer(mean, mean)])[:, None]


@dataclass(frozen=True)
class RidgeField:
    """Ridges of some prints on a grid of cells.

    Attributes:
        clear: (B, n, n) float32, 0 to 1: how surely there are ridges, by coherence and contrast.
        flow: (B, 2, n, n) float32, cosine and sine of twice the direction of the ridges, counter-clockwise from +x with
            y up; their length is the coherence, 0 to 1.
        contrast: (B, n, n) float32, standard deviation of the ink, which is 0 to 1.
        cell: side of a cell, pixels.
    """

    clear: torch.Tensor
    flow: torch.Tensor
    contrast: torch.Tensor
    cell: int


def ridge_field(images: torch.Tensor, ppi: int) -> RidgeField:
    """images (B, S, S) uint8, ridges dark -> where their ridges are, and which way they run."""
    ink = images.bitwise_not()[:, None].float().mul_(1 / 255)
    x, y, value = F.conv2d(ink, _filters().to(ink.device), stride=2).unbind(1)  # every second place is enough
    cell = max(1, round(CELL_MM / MM_PER_INCH * ppi / 2))
    products = torch.stack([x * x, y * y, x * y, value, value * value], dim=1)
    xx, yy, xy, mean, square = local_means(products, cell, cells=3).unbind(1)  # (B, cells, cells) each
    energy, variance = xx + yy, (square - mean * mean).clamp_min(0)
    coherence = ((xx - yy).square() + 4 * xy.square()).sqrt() / (energy + NOISE)
    per_mm = (energy / (variance + NOISE)).sqrt() * (ppi / MM_PER_INCH / (2 * math.pi))
    are_ridges = (per_mm > RIDGES_PER_MM[0]) & (per_mm < RIDGES_PER_MM[1])
    contrast = variance.sqrt()
    clear = coherence * (contrast / CLEAR_CONTRAST).clamp_max(1) * are_ridges
    # Ridges run across the gradient, which turns the doubled angle by half a circle; y of the canvas points down.
    flow = torch.stack([yy - xx, 2 * xy], dim=1) / (energy + NOISE)[:, None]
    return RidgeField(clear, flow, contrast, 2 * cell)


def ridge_area(images: torch.Tensor, ppi: int, window: int) -> torch.Tensor:
    """images (B, canvas, canvas) uint8, ridges dark -> (B,) float32, mm^2 of clear ridges.

    Every place of the square of `window` pixels in the middle, which the network sees, counts by coherence and
    contrast.
    """
    edge = (images.shape[-1] - window) // 2
    field = ridge_field(images[:, edge : edge + window, edge : edge + window], ppi)
    return field.clear.sum(dim=(1, 2)) * (field.cell * MM_PER_INCH / ppi) ** 2


def contact_area(canvas: np.ndarray, ppi: int) -> float:
    """canvas (S, S) uint8 -> mm^2 on which the finger has touched: how large the print is, however faint.

    `ridge_area` weighs places by how clear their ridges are: a faint whole print has as little of it as a patch.
    """
    try:
        mask, block = ridge_mask(canvas, ppi)
    except CanvasError:
        return 0.0
    return float(mask.sum()) * (block * MM_PER_INCH / ppi) ** 2


def print_quality(area: torch.Tensor, norm: torch.Tensor, usual_norm: float | None) -> torch.Tensor:
    """(B,) float32, 0 to 1: the geometric mean of what there is to see and of what the network saw in it.

    Args:
        area: (B,) of clear ridges, mm^2, see `ridge_area`.
        norm: (B,) length of the embeddings before they are scaled to unit length.
        usual_norm: the median of that over usual prints; None where it is unknown, then the area alone counts.
    """
    seen = (area / AMPLE_AREA).clamp_max(1)
    if usual_norm is None:
        return seen
    strength = (norm / usual_norm).pow(STEEPNESS)
    return (seen * (strength / (1 + strength))).sqrt()
