"""Error rates of a verification test, from its scores (ISO/IEC 19795-1; FVC: Maio et al. 2002, "FVC2000", IEEE TPAMI
24(3)).

A leaf module: it imports numpy, torch, `curve`, `protocols` and the package's errors only, so that the training loop
may use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.protocols import score_protocol

FMRS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TAR_FARS = (1e-2, 1e-3, 1e-4)
VALIDATION_NONMATED = 4_000_000
SENSIBLE = 10  # false matches on which a rate that models are compared by rests at least
DEFINITIONS = {
    "Threshold": "The lowest similarity that is accepted. At FMR f (and TAR at FAR f, ZeroFMR, FNIR at FPIR f) it is "
    "the next number above the highest non-mated score that has to be rejected; at the EER it is the score of the "
    "nearest operating point. It holds for prints like the evaluated ones, compared in the same way.",
    "FMR": "False match rate: share of non-mated comparisons with a score at or above the threshold.",
    "FNMR": "False non-match rate: share of mated comparisons with a score below the threshold.",
    "EER": "Equal error rate: where FMR = FNMR, on the straight line between the two neighbouring operating points of "
    "the step curve between which FNMR - FMR changes sign.",
    "FNMR at FMR f": "Lowest FNMR with FMR at most f. FMR100 and FMR1000 are its names at 1 % and 0.1 %; ZeroFMR is "
    "the lowest FNMR with FMR = 0 on these comparisons. TAR at FAR f is 1 - FNMR at FMR f.",
    "d'": "Distance of the means of mated and non-mated scores, in units of the root of their mean variance.",
    "Resolvability": "A rate at FMR = f is given only with at least 1/f non-mated comparisons. That is the least at "
    "which a single false match is visible; by the rule of 3, no false match in n comparisons shows at 95 % "
    "confidence only that FMR is below 3/n.",
    "Failure to extract": "A comparison with a print from which nothing could be extracted never matches: rejected if "
    "it is mated, not accepted if it is not. All rates include such comparisons (ISO/IEC 19795-1: generalised rates).",
    "Rank-k identification rate": "Closed set: share of searches with the mated reference among the k most similar "
    "ones; among equal similarities the mated one counts as last. Enrolled: the first impression of every finger. "
    "Searched: the others.",
    "FNIR at FPIR f": "Open set: lowest share of mated searches whose mated reference stays below the threshold, with "
    "at most a share f of non-mated searches in which any reference reaches it. Half of the fingers are enrolled.",
}


@dataclass(frozen=True)
class Metrics:
    """Error rates, as shares; None where the non-mated comparisons cannot resolve the rate (see `DEFINITIONS`).

    Attributes:
        eer: equal error rate.
        eer_threshold: score of the operating point next to it.
        fmr100: lowest FNMR with FMR <= 1 %.
        fmr1000: lowest FNMR with FMR <= 0.1 %.
        zero_fmr: lowest FNMR with FMR = 0.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        mated_mean, mated_std, nonmated_mean, nonmated_std: moments of the scores, failed comparisons left out.
        d_prime: distance of the two means in units of the root of the mean variance; None where all scores are equal.
        smallest_fmr: 1 / nonmated, the smallest rate that is resolved.
        fnmr_at_fmr: lowest FNMR by FMR of `FMRS`, resolvable ones only.
        thresholds: lowest similarity accepted, by FMR of `fnmr_at_fmr`; TAR at FAR has the same.
        zero_fmr_threshold: likewise of `zero_fmr`.
        tar: 1 - lowest FNMR by FAR, resolvable FARs only.
    """

    eer: float
    eer_threshold: float
    fmr100: float | None
    fmr1000: float | None
    zero_fmr: float
    mated: int
    nonmated: int
    mated_mean: float
    mated_std: float
    nonmated_mean: float
    nonmated_std: float
    d_prime: float | None
    smallest_fmr: float
    fnmr_at_fmr: dict[float, float]
    thresholds: dict[float, float]
    zero_fmr_threshold: float
    tar: dict[float, float]


def compute_metrics(mated: np.ndarray, nonmated: np.ndarray) -> Metrics:
    """All error rates of a set of scores; O(n log n), exact with ties.

    Args:
        mated: (n,) similarities, -infinity where nothing could be extracted.
        nonmated: (m,) likewise.

    Raises:
        UserError: a score that is NaN or +infinity, or no score of one kind.
    """
    curve = sorted_curve(mated, nonmated)
    eer, threshold = curve.eer()
    count = len(curve.nonmated)
    rates = {fmr: curve.fnmr_at_fmr(fmr)[0] for fmr in FMRS if resolvable(fmr, count)}
    mated_mean, mated_std = _moments(curve.mated)
    nonmated_mean, nonmated_std = _moments(curve.nonmated)
    spread = math.sqrt((mated_std**2 + nonmated_std**2) / 2)
    return Metrics(
        eer=eer,
        eer_threshold=threshold,
        fmr100=rates.get(1e-2),
        fmr1000=rates.get(1e-3),
        zero_fmr=curve.fnmr_at_fmr(0.0)[0],
        mated=len(curve.mated),
        nonmated=count,
        mated_mean=mated_mean,
        mated_std=mated_std,
        nonmated_mean=nonmated_mean,
        nonmated_std=nonmated_std,
        d_prime=abs(mated_mean - nonmated_mean) / spread if spread > 0 else None,
        smallest_fmr=1 / count,
        fnmr_at_fmr=rates,
        thresholds={fmr: curve.threshold_at_fmr(fmr) for fmr in rates},
        zero_fmr_threshold=curve.threshold_at_fmr(0.0),
        tar={far: 1 - rates[far] for far in TAR_FARS if far in rates},
    )


def sensible_fmr(nonmated: int) -> float | None:
    """The smallest of `FMRS` at which at least `SENSIBLE` of so many comparisons are false matches; None: no such."""
    return next((fmr for fmr in reversed(FMRS) if resolvable(fmr / SENSIBLE, nonmated)), None)


def validation_metrics(embeddings: torch.Tensor, fingers: torch.Tensor, cells: int = 0) -> dict[str, float | None]:
    """EER and TAR@FAR over all pairs of prints, for the training loop.

    Exact up to `VALIDATION_NONMATED` non-mated pairs (about 2,800 prints); beyond, over that many, a fixed sample.

    Args:
        embeddings: (N, D) on any device.
        fingers: (N,) finger of each print.
        cells: of dense templates, as in `similarity`; others have 0.

    Returns:
        `eer`, `tar@far=0.01`, `tar@far=0.001`, `tar@far=0.0001` (None where not resolvable), `mated`, `nonmated`.

    Raises:
        UserError: fewer than two fingers, no finger with two prints, or an embedding that is not finite.
    """
    labels = fingers.cpu().numpy()
    vectors = embeddings.detach().float().cpu().numpy()
    impressions = np.zeros(len(labels), np.int64)
    scores = score_protocol("all-pairs", vectors, labels, impressions, VALIDATION_NONMATED, cells=cells)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    tars: dict[str, float | None] = {f"tar@far={far:g}": metrics.tar.get(far) for far in TAR_FARS}
    return {"eer": metrics.eer, **tars, "mated": metrics.mated, "nonmated": metrics.nonmated}


def _moments(sorted_scores: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the comparisons that did not fail."""
    made = sorted_scores[np.searchsorted(sorted_scores, sorted_scores.dtype.type(-np.inf), side="right") :]
    if made[0] == made[-1]:
        return float(made[0]), 0.0  # exactly, so that constant scores have no spread
    return float(made.mean(dtype=np.float64)), float(made.std(dtype=np.float64))
