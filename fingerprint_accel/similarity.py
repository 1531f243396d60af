"""How alike templates are: cosines, over the cells that both prints have where templates are dense.

A dense template is a vector of unit length. It holds the cells of a square grid on the finger, row by row, with equally
many numbers each. A cell that the print does not show is all zeros, and only such a cell is: the mask is implied, and
plain dot products still work. `cells` is the number of cells, 0 for templates that are not dense.

A leaf module: it imports numpy only, so that everything may use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

OVERLAP_FLOOR = 0.1
"""What the squared norm of a print over the cells that it shares with another counts at least; over all of its cells it
is 1. Without a floor two prints that share a single cell could look like a match."""
_GATHERED_BYTES = 2**27  # of embeddings that are gathered for listed pairs at a time
_BLOCK_BYTES = 2**26  # of squared norms, and of templates that are squared, at a time


def similarity(reference: np.ndarray, probe: np.ndarray, cells: int = 0) -> np.ndarray:
    """(N, P, D) and (M, P, D) -> (N, M) float32: best cosine of one print as it is with the other in any pose.

    Args:
        reference: (N, P, D) float32 of unit length, the print as it is first; (N, D) is one pose.
        probe: (M, P, D) or (M, D). Either print is turned to meet the other.
        cells: of dense templates, which are compared over the cells that both prints have; see `masked_similarity`.
    """
    reference, probe = _with_poses(reference), _with_poses(probe)
    best = _products(reference[:, 0], probe[:, 0], cells)
    for pose in range(1, probe.shape[1]):
        np.maximum(best, _products(reference[:, 0], probe[:, pose], cells), out=best)
    for pose in range(1, reference.shape[1]):
        np.maximum(best, _products(reference[:, pose], probe[:, 0], cells), out=best)
    return best


def pair_similarity(reference: np.ndarray, probe: np.ndarray, pairs: np.ndarray, cells: int = 0) -> np.ndarray:
    """pairs (n, 2), rows of the two -> (n,) float32: `similarity` of these pairs only."""
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
    """(N, D) and (M, D) float32 of unit length, of numpy or torch -> (N, M): cosine of every template with every other.

    Of dense templates (`cells` above 0) it is taken over the cells that both prints have. The numerator is the dot
    product, to which a cell that one of them lacks adds nothing. Each norm is taken over the cells that the other print
    has, and its square counts at least `OVERLAP_FLOOR`; prints without a common cell have the similarity 0. These are
    three matrix products, all at once: the caller bounds N x M.
    """
    scores = first @ second.T
    if not cells:
        return scores
    (energy, present), (other_energy, other_present) = _by_cell(first, cells), _by_cell(second, cells)
    square = (energy @ other_present.T).clip(min=OVERLAP_FLOOR)
    return scores / (square * (present @ other_energy.T).clip(min=OVERLAP_FLOOR)) ** 0.5


def mask_of(templates: np.ndarray, cells: int) -> np.ndarray:
    """(..., D) dense templates -> (..., cells) bool: which cells the print shows."""
    return np.asarray((templates.reshape(*templates.shape[:-1], cells, -1) != 0).any(axis=-1))


def fused(templates: np.ndarray, cells: int) -> np.ndarray:
    """(n, D) float32 of unit length, prints of one finger -> (D,) float32 of unit length, or zeros if all are.

    The template of a dense model holds what any of the prints shows, the mean where several show it; `cells` is 0 for
    other models, of which the mean is taken.
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
    """(n, D) dense templates scaled so that their cells have the same size, however many a print shows.

    At unit length the cells of a print that shows a quarter of the finger are twice as large as those of a whole one. A
    whole one keeps its length here, so that means over prints weigh what they show alike.
    """
    shares = mask_of(templates, cells).mean(axis=-1, keepdims=True, dtype=np.float32)
    return templates * np.sqrt(shares)


def _products(first: np.ndarray, second: np.ndarray, cells: int) -> np.ndarray:
    """`masked_similarity`, block by block, so that little more memory is taken than for the result."""
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
    """(n, D) and (n, P, D) -> (n, P): each with the poses in its own row."""
    scores = np.einsum("nd,npd->np", first, second)
    if cells:
        (energy, present), (other_energy, other_present) = _by_cell(first, cells), _by_cell(second, cells)
        ours = np.einsum("nc,npc->np", energy, other_present).clip(min=OVERLAP_FLOOR)
        scores /= np.sqrt(ours * np.einsum("nc,npc->np", present, other_energy).clip(min=OVERLAP_FLOOR))
    return scores


def _by_cell(templates: Any, cells: int) -> tuple[Any, Any]:
    """(..., D) of numpy or torch -> (..., cells) float32 each: squared norm of every cell, and 1 for those present."""
    grid = templates.reshape(*templates.shape[:-1], cells, -1)
    energy = (grid * grid).sum(-1)
    return energy, (grid != 0).any(-1) + 0 * energy


def _with_poses(prints: np.ndarray) -> np.ndarray:
    return prints[:, None] if prints.ndim == 2 else prints
