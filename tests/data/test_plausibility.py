import numpy as np
import pytest
from PIL import Image
from slap_images import prints_of

from fingerprint_accel.data.plausibility import (
    RIDGE_PERIOD_MM,
    SET_TOLERANCE,
    is_inverted,
    likely_ppi,
    ridge_period,
)

SETS = {"fvc2002_db1_b": 500, "fvc2002_db2_b": 569, "fvc2002_db3_b": 500, "fvc2000_db1_b": 500, "upek": 500}


@pytest.fixture(scope="module")
def synthetic():
    return prints_of(list(range(12)))[0]


def opened(folder, pattern="*_[1-3].*"):
    return [np.asarray(Image.open(file).convert("L")) for file in sorted(folder.glob(pattern))]


@pytest.mark.parametrize("stated", [250, 500, 1000])
def test_ridges_tell_the_resolution_of_synthetic_prints(synthetic, stated):
    periods = [ridge_period(image, stated) for image in synthetic]
    assert likely_ppi(float(np.nanmedian(periods)), stated) == 500


def test_period_is_in_millimetres():
    y, x = np.mgrid[:400, :400]
    waves = (128 + 100 * np.cos(2 * np.pi * (0.6 * x + 0.8 * y) / 9.0)).astype(np.uint8)
    assert ridge_period(waves, 500) == pytest.approx(9.0 / 500 * 25.4, rel=0.03)
    assert np.isnan(ridge_period(np.full((400, 400), 255, np.uint8), 500))


@pytest.mark.parametrize("name", SETS)
def test_ridges_tell_the_resolution_of_real_sets(shared_data, name):
    images, ppi = opened(shared_data / name), SETS[name]
    for stated in (ppi, 2 * ppi, ppi / 2):
        period = float(np.nanmedian([ridge_period(image, stated) for image in images]))
        assert period * stated / ppi == pytest.approx(RIDGE_PERIOD_MM, rel=SET_TOLERANCE)
        assert likely_ppi(period, stated) == 500


def test_light_ridges_are_known_by_their_paper(synthetic):
    assert not any(is_inverted(image) for image in synthetic)
    assert all(is_inverted(255 - image) for image in synthetic)


def test_real_prints_are_not_taken_for_inverted_ones(shared_data):
    for name in (*SETS, "fvc2002_db4_b"):
        assert not any(is_inverted(image) for image in opened(shared_data / name, "*_*.*"))


def test_real_inverted_prints_are_found(shared_data):
    found = [is_inverted(image) for image in opened(shared_data / "fvs_inverted", "*_*.*")]
    assert len(found) == 168 and np.mean(found) > 0.95


def test_tiny_and_flat_images_say_nothing():
    for shape in ((1, 1), (3, 40), (20, 20)):
        assert not is_inverted(np.zeros(shape, np.uint8))
        assert np.isnan(ridge_period(np.zeros(shape, np.uint8), 500))


def test_a_resolution_that_no_sensor_usually_has_is_named_to_tens():
    assert likely_ppi(0.36, 500) == 390
    assert likely_ppi(0.46, 508) == 500
    assert likely_ppi(0.9, 500) == 1000
