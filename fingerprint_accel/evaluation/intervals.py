"""95 % intervals of all rates of an evaluation.

FTA is the failure-to-acquire rate. In identification, FNIR is the false-negative rate and FPIR the false-positive rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fingerprint_accel.metrics.bootstrap import (
    Interval,
    bootstrap_fnir,
    bootstrap_scores,
    bootstrap_share,
    fnmr_at,
)
from fingerprint_accel.metrics.curve import resolvable
from fingerprint_accel.metrics.identification import FPIRS, RANKS, Searches
from fingerprint_accel.metrics.protocols import Scores
from fingerprint_accel.metrics.verification import FMRS
from fingerprint_accel.metrics.weighted_curves import WeightedCurves


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of the rates of an evaluation, by bootstrap over fingers.

    Attributes:
        eer: interval of the EER.
        fnmr_at_fmr: intervals of the FNMR, by FMR; FMRs for which there are too few non-mated comparisons are left out.
        identified: intervals of the rank-k identification rate, by rank k.
        fnir: intervals of the FNIR, by FPIR; FPIRs for which there are too few non-mated searches are left out.
        failed: interval of the failure-to-acquire rate.
    """

    eer: Interval
    fnmr_at_fmr: dict[float, Interval]
    identified: dict[int, Interval]
    fnir: dict[float, Interval]
    failed: Interval

    @classmethod
    def measured(cls, scores: Scores, closed: Searches, opened: Searches, failed: np.ndarray) -> Intervals:
        """Compute all intervals from the results of the tests.

        Args:
            scores: similarities of the verification test.
            closed: searches of the closed-set identification test.
            opened: searches of the open-set identification test.
            failed: (N,) bool, whether each print of the dataset failed to acquire.
        """
        fmrs = [fmr for fmr in FMRS if resolvable(fmr, len(scores.nonmated))]
        eer, *fnmr = bootstrap_scores(scores, [WeightedCurves.eer, *map(fnmr_at, fmrs)])
        mated = closed.is_mated
        fpirs = [fpir for fpir in FPIRS if opened.fnir(fpir) is not None]
        return cls(
            eer=eer,
            fnmr_at_fmr=dict(zip(fmrs, fnmr, strict=True)),
            identified={rank: bootstrap_share(closed.rank[mated] <= rank, closed.fingers[mated]) for rank in RANKS},
            fnir=dict(zip(fpirs, bootstrap_fnir(opened, fpirs), strict=True)) if fpirs else {},
            failed=bootstrap_share(failed, scores.fingers),
        )
