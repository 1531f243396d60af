import numpy as np
import pytest
from record_files import iso_2005, iso_2011, noise

from fingerprint_accel.data.finger_image import read_finger_images
from fingerprint_accel.data.image_record import RecordError

PRINTS = [(noise(1), 2, "NONE"), (noise(2, (40, 44)), 7, "NONE")]


@pytest.mark.parametrize(
    "data",
    [iso_2005(PRINTS), iso_2005(PRINTS, incits=True), iso_2011(PRINTS), iso_2011(PRINTS, certified=True)],
    ids=["iso-2005", "incits-381", "iso-2011", "iso-2011 certified"],
)
@pytest.mark.parametrize("wrapper", [b"", bytes(88), b"\x03\x02" + bytes(180)], ids=["bare", "PIV", "CBEFF"])
def test_every_version_with_and_without_wrapper(data, wrapper):
    first, second = read_finger_images(memoryview(wrapper + data))
    assert (first.position, second.position) == (2, 7)
    assert (first.raw, second.raw) == ((60, 50), (40, 44))
    assert (first.ppi, second.ppi, first.reason) == (500, 500, "")
    assert bytes(first.image) == noise(1).tobytes()
    assert bytes(second.image) == noise(2, (40, 44)).tobytes()


def test_image_files_inside():
    (found,) = read_finger_images(memoryview(iso_2005([(noise(1), 1, "PNG")])))
    assert found.raw is None and bytes(found.image).startswith(b"\x89PNG")


def test_pixels_per_centimetre():
    (found,) = read_finger_images(memoryview(iso_2005(PRINTS[:1], ppi=197, units=2)))
    assert found.ppi == 500


def test_palms_say_so():
    (found,) = read_finger_images(memoryview(iso_2011([(noise(1), 21, "NONE")])))
    assert found.reason == "a palm (position 21)"


@pytest.mark.parametrize("data", [iso_2005(PRINTS), iso_2011(PRINTS)])
def test_any_damage_ends_in_a_reason_or_in_records(data):
    random = np.random.default_rng(5)
    for cut in (3, 20, 50, 500, len(data) - 1):
        with pytest.raises(RecordError):
            read_finger_images(memoryview(data[:cut]))
    for _ in range(2000):
        damaged = bytearray(data)
        for at in random.integers(0, 120, 3):
            damaged[at] = random.integers(256)
        try:
            read_finger_images(memoryview(bytes(damaged)))
        except RecordError as error:
            assert "\n" not in str(error)


def test_unknown_versions_are_named():
    with pytest.raises(RecordError, match="version b'040'"):
        read_finger_images(memoryview(b"FIR\x00040\0" + bytes(60)))
