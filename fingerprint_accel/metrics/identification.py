"""Searching one print among many: closed set and open set (ISO/IEC 19795-1).

Similarities are computed block by block; nothing of the size of all pairs of prints is held.
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
"""Comparisons of one identification test at most; beyond, an even, seeded sample of the probes searches."""
BLOCK_BYTES = 2**27  # of similarities, and of probes' embeddings, at a time
SLOW = 50_000_000  # comparisons from which on progress is shown
SEED = 2382  # of who is enrolled, fixed, so that two models meet the same searches
Fold = tuple[np.ndarray, np.ndarray]
"""Rows that are enrolled, one of a finger, and rows that are searched among them."""


@dataclass(frozen=True)
class Searches:
    """What was found by searching each probe among the references.

    Attributes:
        rank: (M,) int64, 1 for the most similar reference; 0 where the probe's finger is not enrolled. Among equal
            similarities the mated one counts as last. A search that failed has a rank behind all references.
        mated: (M,) float32 similarity to the mated reference; -infinity where there is none or extraction failed.
        best_other: (M,) float32 highest similarity to a reference of another finger, likewise.
        enrolled: number of references; of the first fold, where there are several.
        possible: searches that the test defines; above M when they were sampled.
    """

    rank: np.ndarray
    mated: np.ndarray
    best_other: np.ndarray
    enrolled: int
    possible: int

    @property
    def is_mated(self) -> np.ndarray:
        """(M,) bool: whether the probe's finger is enrolled."""
        return self.rank > 0

    def identified(self, rank: int) -> float:
        """Share of mated searches with the mated reference among the `rank` most similar ones (closed set)."""
        return float((self.rank[self.is_mated] <= rank).mean())

    def cmc(self, most: int = 50) -> np.ndarray:
        """(K,) `identified` at rank 1 to K, K <= `most`: the cumulative match characteristic."""
        ranks = np.sort(self.rank[self.is_mated])
        at = np.arange(1, min(most, self.enrolled) + 1)
        return np.searchsorted(ranks, at, side="right") / len(ranks)

    def fnir(self, fpir: float) -> tuple[float, float] | None:
        """Lowest FNIR with FPIR at most `fpir` (open set), and the lowest similarity accepted there; None where there
        are too few non-mated searches.

        A mated search fails where the mated reference stays below the threshold; a non-mated one gives a false positive
        where any reference reaches it. The length of the candidate list is not limited.
        """
        mated, nonmated = self.mated[self.is_mated], self.best_other[~self.is_mated]
        if not len(mated) or not resolvable(fpir, len(nonmated)):
            return None
        curve = Curve.of(np.sort(mated), np.sort(nonmated))
        return curve.fnmr_at_fmr(fpir)[0], curve.threshold_at_fmr(fpir)


def first_enrolled(fingers: np.ndarray, impressions: np.ndarray) -> Fold:
    """The closed set: the lowest impression of every finger is enrolled, all others are searched.

    Args:
        fingers, impressions: (N,) of every print.
    """
    order = np.lexsort((impressions, fingers))
    references = order[np.unique(np.asarray(fingers)[order], return_index=True)[1]]
    return references, np.setdiff1d(np.arange(len(fingers)), references)


def half_enrolled(fingers: np.ndarray, impressions: np.ndarray, seed: int = SEED) -> Fold:
    """The open set: as `first_enrolled`, but only a seeded half of the fingers is enrolled, so that the searches of the
    others are non-mated."""
    references, probes = first_enrolled(fingers, impressions)
    return np.sort(np.random.default_rng(seed).permutation(references)[: (len(references) + 1) // 2]), probes


def search(
    embeddings: np.ndarray,
    fingers: np.ndarray,
    folds: Sequence[Fold],
    extracted: np.ndarray | None = None,
    cells: int = 0,
) -> Searches:
    """Searches the probes of every fold among its references; what is found is taken together.

    Args:
        embeddings: (N, D) float32, any length above 0; (N, P, D) in P poses, of which the best counts.
        fingers: (N,) of every print.
        folds: who is searched among whom.
        extracted: (N,) bool, False for prints from which nothing could be extracted. Default: all were.
        cells: of dense templates, as in `similarity`; others have 0.

    Raises:
        UserError: an embedding that is not finite or has no direction.
    """
    vectors, fingers = unit_vectors(embeddings, extracted, cells), np.asarray(fingers)
    found = [_search_fold(vectors, fingers, references, probes, cells) for references, probes in folds]
    rank, mated, best_other = (np.concatenate(part) for part in zip(*found, strict=True))
    return Searches(rank, mated, best_other, len(folds[0][0]), sum(len(probes) for _, probes in folds))


def _search_fold(
    vectors: np.ndarray, fingers: np.ndarray, references: np.ndarray, probes: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`rank`, `mated` and `best_other` of `Searches`, by blocks of matrix products."""
    if len(probes) * len(references) > MAX_COMPARISONS:
        kept = np.random.default_rng(SEED).permutation(len(probes))[: max(1, MAX_COMPARISONS // len(references))]
        probes = np.sort(probes[kept])
    order = np.argsort(fingers[references])
    place = np.minimum(np.searchsorted(fingers[references][order], fingers[probes]), len(order) - 1)
    mate = order[place]  # (M,) position among the references, where the probe's finger is enrolled
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
    return rank, mated, best_other
