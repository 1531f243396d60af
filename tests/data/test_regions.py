"""Statistics of blocks are exact, and equal what numpy and Pillow compute in a slower way."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fingerprint_accel.data import canvas, regions, ridge_mask

SIZES = [(48, 1, 1), (16, 3, 5), (18, 7, 4), (5, 9, 11), (4, 2, 2)]  # side of a block, rows and columns of blocks


def picture(height, width, seed=0):
    """Smooth random pixels with all grey values, as (height, width) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 3 + 2, width // 3 + 2)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("block", "rows", "columns"), SIZES)
def test_sums_and_ranks_of_blocks(block, rows, columns):
    image = picture(rows * block, columns * block)
    tiles = image.reshape(rows, block, columns, block).transpose(0, 2, 1, 3).reshape(rows, columns, -1)
    shifted = regions.in_blocks(image.astype(np.float32) - 128, block)
    np.testing.assert_array_equal(regions.block_sums(shifted), tiles.astype(np.float64).sum(axis=2) - 128 * block**2)
    bright = regions.in_blocks(image, block) > 130
    np.testing.assert_array_equal(regions.block_sums(bright), (tiles > 130).sum(axis=2))
    for rank in (0, block**2 // 2, round(0.95 * (block**2 - 1)), block**2 - 1):
        np.testing.assert_array_equal(regions.block_ranks(image, block, rank), np.sort(tiles, axis=2)[..., rank])


def test_counts_of_large_blocks_do_not_overflow():
    image = np.full((600, 900), 7, np.uint8)
    np.testing.assert_array_equal(regions.block_sums(regions.in_blocks(image, 300) == 7), np.full((2, 3), 90_000))


@pytest.mark.parametrize(("block", "rows", "columns"), SIZES)
def test_interpolation_is_that_of_pillow(block, rows, columns, monkeypatch):
    values = np.random.default_rng(1).uniform(1, 255, (rows, columns)).astype(np.float32)
    expected = Image.fromarray(values).resize((columns, rows * block), Image.Resampling.BILINEAR)
    for strip in (regions.STRIP, 40):
        monkeypatch.setattr(regions, "STRIP", strip)
        parts = list(regions.interpolated_rows(values, block))
        assert [some.start for some, _ in parts] == [0, *(some.stop for some, _ in parts[:-1])]
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (2, 2), (70, 91)])
def test_blur_is_that_of_pillow(size, monkeypatch):
    monkeypatch.setattr(regions, "STRIP", 500)
    image = picture(*size)
    expected = Image.fromarray(image).filter(ImageFilter.BoxBlur(1))
    np.testing.assert_array_equal(ridge_mask.smoothed(image), np.asarray(expected))


@pytest.mark.parametrize("block", [16, 18, 5])
def test_contrast_of_blocks(block):
    image = picture(9 * block, 12 * block, seed=block)
    image = np.where(np.arange(image.shape[1]) < 3 * block, 90, image).astype(np.uint8)  # without contrast
    tiles = image.reshape(9, block, 12, block).astype(np.float64)
    spread, mean = tiles.std(axis=(1, 3)), tiles.mean(axis=(1, 3), keepdims=True)
    far = (np.abs(tiles - mean) > spread[:, None, :, None] / 2).mean(axis=(1, 3)) > 0.3
    deviation, varied = ridge_mask._contrast(image, block)
    np.testing.assert_allclose(deviation, spread, rtol=1e-6)
    np.testing.assert_array_equal(varied, far)
    assert not deviation[:, :3].any() and not varied[:, :3].any() and varied[:, 3:].any()


SQUARES = [(-30.25, 12.5, 190.0), (20.0, 10.0, 128.0), (40.7, -60.1, 70.3), (-9.0, -9.0, 400.5)]
WHOLE = slice(0, 128), slice(0, 128)
PARTS = [(slice(31, 97), slice(50, 51)), (slice(100, 128), slice(0, 9)), (slice(0, 0), slice(0, 0))]


@pytest.mark.parametrize("square", SQUARES)
def test_a_part_of_a_canvas_is_cut_as_the_whole(square):
    image, (left, top, length) = picture(150, 170), square
    white = Image.new("L", (970, 950), canvas.WHITE)
    white.paste(Image.fromarray(image), (400, 400))
    box = (left + 400, top + 400, left + length + 400, top + length + 400)
    expected = np.asarray(white.resize((128, 128), Image.Resampling.BICUBIC, box=box))
    whole = canvas._cut(image, left, top, length, 128, *WHOLE)
    np.testing.assert_allclose(whole.astype(int), expected.astype(int), atol=1)  # Pillow rounds the box to float32
    assert (whole == expected).mean() > 0.99
    for rows, columns in PARTS:
        np.testing.assert_array_equal(canvas._cut(image, left, top, length, 128, rows, columns), whole[rows, columns])
