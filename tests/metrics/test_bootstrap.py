"""The interval over fingers: reproducible, right against copies written out, wide when fingers differ."""

import numpy as np
import pytest

from fingerprint_accel.metrics.bootstrap import bootstrap_eer, weighted_curve
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics


def prints(fingers=10, impressions=8, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(fingers, 24))
    finger = np.repeat(np.arange(fingers), impressions)
    vectors = centres[finger] + noise * rng.normal(size=(len(finger), 24))
    return vectors.astype(np.float32), finger, np.tile(np.arange(impressions), fingers)


def test_weights_equal_copies():
    """Counting a score k times is the same as writing it down k times."""
    rng = np.random.default_rng(3)
    mated, nonmated = np.sort(rng.normal(1, 1, 60).round(1)), np.sort(rng.normal(0, 1, 200).round(1))
    often = rng.integers(0, 4, 60), rng.integers(0, 4, 200)
    copies = np.repeat(mated, often[0]), np.repeat(nonmated, often[1])
    weighted = weighted_curve(mated, often[0].astype(float), nonmated, often[1].astype(float)).eer()[0]
    assert weighted == pytest.approx(compute_metrics(*copies).eer, abs=1e-12)


def test_interval_is_reproducible_and_holds_the_estimate():
    scores = score_protocol("all-pairs", *prints())
    low, high = bootstrap_eer(scores, resamples=300, seed=1)
    assert (low, high) == bootstrap_eer(scores, resamples=300, seed=1)
    assert (low, high) != bootstrap_eer(scores, resamples=300, seed=2)
    assert 0 < low < compute_metrics(scores.mated, scores.nonmated).eer < high < 0.5


def test_more_fingers_narrow_the_interval():
    widths = []
    for fingers in (10, 90):
        low, high = bootstrap_eer(score_protocol("fvc", *prints(fingers)), resamples=300)
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_interval_covers_the_truth_as_often_as_it_says():
    """Over many datasets of 20 fingers, the true EER lies inside about 95 % of the intervals."""
    truth = compute_metrics(*_both(score_protocol("all-pairs", *prints(400, 4, seed=99)))).eer
    inside = 0
    for seed in range(60):
        low, high = bootstrap_eer(score_protocol("all-pairs", *prints(20, 4, seed=seed)), resamples=150)
        inside += low <= truth <= high
    assert 49 <= inside <= 60


def _both(scores):
    return scores.mated, scores.nonmated
