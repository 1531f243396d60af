"""Crops for the table of EER by area, and how it is grouped."""

import numpy as np
import pytest
from real_sets import Prints
from small_area import cropped, eer_by_area, table

from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.print_quality import contact_area


@pytest.fixture(scope="module")
def images(prints):
    shards = open_dataset(prints)
    return [shards.image(row) for row in range(12)]


@pytest.fixture(scope="module")
def extractor():
    return FingerprintExtractor.from_pretrained("small")


def test_crops_are_parts_of_prints_and_always_the_same(images, extractor):
    crops = cropped(extractor, images, 300, 3, seed=0)
    assert len(crops.canvases) == len(crops.source) <= 36
    assert set(crops.source.tolist()) <= set(range(12))
    whole = np.array([contact_area(extractor.on_canvas(image, 300), 300) for image in images])
    area = np.array([contact_area(canvas, 300) for canvas in crops.canvases])
    assert (area <= whole[crops.source] + 10).all()
    assert area.min() < 50 < area.max()
    np.testing.assert_array_equal(crops.canvases, cropped(extractor, images, 300, 3, seed=0).canvases)


def test_probes_are_grouped_by_their_area(prints, images, extractor):
    fingers = open_dataset(prints).fingers[:12]
    found, areas = eer_by_area(extractor, Prints([], fingers, np.arange(12)), images, 300, 12)
    assert areas.shape == (12,)
    assert len(found) > 3
    assert all(number >= 12 and 0 <= rate <= 1 for number, rate in found.values())
    assert found[min(found)][1] > found[max(found)][1], "small probes are harder"
    assert table({"small": {0: (12, 0.5), 200: (7, 0.125)}}).splitlines()[2:] == [
        "| 0 to 10 | 12 | 50.0 |",
        "| 200 and more | 7 | 12.5 |",
    ]


def test_contact_tells_a_patch_from_a_faint_print(images):
    faint = (255 - 0.3 * (255 - images[0].astype(np.float32))).round().astype(np.uint8)
    assert contact_area(faint, 300) == pytest.approx(contact_area(images[0], 300), rel=0.1)
    patch = np.full_like(images[0], 255)
    patch[130:190, 130:190] = images[0][130:190, 130:190]
    assert 10 < contact_area(patch, 300) < 40
    assert contact_area(np.full((320, 320), 255, np.uint8), 300) == 0
