"""Error rates against scikit-learn's ROC curve, with many ties, and against values worked out by hand."""

import numpy as np
import pytest
import torch

from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics.curve import resolvable, sorted_curve
from fingerprint_accel.metrics.verification import compute_metrics, sensible_fmr, validation_metrics


def draw(seed, mated=700, nonmated=3000, levels=0):
    """Overlapping scores; with `levels`, rounded so that most are tied."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0.6, 0.25, mated), rng.normal(0.1, 0.25, nonmated)
    return tuple(np.round(part * levels) / levels if levels else part for part in scores)


def independent(mated, nonmated):
    """FMR, TAR and thresholds by scikit-learn."""
    from sklearn.metrics import roc_curve  # takes seconds, which every test process would spend

    truth = np.r_[np.ones(len(mated)), np.zeros(len(nonmated))]
    return roc_curve(truth, np.r_[mated, nonmated], drop_intermediate=False)


@pytest.mark.parametrize("levels", [0, 3, 10, 100])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_scikit_learn(seed, levels):
    mated, nonmated = draw(seed, levels=levels)
    expected_fmr, expected_tar, expected_thresholds = independent(mated, nonmated)
    fmr, fnmr, thresholds = sorted_curve(mated, nonmated).operating_points()
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
    assert set(metrics.fnmr_at_fmr) == {1e-1, 1e-2, 1e-3}
    for rate, fnmr in metrics.fnmr_at_fmr.items():
        assert fnmr == pytest.approx(1 - expected_tar[expected_fmr <= rate + 1e-12].max(), abs=1e-12)
    assert metrics.fmr1000 == pytest.approx(1 - metrics.tar[1e-3], abs=1e-12)


@pytest.mark.parametrize("levels", [0, 10])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_are_the_lowest_scores_accepted_at_their_rates(levels, dtype):
    mated, nonmated = (part.astype(dtype) for part in draw(1, levels=levels))
    metrics = compute_metrics(mated, nonmated)
    rates = [*metrics.fnmr_at_fmr.items(), (0.0, metrics.zero_fmr)]
    thresholds = [*metrics.thresholds.values(), metrics.zero_fmr_threshold]
    assert list(metrics.thresholds) == list(metrics.fnmr_at_fmr)
    for (fmr, fnmr), threshold in zip(rates, thresholds, strict=True):
        assert (mated < threshold).mean() == fnmr
        assert (nonmated >= threshold).mean() <= fmr
        below = np.nextafter(dtype(threshold), dtype(-1))
        assert (nonmated >= below).mean() > fmr


def test_thresholds_where_nothing_need_be_rejected_or_nothing_was_extracted():
    failed = np.full(10, -np.inf)
    metrics = compute_metrics(np.array([0.5, 0.9]), np.concatenate([failed, [0.2]]))
    assert metrics.thresholds == {0.1: 0.2}, "accepts all that was extracted"
    assert metrics.zero_fmr_threshold == np.nextafter(0.2, 1)


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


@pytest.mark.parametrize(
    ("mated", "nonmated", "message"),
    [
        ([], [1, 1, 1], "no mated scores"),
        ([1], [], "no non-mated scores"),
        ([1, 1], [1, np.nan], "1 of 2 non-mated scores are NaN"),
        ([np.nan, -np.inf], [1], "1 of 2 mated scores are NaN"),
        ([1, np.inf], [0], "1 of 2 mated scores are infinite"),
        ([-np.inf, -np.inf], [0], "all 2 mated comparisons include a print that failed"),
    ],
)
def test_unusable_scores(mated, nonmated, message):
    with pytest.raises(UserError, match=message):
        compute_metrics(np.array(mated, float), np.array(nonmated, float))


def test_table_of_rates_by_hand():
    """40 non-mated scores 0, 1, ..., 39 and tied mated ones: 10 % are the four scores from 36 on."""
    metrics = compute_metrics(np.array([35, 35, 36, 36, 39, 40]), np.arange(40))
    assert metrics.fnmr_at_fmr == {0.1: pytest.approx(2 / 6)}
    assert metrics.smallest_fmr == 1 / 40
    assert metrics.zero_fmr == pytest.approx(5 / 6)
    # threshold 37: FMR 3/40, FNMR 4/6; threshold 36: FMR 4/40, FNMR 2/6; 35: FMR 5/40, FNMR 0
    share = (5 / 40) / (5 / 40 + 2 / 6 - 4 / 40)
    assert metrics.eer == pytest.approx(5 / 40 - share / 40)


def test_d_prime():
    metrics = compute_metrics(np.array([1.0, 3.0]), np.array([-1.0, 1.0, -1.0, 1.0]))
    assert metrics.d_prime == pytest.approx(2.0)  # means 2 and 0, both variances 1
    swapped = compute_metrics(np.array([-1.0, 1.0, -1.0, 1.0]), np.array([1.0, 3.0]))
    assert swapped.d_prime == pytest.approx(-2.0), "a model that rates different fingers as more similar"
    for mated in (0.1, 0.2):
        constant = compute_metrics(np.full(7, mated), np.full(30, 0.1))
        assert constant.d_prime is None
        assert constant.eer == pytest.approx(0.5 if mated == 0.1 else 0.0)
        assert constant.fnmr_at_fmr[0.1] == (1.0 if mated == 0.1 else 0.0)


def test_comparisons_with_failures_to_acquire_never_match():
    """Generalised rates: the failed mated comparison is rejected, the failed non-mated ones are not accepted."""
    failed = -np.inf
    mated, nonmated = np.array([failed, 5.0, 6.0, 7.0]), np.array([failed, failed, 1.0, 2.0, *range(3, 9)])
    metrics = compute_metrics(mated, nonmated)
    fmr, fnmr, thresholds = sorted_curve(mated, nonmated).operating_points()
    assert (fmr[-1], fnmr[-1], thresholds[-1]) == (0.8, 0.25, 1.0)
    assert sorted_curve(mated, nonmated).fnmr_at_fmr(0.4) == (0.25, 4.0)
    assert sorted_curve(mated, nonmated).fnmr_at_fmr(1.0) == (0.25, -np.inf)
    assert metrics.zero_fmr == 1.0
    # threshold 6: FMR 3/10, FNMR 2/4; threshold 5: FMR 4/10, FNMR 1/4; the line between meets the diagonal at 5/14
    assert metrics.eer == pytest.approx(5 / 14)
    assert (metrics.mated_mean, metrics.nonmated_mean) == (6.0, 36 / 8)
    assert (metrics.mated, metrics.nonmated) == (4, 10)


def test_no_equal_error_rate_is_made_up_where_most_prints_failed():
    failed = np.full(60, -np.inf)
    metrics = compute_metrics(np.r_[failed, np.ones(40)], np.r_[failed, np.zeros(40)])
    assert metrics.eer == 0.6  # FMR is at most 0.4


def test_thinned_curve_lies_on_the_whole_one():
    mated, nonmated = draw(5, 5000, 60_000)
    whole = dict(zip(*sorted_curve(mated, nonmated).operating_points()[::2][::-1], strict=True))
    fmr, fnmr, thresholds = sorted_curve(mated, nonmated).operating_points(most=300)
    assert len(thresholds) < 700
    assert [whole[threshold] for threshold in thresholds] == fmr.tolist()
    assert (fmr[1], fnmr[-1]) == (0.0, 0.0)
    assert np.diff(np.log(fmr[fmr > 0])).max() < 0.8


@pytest.mark.parametrize(("count", "rate"), [(99, None), (100, 0.1), (999, 0.1), (28_320, 1e-3), (10**8, 1e-6)])
def test_sensible_rate_rests_on_ten_false_matches(count, rate):
    assert sensible_fmr(count) == rate


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
