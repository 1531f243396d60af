"""Centring: subtract the mean template of a sensor from every template, then scale the result to unit length.

The templates of all prints of a sensor share a common part, which raises the similarity of different fingers.
`fingerprint-accel calibrate` measures the mean template. The mean template is stored in the same record as the
thresholds, because the thresholds are valid only for templates that are centred with this mean template. A single
rename replaces the record, so a killed process cannot leave thresholds that belong to another mean template.

A dense template consists of one vector for each cell of a grid on the finger; see `similarity`.
"""

from __future__ import annotations

import base64
import functools

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.errors import UserError
from fingerprint_accel.similarity import mask_of, per_cell

FEWEST_OF_A_CELL = 10  # minimum number of prints for the mean of a cell; fewer prints would not represent the sensor


def mean_template(embeddings: np.ndarray, cells: int) -> np.ndarray:
    """Compute the mean template of a set of prints.

    For dense templates, each cell is averaged over the prints that show it, after scaling by `similarity.per_cell`. A
    cell that fewer than `FEWEST_OF_A_CELL` (10) prints show is zero in the mean.

    Args:
        embeddings: (N, D) float32 of unit length.
        cells: number of grid cells of a dense template; 0 for other templates.

    Returns:
        (D,) float32.
    """
    if not cells:
        return np.asarray(embeddings.mean(axis=0, dtype=np.float64), np.float32)
    prints = mask_of(embeddings, cells).sum(axis=0).repeat(embeddings.shape[1] // cells)
    total = per_cell(embeddings, cells).sum(axis=0, dtype=np.float64)
    return np.where(prints >= FEWEST_OF_A_CELL, total / np.maximum(prints, 1), 0).astype(np.float32)


def centred(embeddings: torch.Tensor, center: torch.Tensor | None, branches: int, cells: int) -> torch.Tensor:
    """Subtract the mean template from templates, and scale them to unit length again.

    The parts of the template that come from different branches of the network are scaled separately, so that all
    branches keep the same weight. Cells of dense templates that a print does not show remain zero.

    Args:
        embeddings: (N, D) float32 of unit length.
        center: (D,) float32, mean template; None returns the templates unchanged.
        branches: number of branches of the network.
        cells: number of grid cells of a dense template; 0 for other templates.

    Returns:
        (N, D) float32 of unit length.
    """
    if center is None:
        return embeddings
    if cells:
        grid = embeddings.unflatten(1, (cells, -1))  # (N, C, D / C)
        present = (grid.abs().amax(dim=2, keepdim=True) > 0).to(grid.dtype)
        moved = (grid * present.mean(dim=1, keepdim=True).sqrt() - center.unflatten(0, (cells, -1))) * present
        return F.normalize(moved.flatten(1), dim=1)
    moved = (embeddings - center).unflatten(1, (branches, -1))
    return (F.normalize(moved, dim=2) / branches**0.5).flatten(1)


def as_text(center: np.ndarray) -> str:
    """Encode a mean template (D,) as base64 text of little-endian float32, to store in the notes of a model."""
    return base64.b64encode(center.astype("<f4").tobytes()).decode()


@functools.lru_cache(maxsize=8)
def from_text(text: str, dims: int, device: torch.device) -> torch.Tensor:
    """Decode a mean template that `as_text` encoded; return (dims,) float32 on `device`.

    Raises:
        UserError: if the text does not contain `dims` finite numbers.
    """
    try:
        center = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError:
        center = np.empty(0, np.float32)
    if len(center) != dims or not np.isfinite(center).all():
        raise UserError(f"the centre of the model cannot be read ({dims} numbers expected); calibrate the model again")
    with torch.inference_mode(False):  # the cached tensor may later be used in autograd or export
        return torch.from_numpy(center).to(device)
