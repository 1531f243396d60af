"""Smaller templates are as small as they say, and compare as the embeddings do."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.template_formats import TemplateFormat, shortened
from fingerprint_accel.similarity import mask_of, similarity


def unit(count, dims, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dims), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("length", [512, 64])
def test_int8_keeps_similarities(length):
    template = TemplateFormat("int8", length)
    vectors = unit(200, length)
    stored = template.encode(vectors)
    assert (stored.dtype, stored.shape, template.bytes) == (np.int8, (200, length), length)
    decoded = template.decode(stored)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(decoded @ decoded.T, vectors @ vectors.T, atol=0.015)
    integers = stored.astype(np.int32) @ stored.astype(np.int32).T / template.scale**2
    np.testing.assert_allclose(integers, vectors @ vectors.T, atol=0.015)
    spike = np.eye(1, length, dtype=np.float32)
    assert template.encode(spike)[0, 0] == 127
    assert template.encode(-spike)[0, 0] == -127


def test_binary_similarity_counts_bits():
    template = TemplateFormat("binary", 64)
    vectors = unit(50, 64)
    stored = template.encode(vectors)
    assert (stored.dtype, stored.shape, template.bytes) == (np.uint8, (50, 8), 8)
    differ = ((vectors > 0)[:, None] != (vectors > 0)[None]).sum(axis=2)
    np.testing.assert_array_equal(np.bitwise_count(stored[:, None] ^ stored[None]).sum(axis=2), differ)
    decoded = template.decode(stored)
    np.testing.assert_allclose(decoded @ decoded.T, 1 - 2 * differ / 64, atol=1e-6)


def test_float32_is_as_it_was():
    vectors = unit(5, 16)
    template = TemplateFormat("float32", 16)
    np.testing.assert_array_equal(template.decode(template.encode(vectors)), vectors)
    assert template.bytes == 64


def test_shortened_takes_the_first_numbers_of_each_branch():
    branches = [unit(4, 8, seed) for seed in (1, 2)]
    both = np.concatenate(branches, axis=1) / np.float32(2**0.5)
    short = shortened(both, 6, branches=2)
    parts = [branch[:, :3] / np.linalg.norm(branch[:, :3], axis=1, keepdims=True) for branch in branches]
    np.testing.assert_allclose(short, np.concatenate(parts, axis=1) / 2**0.5, rtol=1e-6)
    np.testing.assert_allclose(shortened(both, 16, branches=2), both, rtol=1e-6)
    assert not shortened(np.zeros((1, 8), np.float32), 4).any()


def dense(count=60, seed=0):
    """(count, 512) of unit length, 64 cells of 8 numbers, a quarter to all of which a print shows."""
    rng = np.random.default_rng(seed)
    shown = rng.uniform(size=(count, 64, 1)) < rng.uniform(0.25, 1, (count, 1, 1))
    vectors = (rng.standard_normal((count, 64, 8)) * shown).reshape(count, 512).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_dense_int8_keeps_masks_and_similarities():
    template, vectors = TemplateFormat("int8", 512, cells=64), dense()
    vectors[0] = np.repeat(np.where(np.arange(64) < 8, 1 / 8, 0), 8)
    vectors[0, :8] = 1e-4  # a cell that is present and all of whose numbers round to 0
    decoded = template.decode(template.encode(vectors))
    np.testing.assert_array_equal(mask_of(decoded, 64), mask_of(vectors, 64))
    np.testing.assert_allclose(similarity(decoded, decoded, 64), similarity(vectors, vectors, 64), atol=0.02)
    assert template.bytes == 512


def test_dense_binary_counts_the_bits_that_differ_in_common_cells():
    template, vectors = TemplateFormat("binary", 512, cells=64), dense()
    stored = template.encode(vectors)
    assert (stored.dtype, stored.shape, template.bytes) == (np.uint8, (60, 72), 72)
    np.testing.assert_array_equal(np.unpackbits(stored[:, 64:], axis=1), mask_of(vectors, 64))
    decoded = template.decode(stored)
    np.testing.assert_array_equal(mask_of(decoded, 64), mask_of(vectors, 64))
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)
    common = stored[:, None, 64:] & stored[None, :, 64:]
    bits = np.unpackbits(common, axis=2).astype(bool)  # a byte of signs for each cell
    differ = (np.bitwise_count(stored[:, None, :64] ^ stored[None, :, :64]) * bits).sum(axis=2)
    shared = 8 * bits.sum(axis=2)
    enough = shared >= 0.1 * np.maximum(*np.meshgrid(*[8 * mask_of(vectors, 64).sum(axis=1)] * 2))  # above the floor
    assert enough.mean() > 0.95
    found = similarity(decoded, decoded, 64)
    np.testing.assert_allclose(found[enough], (1 - 2 * differ / np.maximum(shared, 1))[enough], atol=1e-5)
    assert not template.decode(np.zeros((1, 72), np.uint8)).any()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="--length that is a multiple of 8, not 20"):
        TemplateFormat("binary", 20)
    with pytest.raises(UserError, match="--template float16: must be one of float32, int8, binary"):
        TemplateFormat("float16", 16)
