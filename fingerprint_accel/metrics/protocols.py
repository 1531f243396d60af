"""Protocols that define which prints are compared, and the similarities of these comparisons.

This module imports only numpy, `similarity` and the errors of this package, so that the training loop can use it for
validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fingerprint_accel.errors import UserError
from fingerprint_accel.similarity import pair_similarity, similarity

PROTOCOLS = {
    "fvc": "FVC2000-2006: mated = every pair of impressions of a finger, once; "
    "non-mated = first impression of each finger against the first of every other finger, once",
    "all-pairs": "mated = every pair of impressions of a finger, once; "
    "non-mated = every pair of impressions of different fingers, once",
    "sampled": "a seeded sample of all-pairs in which every finger takes part equally often, if it has enough "
    "impressions for its mated comparisons",
}
MAX_NONMATED = 20_000_000
"""Largest number of non-mated comparisons. Larger tests compare a fixed sample, with all prints about equally often."""
_BLOCK = 1024
_SAMPLE_SEED = 2382  # fixed, so that every model is tested with the same comparisons


@dataclass(frozen=True)
class Pairs:
    """Comparisons of a test, as pairs of row indices into the dataset, with the lower index first.

    Attributes:
        mated: (n, 2) int64 pairs of prints of the same finger.
        nonmated: (m, 2) int64 pairs of prints of different fingers.
        nonmated_possible: number of non-mated comparisons that the protocol defines; larger than m if `nonmated` is a
            sample of them.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    nonmated_possible: int


@dataclass(frozen=True)
class Scores:
    """Similarities of all comparisons of a test; -infinity for comparisons with a print that failed to acquire.

    Attributes:
        mated: (n,) float32 similarities of the mated comparisons.
        nonmated: (m,) float32 similarities of the non-mated comparisons.
        pairs: row indices of the compared prints, in the order of the similarities.
        fingers: (N,) finger identifier of every print of the dataset.
    """

    mated: np.ndarray
    nonmated: np.ndarray
    pairs: Pairs
    fingers: np.ndarray


def comparisons(protocol: str, fingers: np.ndarray, impressions: np.ndarray, max_nonmated: int = MAX_NONMATED) -> Pairs:
    """List the comparisons of the protocol `fvc` or `all-pairs`.

    Args:
        protocol: "fvc" or "all-pairs". Both compare all mated pairs. "fvc" compares the first impressions of all
            fingers as non-mated pairs, "all-pairs" compares all non-mated pairs.
        fingers: (N,) finger identifier of every print.
        impressions: (N,) impression number of every print; the lowest number of a finger is its first impression.
        max_nonmated: largest number of non-mated comparisons, see `MAX_NONMATED`.

    Raises:
        UserError: if the protocol is unknown, if there are fewer than two fingers, or if no finger has two impressions.
    """
    rows, mated, possible = plan(protocol, fingers, impressions)
    found = [_ordered(*block) for block in _blocks(fingers, rows, possible, max_nonmated)]
    return Pairs(mated, np.concatenate(found)[:max_nonmated], possible)


def score_pairs(
    embeddings: np.ndarray,
    pairs: Pairs,
    fingers: np.ndarray,
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Scores:
    """Compute the cosine similarity of each pair in `pairs`; with several poses, the highest over the poses.

    Args:
        embeddings: (N, D) float32 with any norm above 0; or (N, P, D) for P poses, with the unchanged print as the
            first pose.
        pairs: comparisons to make.
        fingers: (N,) finger identifier of every print.
        extracted: (N,) bool, False for prints that failed to acquire. Their comparisons score -infinity, and their
            embeddings are ignored. None means that no print failed.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if an embedding is not finite, or is zero.
    """
    vectors = unit_vectors(embeddings, extracted, cells)
    mated, nonmated = (pair_similarity(vectors, vectors, rows, cells) for rows in (pairs.mated, pairs.nonmated))
    return Scores(failed_never_match(mated), failed_never_match(nonmated), pairs, np.asarray(fingers))


def score_protocol(
    protocol: str,
    embeddings: np.ndarray,
    fingers: np.ndarray,
    impressions: np.ndarray,
    max_nonmated: int = MAX_NONMATED,
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Scores:
    """Compute the cosine similarity of every comparison of the protocol `fvc` or `all-pairs`.

    Args:
        protocol: "fvc" or "all-pairs". Both compare all mated pairs. "fvc" compares the first impressions of all
            fingers as non-mated pairs, "all-pairs" compares all non-mated pairs.
        embeddings: (N, D) or (N, P, D) float32, as in `score_pairs`.
        fingers: (N,) finger identifier of every print.
        impressions: (N,) impression number of every print.
        max_nonmated: largest number of non-mated comparisons, see `MAX_NONMATED`.
        extracted: (N,) bool, False for prints that failed to acquire, as in `score_pairs`.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if the protocol is unknown, if there are fewer than two fingers, if no finger has two impressions, or
            if an embedding is not finite or is zero.
    """
    rows, mated, possible = plan(protocol, fingers, impressions)
    vectors = unit_vectors(embeddings, extracted, cells)
    bound = min(possible, max_nonmated)
    scores, pairs = np.empty(bound, np.float32), np.empty((bound, 2), np.int64)
    filled = 0
    for first, second, keep in _blocks(fingers, rows, possible, max_nonmated):
        block = similarity(vectors[first], vectors[second], cells)[keep][: bound - filled]
        scores[filled : filled + len(block)] = block
        pairs[filled : filled + len(block)] = _ordered(first, second, keep)[: len(block)]
        filled += len(block)
    mated_scores = failed_never_match(pair_similarity(vectors, vectors, mated, cells))
    chosen = Pairs(mated, pairs[:filled], possible)
    return Scores(mated_scores, failed_never_match(scores[:filled]), chosen, np.asarray(fingers))


def plan(protocol: str, fingers: np.ndarray, impressions: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Determine which prints and pairs a protocol compares.

    Returns:
        Row indices of the prints that take part in non-mated comparisons, mated pairs (n, 2), and the number of
        non-mated pairs.

    Raises:
        UserError: if the protocol is unknown, if there are fewer than two fingers, or if no finger has two impressions.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    fingers, impressions = np.asarray(fingers), np.asarray(impressions)
    order = np.lexsort((impressions, fingers))  # by finger, then impression, then row
    starts = np.flatnonzero(np.diff(fingers[order], prepend=fingers[order[:1]] - 1)) if len(order) else order
    sizes = np.diff(starts, append=len(order))
    if len(starts) < 2:
        raise UserError(f"{protocol}: non-mated comparisons need at least two fingers; the dataset has {len(starts)}")
    mated = _mated(order, starts, sizes)
    if not len(mated):
        raise UserError(f"{protocol}: mated comparisons need a finger with two impressions; the dataset has none")
    if protocol == "fvc":
        return np.sort(order[starts]), mated, len(starts) * (len(starts) - 1) // 2
    return np.arange(len(order)), mated, len(order) * (len(order) - 1) // 2 - len(mated)


def _mated(order: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return all pairs of prints of the same finger as row indices (n, 2).

    Fingers with equally many impressions are processed together.

    Args:
        order: rows of the prints, sorted by finger.
        starts: position in `order` of the first print of each finger.
        sizes: number of prints of each finger.
    """
    found = []
    for size in np.unique(sizes[sizes > 1]):
        members = order[starts[sizes == size][:, None] + np.arange(size)]  # (fingers, size)
        first, second = np.triu_indices(size, 1)
        found.append(np.stack([members[:, first].ravel(), members[:, second].ravel()], axis=1))
    if not found:
        return np.empty((0, 2), np.int64)
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _blocks(
    fingers: np.ndarray, rows: np.ndarray, possible: int, max_nonmated: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the non-mated pairs to compare, as blocks of a similarity matrix.

    The blocks cover every pair of `rows`, or a fixed sample of the pairs. For the sample, the rows are shuffled and
    arranged in a circle, and each block of rows is compared with the blocks that follow it. Every print is therefore
    compared equally often, and the cost grows only with the size of the sample.

    Args:
        fingers: (N,) finger identifier of every print.
        rows: rows of the prints to compare.
        possible: number of non-mated pairs of these prints.
        max_nonmated: number of pairs after which to stop. The block that reaches this number is the last block.

    Yields:
        Row indices (F,) of the first prints, row indices (S,) of the second prints, and an (F, S) bool mask of the
        pairs to compare.
    """
    fingers = np.asarray(fingers)
    if possible <= max_nonmated:
        parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
        for index, first in enumerate(parts):
            yield first, first, np.triu(fingers[first][:, None] != fingers[first], 1)
            for second in parts[index + 1 :]:
                yield first, second, fingers[first][:, None] != fingers[second]
        return
    ring = np.random.default_rng(_SAMPLE_SEED).permutation(rows)
    size = min(_BLOCK, max(1, max_nonmated // (2 * len(rows))))
    parts = np.split(ring, range(size, len(rows), size))
    drawn = 0
    for lag in range(1, len(parts) // 2 + 1):
        for index in range(len(parts) if 2 * lag != len(parts) else lag):
            first, second = parts[index], parts[(index + lag) % len(parts)]
            keep = fingers[first][:, None] != fingers[second]
            yield first, second, keep
            drawn += int(keep.sum())
            if drawn >= max_nonmated:
                return


def _ordered(first: np.ndarray, second: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Return the pairs that a mask selects as row indices (n, 2), with the lower index first.

    Args:
        first: rows of the prints along the first axis of the mask.
        second: rows of the prints along the second axis.
        keep: (first, second) bool mask.
    """
    above, below = np.nonzero(keep)
    return np.sort(np.stack([first[above], second[below]], axis=1), axis=1)


def unit_vectors(embeddings: np.ndarray, extracted: np.ndarray | None, cells: int = 0) -> np.ndarray:
    """Scale embeddings to unit length; embeddings of prints that failed to acquire become NaN.

    In dense templates, all poses of a print are divided by the norm of the first pose, because a shifted print may
    lose some or all of its cells.

    Args:
        embeddings: (N, D) or (N, P, D) in P poses.
        extracted: (N,) bool, False for prints that failed to acquire; None if no print failed.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if the embedding of a print that did not fail is not finite, or is zero.
    """
    vectors = np.array(embeddings, np.float32)
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))[..., None]  # `norm` would store all squares
    if cells and vectors.ndim == 3:
        finite = np.isfinite(lengths).all(axis=1, keepdims=True)
        lengths = np.where(finite, lengths[:, :1], np.float32(np.nan))
    wanted = np.ones(len(vectors), bool) if extracted is None else np.asarray(extracted, bool)
    bad = np.flatnonzero(wanted & ~(np.isfinite(lengths) & (lengths > 0)).reshape(len(vectors), -1).all(axis=1))
    if len(bad):
        raise UserError(f"{len(bad)} of {len(vectors)} embeddings are NaN, infinite or zero (first: row {bad[0]})")
    lengths[~wanted] = np.nan
    vectors /= lengths
    return vectors


def failed_never_match(scores: np.ndarray) -> np.ndarray:
    """Replace NaN scores by -infinity in place, so that comparisons with a print that failed to acquire never match."""
    scores[np.isnan(scores)] = -np.inf
    return scores
