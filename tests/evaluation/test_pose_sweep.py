"""Probes that are turned and shifted before they are compared."""

import numpy as np
import pytest

from fingerprint_accel.evaluation.pose_sweep import moved, pose_sweep, random_moves, sample_of_fingers
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics


def test_turns_counter_clockwise_about_the_middle_then_shifts():
    image = np.full((1, 9, 9), 255, np.uint8)
    image[0, 4, 7] = 0  # right of the middle
    degrees, shift = np.array([90.0]), np.array([[2.0, 1.0]])
    (turned,) = moved(image, degrees, shift)
    assert np.argwhere(turned < 128).tolist() == [[1 + 1, 4 + 2]]
    np.testing.assert_array_equal(moved(image, np.zeros(1), np.zeros((1, 2))), image)


def test_moves_keep_to_their_limits_and_grow_together():
    degrees, shift = random_moves(4000, 30.0, 4.0)
    assert -30 <= degrees.min() < -29
    assert 29 < degrees.max() <= 30
    distance = np.hypot(*shift.T)
    assert 3.9 < distance.max() <= 4
    assert np.mean(distance < 2) == pytest.approx(1 / 4, abs=0.03)  # even over the disc
    np.testing.assert_allclose(random_moves(4000, 60.0, 2.0)[0], 2 * degrees)


def test_sample_takes_whole_fingers():
    fingers = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 5))
    rows = sample_of_fingers(fingers, 52)
    assert np.bincount(fingers[rows])[np.unique(fingers[rows])].tolist() == [5] * 10
    assert len(sample_of_fingers(fingers, 3)) == 10
    np.testing.assert_array_equal(sample_of_fingers(fingers, 200), np.arange(200))


def test_sweep(ten_fingers, tiny_model):
    """The cell without a turn and a shift is the plain evaluation; the others are not."""
    extractor = FingerprintExtractor.from_pretrained(tiny_model)
    sweep = pose_sweep(extractor, ten_fingers, angles=(0.0, 20.0), shifts=(0.0, 1.0), progress=False)
    assert [(cell.angle, cell.shift) for cell in sweep.cells] == [(0, 0), (0, 1), (20, 0), (20, 1)]
    embeddings = extractor.extract(ten_fingers, progress=False)
    scores = score_protocol("all-pairs", embeddings, ten_fingers.fingers, ten_fingers.impressions)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    assert (sweep.at(0, 0).eer, sweep.at(0, 0).fnmr) == pytest.approx(
        (metrics.eer, metrics.fnmr_at_fmr[0.1]), abs=0.005
    )
    assert (sweep.fmr, sweep.prints) == (0.1, 40)  # 720 non-mated comparisons
    assert sweep.at(20, 1).eer != sweep.at(20, 0).eer
