"""Exact nearest-neighbour search by blocked matrix products.

References are read block by block, for example from memory-mapped files, so they need not fit in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.similarity import masked_similarity

CELL = 128  # consecutive scores whose maximum is compared first, see `_top`
PROBES = 256  # probes that are compared with a block at a time
RESCORED = 1000  # candidates for a probe with several poses; only these are compared with all poses


@dataclass(frozen=True)
class Hits:
    """The most similar references for each of M probes, best first; ties are in arbitrary order.

    Attributes:
        similarity: (M, k) float32, similarity of each reference found.
        row: (M, k) int64, row of each reference found.
    """

    similarity: np.ndarray
    row: np.ndarray


@torch.inference_mode()
def nearest(
    blocks: Callable[[], Iterator[tuple[int, np.ndarray]]],
    probes: np.ndarray,
    k: int,
    cells: int = 0,
    device: torch.device | str = "cpu",
    among: np.ndarray | None = None,
) -> Hits:
    """Find the k references that are most similar to each probe, by comparing every probe with every reference.

    Args:
        blocks: function that iterates over the references; yields the first row and the embeddings (n, D) of a block.
        probes: (M, D) float32 of unit length.
        k: number of references to return; at most the number of references that are searched.
        cells: number of cells of dense templates, else 0; see `similarity.masked_similarity`.
        device: where the matrix products are computed.
        among: (N,) bool, true for the references to search; None for all.
    """
    parts = [_nearest(blocks(), part.to(device), k, cells, among) for part in torch.from_numpy(probes).split(PROBES)]
    similarity, row = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
    return Hits(similarity, row)


def rescored(
    vectors: Callable[[np.ndarray], np.ndarray], probes: np.ndarray, candidates: np.ndarray, k: int, cells: int = 0
) -> Hits:
    """Compare each probe in all of its poses with its candidates only, and keep the best pose of each candidate.

    Args:
        vectors: function that reads the references of the given rows (n,) as (n, D) float32.
        probes: (M, P, D) float32 of unit length, P poses of each probe.
        candidates: (M, n) rows of the candidates of each probe; -1 for none.
        k: number of references to return.
        cells: number of cells of dense templates, else 0.

    Returns:
        The k best candidates of each probe. If a probe has fewer than k candidates, the last entries have row 0 and
        similarity -1.
    """
    similarity, row = np.full((len(probes), k), -1, np.float32), np.zeros((len(probes), k), np.int64)
    for number, (poses, rows) in enumerate(zip(probes, candidates, strict=True)):
        rows = np.sort(rows[rows >= 0])  # so that files are read in order
        scores = masked_similarity(vectors(rows), poses, cells).max(axis=1)
        best = np.argsort(-scores, kind="stable")[:k]
        similarity[number, : len(best)], row[number, : len(best)] = scores[best], rows[best]
    return Hits(similarity, row)


def _nearest(
    blocks: Iterator[tuple[int, np.ndarray]], probes: torch.Tensor, k: int, cells: int, among: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return similarities and rows of the k best references, (M, k) each, for probes (M, D) on their device."""
    best = probes.new_full((len(probes), k), -torch.inf)
    rows = torch.zeros((len(probes), k), dtype=torch.int64, device=probes.device)
    for start, references in blocks:
        numbers = torch.arange(start, start + len(references), device=probes.device)
        if among is not None:
            here = np.flatnonzero(among[start : start + len(references)])
            references, numbers = references[here], numbers[torch.from_numpy(here).to(probes.device)]
        scores = masked_similarity(probes, _tensor(references).to(probes.device), cells)
        found, place = _top(scores, min(k, scores.shape[1]))
        best, order = torch.cat([best, found], dim=1).topk(k, dim=1)
        rows = torch.cat([rows, numbers[place]], dim=1).gather(1, order)
    return best, rows


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `scores.topk(k, dim=1)` faster; return values and indices, (M, k) each.

    Each row of scores is divided into cells of `CELL` scores. The k largest scores lie in the k cells with the largest
    maxima, so only these cells are searched, and the scores after the last complete cell.
    """
    count = scores.shape[1]
    whole = count // CELL * CELL
    if k * CELL * 4 > whole:
        return scores.topk(k, dim=1)
    cells = scores[:, :whole].unflatten(1, (-1, CELL))
    chosen = cells.amax(dim=2).topk(k, dim=1).indices  # (M, k)
    index = (chosen[:, :, None] * CELL + torch.arange(CELL, device=scores.device)).flatten(1)
    rest = torch.arange(whole, count, device=scores.device).expand(len(scores), -1)
    index = torch.cat([index, rest], dim=1)
    found, place = scores.gather(1, index).topk(k, dim=1)
    return found, index.gather(1, place)


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Wrap a read-only array without a copy; suppress the warning of torch that it could be written to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
