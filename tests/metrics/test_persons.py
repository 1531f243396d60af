"""Identification of persons by several fingers, against plain loops and values worked out by hand."""

import numpy as np
import pytest

from fingerprint_accel.metrics import persons as module
from fingerprint_accel.metrics.fusion import best_of_persons, by_finger, fused_score
from fingerprint_accel.metrics.identification import SEED
from fingerprint_accel.metrics.persons import PREFERRED, PersonPrints, search_persons

NAN = np.nan


def test_fused_score_is_the_sum_over_the_root():
    scores = np.array([[0.9, NAN, NAN, NAN], [0.6, 0.5, 0.4, 0.3], [NAN, NAN, NAN, NAN]])
    np.testing.assert_allclose(fused_score(scores), [0.9, 0.9, -np.inf], rtol=1e-6)
    noise = np.random.default_rng(0).normal(0, 0.1, (20_000, 10))
    spreads = [fused_score(noise[:, :count]).std() for count in (1, 4, 10)]
    np.testing.assert_allclose(spreads, 0.1, rtol=0.02)  # one threshold holds for any number of fingers


def test_best_references_and_fingers():
    similarities = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]], np.float32)
    persons, positions = np.array([0, 0, 1, 1]), np.array([7, 2, 0, 2])
    found = best_of_persons(similarities, persons, positions, np.array([7, 0]), 3)
    np.testing.assert_allclose(found, [[0.1, 0.6], [0.3, 0.8], [NAN, NAN]], rtol=1e-6)
    scores, codes = by_finger(np.array([[0.2, 0.4, 0.6, NAN], [NAN, 0.4, NAN, 0.1]]), [7, 7, 2, 0])
    assert codes == [2, 7, 0]
    np.testing.assert_allclose(scores, [[0.6, 0.3, NAN], [NAN, 0.4, 0.1]], rtol=1e-6)


def made(persons=9, impressions=3, noise=1.0, seed=0):
    """Prints of persons with up to ten fingers and impressions, some of which are missing."""
    draws = np.random.default_rng(seed)
    rows = [
        (person, position, impression)
        for person in range(persons)
        for position in range(1, 11)
        for impression in range(impressions)
        if draws.random() < 0.8 or (position == 2 and impression < 2)
    ]
    person, position, impression = np.array(rows).T
    centres = draws.standard_normal((persons, 11, 16))
    vectors = centres[person, position] + noise * draws.standard_normal((len(rows), 16))
    order = draws.permutation(len(rows))
    return vectors.astype(np.float32)[order], PersonPrints(person[order], position[order], impression[order] * 3)


def by_loops(vectors, prints, fingers, enrolled, failed=()):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    of_finger = {}
    for row in np.argsort(prints.impressions, kind="stable"):
        of_finger.setdefault((prints.persons[row], prints.positions[row]), []).append(row)
    sets = sorted({(p, k) for (p, _), rows in of_finger.items() for k in range(1, len(rows))})
    found = []
    for person, k in sets:
        chosen = [pos for pos in PREFERRED if len(of_finger.get((person, pos), [])) > k][:fingers]
        scores = {}
        for other in enrolled:
            each = [
                float(unit[of_finger[person, pos][k]] @ unit[of_finger[other, pos][0]])
                for pos in chosen
                if (other, pos) in of_finger and not {of_finger[person, pos][k], of_finger[other, pos][0]} & set(failed)
            ]
            scores[other] = sum(each) / len(each) ** 0.5 if each else -np.inf
        mated = scores.pop(person, None)
        rank = 0 if mated is None else 1 + sum(score >= mated for score in scores.values())
        found.append((person, rank, -np.inf if mated is None else mated, max(scores.values())))
    return np.array(found)


@pytest.mark.parametrize("fingers", [1, 2, 10])
@pytest.mark.parametrize("block_bytes", [2**27, 12 * 9 * 4])
def test_searches_equal_plain_loops(monkeypatch, fingers, block_bytes):
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    vectors, prints = made()
    found = search_persons(vectors, prints, fingers)
    half = np.random.default_rng(SEED).permutation(9)[:5]
    for searches, enrolled in ((found.closed, range(9)), (found.open, sorted(half))):
        wanted = by_loops(vectors, prints, fingers, enrolled)
        assert (searches.enrolled, searches.possible) == (len(enrolled), len(wanted))
        np.testing.assert_array_equal(searches.fingers, wanted[:, 0])
        np.testing.assert_array_equal(searches.rank, wanted[:, 1])
        np.testing.assert_allclose(searches.mated, wanted[:, 2], atol=1e-5)
        np.testing.assert_allclose(searches.best_other, wanted[:, 3], atol=1e-5)


def test_more_fingers_identify_better_and_failed_prints_are_left_out():
    vectors, prints = made(persons=60, noise=1.2)
    rates = [search_persons(vectors, prints, fingers).closed.identified(1) for fingers in (1, 2, 4, 10)]
    assert rates == sorted(rates)
    assert rates[0] < 0.5 < 0.9 < rates[3]
    failed = np.flatnonzero((prints.persons == 3) & (prints.positions != 2))[:8]
    extracted = ~np.isin(np.arange(len(vectors)), failed)
    wanted = by_loops(vectors, prints, 10, range(60), failed.tolist())
    vectors[failed] = NAN
    found = search_persons(vectors, prints, 10, extracted)
    np.testing.assert_allclose(found.closed.mated, wanted[:, 2], atol=1e-5)


def test_a_sample_of_the_sets_is_searched(monkeypatch):
    vectors, prints = made()
    monkeypatch.setattr(module, "MAX_COMPARISONS", 9 * 10 * 4)
    found = search_persons(vectors, prints, 10)
    assert len(found.closed.rank) == 4 < found.closed.possible
