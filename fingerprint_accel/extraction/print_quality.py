"""Quality of prints, 0 to 1, computed from the area of clear ridges and the norm of the embedding.

Ridges are detected with the structure tensor (Kass and Witkin 1987; for fingerprints: Bazen and Gerez 2002). A cell of
a grid on the print is classified as ridges if all gradients in the neighbourhood of the cell are parallel to one line
and the spatial frequency is that of ridges.

The norm of an embedding before normalisation is larger for prints that the network recognises well (Meng et al. 2021,
"MagFace"). Noise can have a large norm too, so the quality combines both measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.data.ridge_mask import CanvasError, ridge_mask
from fingerprint_accel.extraction.poses import MM_PER_INCH
from fingerprint_accel.preprocess.coarse import local_means

CELL_MM = 0.68  # side of a cell, about one and a half ridge periods; a neighbourhood is 3 x 3 cells
RIDGES_PER_MM = (1.0, 3.0)  # range of spatial frequencies that are classified as ridges; about 2 is usual
CLEAR_CONTRAST = 0.08  # minimum standard deviation of the ink (0 to 1) of a cell with full contrast
NOISE = 1e-6  # added to squared gradients and variances, so that blank areas do not divide by 0
AMPLE_AREA = 200.0  # minimum area of clear ridges with the full score, mm^2
STEEPNESS = 4  # exponent of the norm relative to that of typical prints


def _filters() -> torch.Tensor:
    """Return convolution filters (3, 1, 5, 5) that compute x gradient, y gradient and value of a smoothed image.

    The smoothing is the mean of 3 x 3 pixels.
    """
    mean = torch.tensor([0.0, 1, 1, 1, 0]) / 3
    slope = torch.tensor([-1.0, -1, 0, 1, 1]) / 6
    return torch.stack([torch.outer(mean, slope), torch.outer(slope, mean), torch.outer(mean, mean)])[:, None]


@dataclass(frozen=True)
class RidgeField:
    """Clarity and direction of the ridges of B prints, on a grid of n x n cells.

    Attributes:
        clear: (B, n, n) float32, clarity of the ridges in each cell, 0 to 1: the product of coherence and contrast. The
            coherence is 1 if all gradients are parallel.
        flow: (B, 2, n, n) float32, cosine and sine of twice the ridge direction, times the coherence (0 to 1). The
            direction is counter-clockwise from +x with y up.
        contrast: (B, n, n) float32, standard deviation of the ink, where 0 is white and 1 is black.
        cell: side of a cell, pixels of the image.
    """

    clear: torch.Tensor
    flow: torch.Tensor
    contrast: torch.Tensor
    cell: int


def ridge_field(images: torch.Tensor, ppi: int) -> RidgeField:
    """Measure the clarity and direction of the ridges in images of prints, with the structure tensor.

    Args:
        images: (B, S, S) uint8, ridges dark.
        ppi: resolution of the images, pixels per inch.
    """
    ink = images.bitwise_not()[:, None].float().mul_(1 / 255)
    x, y, value = F.conv2d(ink, _filters().to(ink.device), stride=2).unbind(1)  # every second pixel is enough
    cell = max(1, round(CELL_MM / MM_PER_INCH * ppi / 2))
    products = torch.stack([x * x, y * y, x * y, value, value * value], dim=1)
    xx, yy, xy, mean, square = local_means(products, cell, cells=3).unbind(1)  # (B, cells, cells) each
    energy, variance = xx + yy, (square - mean * mean).clamp_min(0)
    coherence = ((xx - yy).square() + 4 * xy.square()).sqrt() / (energy + NOISE)
    per_mm = (energy / (variance + NOISE)).sqrt() * (ppi / MM_PER_INCH / (2 * math.pi))
    are_ridges = (per_mm > RIDGES_PER_MM[0]) & (per_mm < RIDGES_PER_MM[1])
    contrast = variance.sqrt()
    clear = coherence * (contrast / CLEAR_CONTRAST).clamp_max(1) * are_ridges
    # Ridges are perpendicular to the gradient, so the doubled angle changes by 180 degrees. Canvas y points down.
    flow = torch.stack([yy - xx, 2 * xy], dim=1) / (energy + NOISE)[:, None]
    return RidgeField(clear, flow, contrast, 2 * cell)


def ridge_area(images: torch.Tensor, ppi: int, window: int) -> torch.Tensor:
    """Measure the area of clear ridges in the central square of each print, in mm^2.

    Each cell of the grid is weighted by its clarity, so that faint ridges contribute less than their area.

    Args:
        images: (B, canvas, canvas) uint8, ridges dark.
        ppi: resolution of the images, pixels per inch.
        window: side of the central square, pixels; normally the side of the network input.

    Returns:
        (B,) float32.
    """
    edge = (images.shape[-1] - window) // 2
    field = ridge_field(images[:, edge : edge + window, edge : edge + window], ppi)
    return field.clear.sum(dim=(1, 2)) * (field.cell * MM_PER_INCH / ppi) ** 2


def contact_area(canvas: np.ndarray, ppi: int) -> float:
    """Measure the area that the finger touched, in mm^2.

    Unlike in `ridge_area`, faint ridges have full weight. The area therefore distinguishes a faint complete print from
    a small part of a print.

    Args:
        canvas: (S, S) uint8, image of one print, ridges dark.
        ppi: resolution of the image, pixels per inch.
    """
    try:
        mask, block = ridge_mask(canvas, ppi)
    except CanvasError:
        return 0.0
    return float(mask.sum()) * (block * MM_PER_INCH / ppi) ** 2


def print_quality(area: torch.Tensor, norm: torch.Tensor, usual_norm: float | None) -> torch.Tensor:
    """Compute the quality of prints as the geometric mean of a score for the ridge area and a score for the norm.

    Args:
        area: (B,) area of clear ridges, mm^2, from `ridge_area`.
        norm: (B,) norm of the embeddings before they are scaled to unit length.
        usual_norm: median norm of typical prints; None if it is unknown. The quality is then the score for the area.

    Returns:
        (B,) float32, 0 to 1.
    """
    seen = (area / AMPLE_AREA).clamp_max(1)
    if usual_norm is None:
        return seen
    strength = (norm / usual_norm).pow(STEEPNESS)
    return (seen * (strength / (1 + strength))).sqrt()
