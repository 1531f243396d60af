import numpy as np

from fingerprint_accel.evaluation.calibration import rates, sample_of_fingers
from fingerprint_accel.extraction.comparison import decisions


def test_thresholds_let_the_stated_share_pass():
    nonmated = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    found = rates(np.array([0.5, 0.6], np.float32), nonmated, np.arange(2), poses=1).thresholds
    assert list(found) == ["0.01", "0.001", "0.0001"]
    for rate, threshold in found.items():
        assert (nonmated >= threshold).mean() <= float(rate)
        assert (nonmated >= threshold - 1.01e-4).mean() > float(rate), "the lowest of four digits"


def test_rates_beyond_the_number_of_comparisons_are_left_out():
    found = rates(np.array([0.5]), np.linspace(0, 1, 999), np.arange(2), poses=1)
    assert list(found.thresholds) == list(found.fnmr) == ["0.01"]


def test_decisions_name_rate_and_threshold():
    rows = decisions(0.45, {"0.001": 0.5, "0.01": 0.4})
    assert rows == [("at FMR 0.01", "match (threshold 0.400)"), ("at FMR 0.001", "no match (threshold 0.500)")]


def test_sample_takes_whole_fingers():
    fingers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5))
    rows = sample_of_fingers(fingers, 52)
    assert np.bincount(fingers[rows])[np.unique(fingers[rows])].tolist() == [5] * 10
    assert len(sample_of_fingers(fingers, 3)) == 10
    np.testing.assert_array_equal(sample_of_fingers(fingers, 200), np.arange(200))
