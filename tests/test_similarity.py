"""Similarity of dense templates: over the cells that both prints have, exactly, however it is computed."""

import numpy as np
import pytest
import torch

from fingerprint_accel import similarity as module
from fingerprint_accel.similarity import (
    OVERLAP_FLOOR,
    fused,
    mask_of,
    masked_similarity,
    pair_similarity,
    similarity,
)

CELLS, NUMBERS = 16, 4
DIMS = CELLS * NUMBERS


def dense(vectors, masks):
    """Templates of unit length from (..., CELLS, NUMBERS) and (..., CELLS) bool."""
    cut = (vectors * masks[..., None]).reshape(*masks.shape[:-1], DIMS).astype(np.float32)
    return cut / np.linalg.norm(cut, axis=-1, keepdims=True)


def some(*shape, seed=0, share=0.6):
    """Random templates whose prints show a share of the cells."""
    rng = np.random.default_rng(seed)
    return dense(rng.standard_normal((*shape, CELLS, NUMBERS)), rng.uniform(size=(*shape, CELLS)) < share)


def by_hand(a, b):
    """The definition, cell by cell, in float64."""
    a, b = (template.astype(np.float64).reshape(CELLS, NUMBERS) for template in (a, b))
    both = a.any(axis=1) & b.any(axis=1)
    if not both.any():
        return 0.0
    squares = [max(OVERLAP_FLOOR, (template[both] ** 2).sum()) for template in (a, b)]
    return (a[both] * b[both]).sum() / np.sqrt(squares[0] * squares[1])


def test_only_cells_that_both_have_count():
    a, b = some(7, seed=1), some(9, seed=2)
    wanted = [[by_hand(x, y) for y in b] for x in a]
    np.testing.assert_allclose(similarity(a, b, CELLS), wanted, atol=1e-6)
    tensors = masked_similarity(torch.from_numpy(a), torch.from_numpy(b), CELLS)
    np.testing.assert_allclose(tensors.numpy(), wanted, atol=1e-6)
    assert np.abs(similarity(a, b) - wanted).max() > 0.05, "the dot product is another number"


def test_whole_prints_compare_by_their_dot_product():
    a, b = some(5, seed=1, share=2), some(6, seed=2, share=2)
    np.testing.assert_allclose(similarity(a, b, CELLS), a @ b.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(similarity(some(5), some(5), CELLS)), 1, atol=1e-6)


def test_parts_of_one_finger_are_as_alike_as_the_whole():
    """Two prints that share 6 of 16 cells, without noise: 1, where the dot product says 0.55."""
    finger = np.ones((CELLS, NUMBERS)) / 8
    masks = np.array([np.arange(CELLS) < 11, np.arange(CELLS) >= 5])
    a, b = dense(np.stack([finger, finger]), masks)
    assert a @ b == pytest.approx(6 / 11, abs=1e-6)
    assert similarity(a[None], b[None], CELLS)[0, 0] == pytest.approx(1, abs=1e-6)


def test_few_shared_cells_do_not_look_like_a_match_and_none_are_zero():
    finger = np.ones((CELLS, NUMBERS))
    first, last, one = np.arange(CELLS) < 15, np.arange(CELLS) >= 15, np.arange(CELLS) >= 14
    a, none, little = dense(np.stack([finger] * 3), np.array([first, last, one]))
    found = similarity(a[None], np.stack([none, little]), CELLS)[0]
    assert found[0] == 0
    numerator, energy = np.sqrt(1 / 15) * np.sqrt(1 / 2), max(OVERLAP_FLOOR, 1 / 15) * max(OVERLAP_FLOOR, 1 / 2)
    assert found[1] == pytest.approx(numerator / np.sqrt(energy), abs=1e-6)
    assert found[1] < 0.82


def test_the_best_pose_counts_both_ways_around_in_any_block_size(monkeypatch):
    a, b = some(5, 3, seed=1), some(4, 2, seed=2)
    wanted = [[max(*(by_hand(x[0], pose) for pose in y), *(by_hand(pose, y[0]) for pose in x)) for y in b] for x in a]
    pairs = np.argwhere(np.ones((5, 4), bool))
    for size in (2**26, 4 * DIMS * 2):
        monkeypatch.setattr(module, "_BLOCK_BYTES", size)
        monkeypatch.setattr(module, "_GATHERED_BYTES", size)
        np.testing.assert_allclose(similarity(a, b, CELLS), wanted, atol=1e-6)
        np.testing.assert_allclose(pair_similarity(a, b, pairs, CELLS), np.ravel(wanted), atol=1e-6)


def test_masks_are_implied():
    masks = np.random.default_rng(3).uniform(size=(2, 5, CELLS)) < 0.5
    np.testing.assert_array_equal(mask_of(dense(np.ones((2, 5, CELLS, NUMBERS)), masks), CELLS), masks)


def test_fused_prints_of_a_finger_are_the_finger_as_far_as_they_show_it():
    """Without noise; a print that shows little counts no more for it than one that shows all."""
    rng = np.random.default_rng(5)
    finger = rng.standard_normal((CELLS, NUMBERS))
    masks = np.array([np.arange(CELLS) < 13, np.arange(CELLS) < 3, np.arange(CELLS) % 2 == 0])
    found = fused(dense(np.stack([finger] * 3), masks), CELLS)
    np.testing.assert_allclose(found, dense(finger, masks.any(axis=0)), atol=0.08)
    alike = np.stack([finger / np.linalg.norm(finger, axis=1, keepdims=True)] * 3)  # cells of one size
    np.testing.assert_allclose(fused(dense(alike, masks), CELLS), dense(alike[0], masks.any(axis=0)), atol=1e-6)
    assert not fused(np.zeros((2, DIMS), np.float32), CELLS).any()
    plain = some(4, share=2)
    mean = plain.mean(axis=0)
    np.testing.assert_allclose(fused(plain, 0), mean / np.linalg.norm(mean), atol=1e-6)


def test_every_further_print_helps():
    """Mean mated and non-mated similarity of a probe with 1 to 4 fused prints, each of about half of the finger."""
    rng = np.random.default_rng(6)
    fingers = rng.standard_normal((200, 1, CELLS, NUMBERS))
    noisy = fingers + 0.8 * rng.standard_normal((200, 5, CELLS, NUMBERS))
    prints = dense(noisy, rng.uniform(size=(200, 5, CELLS)) < 0.5)
    mated, nonmated = [], []
    for count in (1, 2, 3, 4):
        references = np.stack([fused(each[:count], CELLS) for each in prints])
        scores = similarity(references, prints[:, 4], CELLS)
        mated.append(scores.diagonal().mean())
        nonmated.append(scores[~np.eye(200, dtype=bool)].std())
    assert (np.diff(mated) > 0.005).all(), mated
    assert mated[3] - mated[0] > 0.06, mated
    assert (np.diff(nonmated) < 0).all(), "more cells in common, less chance"
