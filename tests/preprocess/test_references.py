"""Every stage beside its formula, written out plainly at full resolution."""

import math

import pytest
import torch
import torch.nn.functional as F

from fingerprint_accel.config import AugmentConfig
from fingerprint_accel.preprocess.coarse import cell_means, chunks, grow, local_means
from fingerprint_accel.preprocess.geometric import CONTROL_POINTS, random_pose, resample
from fingerprint_accel.preprocess.photometric import (
    CONTRAST,
    GAIN,
    NOISE,
    NOISE_PLACE,
    OCCLUSION,
    THICKNESS,
    TILE,
    degrade,
    noise_tile,
    random_quality,
)
from fingerprint_accel.preprocess.pipeline import local_normalize
from fingerprint_accel.random import sample_keys, uniform

COUNT = 5
FULL = AugmentConfig()


@pytest.fixture
def keys():
    return sample_keys(1, torch.zeros(COUNT, dtype=torch.long), torch.arange(COUNT))


def ink_of(size):
    """Waves with a background of nothing, 0 to 1."""
    x, y = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="xy")
    turn = torch.arange(COUNT)[:, None, None] * 0.6
    wave = 0.5 + 0.5 * torch.cos((x * turn.cos() + y * turn.sin()) * 2 * math.pi / 6)
    inside = ((x - size / 2).square() + (y - size / 2).square()) < (0.4 * size) ** 2
    return (wave * inside)[:, None]


@pytest.mark.parametrize(("size", "cell"), [(299, 4), (128, 2), (131, 3), (64, 1)])
def test_cells(size, cell):
    values = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    means = F.avg_pool2d(values, cell, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(cell_means(values, cell), means, rtol=0, atol=1e-6)
    bilinear = F.interpolate(means, scale_factor=cell, mode="bilinear", align_corners=False)[..., :size, :size]
    torch.testing.assert_close(grow(means, cell, size), bilinear, rtol=0, atol=5e-6)


@pytest.mark.parametrize("rounds", [1, 2])
def test_local_means_are_means_over_pixels(rounds):
    """Also at the border, and where the last cell has fewer pixels."""
    values = torch.rand(2, 1, 59, 59, generator=torch.Generator().manual_seed(0))
    wanted = torch.empty(2, 1, 15, 15)
    source = values
    for _ in range(rounds):
        for i in range(15):
            for j in range(15):
                rows, columns = (slice(max(0, 4 * (n - 2)), 4 * (n + 3)) for n in (i, j))
                wanted[:, :, i, j] = source[:, :, rows, columns].mean(dim=(2, 3))
        source = wanted.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :59, :59].clone()
    torch.testing.assert_close(local_means(values, 4, 5, rounds), wanted, rtol=0, atol=1e-6)


def test_runs_cover_every_print_once():
    rows = [row for run in chunks(1000, 299**2, torch.device("cpu")) for row in range(1000)[run]]
    assert rows == list(range(1000))
    assert list(chunks(1000, 299**2, torch.device("cuda"))) == [slice(0, 1000)]
    assert list(chunks(3, 10**9, torch.device("cpu"))) == [slice(n, n + 1) for n in range(3)]


@pytest.mark.parametrize(("crop", "size"), [(299, 299), (256, 128), (300, 75)])
def test_resampling(keys, crop, size):
    """One bilinear look-up at matrix @ u + shift + a bicubic field; the elastic field is made at every pixel here."""
    canvas = 322
    ink = ink_of(canvas)
    pose = random_pose(keys, FULL, crop)
    factor = max(1, int(crop / size + 0.25))
    smaller = F.avg_pool2d(ink, factor, ceil_mode=True, count_include_pad=False)
    axis = (torch.arange(size) + 0.5) * (crop / size) - crop / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    source = torch.einsum("bij,jyx->biyx", pose.matrix, torch.stack([x, y])) + pose.shift[:, :, None, None]
    assert pose.elastic.shape == (COUNT, 2, CONTROL_POINTS, CONTROL_POINTS)
    source = source + F.interpolate(pose.elastic, size=(size, size), mode="bicubic", align_corners=True)
    covered = smaller.shape[-1] * factor
    grid = (source + (canvas - covered) / 2).permute(0, 2, 3, 1) * (2 / covered)
    wanted = F.grid_sample(smaller, grid, padding_mode="zeros", align_corners=False)
    torch.testing.assert_close(resample(ink, pose, size), wanted, rtol=0, atol=2e-4)


def degraded(ink, keys, config, tile):
    """Thickness, contrast, gain, occlusion and noise, one after the other."""

    def draw(stream, low, high):
        return uniform(keys, stream, 1, low, high)[:, :, None, None]

    size = ink.shape[-1]
    blend = draw(THICKNESS, -config.ridge_thickness, config.ridge_thickness)
    thick, thin = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    ink = torch.lerp(ink, torch.where(blend > 0, thick, thin), blend.abs())
    contrast = torch.exp(draw(CONTRAST, -1, 1) * math.log1p(config.contrast))
    ink = torch.lerp(ink.mean(dim=(2, 3), keepdim=True), ink, contrast)
    ink = ink * torch.exp(draw(GAIN, -1, 1) * math.log1p(config.gain))
    place = uniform(keys, OCCLUSION, 5)[:, :, None, None]
    area, stretch, angle = place[:, 0] * config.occlusion * 4, torch.exp(place[:, 1] * 2 - 1), place[:, 2] * math.pi
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = axis[None, None, :] - (place[:, 3] * 2 - 1), axis[None, :, None] - (place[:, 4] * 2 - 1)
    along = (x * angle.cos() + y * angle.sin()) / (area / math.pi * stretch).sqrt()
    across = (y * angle.cos() - x * angle.sin()) / (area / math.pi / stretch).sqrt()
    ink = ink * torch.sigmoid(12 * ((along.square() + across.square()).sqrt() - 1))[:, None]
    corner = (uniform(keys, NOISE_PLACE, 2) * TILE).long()
    rows, columns = (corner[:, :1] + torch.arange(size)) % TILE, (corner[:, 1:] + torch.arange(size)) % TILE
    noise = tile[:TILE, :TILE][rows[:, :, None], columns[:, None, :]][:, None]
    return (ink + draw(NOISE, 0, config.noise) * noise).clamp(0, 1)


@pytest.mark.parametrize("size", [299, 128])
def test_degrading(keys, size):
    """Equal but for the soft edge of the missing patch, which is drawn on a coarser grid."""
    ink, tile = ink_of(size), noise_tile(0, size)
    before = ink.clone()
    found = degrade(ink, random_quality(keys, FULL, size), tile)
    wanted = degraded(ink, keys, FULL, tile)
    assert torch.equal(ink, before)
    assert (found - wanted).abs().max() < 0.2
    assert (found - wanted).abs().mean() < 2e-3
    whole = AugmentConfig(occlusion=1e-12)
    found = degrade(ink, random_quality(keys, AugmentConfig(occlusion=0), size), tile)
    torch.testing.assert_close(found, degraded(ink, keys, whole, tile), rtol=0, atol=1e-5)
    for off in ("ridge_thickness", "contrast", "gain", "noise"):
        found = degrade(ink, random_quality(keys, AugmentConfig(occlusion=0, **{off: 0}), size), tile)
        wanted = degraded(ink, keys, AugmentConfig(occlusion=1e-12, **{off: 0}), tile)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [299, 128])
def test_normalising(size):
    """Means and deviations of whole windows around every pixel, against those of cells of 4 x 4."""
    ink = (0.2 + 0.6 * ink_of(size)).add_(
        0.05 * torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    )
    found, side = local_normalize(ink, 36), 37
    mean, square = (F.avg_pool2d(v, side, 1, side // 2, count_include_pad=False) for v in (ink, ink.square()))
    wanted = ((ink - mean) / ((square - mean.square()).clamp_min(0).sqrt() + 0.06)).clamp(-3, 3) / 3
    assert (found - wanted).abs().mean() < 0.01
    assert (found - wanted).abs().max() < 0.15
