"""Smaller templates are as small as they say, and compare as the embeddings do."""

import numpy as np
import pytest

from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.template_formats import TemplateFormat, shortened


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


def test_mistakes_are_named():
    with pytest.raises(UserError, match="--length that is a multiple of 8, not 20"):
        TemplateFormat("binary", 20)
    with pytest.raises(UserError, match="--template float16: there are float32, int8, binary"):
        TemplateFormat("float16", 16)
