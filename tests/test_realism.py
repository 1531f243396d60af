"""The measuring instrument of `benchmarks/realism.py`: right on patterns whose numbers are known."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fingerprint_accel.data.templates import read_template
from fingerprint_accel.errors import UserError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def judge():
    from fingerprint_accel.data.nbis import Nbis

    try:
        return Nbis()
    except UserError as error:
        pytest.skip(str(error))


def ridges(side, period, angle=0.0, extra=0.0, noise=0.0):
    """Cosine ridges; `extra` = 1 or -1 puts one more ridge to the right or left of the middle, ending there."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    phase = 2 * np.pi * (y * math.cos(angle) + x * math.sin(angle)) / period + extra * np.arctan2(y, x)
    grey = 128 - 90 * np.cos(phase) + np.random.default_rng(0).normal(0, 1, y.shape) * noise
    return grey.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("period_mm", [0.35, 0.46, 0.6])
@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_ridge_period_of_a_grating(period_mm, angle):
    from realism_measures import image_measures

    for ppi, side in ((300, 320), (500, 400)):
        measured = image_measures(ridges(side, period_mm / 25.4 * ppi, angle, noise=20), ppi)
        assert measured["period_mm"] == pytest.approx(period_mm, rel=0.005)
        assert measured["period_sd_mm"] < 0.01
        assert measured["clear_blocks"] == 1


def test_noise_has_no_clear_ridges():
    from realism_measures import image_measures

    noise = np.random.default_rng(0).integers(0, 256, (320, 320)).astype(np.uint8)
    assert image_measures(noise, 300)["clear_blocks"] < 0.05


def test_contrast_boost_stretches_what_lies_between_the_tails():
    from fingerprint_accel.data.nbis import contrast_boost

    grey = np.tile(np.arange(100, 150, dtype=np.uint8), (50, 1))  # 50 pixels each of 100..149
    boosted = contrast_boost(grey)
    assert (boosted[0, 0], boosted[0, -1]) == (0, 255)
    assert boosted[0, 10] == int(10 * 255 / 49)
    full = np.tile(np.arange(256, dtype=np.uint8), (20, 1))
    assert (contrast_boost(full) == full).all()
    rare = np.concatenate([grey, np.full((1, 50), 100, np.uint8)])
    rare[-1, 0] = 250  # a single bright pixel is cut off, not stretched to
    assert contrast_boost(rare)[-1, 0] == contrast_boost(rare)[0, -1] == 255


def test_non_mated_pairs_cover_every_two_fingers_first():
    from realism import choose_pairs, choose_rows

    fingers, impressions = np.repeat(np.arange(8), 4), np.tile(np.arange(4), 8)
    pairs = choose_pairs(fingers, impressions, most=30)
    two = {tuple(sorted(fingers[pair])) for pair in pairs.nonmated[:28]}
    assert len(two) == 28 and len(pairs.nonmated) == 30 and len(pairs.mated) == 30
    assert (fingers[pairs.mated[:, 0]] == fingers[pairs.mated[:, 1]]).all()
    assert len(choose_pairs(fingers, impressions, most=1000).nonmated) == 8 * 7 // 2 * 16
    rows = choose_rows(fingers, 13)
    assert len(rows) == 12 and len(np.unique(fingers[rows])) == 3


@pytest.mark.parametrize(("extra", "expected"), [(1.0, 0.0), (-1.0, 180.0)])
def test_mindtct_points_to_the_side_with_more_ridges(judge, extra, expected):
    """The angle of one ridge that ends in the middle of parallel ones: 0 or 180 degrees, by where it comes from."""
    found = judge.extract(ridges(400, 9.0, extra=extra))
    distance = np.hypot(*(found.minutiae[:, :2] - 199.5).T)
    middle = found.minutiae[distance.argmin()]
    assert distance.min() < 12
    assert abs((math.degrees(middle[2]) - expected + 180) % 360 - 180) <= 11.25


def test_mindtct_repeats_the_published_minutiae(judge, shared_data):
    """`nbis-py` with our contrast boost gives what `mindtct -b` gave on FVC2000 DB1_B, nearly always to the pixel."""
    pytest.importorskip("wsq")
    folder = shared_data / "fvc2000_db1_b_nbis"
    same = total = 0
    for file in sorted((folder / "wsq").glob("*_1.wsq")):
        found = judge.extract(np.asarray(Image.open(file).convert("L"))).minutiae
        published = read_template(folder / "min" / f"{file.stem}.min", 0).minutiae
        turned = np.abs((found[:, None, 2] - published[None, :, 2] + np.pi) % (2 * np.pi) - np.pi)
        alike = (found[:, None, :2] == published[None, :, :2]).all(axis=2) & (turned < 0.01)
        alike &= np.abs(found[:, None, 3] - published[None, :, 3]) < 0.001
        same, total = same + alike.any(axis=0).sum(), total + len(published)
    assert total == 534
    assert same >= 0.97 * total
