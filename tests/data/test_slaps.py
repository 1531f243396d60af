"""Fingers of a slap are found where they are, and nothing of their neighbours comes along."""

import numpy as np
import pytest
from PIL import Image
from slap_images import PER_MM, PPI, prints_of, slap

from fingerprint_accel.data.ansi_nist import read_transaction
from fingerprint_accel.data.decoding import decode
from fingerprint_accel.data.image_record import RecordError
from fingerprint_accel.data.slaps import MARGIN_MM, cut_fingers, holds_several_fingers

WITHIN_MM = 2.0


@pytest.fixture(scope="module")
def slaps():
    """Right and left hands, with and without lower phalanges: images and boxes."""
    return [slap(number, left_hand=number % 2 == 1, lower=number % 4 != 3) for number in range(6)]


def test_fingers_are_found_within_two_millimetres(slaps):
    for image, truth in slaps:
        found = np.array(cut_fingers(image, PPI, 4)[0]) + np.array([1, 1, -1, -1]) * MARGIN_MM * PER_MM
        assert np.abs(found - np.array(truth)).max() < WITHIN_MM * PER_MM


def test_fingers_of_a_lying_resolution_are_not_invented(slaps):
    with pytest.raises(RecordError, match="4 fingers expected"):
        cut_fingers(slaps[0][0], 2.2 * PPI, 4)


def test_what_is_cut_out_is_one_finger(slaps):
    image, truth = slaps[3]  # prints that touch
    for part, (left, _, right, _) in zip(cut_fingers(image, PPI, 4)[1], truth, strict=True):
        assert part.shape[1] < right - left + 2 * WITHIN_MM * PER_MM
        assert not holds_several_fingers(np.pad(part, 200, constant_values=255), PPI)


def test_another_number_than_expected_is_said(slaps):
    with pytest.raises(RecordError, match="5 fingers expected on the image, 4 found"):
        cut_fingers(slaps[0][0], PPI, 5)


def test_slaps_are_told_from_single_prints(slaps):
    assert [holds_several_fingers(image, PPI) for image, _ in slaps] == [True] * len(slaps)
    for image in prints_of([90, 91, 92])[0]:
        assert not holds_several_fingers(np.pad(image, 100, constant_values=255), PPI)


def test_real_slaps_and_single_prints(shared_data):
    counts = {13: 4, 14: 4, 15: 2}
    found = 0
    for name in ("type4-slaps.an2k", "valid1.8.an2", "valid1.1.an2", "valid1.9.an2", "valid1.14.an2"):
        data = (shared_data / "nist_records" / name).read_bytes()
        for record in read_transaction(memoryview(data)):
            if record.reason:
                continue
            image = decode(bytes(record.image))
            grey = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)
            if record.position in counts:
                boxes, _ = cut_fingers(grey, record.ppi, counts[record.position])
                assert all(4 < (box[2] - box[0]) / PER_MM < 36 for box in boxes)
                assert [box[0] for box in boxes] == sorted(box[0] for box in boxes)
                found += len(boxes)
            else:
                assert not holds_several_fingers(grey, record.ppi)
    assert found == 4 + 4 + 4 + 4 + 2


def test_real_single_prints_are_no_slaps(shared_data):
    for name, ppi in (("fvc2002_db1_b", 500), ("upek", 500)):
        for file in sorted((shared_data / name).glob("*_1.*")):
            grey = np.asarray(Image.open(file).convert("L"))
            assert not holds_several_fingers(np.pad(grey, ((0, 0), (300, 300)), mode="edge"), ppi)
