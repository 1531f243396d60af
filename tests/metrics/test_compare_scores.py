"""Two models on the same comparisons."""

import numpy as np
import pytest

from fingerprint_accel.metrics.bootstrap import bootstrap_eer, compare_scores
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics


def score(vectors, fingers, impressions):
    return score_protocol("all-pairs", vectors, fingers, impressions)


def test_a_better_model_errs_less(embedded):
    better, worse = score(*embedded(20, noise=0.9)), score(*embedded(20, noise=1.8))
    rows = compare_scores(better, worse, resamples=200)
    assert [row.name for row in rows] == ["EER", "FNMR at FMR 1 %"]  # 3,040 non-mated comparisons
    for row, name in zip(rows, ("eer", "fmr100"), strict=True):
        ours, theirs = (getattr(compute_metrics(s.mated, s.nonmated), name) for s in (better, worse))
        assert (row.ours, row.theirs) == pytest.approx((ours, theirs))
        assert row.interval[0] < ours - theirs < row.interval[1] < 0
        assert row.verdict() == "lower"
    assert [row.verdict() for row in compare_scores(worse, better, resamples=200)] == ["higher", "higher"]


def test_a_model_against_itself(embedded):
    scores = score(*embedded(20, noise=1.2))
    for row in compare_scores(scores, scores, resamples=50):
        assert (row.ours - row.theirs, row.interval, row.verdict()) == (0, (0, 0), "no difference shown")


def test_pairing_narrows_the_interval(embedded):
    """Two models that err on the same fingers differ by less than their own intervals are wide."""
    vectors, fingers, impressions = embedded(20, noise=1.2)
    noise = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    ours, theirs = score(vectors, fingers, impressions), score(vectors + 0.1 * noise, fingers, impressions)
    low, high = compare_scores(ours, theirs, 200)[0].interval
    alone = bootstrap_eer(ours, 200)
    assert high - low < 0.5 * (alone[1] - alone[0])
