from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.data.minutiae_fit import why_foreign
from fingerprint_accel.data.templates import read_template
from fingerprint_accel.synthesis.impressions import impression_keys, render
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.skin import make_masters

SETS = [
    ("fvc2000_db1_b/*.tif", "fvc2000_db1_b_nbis/xyt/{}.xyt"),
    ("fvc2002_db1_b/*.tif", "fvc2002_db1_b_iso/{}.iso"),
    ("flx_example/**/*.png", None),
]


@pytest.fixture(scope="module")
def synthetic():
    """Images (H, W) uint8 of 24 fingers at 500 ppi, and their exact minutiae."""
    fingers = torch.arange(24)
    masters = make_masters(5, fingers)
    found = render(masters, fingers, impression_keys(5, fingers, fingers * 0), Style(ppi=500, canvas=560))
    counts = found.count.tolist()
    return list(found.image.numpy()), [found.minutiae[row, :count].numpy() for row, count in enumerate(counts)]


def test_minutiae_of_the_print_itself_fit(synthetic):
    assert [why_foreign(image, 500, minutiae) for image, minutiae in zip(*synthetic, strict=True)] == [""] * 24


def test_minutiae_of_other_prints_mostly_do_not_fit(synthetic):
    images, minutiae = synthetic
    reasons = [why_foreign(image, 500, minutiae[row - 5]) for row, image in enumerate(images)]
    assert sum(reason.startswith("fit no ridges") for reason in reasons) > 0.6 * len(reasons)


def test_minutiae_that_point_across_the_ridges_or_lie_on_paper(synthetic):
    image, minutiae = synthetic[0][3], synthetic[1][3].copy()
    minutiae[:, 2] += np.pi / 2
    assert "directions differ by" in why_foreign(image, 500, minutiae)
    minutiae[:, :2] = 3
    assert "lie on clear ridges" in why_foreign(image, 500, minutiae)


def test_resolution_does_not_matter(synthetic):
    for scale in (0.5, 2):
        for image, minutiae in list(zip(*synthetic, strict=True))[:6]:
            side = round(560 * scale)
            resized = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            moved = minutiae * np.array([scale, scale, 1, 1], np.float32)
            assert why_foreign(resized, 500 * scale, moved) == ""


def test_few_minutiae_say_nothing():
    assert why_foreign(np.zeros((50, 50), np.uint8), 500, np.zeros((3, 4), np.float32)) == ""


@pytest.mark.parametrize(("pattern", "template"), SETS)
def test_real_templates_fit_their_prints_and_no_others(shared_data, pattern, template):
    images = sorted(shared_data.glob(pattern))
    templates = [shared_data / template.format(path.stem) if template else path.with_suffix(".ist") for path in images]
    own = foreign = 0
    for row, path in enumerate(images):
        grey = np.asarray(Image.open(path).convert("L"))
        height, width = grey.shape
        files = templates[row], templates[row - 17]
        found = [read_template(Path(file), height).fitted(width, height, 500) for file in files]
        own += why_foreign(grey, 500, found[0]) != ""
        foreign += why_foreign(grey, 500, found[1]) != ""
    assert own == 0
    assert foreign > 0.6 * len(images)
