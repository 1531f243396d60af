"""The mean template of a sensor's prints, which is taken away from every template before it is scaled to unit length.

What all prints of a sensor have in common says nothing about the finger and makes strangers look alike. `calibrate`
measures the mean and keeps it in the record that holds the thresholds, because these were measured behind it: one file
is replaced by one rename, and no kill leaves the thresholds of one mean with another.
"""

from __future__ import annotations

import base64
import functools

import numpy as np
import torch
import torch.nn.functional as F

from fingerprint_accel.errors import UserError
from fingerprint_accel.similarity import mask_of, per_cell

FEWEST_OF_A_CELL = 10  # prints that show a cell; the mean of fewer is more of their fingers than of the sensor


def mean_template(embeddings: np.ndarray, cells: int) -> np.ndarray:
    """(N, D) float32 of unit length -> (D,) float32, their mean.

    Of dense templates it is the mean of each cell over the prints that have it, once they are scaled as
    `similarity.per_cell` does; a cell that fewer than `FEWEST_OF_A_CELL` prints have is zero.
    """
    if not cells:
        return np.asarray(embeddings.mean(axis=0, dtype=np.float64), np.float32)
    prints = mask_of(embeddings, cells).sum(axis=0).repeat(embeddings.shape[1] // cells)
    total = per_cell(embeddings, cells).sum(axis=0, dtype=np.float64)
    return np.where(prints >= FEWEST_OF_A_CELL, total / np.maximum(prints, 1), 0).astype(np.float32)


def centred(embeddings: torch.Tensor, center: torch.Tensor | None, branches: int, cells: int) -> torch.Tensor:
    """(N, D) float32 of unit length -> the same with `center`, (D,) of `mean_template` or None, subtracted.

    Each of the network's `branches` is scaled by itself, so that all keep their weight. `cells` is that of dense
    templates, whose absent cells stay zero; else 0.
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
    """A mean template for the notes of a model: little-endian float32 in base64."""
    return base64.b64encode(center.astype("<f4").tobytes()).decode()


@functools.lru_cache(maxsize=8)
def from_text(text: str, dims: int, device: torch.device) -> torch.Tensor:
    """What `as_text` has made of a mean template of `dims` numbers; UserError for something else, or not finite."""
    try:
        center = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float32)
    except ValueError:
        center = np.empty(0, np.float32)
    if len(center) != dims or not np.isfinite(center).all():
        raise UserError(f"the model's centre cannot be read (it takes {dims} numbers); calibrate the model again")
    with torch.inference_mode(False):  # who asks first may differentiate later, or export
        return torch.from_numpy(center).to(device)
