"""Searches, against plain loops and values worked out by hand."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.metrics import identification
from fingerprint_accel.metrics.identification import first_enrolled, half_enrolled, search


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def closed_set(vectors, fingers, impressions, extracted=None):
    return search(vectors, fingers, [first_enrolled(fingers, impressions)], extracted)


def by_loops(vectors, fingers, references, probes):
    """Rank (0: not enrolled), mated and best other similarity of each probe."""
    found = []
    for probe in probes:
        scores = {fingers[row]: float(vectors[probe] @ vectors[row]) for row in references}
        mated = scores.pop(fingers[probe], None)
        rank = 0 if mated is None else 1 + sum(score >= mated for score in scores.values())
        found.append((rank, -np.inf if mated is None else mated, max(scores.values())))
    return np.array(found)


@pytest.mark.parametrize("block_bytes", [2**27, 4 * 12 * 5])
def test_closed_set_equals_plain_loops(embedded, monkeypatch, block_bytes):
    monkeypatch.setattr(identification, "BLOCK_BYTES", block_bytes)
    vectors, fingers, impressions = embedded(noise=1.2)
    order = np.random.default_rng(0).permutation(len(fingers))
    vectors, fingers, impressions = vectors[order], fingers[order], impressions[order]
    found = closed_set(vectors, fingers, impressions)
    first, others = np.flatnonzero(impressions == 0), np.flatnonzero(impressions > 0)
    expected = by_loops(unit(vectors), fingers, first, others)
    assert (found.enrolled, len(found.rank), found.possible) == (12, 36, 36)
    np.testing.assert_array_equal(found.rank, expected[:, 0])
    np.testing.assert_allclose(found.mated, expected[:, 1], atol=1e-6)
    np.testing.assert_allclose(found.best_other, expected[:, 2], atol=1e-6)
    assert 0.3 < found.identified(1) < 1
    np.testing.assert_allclose(found.cmc(), [(expected[:, 0] <= rank).mean() for rank in range(1, 13)])
    assert found.cmc()[-1] == 1


def test_open_set_equals_plain_loops(embedded):
    vectors, fingers, impressions = embedded(fingers=41, impressions=6, noise=1.2)
    enrolled, probes = half_enrolled(fingers, impressions, seed=5)
    found = search(vectors, fingers, [(enrolled, probes)])
    assert found.enrolled == 21
    assert int(found.is_mated.sum()) == 21 * 5
    assert not np.array_equal(enrolled, half_enrolled(fingers, impressions, seed=6)[0])
    assert set(enrolled) <= set(np.flatnonzero(impressions == 0))
    expected = by_loops(unit(vectors), fingers, enrolled, np.flatnonzero(impressions > 0))
    np.testing.assert_array_equal(found.rank, expected[:, 0])
    nonmated = np.sort(expected[expected[:, 0] == 0, 2])[::-1]  # 100 searches: one may be positive at FPIR 1 %
    assert len(nonmated) == 100
    mated = expected[expected[:, 0] > 0, 1]
    for fpir, positive in ((0.01, 1), (0.1, 10)):
        fnir, threshold = found.fnir(fpir)
        assert fnir == pytest.approx((mated <= nonmated[positive]).mean())
        best_other, own = found.best_other[~found.is_mated], found.mated[found.is_mated]
        assert (best_other >= threshold).sum() == positive
        assert (own < threshold).mean() == fnir
        assert (best_other >= np.nextafter(np.float32(threshold), np.float32(0))).sum() == positive + 1, "the lowest"
    assert found.fnir(0.009) is None


def test_among_equals_the_mated_reference_comes_last():
    fingers, impressions = np.array([0, 0, 1, 2]), np.array([0, 1, 0, 0])
    assert closed_set(np.ones((4, 3)), fingers, impressions).rank.tolist() == [3]


def test_failed_prints_are_never_found(embedded):
    vectors, fingers, impressions = embedded(noise=0.0)
    extracted = np.ones(len(fingers), bool)
    extracted[[0, 5]] = False  # the reference of finger 0 and one of the three probes of finger 1
    vectors[~extracted] = np.nan
    found = closed_set(vectors, fingers, impressions, extracted)
    assert found.rank[:6].tolist() == [13, 13, 13, 13, 1, 1]
    assert (found.rank[6:] == 1).all()
    assert found.identified(12) == pytest.approx(32 / 36)
    with pytest.raises(UserError, match="2 of 48 embeddings are NaN"):
        closed_set(vectors, fingers, impressions)


def test_large_tests_search_a_sample_of_the_probes(embedded, monkeypatch):
    vectors, fingers, impressions = embedded()
    whole = closed_set(vectors, fingers, impressions)
    monkeypatch.setattr(identification, "MAX_COMPARISONS", 12 * 10)
    found, again = (closed_set(vectors, fingers, impressions) for _ in range(2))
    assert (len(found.rank), found.possible) == (10, 36)
    np.testing.assert_array_equal(found.mated, again.mated)
    assert (np.abs(found.mated[:, None] - whole.mated).min(axis=1) < 1e-6).all()


def test_folds_are_taken_together(embedded):
    vectors, fingers, impressions = embedded()
    first, second = np.flatnonzero(impressions == 0), np.flatnonzero(impressions == 1)
    found = search(vectors, fingers, [(first[:6], second), (first[6:], second[:3])])
    assert found.is_mated.tolist() == [True] * 6 + [False] * 6 + [False] * 3
    assert (found.enrolled, found.possible) == (6, 15)
