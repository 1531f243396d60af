import math

import pytest
import torch
import torch.nn.functional as F

from fingerprint_accel.config import PreprocessConfig
from fingerprint_accel.preprocess.enhance import ORIENTATIONS, SCALES, Enhancer
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

PERIOD = 5.6


@pytest.fixture(scope="module")
def prints():
    """(4, 1, 200, 200) ink."""
    fingers = torch.arange(4)
    masters = make_masters(0, fingers)
    image = render(masters, fingers, impression_keys(0, fingers, fingers), Style(canvas=320)).image
    return (1 - image[:, None].float() / 255)[:, :, 60:260, 60:260]


def noisy(ink):
    return (ink + 0.3 * torch.randn(ink.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)


def likeness(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def dense(ink, period):
    """All 48 filters at full size, as wide as the widest needs, and all means at every pixel."""
    half = math.ceil(period * max(SCALES) * 1.2)
    axis = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    filters = []
    for width in (scale * period for scale in SCALES):
        for angle in (k * math.pi / ORIENTATIONS for k in range(ORIENTATIONS)):
            along, across = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
            envelope = torch.exp(-0.5 * ((along / (0.7 * width)) ** 2 + (across / (0.45 * width)) ** 2))
            even = envelope * torch.cos(2 * math.pi * across / width)
            even = even - envelope * even.sum() / envelope.sum()
            filters.append(even / even.square().sum().sqrt())
    answer = F.conv2d(F.pad(ink, (half,) * 4, mode="replicate"), torch.stack(filters)[:, None])
    ridge = answer.amax(dim=1, keepdim=True).clamp_min(0)
    valley = (-answer.amin(dim=1, keepdim=True)).clamp_min(0)
    strength, cell = ridge + valley, max(3, round(period)) | 1
    for _ in range(2):
        strength = F.avg_pool2d(strength, cell, 1, cell // 2, count_include_pad=False)
    mask = torch.sigmoid(8 * (strength / (strength.mean(dim=(2, 3), keepdim=True) + 1e-3) - 0.6))
    return (0.5 + 0.5 * torch.tanh(3 * (ridge - valley) / (strength + 1e-2))) * mask


def test_enhancement_brings_ridges_out_of_noise(prints):
    enhancer = Enhancer(PERIOD)
    target = enhancer(prints)
    assert likeness(enhancer(noisy(prints)), target) > likeness(noisy(prints), target) + 0.15
    assert enhancer(torch.zeros(1, 1, 64, 64)).max() < 0.01


@pytest.mark.parametrize(("period", "alike", "alike_in_noise"), [(5.6, 0.98, 0.94), (2.8, 0.99, 0.985)])
def test_small_filters_on_shrunk_pictures_answer_like_a_dense_bank(prints, period, alike, alike_in_noise):
    ink = prints if period == PERIOD else F.avg_pool2d(prints, 2)
    enhancer = Enhancer(period)
    found, wanted = enhancer(ink), dense(ink, period)
    assert likeness(found, wanted) > alike
    assert (found - wanted).abs().mean() < 0.05
    found_noisy, wanted_noisy = enhancer(noisy(ink)), dense(noisy(ink), period)
    assert likeness(found_noisy, wanted_noisy) > alike_in_noise
    assert likeness(found_noisy, found) > likeness(wanted_noisy, wanted) - 0.01, "no less robust against noise"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("degrees", [0, 20, 45, 80])
def test_a_grating_is_ridges_and_valleys_of_its_own_phase(scale, degrees):
    """Whatever the direction and the width of the ridges, bright where they are and dark between them."""
    x, y = torch.meshgrid(torch.arange(160.0), torch.arange(160.0), indexing="xy")
    angle = math.radians(degrees)
    wave = torch.cos(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / (scale * PERIOD))
    found = Enhancer(PERIOD)((0.5 + 0.3 * wave)[None, None])[0, 0, 20:-20, 20:-20]
    middle = wave[20:-20, 20:-20]
    assert likeness(found, middle) > 0.95
    assert found[middle > 0.95].min() > 0.8
    assert found[middle < -0.95].max() < 0.2


def test_filters_follow_the_resolution():
    """Twice the ppi on twice the canvas is the same print: pictures shrunk twice as much, then the same filters."""
    config = PreprocessConfig(crop=256, size=256, enhance=True)
    coarse, fine = (Preprocessor(config, 320 * n, ppi=300 * n).enhancer for n in (1, 2))
    assert (coarse.cell, fine.cell) == (2, 4), "about a third of a ridge period: 5.6 and 11.2 pixels"
    assert fine.rates[1:] == pytest.approx([rate / 2 for rate in coarse.rates[1:]])
    torch.testing.assert_close(fine.bank2 / 2, coarse.bank2)
