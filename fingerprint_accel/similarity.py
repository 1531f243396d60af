"""Compute the similarity of templates, the embeddings of prints.

The similarity is the cosine. For dense templates, it is the cosine over the cells that both prints show. A dense
template is a vector of unit norm that concatenates the vectors of the cells of a square grid on the finger, in
row-major order. The vector of a cell is zero exactly if the print does not show the cell, so the mask of the visible
cells can be computed from the template. The argument `cells` is the number of cells. It is 0 for templates that are not
dense.

A print can have several templates, one for each pose: a hypothesis about the position and rotation of the finger.

This module imports only numpy, so that every package can use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

OVERLAP_FLOOR = 0.1
"""Lower bound of the squared norm of a template over the shared cells. Over all cells, the squared norm is 1.
Without this bound, two prints that share a single cell could have a high similarity."""
_TOLERANCE = 2e-4  # of the squared norm of a template
_GATHERED_BYTES = 2**27  # memory for the embeddings of listed pairs that are gathered at a time
_BLOCK_BYTES = 2**26  # memory for squared norms and squared templates at a time


def similarity(reference: np.ndarray, probe: np.ndarray, cells: int = 0) -> np.ndarray:
    """Compare all references with all probes, and return the best similarity over poses for each pair.

    A pose is a hypothesis about the position and rotation of the finger. The reference in its original pose is compared
    with all poses of the probe, and the probe in its original pose with all poses of the reference.

    Args:
        reference: (N, P, D) float32: a template of unit norm with D elements for each of P poses, the original pose
            first. For P = 1, the shape (N, D) is accepted too.
        probe: (M, P, D) or (M, D) float32, in the same format. The number of poses can differ from `reference`.
        cells: number of cells of dense templates, else 0; see `masked_similarity`.

    Returns:
        (N, M) float32.
    """
    reference, probe = _with_poses(reference), _with_poses(probe)
    best = _products(reference[:, 0], probe[:, 0], cells)
    for pose in range(1, probe.shape[1]):
        np.maximum(best, _products(reference[:, 0], probe[:, pose], cells), out=best)
    for pose in range(1, reference.shape[1]):
        np.maximum(best, _products(reference[:, pose], probe[:, 0], cells), out=best)
    return best


def pair_similarity(reference: np.ndarray, probe: np.ndarray, pairs: np.ndarray, cells: int = 0) -> np.ndarray:
    """Compute `similarity` only for the given pairs of a reference and a probe.

    Args:
        reference: (N, P, D) or (N, D) templates, see `similarity`.
        probe: (M, P, D) or (M, D) templates.
        pairs: (n, 2) indices of each pair: the row in `reference` and the row in `probe`.
        cells: number of cells of dense templates, else 0.

    Returns:
        (n,) float32.
    """
    reference, probe = _with_poses(reference), _with_poses(probe)
    scores = np.empty(len(pairs), np.float32)
    step = max(1, _GATHERED_BYTES // (4 * reference.shape[2] * max(reference.shape[1], probe.shape[1])))
    for start in range(0, len(pairs), step):
        first, second = pairs[start : start + step].T
        found = _row_by_row(reference[first, 0], probe[second], cells).max(axis=1)
        if reference.shape[1] > 1:
            turned = _row_by_row(probe[second, 0], reference[first, 1:], cells).max(axis=1)
            np.maximum(found, turned, out=found)
        scores[start : start + step] = found
    return scores


def masked_similarity(first: Any, second: Any, cells: int) -> Any:
    """Compute the cosine of every template in `first` with every template in `second`.

    For dense templates (`cells` above 0), the cosine covers only the cells that both prints show. The dot product needs
    no mask, because the vectors of missing cells are zero. The squared norm of a template is summed over the cells that
    the other print of the pair shows, and is at least `OVERLAP_FLOOR`. Prints without a common cell have the similarity
    0. The function computes three matrix products at once, so the caller must limit N x M.

    Args:
        first: (N, D) float32 templates of unit norm, a numpy array or torch tensor.
        second: (M, D) float32 templates of unit norm, of the same type as `first`.
        cells: number of cells of dense templates, else 0.

    Returns:
        (N, M) similarities.
    """
    scores = first @ second.T
    if not cells:
        return scores
    (energy, present), (other_energy, other_present) = _by_cell(first, cells), _by_cell(second, cells)
    square = (energy @ other_present.T).clip(min=OVERLAP_FLOOR)
    return scores / (square * (present @ other_energy.T).clip(min=OVERLAP_FLOOR)) ** 0.5


def mask_of(templates: np.ndarray, cells: int) -> np.ndarray:
    """Return a bool mask (..., cells) that is True for the cells that a print shows.

    Args:
        templates: (..., D) dense templates.
        cells: number of cells.
    """
    return np.asarray((templates.reshape(*templates.shape[:-1], cells, -1) != 0).any(axis=-1))


def are_normalised(templates: np.ndarray) -> bool:
    """Return whether all templates (..., D) are finite and of unit norm, or zero.

    A dense template is zero if the print shows no cell.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        square = np.einsum("...d,...d->...", templates, templates)
    return bool(((np.abs(square - 1) <= _TOLERANCE) | (square == 0)).all())  # comparisons with NaN are false


def fused(templates: np.ndarray, cells: int) -> np.ndarray:
    """Fuse the templates of several prints of one finger into one template.

    The result is the mean, normalised to unit norm. For dense templates, each cell is averaged over the prints that
    show it.

    Args:
        templates: (n, D) float32 of unit norm.
        cells: number of cells of dense templates, else 0.

    Returns:
        (D,) float32 of unit norm; zero if the mean is zero.
    """
    if cells:
        templates = per_cell(templates, cells)
        prints = mask_of(templates, cells).sum(axis=0).repeat(templates.shape[1] // cells)
        mean = templates.sum(axis=0) / np.maximum(prints, 1)
    else:
        mean = templates.mean(axis=0)
    length = np.sqrt(mean @ mean)
    return (mean / length if length > 0 else mean).astype(np.float32)


def per_cell(templates: np.ndarray, cells: int) -> np.ndarray:
    """Rescale dense templates so that the norm of a cell vector does not depend on the number of visible cells.

    Templates have unit norm. If a print shows a quarter of the finger, the norm of its cell vectors is therefore twice
    the norm of the cell vectors of a complete print. After rescaling, all cells have the same weight in a mean over
    prints.

    Args:
        templates: (n, D) dense templates of unit norm.
        cells: number of cells.

    Returns:
        (n, D) rescaled templates.
    """
    shares = mask_of(templates, cells).mean(axis=-1, keepdims=True, dtype=np.float32)
    return templates * np.sqrt(shares)


def _products(first: np.ndarray, second: np.ndarray, cells: int) -> np.ndarray:
    """Return the result of `masked_similarity`, computed in blocks, so that temporaries need little memory."""
    if not cells:
        return np.asarray(first @ second.T)
    scores = np.empty((len(first), len(second)), np.float32)
    columns = max(1, _BLOCK_BYTES // (4 * first.shape[1]))
    rows = max(1, min(columns, _BLOCK_BYTES // (4 * max(1, min(columns, len(second))))))
    for i in range(0, len(first), rows):
        for j in range(0, len(second), columns):
            part = masked_similarity(first[i : i + rows], second[j : j + columns], cells)
            scores[i : i + rows, j : j + columns] = part
    return scores


def _row_by_row(first: np.ndarray, second: np.ndarray, cells: int) -> np.ndarray:
    """Compute the similarity of each template in `first` with the P templates in the same row of `second`.

    Args:
        first: (n, D) templates.
        second: (n, P, D) templates of P poses per print.
        cells: number of cells of dense templates, else 0.

    Returns:
        (n, P) similarities.
    """
    scores = np.einsum("nd,npd->np", first, second)
    if cells:
        (energy, present), (other_energy, other_present) = _by_cell(first, cells), _by_cell(second, cells)
        ours = np.einsum("nc,npc->np", energy, other_present).clip(min=OVERLAP_FLOOR)
        scores /= np.sqrt(ours * np.einsum("nc,npc->np", present, other_energy).clip(min=OVERLAP_FLOOR))
    return scores


def _by_cell(templates: Any, cells: int) -> tuple[Any, Any]:
    """Return the squared norm of each cell vector of dense templates, and the mask of the cells that the prints show.

    Args:
        templates: (..., D) dense templates.
        cells: number of cells.

    Returns:
        Squared norms and masks, both (..., cells) float32. A mask is 1 for cells that the print shows, else 0.
    """
    grid = templates.reshape(*templates.shape[:-1], cells, -1)
    energy = (grid * grid).sum(-1)
    return energy, (grid != 0).any(-1) + 0 * energy


def _with_poses(prints: np.ndarray) -> np.ndarray:
    return prints[:, None] if prints.ndim == 2 else prints
