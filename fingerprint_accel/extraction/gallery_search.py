"""Exact nearest-neighbour search by blocked matrix products.

The references are the embeddings of enrolled prints. They are read block by block, for example from memory-mapped
files, so they need not fit in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.similarity import masked_similarity

CELL = 128  # number of consecutive scores per cell, see `_top`
PROBES = 256  # number of probes that are compared with a block of references at a time
RESCORED = 1000  # number of candidates per probe that are compared in all poses


@dataclass(frozen=True)
class Hits:
    """The most similar references for each of M probes, best first; ties are in arbitrary order.

    Attributes:
        similarity: (M, k) float32, similarity of each reference found.
        row: (M, k) int64, row number of each reference in the gallery.
    """

    similarity: np.ndarray
    row: np.ndarray

    def of_probe(self, number: int) -> Hits:
        """Return the hits (n,) of one probe, without the entries of an index that has found fewer than k references."""
        similarity, row = self.similarity[number], self.row[number]
        there = (similarity > -1) | (row != 0)
        return Hits(similarity[there], row[there])


@torch.inference_mode()
def nearest(
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    probes: np.ndarray,
    k: int,
    cells: int = 0,
    device: torch.device | str = "cpu",
) -> Hits:
    """Find the k references that are most similar to each probe, by comparing every probe with every reference.

    Args:
        blocks: function that iterates over the references in blocks; it yields the rows (n,) int64 of the references of
            a block, and their embeddings (n, D) float32.
        probes: (M, D) float32 of unit length.
        k: number of references to return for each probe; at most the number of references in all blocks.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity.masked_similarity`.
        device: device that computes the matrix products.
    """
    parts = [_nearest(blocks(), part.to(device), k, cells) for part in torch.from_numpy(probes).split(PROBES)]
    similarity, row = (torch.cat(values).cpu().numpy() for values in zip(*parts, strict=True))
    return Hits(similarity.clip(-1, 1), row)  # rounding can give 1.0000001


def rescored(
    vectors: Callable[[np.ndarray], np.ndarray], probes: np.ndarray, candidates: np.ndarray, k: int, cells: int = 0
) -> Hits:
    """Compare each probe in all of its poses with a few candidates, and return the best candidates.

    Args:
        vectors: function that reads the references of the given rows (n,) as (n, D) float32.
        probes: (M, P, D) float32 of unit length, P poses of each probe. The highest similarity over the poses is used.
        candidates: (M, n) rows of the candidates of each probe; -1 for none.
        k: number of references to return for each probe.
        cells: number of grid cells of a dense template, 0 for other templates.

    Returns:
        The k best candidates of each probe. If a probe has fewer than k candidates, the last entries have row 0 and
        similarity -1.
    """
    similarity, row = np.full((len(probes), k), -1, np.float32), np.zeros((len(probes), k), np.int64)
    for number, (poses, rows) in enumerate(zip(probes, candidates, strict=True)):
        rows = np.sort(rows[rows >= 0])  # so that files are read in order
        scores = masked_similarity(vectors(rows), poses, cells).max(axis=1)
        scores = scores.clip(-1, 1)  # rounding can give 1.0000001
        best = np.argsort(-scores, kind="stable")[:k]
        similarity[number, : len(best)], row[number, : len(best)] = scores[best], rows[best]
    return Hits(similarity, row)


def _nearest(
    blocks: Iterator[tuple[np.ndarray, np.ndarray]], probes: torch.Tensor, k: int, cells: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the k best references for a few probes (M, D), on the device of the probes; see `nearest`.

    Returns:
        Similarities (M, k) and rows (M, k) of the references.
    """
    best = probes.new_full((len(probes), k), -torch.inf)
    rows = torch.zeros((len(probes), k), dtype=torch.int64, device=probes.device)
    for numbers, references in blocks:
        scores = masked_similarity(probes, _tensor(references).to(probes.device), cells)
        found, place = _top(scores, min(k, scores.shape[1]))
        best, order = torch.cat([best, found], dim=1).topk(k, dim=1)
        rows = torch.cat([rows, torch.from_numpy(numbers).to(rows.device)[place]], dim=1).gather(1, order)
    return best, rows


def _top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values (M, k) and indices (M, k) of `scores.topk(k, dim=1)`, but compute them faster.

    Each row of scores is divided into cells of `CELL` (128) consecutive scores. The k largest scores lie in the k cells
    with the largest maxima, so only these k cells and the scores after the last complete cell are searched.
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
    """Wrap a read-only array as a tensor without a copy; suppresses the warning of torch about read-only arrays."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
