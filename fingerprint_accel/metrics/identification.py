"""Identification tests: searches of one print among many, closed-set and open-set (ISO/IEC 19795-1).

Similarities are computed block by block, so memory does not grow with the number of pairs of prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fingerprint_accel.metrics.curve import FAILED, Curve, resolvable
from fingerprint_accel.metrics.protocols import failed_never_match, unit_vectors
from fingerprint_accel.similarity import similarity

FPIRS = (0.01, 0.1)
RANKS = (1, 5, 10)
MAX_COMPARISONS = 2_000_000_000
"""Most comparisons of one identification test. Larger tests search a seeded random sample of the probes."""
BLOCK_BYTES = 2**27
"""Size of the similarities, and of the embeddings of probes, that are held at a time."""
SLOW = 50_000_000
"""Number of comparisons from which a progress bar is shown."""
SEED = 2382  # fixed, so that every model is tested with the same searches
Fold = tuple[np.ndarray, np.ndarray]
"""Rows of the enrolled references, one for each finger, and rows of the probes."""


@dataclass(frozen=True)
class Searches:
    """Results of searching M probes among the references.

    Attributes:
        rank: (M,) int64 rank of the mated reference, 1 for the most similar one, 0 if the finger of the probe is not
            enrolled. If similarities are equal, the mated reference counts as the last of them. A failed search has a
            rank after all references.
        mated: (M,) float32 similarity to the mated reference; -infinity if there is none or the search failed.
        best_other: (M,) float32 highest similarity to a reference of another finger; -infinity if the search failed.
        fingers: (M,) finger of each probe.
        enrolled: number of references, of the first fold if there are several folds.
        possible: number of searches that the test defines; larger than M if they were sampled.
    """

    rank: np.ndarray
    mated: np.ndarray
    best_other: np.ndarray
    fingers: np.ndarray
    enrolled: int
    possible: int

    @property
    def is_mated(self) -> np.ndarray:
        """(M,) bool, whether the finger of each probe is enrolled."""
        return self.rank > 0

    def identified(self, rank: int) -> float:
        """Return the share of mated searches whose mated reference is among the `rank` most similar ones."""
        return float((self.rank[self.is_mated] <= rank).mean())

    def cmc(self, most: int = 50) -> np.ndarray:
        """Return `identified` at ranks 1 to K, with K <= `most`: the cumulative match characteristic."""
        ranks = np.sort(self.rank[self.is_mated])
        at = np.arange(1, min(most, self.enrolled) + 1)
        return np.searchsorted(ranks, at, side="right") / len(ranks)

    def fnir(self, fpir: float) -> tuple[float, float] | None:
        """Return the lowest FNIR with FPIR at most `fpir` (open set), and its threshold.

        A mated search fails if its mated reference is below the threshold. A non-mated search is a false positive if
        any reference is at or above the threshold. The length of the candidate list is not limited.

        Returns:
            FNIR as a share and the lowest accepted similarity, or None if there are too few non-mated searches.
        """
        mated, nonmated = self.mated[self.is_mated], self.best_other[~self.is_mated]
        if not len(mated) or not resolvable(fpir, len(nonmated)):
            return None
        curve = Curve(np.sort(mated), np.sort(nonmated))
        return curve.fnmr_at_fmr(fpir)[0], curve.threshold_at_fmr(fpir)


def first_enrolled(fingers: np.ndarray, impressions: np.ndarray) -> Fold:
    """Return the fold of a closed-set test: the first impression of each finger is enrolled, the others are searched.

    Args:
        fingers: (N,) finger of every print.
        impressions: (N,) impression number of every print; the lowest number of a finger is its first impression.
    """
    order = np.lexsort((impressions, fingers))
    references = order[np.unique(np.asarray(fingers)[order], return_index=True)[1]]
    return references, np.setdiff1d(np.arange(len(fingers)), references)


def half_enrolled(fingers: np.ndarray, impressions: np.ndarray, seed: int = SEED) -> Fold:
    """Return the fold of an open-set test: like `first_enrolled`, but only half of the fingers are enrolled.

    The searches of the other fingers are non-mated.

    Args:
        fingers: (N,) finger of every print.
        impressions: (N,) impression number of every print.
        seed: seed of the choice of fingers.
    """
    references, probes = first_enrolled(fingers, impressions)
    return np.sort(np.random.default_rng(seed).permutation(references)[: (len(references) + 1) // 2]), probes


def search(
    embeddings: np.ndarray,
    fingers: np.ndarray,
    folds: Sequence[Fold],
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Searches:
    """Search the probes of every fold among its references, and pool the results of all folds.

    Args:
        embeddings: (N, D) float32 of any length above 0, or (N, P, D) in P poses, of which the most similar one counts.
        fingers: (N,) finger of every print.
        folds: references and probes of each part of the test.
        extracted: (N,) bool, False for prints that failed to acquire. By default none failed.
        cells: number of cells of dense templates, as in `similarity`; 0 for other templates.

    Raises:
        UserError: an embedding is not finite, or is zero.
    """
    vectors, fingers = unit_vectors(embeddings, extracted, cells), np.asarray(fingers)
    found = [_search_fold(vectors, fingers, references, probes, cells) for references, probes in folds]
    rank, mated, best_other, searched = (np.concatenate(part) for part in zip(*found, strict=True))
    return Searches(rank, mated, best_other, searched, len(folds[0][0]), sum(len(probes) for _, probes in folds))


def _search_fold(
    vectors: np.ndarray, fingers: np.ndarray, references: np.ndarray, probes: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return `rank`, `mated`, `best_other` and `fingers` of `Searches`, computed by blocks of matrix products."""
    if len(probes) * len(references) > MAX_COMPARISONS:
        kept = np.random.default_rng(SEED).permutation(len(probes))[: max(1, MAX_COMPARISONS // len(references))]
        probes = np.sort(probes[kept])
    order = np.argsort(fingers[references])
    place = np.minimum(np.searchsorted(fingers[references][order], fingers[probes]), len(order) - 1)
    mate = order[place]  # (M,) position of the mated reference, if there is one
    enrolled = fingers[references][mate] == fingers[probes]
    gallery = vectors[references]
    rank = np.zeros(len(probes), np.int64)
    mated, best_other = (np.full(len(probes), FAILED, np.float32) for _ in range(2))
    block = max(1, BLOCK_BYTES // (4 * max(len(references), vectors[0].size)))
    quiet = len(probes) * len(references) < SLOW
    with tqdm(total=len(probes), desc="searching", unit="print", disable=quiet, leave=False) as bar:
        for start in range(0, len(probes), block):
            here = slice(start, start + block)
            scores = failed_never_match(similarity(vectors[probes[here]], gallery, cells))  # (B, R)
            lines, known = np.arange(len(scores)), enrolled[here]
            mated[here] = np.where(known, scores[lines, mate[here]], FAILED)
            rank[here] = np.where(known, (scores >= mated[here, None]).sum(axis=1), 0)
            rank[here][known & (mated[here] == FAILED)] = len(references) + 1
            scores[lines[known], mate[here][known]] = FAILED
            best_other[here] = scores.max(axis=1)
            bar.update(len(scores))
    return rank, mated, best_other, fingers[probes]
