"""Where to draw the line: similarities at which a stated share of non-mated comparisons pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from fingerprint_accel.data.shards import Shards
from fingerprint_accel.evaluation.curve import resolvable, sorted_curve
from fingerprint_accel.evaluation.metrics import compute_metrics
from fingerprint_accel.evaluation.protocols import Scores, comparisons
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.similarity import similarity

RATES = (1e-2, 1e-3, 1e-4)


def all_pairs(embeddings: np.ndarray, fingers: np.ndarray, impressions: np.ndarray) -> Scores:
    """Similarity of every pair of prints, best over poses. Holds the matrix of all pairs: 400 MB for 10,000 prints.

    Args:
        embeddings: (N, P, D) float32 of unit length, the print as it is first; (N, D) is one pose.
        fingers, impressions: (N,) of each print.

    Raises:
        UserError: no mated or no non-mated pair.
    """
    matrix = similarity(embeddings, embeddings)
    pairs = comparisons("all-pairs", fingers, impressions)
    return Scores(matrix[tuple(pairs.mated.T)], matrix[tuple(pairs.nonmated.T)], pairs, np.asarray(fingers))


def thresholds(scores: Scores) -> dict[str, float]:
    """Lowest similarity to accept by false match rate ("0.001": 0.41); rates that the comparisons cannot resolve are
    left out."""
    curve = sorted_curve(scores.mated, scores.nonmated)
    found = {}
    for rate in RATES:
        if resolvable(rate, len(curve.nonmated)):
            highest_rejected = curve.fnmr_at_fmr(rate)[1]
            found[f"{rate:g}"] = float(np.nextafter(np.float32(highest_rejected), np.float32(np.inf)))
    return found


def rates_and_thresholds(extractor: FingerprintExtractor, shards: Shards) -> dict[str, Any]:
    """What a model keeps about itself: EER and thresholds on a dataset, as prints are and best over the usual poses."""
    embeddings = extractor.extract(shards, poses=extractor.usual_poses)
    found: dict[str, Any] = {}
    for name, vectors in (("", embeddings[:, 0]), ("_with_poses", embeddings)):
        scores = all_pairs(vectors, shards.fingers, shards.impressions)
        found[f"eer{name}"] = round(compute_metrics(scores.mated, scores.nonmated).eer, 5)
        found[f"thresholds{name}"] = {rate: round(value, 4) for rate, value in thresholds(scores).items()}
    return found
