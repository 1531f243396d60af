"""Transactions: what the records hold, and what is wrong with those that cannot be used."""

import numpy as np
import pytest
from record_files import (
    extended_minutiae,
    incits_minutiae,
    legacy_minutiae,
    noise,
    rows,
    transaction,
    type_2,
    type_4,
    type_14,
)

from fingerprint_accel.data.ansi_nist import read_transaction
from fingerprint_accel.data.image_record import RecordError

POINTS = [(10.0, 40.0, 30.0, 0.8), (45.5, 12.0, 200.0, 0.5), (20.0, 55.0, 358.0, 1.0)]


def read(*records, **options):
    header = options.pop("header", None)
    return read_transaction(memoryview(transaction(*records, header=header)), **options)


def test_images_positions_and_resolutions_of_types_4_and_14():
    first, second, third = read(
        type_2(),
        type_4(1, noise(1), 3, "NONE"),
        type_14(2, noise(2), 12, "NONE", per_unit=394, units=2),
        type_14(3, noise(3), 7, "PNG", per_unit=1000),
    )
    assert [found.number for found in (first, second, third)] == [3, 4, 5]
    assert [found.fingers for found in (first, second, third)] == [(3,), (6,), (7,)]
    assert (first.ppi, second.ppi, third.ppi) == (500, 1000, 1000)
    assert (first.raw, second.raw, third.raw) == ((60, 50), (60, 50), None)
    assert bytes(first.image) == noise(1).tobytes()
    assert bytes(second.image) == noise(2).tobytes()
    assert bytes(third.image).startswith(b"\x89PNG")


def test_type_4_at_its_native_resolution():
    (found,) = read(type_4(1, noise(), 1, native=1), header={11: "39.37"})
    assert found.ppi == 1000


def test_short_tags_and_lowest_resolution():
    data = transaction(type_4(1, noise(), 1)).replace(b"1.001:", b"1.01:", 1)
    length = int(data[5:].partition(b"\x1d")[0])
    data = data.replace(b"1.01:%d" % length, b"1.01:%d" % (length - 1), 1)
    assert read_transaction(memoryview(data))[0].ppi == 500


def test_dummies_in_front_of_the_image_are_left_out():
    (found,) = read(type_14(1, noise(4), 2, "NONE", dummies=(b"0101", b"77")))
    assert bytes(found.image) == noise(4).tobytes()


def test_separators_inside_an_image_do_not_end_it():
    grey = np.tile(np.frombuffer(b"\x1c\x1d\x1e\x1f14.999:", np.uint8), (11, 1))
    (found,) = read(type_14(1, grey, 2, "NONE"))
    assert bytes(found.image) == grey.tobytes()


def test_subject_from_the_fields_that_are_named():
    person = type_2(f018="DOE,JANE", f022="19800101")
    assert read(person, type_4(1, noise(), 1))[0].subject == ""
    assert read(person, type_4(1, noise(), 1), key=["1.009"])[0].subject == "TCN42"
    assert read(person, type_4(1, noise(), 1), key=["2.018", "2.022"])[0].subject == "DOE,JANE_19800101"


def test_slaps_with_boxes_and_missing_fingers():
    boxes = rows((7, 40, 49, 10, 50), (8, 30, 39, 5, 45), (9, 31, 31, 31, 31))
    (found,) = read(type_14(1, noise(), 14, f021=boxes, f018=rows((10, "XX"))))
    assert found.fingers == (9, 8, 7)
    assert found.segments == {7: (40, 10, 49, 50), 8: (30, 5, 39, 45)}  # a box without area says nothing


@pytest.mark.parametrize("position, fingers", [(13, (2, 3, 4, 5)), (15, (6, 1)), (43, (8, 7)), (50, (10, 9, 8))])
def test_order_of_fingers_on_a_slap(position, fingers):
    assert read(type_4(1, noise(), position))[0].fingers == fingers


def test_what_is_no_finger_says_so():
    found = read(
        type_14(1, noise(), 25),
        type_14(2, noise(), 19),
        (10, 3, type_14(3, noise(), 1, kind=10)[2]),
        type_14(4, noise(), 65),
        type_14(5, noise(), 1, f012=16),
        type_4(6, noise(), 2),
    )
    assert [record.reason for record in found] == [
        "a palm (position 25)",
        "an entire joint image or fingertip, not a print of a finger",
        "a face or body part (record type 10)",
        "a sole or toe (position 65)",
        "16 bits per pixel (field 14.012): only 8 can be read",
        "",
    ]


def test_nfiq_2_of_nist_and_of_nobody_else():
    assert read(type_14(1, noise(), 1, f024=rows((1, 73, "000F", "0000"))))[0].quality == 73
    assert read(type_14(1, noise(), 1, f024=rows((1, 73, "0031", "0000"))))[0].quality == -1
    assert read(type_14(1, noise(), 1, f024=rows((1, 254, "000F", "0000"))))[0].quality == -1


@pytest.mark.parametrize(
    "template, with_quality",
    [
        (legacy_minutiae(1, POINTS, 500, 60), True),
        (incits_minutiae(1, POINTS, 500), True),
        (extended_minutiae(1, POINTS, 500, corner=(5, 8)), False),
    ],
)
def test_minutiae_of_every_block(template, with_quality):
    (found,) = read(type_14(1, noise(), 1), template)
    expected = np.array(POINTS)
    assert found.minutiae is not None
    np.testing.assert_allclose(found.minutiae[:, :2], expected[:, :2], atol=0.5)
    turn = np.degrees(found.minutiae[:, 2]) - expected[:, 2]
    np.testing.assert_allclose((turn + 180) % 360 - 180, 0, atol=1.01)
    np.testing.assert_allclose(found.minutiae[:, 3], expected[:, 3] if with_quality else 0, atol=0.02)


def test_minutiae_belong_to_the_image_with_their_number():
    first, second = read(type_14(1, noise(), 1), type_14(2, noise(), 2), incits_minutiae(2, POINTS, 500))
    assert first.minutiae is None
    assert second.minutiae is not None and len(second.minutiae) == 3


def test_minutiae_at_another_resolution_than_the_image():
    (found,) = read(type_14(1, noise(), 1, per_unit=1000), incits_minutiae(1, POINTS, 500))
    np.testing.assert_allclose(found.minutiae[:, :2], 2 * np.round(np.array(POINTS)[:, :2]))


@pytest.mark.parametrize("cut", [10, 150, 400, -1])
def test_cut_off_files_end_in_a_reason(cut):
    data = transaction(type_2(), type_14(1, noise(), 1, "NONE"))
    with pytest.raises(RecordError):
        read_transaction(memoryview(data[:cut]))


def test_any_damage_ends_in_a_reason_or_in_records():
    data = bytearray(transaction(type_2(), type_14(1, noise(), 13, "NONE"), legacy_minutiae(1, POINTS, 500, 60)))
    random = np.random.default_rng(5)
    for _ in range(3000):
        damaged = data.copy()
        for at in random.integers(0, len(data), 4):
            damaged[at] = random.integers(256)
        try:
            read_transaction(memoryview(bytes(damaged)), ["1.009"])
        except RecordError as error:
            assert "\n" not in str(error)
