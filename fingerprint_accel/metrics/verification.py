"""Error rates of a verification test, computed from its similarities.

Terms follow ISO/IEC 19795-1; EER and ZeroFMR follow FVC (Maio et al. 2002, "FVC2000", IEEE TPAMI 24(3)).

This module imports only numpy, torch, `curve`, `protocols` and the errors of this package, so that the training loop
can use it.
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
SENSIBLE = 10
"""Smallest expected number of false matches at the FMR at which two models are compared."""
DEFINITIONS = {
    "Mated, non-mated": "A mated comparison compares two impressions of one finger. A non-mated comparison compares "
    "impressions of two fingers.",
    "Threshold": "A comparison is accepted if its similarity is at or above the threshold. At FMR f (likewise at TAR "
    "at FAR f, ZeroFMR and FNIR at FPIR f) the threshold is the next number above the highest non-mated score that has "
    "to be rejected. At the EER it is the score of the nearest operating point. A threshold holds for prints like the "
    "evaluated ones, compared in the same way.",
    "FMR": "False match rate: the share of non-mated comparisons that are accepted.",
    "FNMR": "False non-match rate: the share of mated comparisons that are rejected.",
    "EER": "Equal error rate: the value at which FMR and FNMR are equal. It is interpolated linearly between the two "
    "neighbouring operating points.",
    "FNMR at FMR f": "The lowest FNMR with FMR at most f. FMR100 and FMR1000 are other names for the FNMR at FMR 1 % "
    "and 0.1 %. ZeroFMR is the lowest FNMR without any false match. TAR at FAR f is 1 - FNMR at FMR f.",
    "FTA, FTE": "Failure-to-acquire rate: the share of prints from which no template was made, here because their "
    "quality is below the limit that was set. Every print serves as a reference and as a probe, so the same share is "
    "the failure-to-enrol rate (FTE). A comparison with such a print never matches. Mated comparisons with it count as "
    "false non-matches, and searches with it or for it fail: all rates are generalised rates (GFMR, GFNMR).",
    "95 % interval": "Percentile bootstrap: the evaluation is repeated 1,000 times with fingers drawn at random with "
    "replacement, and the interval holds the middle 95 % of the rates. In identification the enrolled references stay "
    "the same and the fingers of the searches are drawn. A rate of 0 % or 100 % has an interval without width, which "
    "does not mean that it is certain: see rule of 3. ZeroFMR rests on a single score and has no interval.",
    "Rule of 3": "If no error occurs in n independent attempts, the true error rate is below 3/n with 95 % confidence. "
    "A rate at FMR f needs at least 1/f non-mated comparisons; with fewer, no rate is shown.",
    "d'": "Difference of the means of mated and non-mated scores, divided by the root of the mean of their variances. "
    "It is positive if mated scores are higher on average. Comparisons that failed are left out.",
    "Rank-k identification rate": "Closed-set identification: the share of searches whose mated reference is among the "
    "k most similar references. If similarities are equal, the mated reference counts as the last of them. The first "
    "impression of every finger is enrolled and all other impressions are searched.",
    "FNIR at FPIR f": "Open-set identification: the lowest share of mated searches whose mated reference is below the "
    "threshold (false-negative identification rate), at a threshold at which at most a share f of non-mated searches "
    "returns any reference (false-positive identification rate). Half of the fingers are enrolled.",
}
"""Definition of each term, as the report shows it."""


@dataclass(frozen=True)
class Metrics:
    """Error rates of a verification test, as shares.

    A rate at FMR f needs at least 1 / f non-mated comparisons. If there are fewer, the rate is None.

    Attributes:
        eer: equal error rate.
        eer_threshold: threshold of the operating point nearest to the EER.
        fmr100: lowest FNMR with FMR <= 1 %.
        fmr1000: lowest FNMR with FMR <= 0.1 %.
        zero_fmr: lowest FNMR with FMR = 0.
        mated: number of mated comparisons.
        nonmated: number of non-mated comparisons.
        mated_mean: mean of the mated scores, without failed comparisons.
        mated_std: standard deviation of the mated scores, without failed comparisons.
        nonmated_mean: mean of the non-mated scores, without failed comparisons.
        nonmated_std: standard deviation of the non-mated scores, without failed comparisons.
        d_prime: `mated_mean - nonmated_mean`, divided by the square root of the mean variance. It is negative if
            non-mated scores are higher on average, and None if all mated scores are equal and all non-mated scores are
            equal.
        smallest_fmr: 1 / nonmated, the smallest FMR that the test can measure.
        fnmr_at_fmr: lowest FNMR for each FMR of `FMRS` that the test can measure.
        thresholds: lowest accepted similarity for each FMR of `fnmr_at_fmr`; TAR at FAR has the same threshold.
        zero_fmr_threshold: lowest accepted similarity at the operating point of `zero_fmr`.
        tar: true accept rate, 1 - lowest FNMR, for each false accept rate of `TAR_FARS` that the test can measure.
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
    """Compute all error rates of a set of scores in O(n log n), exact with ties.

    Args:
        mated: (n,) similarities of mated comparisons, -infinity for a comparison with a print that failed to acquire.
        nonmated: (m,) similarities of non-mated comparisons, with -infinity as in `mated`.

    Raises:
        UserError: if a score is NaN or +infinity, or if there is no mated or no non-mated score.
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
        d_prime=(mated_mean - nonmated_mean) / spread if spread > 0 else None,
        smallest_fmr=1 / count,
        fnmr_at_fmr=rates,
        thresholds={fmr: curve.threshold_at_fmr(fmr) for fmr in rates},
        zero_fmr_threshold=curve.threshold_at_fmr(0.0),
        tar={far: 1 - rates[far] for far in TAR_FARS if far in rates},
    )


def sensible_fmr(nonmated: int) -> float | None:
    """Return the smallest FMR in `FMRS` for which at least `SENSIBLE` (10) false matches are expected, or None.

    Args:
        nonmated: number of non-mated comparisons.
    """
    return next((fmr for fmr in reversed(FMRS) if resolvable(fmr / SENSIBLE, nonmated)), None)


def validation_metrics(embeddings: torch.Tensor, fingers: torch.Tensor, cells: int = 0) -> dict[str, float | None]:
    """Compute EER and TAR at FAR over all pairs of prints, for the training loop.

    The rates are exact up to `VALIDATION_NONMATED` non-mated pairs (about 2,800 prints). For larger sets, a fixed
    sample of `VALIDATION_NONMATED` non-mated pairs is compared.

    Args:
        embeddings: (N, D) embeddings on any device.
        fingers: (N,) finger identifier of each print.
        cells: number of grid cells of a dense template, 0 for other templates; see `similarity`.

    Returns:
        Dictionary with the keys `eer`, `tar@far=0.01`, `tar@far=0.001`, `tar@far=0.0001`, `mated` and `nonmated`. The
        last two are numbers of comparisons. A TAR is None if there are too few comparisons.

    Raises:
        UserError: if there are fewer than two fingers, if no finger has two prints, or if an embedding is not finite.
    """
    labels = fingers.cpu().numpy()
    vectors = embeddings.detach().float().cpu().numpy()
    impressions = np.zeros(len(labels), np.int64)
    scores = score_protocol("all-pairs", vectors, labels, impressions, VALIDATION_NONMATED, cells=cells)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    tars: dict[str, float | None] = {f"tar@far={far:g}": metrics.tar.get(far) for far in TAR_FARS}
    return {"eer": metrics.eer, **tars, "mated": metrics.mated, "nonmated": metrics.nonmated}


def _moments(sorted_scores: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of sorted scores, without failed comparisons (-infinity)."""
    made = sorted_scores[np.searchsorted(sorted_scores, sorted_scores.dtype.type(-np.inf), side="right") :]
    if made[0] == made[-1]:
        return float(made[0]), 0.0  # exactly 0, which rounding in `std` might miss
    return float(made.mean(dtype=np.float64)), float(made.std(dtype=np.float64))
