import numpy as np
import pytest

from fingerprint_accel.evaluation.calibration import all_pairs
from fingerprint_accel.evaluation.measuring import thresholds
from fingerprint_accel.extraction.comparison import decisions
from fingerprint_accel.metrics.protocols import Pairs, Scores, score_protocol


def scored(mated, nonmated):
    pairs = Pairs(np.zeros((len(mated), 2), int), np.zeros((len(nonmated), 2), int), len(nonmated))
    return Scores(np.asarray(mated, np.float32), np.asarray(nonmated, np.float32), pairs, np.arange(2))


def test_thresholds_let_the_stated_share_pass():
    nonmated = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    found = thresholds(scored([0.5, 0.6], nonmated))
    assert list(found) == ["0.01", "0.001", "0.0001"]
    for rate, threshold in found.items():
        assert (nonmated >= threshold).mean() == pytest.approx(float(rate))


def test_rates_beyond_the_number_of_comparisons_are_left_out():
    assert list(thresholds(scored([0.5], np.linspace(0, 1, 999)))) == ["0.01"]


def test_decisions_name_rate_and_threshold():
    rows = decisions(0.45, {"0.001": 0.5, "0.01": 0.4})
    assert rows == [("at FMR 0.01", "match (threshold 0.400)"), ("at FMR 0.001", "no match (threshold 0.500)")]


def test_without_poses_the_scores_are_those_of_the_protocol():
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((12, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    fingers, impressions = np.arange(12) // 3, np.arange(12) % 3
    found, wanted = (
        all_pairs(embeddings, fingers, impressions),
        score_protocol("all-pairs", embeddings, fingers, impressions),
    )
    for ours, theirs in ((found.mated, wanted.mated), (found.nonmated, wanted.nonmated)):
        np.testing.assert_allclose(np.sort(ours), np.sort(theirs), atol=1e-6)
