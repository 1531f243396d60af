"""Templates quantised to int8 keep their length, their missing cells, and their similarities."""

import numpy as np

from fingerprint_accel.extraction.int8_templates import dequantise, quantise
from fingerprint_accel.similarity import are_normalised, mask_of, masked_similarity


def unit(seed, count, dims):
    vectors = np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_length_is_kept_and_the_error_is_about_half_a_step():
    vectors = unit(0, 100, 512)
    values, scale = quantise(vectors)
    assert values.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (100,)
    assert np.array_equal(np.abs(values).max(axis=1), np.full(100, 127))
    again = dequantise(values, scale)
    assert again.dtype == np.float32 and are_normalised(again)
    assert (np.abs(again - vectors) / scale[:, None]).max() < 0.65  # half a step, and the correction of the length
    assert np.abs(again @ again.T - vectors @ vectors.T).max() < 0.004


def test_longer_and_zero_templates():
    vectors = np.stack([7 * unit(1, 1, 8)[0], np.zeros(8, np.float32), np.full(8, 1e-40, np.float32)])
    again = dequantise(*quantise(vectors))
    assert abs(np.linalg.norm(again[0]) - 7) < 1e-5 and not again[1].any()
    assert quantise(vectors)[1][1] == 0 and np.array_equal(quantise(vectors)[0][2], np.full(8, 127, np.int8))
    assert dequantise(*quantise(np.empty((0, 8), np.float32))).shape == (0, 8)


def test_missing_cells_stay_missing():
    vectors = unit(2, 50, 64 * 8).reshape(50, 64, 8)
    vectors[np.random.default_rng(3).random((50, 64)) < 0.4] = 0
    vectors = vectors.reshape(50, -1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    again = dequantise(*quantise(vectors))
    assert np.array_equal(mask_of(again, 64), mask_of(vectors, 64))
    scores, exact = masked_similarity(again, again, 64), masked_similarity(vectors, vectors, 64)
    assert np.abs(scores - exact).max() < 0.005
