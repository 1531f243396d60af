"""The 95 % intervals: equal to plain loops over copies, reproducible, and as often right as they claim."""

import numpy as np
import pytest

from fingerprint_accel.metrics import weighted_curves
from fingerprint_accel.metrics.bootstrap import (
    bootstrap_eer,
    bootstrap_fnir,
    bootstrap_scores,
    bootstrap_share,
    fnmr_at,
)
from fingerprint_accel.metrics.curve import sorted_curve
from fingerprint_accel.metrics.identification import Searches, half_enrolled, search
from fingerprint_accel.metrics.protocols import score_protocol
from fingerprint_accel.metrics.verification import compute_metrics
from fingerprint_accel.metrics.weighted_curves import WeightedCurves, WeightedScores

FMRS = (0.3, 0.1, 0.01)


def prints(fingers=10, impressions=8, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(fingers, 24))
    finger = np.repeat(np.arange(fingers), impressions)
    vectors = centres[finger] + noise * rng.normal(size=(len(finger), 24))
    return vectors.astype(np.float32), finger, np.tile(np.arange(impressions), fingers)


def draws_of(fingers, resamples, seed):
    """How often each finger is drawn, draw by draw."""
    generator = np.random.default_rng(seed)
    return [np.bincount(generator.integers(0, fingers, fingers), minlength=fingers) for _ in range(resamples)]


def middle(rates):
    return np.quantile(rates, 0.025), np.quantile(rates, 0.975)


@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "no ties"])
@pytest.mark.parametrize("failed", [False, True])
def test_equal_to_a_plain_loop_over_copies(decimals, failed, monkeypatch):
    """Each draw writes every comparison down as often as it counts, and sorts the copies."""
    vectors, fingers, impressions = prints(8, 4, noise=1.4)
    extracted = np.ones(32, bool)
    extracted[[5, 17]] = not failed
    scores = score_protocol("all-pairs", vectors, fingers * 3 + 2, impressions, extracted=extracted)
    scores.mated[:], scores.nonmated[:] = scores.mated.round(decimals), scores.nonmated.round(decimals)
    monkeypatch.setattr(weighted_curves, "BLOCK", 7 * len(scores.nonmated))  # draws in blocks of seven
    expected = []
    first, second = (fingers[scores.pairs.nonmated[:, side]] for side in (0, 1))
    for draws in draws_of(8, 60, seed=5):
        mated = np.repeat(scores.mated, draws[fingers[scores.pairs.mated[:, 0]]])
        curve = sorted_curve(mated, np.repeat(scores.nonmated, draws[first] * draws[second]))
        expected.append([curve.eer()[0], *(curve.fnmr_at_fmr(fmr)[0] for fmr in FMRS)])
    found = bootstrap_scores(scores, [WeightedCurves.eer, *map(fnmr_at, FMRS)], resamples=60, seed=5)
    np.testing.assert_allclose(found, [middle(rates) for rates in np.transpose(expected)], rtol=0, atol=1e-12)
    assert found[0][1] > found[0][0] > 0


def test_rates_at_a_fixed_threshold():
    scores = score_protocol("all-pairs", *prints(8, 4, noise=1.4))
    known = WeightedScores(scores.mated, np.zeros((48, 1), int), scores.nonmated, np.zeros((448, 2), int))
    curves = known.curves(np.array([[1.0, 3.0]]))  # one finger, which counts once and three times
    for threshold in (0.2, float(scores.nonmated[3]), 2.0, np.float32(scores.mated.max())):
        assert curves.fmr(threshold).tolist() == [(scores.nonmated >= threshold).mean()] * 2
        assert curves.fnmr(threshold).tolist() == [(scores.mated < threshold).mean()] * 2


def test_draws_without_a_comparison_of_one_kind_are_left_out():
    """Of two fingers, every second draw takes one of them twice: then there is no non-mated comparison."""
    scores = score_protocol("fvc", *prints(2, 4, noise=1.0))
    low, high = bootstrap_eer(scores, resamples=100)
    assert np.isfinite([low, high]).all()


def test_large_tests_use_a_sample_that_is_even_in_rank():
    """The sample keeps the scores on which low FMRs depend, so the interval differs by a fraction of its width."""
    scores = score_protocol("all-pairs", *prints(40, 4, noise=1.2))
    fingers = scores.fingers[scores.pairs.mated[:, :1]], scores.fingers[scores.pairs.nonmated]
    draws = np.stack(draws_of(40, 200, seed=1), axis=1).astype(float)
    whole, some = (
        WeightedScores(scores.mated, fingers[0], scores.nonmated, fingers[1], most).curves(draws)
        for most in (len(scores.nonmated), 3000)
    )
    assert len(some.scores.nonmated) == 3000 < len(whole.scores.nonmated) == 12_480
    assert some.scores.represented.sum() == 12_480
    np.testing.assert_array_equal(some.scores.nonmated[-1000:], whole.scores.nonmated[-1000:])
    for rate in (WeightedCurves.eer, fnmr_at(0.1), fnmr_at(0.01), fnmr_at(0.001)):
        np.testing.assert_allclose(middle(rate(some)), middle(rate(whole)), atol=0.025)
    ones = np.ones((40, 1))  # without weights, the sample gives the rates of the whole set
    known = WeightedScores(scores.mated, fingers[0], scores.nonmated, fingers[1], 3000).curves(ones)
    metrics = compute_metrics(scores.mated, scores.nonmated)
    assert known.eer()[0] == pytest.approx(metrics.eer, abs=0.002)
    assert known.fnmr_at_fmr(0.01)[0] == metrics.fnmr_at_fmr[0.01]


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


def test_interval_covers_the_truth_as_often_as_it_claims():
    """Over many datasets of 20 fingers, the true rates lie inside about 95 % of the intervals."""
    truth = compute_metrics(*_both(score_protocol("all-pairs", *prints(400, 4, seed=99))))
    inside = np.zeros(3, int)
    for seed in range(60):
        scores = score_protocol("all-pairs", *prints(20, 4, seed=seed))
        found = bootstrap_scores(scores, [WeightedCurves.eer, fnmr_at(0.1), fnmr_at(0.01)], resamples=150)
        true = (truth.eer, truth.fnmr_at_fmr[0.1], truth.fnmr_at_fmr[0.01])
        inside += [low <= rate <= high for (low, high), rate in zip(found, true, strict=True)]
    assert (inside >= 49).all()


def test_shares_are_resampled_by_finger():
    """Twelve searches of each of four fingers: the multinomial draw of kinds of fingers is a draw of fingers."""
    hits = np.repeat([1, 0, 1, 1], 12).astype(bool)
    low, high = bootstrap_share(hits, np.repeat([7, 3, 5, 1], 12), resamples=4000)
    # the share is the share of draws that miss the second finger: binomial of 4 with 3/4, which is 0.25 or less in 5 %
    assert (low, high) == (0.25, 1.0)
    fingers = np.repeat(np.arange(30), 5)
    events = np.random.default_rng(0).random(150) < 0.3
    counts, sizes = np.bincount(fingers, events), np.bincount(fingers)
    plain = [(counts @ draws) / (sizes @ draws) for draws in draws_of(30, 4000, seed=1)]
    found = bootstrap_share(events, fingers, resamples=4000)
    np.testing.assert_allclose(found, middle(plain), atol=0.01)
    assert bootstrap_share(np.zeros(5, bool), np.arange(5)) == (0.0, 0.0)


def test_share_covers_the_truth_as_often_as_it_claims():
    """Fingers differ: each fails with a probability of its own, 0.2 on average."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        of_finger = rng.choice([0.1, 0.3], 40)
        low, high = bootstrap_share(rng.random(160) < np.repeat(of_finger, 4), np.repeat(np.arange(40), 4), 300)
        inside += low <= 0.2 <= high
    assert 180 <= inside <= 199


def test_fnir_equals_a_plain_loop_over_copies(embedded):
    vectors, fingers, impressions = embedded(fingers=24, impressions=6, noise=1.2)
    found = search(vectors, fingers, [half_enrolled(fingers, impressions)])
    expected = []
    for draws in draws_of(24, 80, seed=3):
        copies = np.repeat(np.arange(len(found.rank)), draws[found.fingers])
        mated = copies[found.is_mated[copies]]
        nonmated = copies[~found.is_mated[copies]]
        curve = sorted_curve(found.mated[mated], found.best_other[nonmated])
        expected.append([curve.fnmr_at_fmr(fpir)[0] for fpir in (0.05, 0.2)])
    intervals = bootstrap_fnir(found, (0.05, 0.2), resamples=80, seed=3)
    np.testing.assert_allclose(intervals, [middle(rates) for rates in np.transpose(expected)], atol=1e-12)
    assert intervals[0][0] < found.fnir(0.05)[0] < intervals[0][1]
    assert isinstance(found, Searches)


def _both(scores):
    return scores.mated, scores.nonmated
