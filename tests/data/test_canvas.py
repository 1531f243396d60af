import numpy as np
import pytest

from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.data.ridge_mask import CanvasError

NONE = np.empty((0, 4), np.float32)


def ridges(height, width, top, left, side, period=9.0):
    """White paper with a square of vertical ridges, dark on light."""
    image = np.full((height, width), 255, np.uint8)
    stripes = 128 + 100 * np.cos(2 * np.pi * np.arange(side) / period)
    image[top : top + side, left : left + side] = stripes.astype(np.uint8)
    return image


@pytest.mark.parametrize(("top", "left"), [(0, 0), (50, 180), (240, 20)])
def test_ridges_end_up_in_the_centre(top, left):
    image, _ = put_on_canvas(ridges(500, 450, top, left, 250), NONE, 500, 300, 320)
    dark = image < 128
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert abs((rows[0] + rows[-1] + 1) / 2 - 160) < 8
    assert abs((columns[0] + columns[-1] + 1) / 2 - 160) < 8
    assert image.shape == (320, 320)
    assert (image[:20] == 255).all(), "paper is white"


@pytest.mark.parametrize("ppi", [250, 500, 569, 1000])
def test_ridge_period_is_that_of_the_dataset(ppi):
    period = 0.46 / 25.4 * ppi  # 0.46 mm
    side = round(15 / 25.4 * ppi)
    image, _ = put_on_canvas(ridges(side + 100, side + 100, 50, 50, side, period), NONE, ppi, 300, 320)
    line = image[130:190, 110:210].astype(float).mean(axis=0)
    spectrum = np.abs(np.fft.rfft(line - line.mean(), 4096))
    assert 4096 / spectrum.argmax() == pytest.approx(0.46 / 25.4 * 300, rel=0.03)


def test_minutiae_move_with_the_pixels():
    grey = ridges(500, 450, 100, 100, 250)
    grey[196:205, 246:255] = 0  # a dot around (250.5, 200.5)
    points = np.array([[250.5, 200.5, 1.0, 0.5], [2000, 2000, 0, 0]], np.float32)
    image, moved = put_on_canvas(grey, points, 500, 300, 320)
    assert len(moved) == 1, "what falls off the canvas is dropped"
    x, y, angle, quality = moved[0]
    assert (angle, quality) == (1.0, 0.5)
    window = image[int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9].astype(float)
    blank, _ = put_on_canvas(ridges(500, 450, 100, 100, 250), NONE, 500, 300, 320)
    change = blank[int(y) - 8 : int(y) + 9, int(x) - 8 : int(x) + 9] - window
    rows, columns = np.indices(change.shape)
    assert (change * columns).sum() / change.sum() + int(x) - 8 + 0.5 == pytest.approx(x, abs=1.0)
    assert (change * rows).sum() / change.sum() + int(y) - 8 + 0.5 == pytest.approx(y, abs=1.0)


def test_a_wet_patch_stays_part_of_the_print():
    grey = ridges(500, 450, 100, 100, 250)
    grey[200:250, 200:250] = 30
    image, _ = put_on_canvas(grey, NONE, 500, 300, 320)
    assert image[160, 160] < 60


def test_ridges_on_a_background_that_is_brighter_in_the_middle_keep_their_contrast():
    """A vignette leaves the ridges of the middle as strong as those of the edge, and the paper white."""
    paper = ridges(500, 450, 100, 75, 300).astype(float) / 255
    y, x = np.mgrid[:500, :450]
    light = 1 - 0.5 * np.hypot((x - 225) / 225, (y - 250) / 250).clip(0, 1)
    image, _ = put_on_canvas((paper * light * 230).astype(np.uint8), NONE, 500, 300, 320)
    even, _ = put_on_canvas((paper * 230).astype(np.uint8), NONE, 500, 300, 320)
    for rows, columns in ((slice(140, 180), slice(140, 180)), (slice(90, 115), slice(100, 220))):
        found, wanted = (np.percentile(picture[rows, columns], [10, 90]) for picture in (image, even))
        np.testing.assert_allclose(found, wanted, atol=20)
    assert np.median(image[5:60]) > 250


@pytest.mark.parametrize(
    "grey",
    [
        np.full((400, 400), 255, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.full((400, 400), 0, np.uint8),
        np.tile(np.linspace(0, 255, 400).astype(np.uint8), (400, 1)),
        np.clip(200 + 8 * np.random.default_rng(0).standard_normal((400, 400)), 0, 255).astype(np.uint8),
    ],
    ids=["blank", "one pixel", "black", "ramp", "noise"],
)
def test_what_holds_no_print_has_a_reason(grey):
    with pytest.raises(CanvasError):
        put_on_canvas(grey, NONE, 500, 300, 320)
