"""Error rates against scikit-learn's ROC curve, with many ties, and against values worked out by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from fingerprint_accel.errors import UserError
from fingerprint_accel.evaluation.metrics import (
    compute_metrics,
    det_curve,
    resolvable,
    sorted_curve,
    validation_metrics,
)


def draw(seed, mated=700, nonmated=3000, levels=0):
    """Overlapping scores; with `levels`, rounded so that most are tied."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.6, 0.25, mated), rng.normal(0.1, 0.25, nonmated)
    return tuple(np.round(part * levels) / levels if levels else part for part in scores)


def independent(mated, nonmated):
    """FMR, TAR and thresholds by scikit-learn."""
    truth = np.r_[np.ones(len(mated)), np.zeros(len(nonmated))]
    return roc_curve(truth, np.r_[mated, nonmated], drop_intermediate=False)


@pytest.mark.parametrize("levels", [0, 3, 10, 100])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn(seed, levels):
    mated, nonmated = draw(seed, levels=levels)
    expected_fmr, expected_tar, expected_thresholds = independent(mated, nonmated)
    fmr, fnmr, thresholds = det_curve(mated, nonmated)
    np.testing.assert_allclose(fmr, expected_fmr, atol=1e-12)
    np.testing.assert_allclose(1 - fnmr, expected_tar, atol=1e-12)
    np.testing.assert_array_equal(thresholds, expected_thresholds)
    metrics = compute_metrics(mated, nonmated)
    # FMR - FNMR rises strictly along the curve, so its zero on the polyline is the equal error rate
    assert metrics.eer == pytest.approx(np.interp(0.0, expected_fmr - (1 - expected_tar), expected_fmr), abs=1e-12)
    for far, tar in metrics.tar.items():
        assert tar == pytest.approx(expected_tar[expected_fmr <= far + 1e-12].max(), abs=1e-12)
    assert metrics.fmr100 == pytest.approx(1 - expected_tar[expected_fmr <= 0.01 + 1e-12].max(), abs=1e-12)
    assert metrics.zero_fmr == pytest.approx(1 - expected_tar[expected_fmr == 0].max(), abs=1e-12)
    assert set(metrics.tar) == {1e-2, 1e-3}
    assert metrics.fmr1000 == pytest.approx(1 - metrics.tar[1e-3], abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_scores(seed):
    mated, nonmated = (part.astype(np.float32) for part in draw(seed, levels=50))
    double = compute_metrics(mated.astype(np.float64), nonmated.astype(np.float64))
    assert compute_metrics(mated, nonmated).eer == pytest.approx(double.eer, abs=1e-12)


def test_interpolation_by_hand():
    # threshold 2: FMR 1/2, FNMR 0; threshold 3: FMR 0, FNMR 1/3. The line from (1/2, 0) to (0, 1/3) meets the
    # diagonal at x = 1/5.
    assert compute_metrics(np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0])).eer == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("mated", "nonmated", "eer"),
    [([2, 3], [0, 1], 0.0), ([0, 1], [2, 3], 1.0), ([5, 5], [5, 5], 0.5), ([1, 3], [0, 2], 0.5)],
    ids=["separate", "swapped", "constant", "interleaved"],
)
def test_extremes(mated, nonmated, eer):
    assert compute_metrics(np.array(mated, float), np.array(nonmated, float)).eer == pytest.approx(eer)


def test_only_resolvable_rates_are_given():
    assert [resolvable(1e-2, count) for count in (99, 100)] == [False, True]
    metrics = compute_metrics(np.arange(10.0), np.arange(45.0))
    assert metrics.fmr100 is None
    assert metrics.fmr1000 is None
    assert metrics.tar == {}
    assert set(compute_metrics(np.arange(10.0), np.arange(2880.0)).tar) == {1e-2, 1e-3}


def test_fnmr_at_fmr_allows_exactly_that_many_false_matches():
    nonmated = np.arange(1000.0)
    mated = np.array([989.5, 990.5, 989.0, 990.0])
    # 1 % of 1000 are the ten scores 990..999; the threshold may be anything above 989
    assert sorted_curve(mated, nonmated).fnmr_at_fmr(0.01) == (0.25, 989.0)


def test_unusable_scores():
    with pytest.raises(ValueError, match="no mated"):
        compute_metrics(np.array([]), np.ones(3))
    with pytest.raises(ValueError, match="1 of 2 non-mated scores are NaN"):
        compute_metrics(np.ones(3), np.array([1.0, np.nan]))


def test_validation_metrics():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(30, 16, generator=generator)
    fingers = torch.arange(30).repeat_interleave(4)
    embeddings = centres[fingers] + 0.8 * torch.randn(120, 16, generator=generator)
    found = validation_metrics(embeddings, fingers)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    similarity, same = unit @ unit.T, fingers[:, None] == fingers[None]
    above = torch.ones(120, 120).triu(1).bool()
    expected = compute_metrics(similarity[above & same].numpy(), similarity[above & ~same].numpy())
    assert (found["mated"], found["nonmated"]) == (30 * 6, 120 * 119 // 2 - 180)
    assert found["eer"] == pytest.approx(expected.eer, abs=1e-6)
    assert 0 < found["eer"] < 0.3
    assert found["tar@far=0.0001"] is None
    with pytest.raises(UserError, match="embeddings are NaN"):
        validation_metrics(embeddings * float("nan"), fingers)
