"""Identification tests: searches of one print among many, closed-set and open-set (ISO/IEC 19795-1).

A probe is searched among references, the enrolled prints. A search is mated if the finger of the probe is enrolled. In
a closed-set test all fingers are enrolled, in an open-set test only some of them. Similarities are computed block by
block, so memory does not grow with the number of pairs of prints.
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
"""Largest number of comparisons of one identification test. Larger tests search a seeded random sample of probes."""
BLOCK_BYTES = 2**27
"""Largest size, in bytes, of the similarities that are in memory at a time, and of the probe embeddings."""
SLOW = 50_000_000
"""Minimum number of comparisons for which a progress bar is shown."""
SEED = 2382  # fixed, so that every model is tested with the same searches
Fold = tuple[np.ndarray, np.ndarray]
"""Part of an identification test: rows of the references, one for each finger, and rows of the probes to search."""


@dataclass(frozen=True)
class Searches:
    """Results of M searches, each of which compares one probe with all references.

    Attributes:
        rank: (M,) int64 rank of the mated reference when references are sorted by descending similarity, starting at 1.
            The rank is 0 if the finger of the probe is not enrolled. The mated reference is ranked after other
            references of equal similarity. For a failed search, the rank is the number of references + 1.
        mated: (M,) float32 similarity of the probe to the mated reference; -infinity if the finger is not enrolled or
            the search failed.
        best_other: (M,) float32 highest similarity of the probe to a reference of a different finger; -infinity if the
            search failed.
        fingers: (M,) finger identifier of each probe.
        enrolled: number of references. If the test has several folds, this is the number in the first fold.
        possible: number of searches that the test defines; larger than M if only a sample was searched.
    """

    rank: np.ndarray
    mated: np.ndarray
    best_other: np.ndarray
    fingers: np.ndarray
    enrolled: int
    possible: int

    @property
    def is_mated(self) -> np.ndarray:
        """Whether the finger of each probe is enrolled, as an array (M,) bool."""
        return self.rank > 0

    def identified(self, rank: int) -> float:
        """Return the rank-k identification rate for k = `rank`.

        The rate is the share of mated searches in which the mated reference is among the `rank` most similar
        references.
        """
        return float((self.rank[self.is_mated] <= rank).mean())

    def cmc(self, most: int = 50) -> np.ndarray:
        """Return the cumulative match characteristic, an array (K,) of the identification rates at ranks 1 to K.

        Args:
            most: largest rank; K is lower if there are fewer references.
        """
        ranks = np.sort(self.rank[self.is_mated])
        at = np.arange(1, min(most, self.enrolled) + 1)
        return np.searchsorted(ranks, at, side="right") / len(ranks)

    def fnir(self, fpir: float) -> tuple[float, float] | None:
        """Return the lowest false-negative identification rate (FNIR) of an open-set test, and its threshold.

        A mated search fails if its mated reference is below the threshold. A non-mated search is a false positive if
        any reference is at or above the threshold. The number of returned candidates is not limited.

        Args:
            fpir: largest accepted false-positive identification rate, as a share.

        Returns:
            FNIR as a share and the lowest accepted similarity, or None if there are too few non-mated searches.
        """
        mated, nonmated = self.mated[self.is_mated], self.best_other[~self.is_mated]
        if not len(mated) or not resolvable(fpir, len(nonmated)):
            return None
        curve = Curve(np.sort(mated), np.sort(nonmated))
        return curve.fnmr_at_fmr(fpir)[0], curve.threshold_at_fmr(fpir)


def first_enrolled(fingers: np.ndarray, impressions: np.ndarray) -> Fold:
    """Choose references and probes of a closed-set test: the first impression of each finger is enrolled.

    All other impressions are probes.

    Args:
        fingers: (N,) finger identifier of every print.
        impressions: (N,) impression number of every print; the lowest number of a finger is its first impression.
    """
    order = np.lexsort((impressions, fingers))
    references = order[np.unique(np.asarray(fingers)[order], return_index=True)[1]]
    return references, np.setdiff1d(np.arange(len(fingers)), references)


def half_enrolled(fingers: np.ndarray, impressions: np.ndarray, seed: int = SEED) -> Fold:
    """Choose references and probes of an open-set test: the first impression of half of the fingers is enrolled.

    The probes are those of `first_enrolled`. Searches of fingers that are not enrolled are non-mated.

    Args:
        fingers: (N,) finger identifier of every print.
        impressions: (N,) impression number of every print.
        seed: random seed of the choice of fingers.
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
    """Search every probe among the references of the same fold, and concatenate the results of all folds.

    Args:
        embeddings: (N, D) float32 with any norm above 0; or (N, P, D) for P poses. The highest similarity over the
            poses is used.
        fingers: (N,) finger identifier of every print.
        folds: row indices of the references and of the probes, one pair of arrays per fold.
        extracted: (N,) bool, False for prints that failed to acquire. None means that no print failed.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Raises:
        UserError: if an embedding is not finite, or is zero.
    """
    vectors, fingers = unit_vectors(embeddings, extracted, cells), np.asarray(fingers)
    found = [_search_fold(vectors, fingers, references, probes, cells) for references, probes in folds]
    rank, mated, best_other, searched = (np.concatenate(part) for part in zip(*found, strict=True))
    return Searches(rank, mated, best_other, searched, len(folds[0][0]), sum(len(probes) for _, probes in folds))


def _search_fold(
    vectors: np.ndarray, fingers: np.ndarray, references: np.ndarray, probes: np.ndarray, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compare the probes of one fold with all references of the same fold.

    The similarities are computed in blocks to limit memory. If the fold has more than `MAX_COMPARISONS` pairs, only a
    fixed random sample of the probes is searched.

    Args:
        vectors: (N, P, D) or (N, D) embeddings of unit length; NaN for prints that failed to acquire.
        fingers: (N,) finger identifier of every print.
        references: row indices of the references in `vectors`.
        probes: row indices of the probes in `vectors`.
        cells: number of grid cells of a dense template, 0 for other templates.

    Returns:
        Four arrays (M,) for M searched probes: `rank`, `mated`, `best_other` and `fingers`, as defined by the
        attributes of `Searches`.
    """
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
