"""Files of prints that are damaged, huge, or made to harm: each has a reason, at a bounded cost."""

import contextlib
import csv
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from record_files import noise, rows, transaction, type_2, type_4, type_14

from fingerprint_accel.data import canvas, captures, csv_file, csv_rows, nbis, regions, ridges, slaps
from fingerprint_accel.data.ansi_nist import MOST_TEXT, read_transaction
from fingerprint_accel.data.captures import MOST_CONTAINER, read_capture, read_records
from fingerprint_accel.data.child_process import end_children
from fingerprint_accel.data.decoding import MOST_BYTES, ImageError
from fingerprint_accel.data.finger_image import read_finger_images
from fingerprint_accel.data.image_record import MOST_RECORDS, RecordError
from fingerprint_accel.data.images import read_grey
from fingerprint_accel.data.layouts import LAYOUTS, LayoutError, check_impression, finger_position
from fingerprint_accel.data.listing import list_files
from fingerprint_accel.data.minutiae_fit import why_foreign
from fingerprint_accel.data.print_file import ImageFile, Reading, Target, open_print, prepare
from fingerprint_accel.data.regions import connected_parts
from fingerprint_accel.data.slaps import holds_several_fingers
from fingerprint_accel.data.templates import MOST_OF_A_FINGER, TemplateError, read_template, xyt_kind
from fingerprint_accel.data.walking import walk
from fingerprint_accel.errors import UserError
from tests.data import small_datasets


@pytest.fixture
def quick():
    """Fails a test that needs more than 2 s of CPU time."""
    started = time.process_time()
    yield
    assert time.process_time() - started < 2


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


# Files that are not read


READERS = {
    "an image": (read_grey, ImageError),
    "a print": (read_capture, ImageError),
    "records": (read_records, ImageError),
    "a minutiae file": (lambda path: read_template(path, 480), TemplateError),
    "a csv": (lambda path: list_files(path, "csv"), UserError),
}


@pytest.mark.parametrize("kind", READERS)
def test_pipes_and_devices_are_not_read(tmp_path, kind):
    read, error = READERS[kind]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(error, match="is not a regular file"):
            read(tmp_path / name)


def test_pipes_devices_and_loops_of_links_in_a_folder_are_listed(tmp_path):
    for name in ("1_1.png", "1_1", "1_1.xyt"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "2_1.png").symlink_to("/dev/zero")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    assert {met.path: met.reason for met in walk(tmp_path)} == {
        **dict.fromkeys(("1_1.png", "1_1", "1_1.xyt", "2_1.png"), "is not a regular file"),
        "up": "a link to what is read anyway",
        "self": "a broken link",
    }


def test_folders_that_are_nested_too_deeply_are_listed(tmp_path):
    tmp_path.joinpath(*["d"] * 105).mkdir(parents=True)
    (met,) = walk(tmp_path)
    assert met.reason == "a folder below 100 others"


@pytest.mark.parametrize("kind", READERS)
def test_the_size_is_checked_before_anything_is_read(tmp_path, kind, quick):
    read, error = READERS[kind]
    path = sparse(tmp_path / "sparse", 3 * 2**30, b"1.001:99\x1d" if kind == "records" else b"")
    with pytest.raises(error, match=r"3221\.2 MB, more than the limit of"):
        read(path)
    assert MOST_BYTES < MOST_CONTAINER < 2**28


def test_a_path_with_a_zero_byte_is_a_reason():
    with pytest.raises(ImageError, match="has no valid path"):
        read_capture(Path("a\0b"))


# Images


def test_a_print_that_winds_over_many_blocks_takes_no_time(quick):
    mask = np.ones((300, 300), bool)  # one component that winds through all rows
    mask[1::2] = False
    mask[1::4, -1] = mask[3::4, 0] = True
    assert len(np.unique(connected_parts(mask))) == 2


def test_connected_parts_are_those_of_a_flood_fill():
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = rng.random(rng.integers(1, 14, 2)) < 0.45
        labels, seen = connected_parts(mask), np.zeros(mask.shape, bool)
        assert ((labels > 0) == mask).all()
        for start in np.argwhere(mask):
            if seen[tuple(start)]:
                continue
            part, waiting = np.zeros(mask.shape, bool), [tuple(start)]
            while waiting:
                y, x = waiting.pop()
                if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not part[y, x]:
                    part[y, x] = True
                    waiting += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            seen |= part
            # the label is the place of the last entry, and belongs to no other component
            np.testing.assert_array_equal(labels == np.flatnonzero(part)[-1] + 1, part)


def test_a_print_is_the_same_in_strips(monkeypatch):
    grey = small_datasets.ridges(1, 400)
    grey[:, :30] //= 2

    def results():
        placed = canvas.put_on_canvas(grey, np.zeros((0, 4), np.float32), 500, 300, 320)[0]
        measured = ridges.measure_ridges(grey, 500, 1.6, (0.3, 0.65))
        return placed, measured.share, measured.period

    whole = results()
    monkeypatch.setattr(regions, "STRIP", 1000)
    for ours, theirs in zip(results(), whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ridges_of_a_large_image_are_measured_in_little_memory(quick, monkeypatch):
    sizes = []
    original = ridges._strongest
    monkeypatch.setattr(ridges, "_strongest", lambda tiles, *how: (sizes.append(tiles.size), original(tiles, *how))[1])
    grey = np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8)
    assert not holds_several_fingers(grey, 500)
    assert len(sizes) > 10 and max(sizes) <= regions.STRIP


def test_an_image_of_many_finger_like_parts_takes_no_time(quick):
    share = np.kron(np.ones((16, 16)), np.pad(np.ones((12, 10)), 2)).astype(np.float32)
    assert slaps._fingers(share, 1.0, 0.5) == []
    assert len(slaps._fingers(share[:14, :42], 1.0, 0.5)) == 3


def test_an_image_of_half_a_metre_is_no_print(tmp_path):
    Image.fromarray(np.full((100, 1100), 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="too large: 559 mm at 50 ppi; check the ppi"):
        open_print(tmp_path / "a.png", Reading(ppi=50))


def test_raw_pixels_have_the_limit_of_images():
    with pytest.raises(ImageError, match="more than 25 megapixels"):
        captures._raw(b"", (65535, 65535))


# Minutiae files


def template(tmp_path: Path, name: str, data: bytes):
    return read_template(made(tmp_path / name, data), 480)


MIN = b"Image (w,h) 300 400\n\n"


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.min", MIN + b"\n" * 900_000),
        ("a.min", MIN + b"1" * 900_000),
        ("a.min", MIN + b" 1:1," * 180_000),
        ("a.xyt", b"\n" * 900_000),
        ("a.mnt", b"x\n300 400\n" + b"\n" * 900_000),
        ("a.fmr", b"FMR\x00030\0" + struct.pack(">IHB", 2**20, 65535, 0) + bytes(2**20 - 15)),
    ],
)
def test_a_minutiae_file_of_a_megabyte_takes_no_time(tmp_path, quick, name, data):
    with contextlib.suppress(TemplateError):
        assert len(template(tmp_path, name, data).minutiae) == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "70000"])
@pytest.mark.parametrize(
    "name, text",
    [
        ("a.xyt", "10 20 30 40\n10 {} 30 40\n"),
        ("a.xyt", "10 20 30 40\n10 20 {} 40\n"),
        ("a.mnt", "x\n300 400\n10 20 0.5\n{} 20 0.5\n"),
    ],
)
def test_numbers_that_are_not_finite_or_huge_are_refused(tmp_path, name, text, value):
    with pytest.raises(TemplateError, match=r"minutia 2 has numbers that are not finite"):
        template(tmp_path, name, text.format(value).encode())


def test_a_quality_out_of_range_is_unknown(tmp_path):
    assert template(tmp_path, "a.xyt", b"1 2 200 186\n1 2 3 -5\n1 2 3 50\n").minutiae[:, 3].tolist() == [0, 0, 0.5]
    assert template(tmp_path, "a.mnt", b"x\n300 400\n1 2 0.5 5\n1 2 0.5 0.25\n").minutiae[:, 3].tolist() == [0, 0.25]


def test_a_print_has_a_bounded_number_of_minutiae(tmp_path):
    with pytest.raises(TemplateError, match="2001 minutiae, more than a print has"):
        template(tmp_path, "a.xyt", b"1 2 3 4\n" * (MOST_OF_A_FINGER + 1))


@pytest.mark.parametrize("size", ["-300 400", "300 -400", "300 99999", "9" * 400 + " 1"])
def test_an_implausible_size_of_the_image_is_refused(tmp_path, size):
    with pytest.raises(TemplateError, match="implausible size") as raised:
        template(tmp_path, "a.mnt", f"x\n{size}\n10 20 0.5\n".encode())
    assert len(str(raised.value)) < 100


def test_a_damaged_file_does_not_choose_the_convention_of_all_xyt_files():
    assert xyt_kind(["1 2 3 4\n", "1 2 inf 4\n", "1 2 1e300 4\n"]) == "m1"
    assert xyt_kind(["1 2 3 4\n", "1 2 190 4\n"]) == "nist"


def test_errors_of_minutiae_files_are_short_lines(tmp_path):
    with pytest.raises(TemplateError) as raised:
        template(tmp_path, "a.xyt", b"1 2 " + b"\x1bx" * 5000)
    assert len(str(raised.value)) < 150 and str(raised.value).isprintable()


def test_minutiae_outside_the_image_are_foreign():
    grey = small_datasets.ridges(0)
    minutiae = np.array([[1e4, 5, 0, 0], [5, -1e4, 0, 0], [5, 5, 0, 0]], np.float32)
    assert why_foreign(grey, 500, minutiae) == "lie outside the image: 2 of 3"
    assert why_foreign(grey, 500, minutiae[2:]) == ""


# Records


def records(*parts, header=None):
    return read_transaction(memoryview(transaction(*parts, header=header)))


@pytest.mark.parametrize("value", ["nan", "inf", "-1000", "1e300", "49", "6000"])
def test_a_record_with_a_wrong_resolution_has_a_reason(value):
    good, bad = records(type_14(1, noise(), 2, "NONE"), type_14(2, noise(), 3, "NONE", f009=value))
    assert good.reason == ""
    assert "resolution" in bad.reason or "damaged record (the number" in bad.reason


def test_a_transaction_with_a_wrong_resolution_has_a_reason():
    (found,) = records(type_4(1, noise(), 1, native=1), header={11: "nan"})
    assert found.reason == "damaged record (the number nan in field 1.011): copy the file again"


@pytest.mark.parametrize(
    "fields",
    [
        {"f021": b"7\x1f4#9"},
        {"f021": rows((7, 40))},
        {"f018": b"9" * 5000 + b"\x1fXX"},
        {"f006": "inf"},
        {"f013": "inf"},
    ],
)
def test_a_malformed_field_rejects_its_record_only(fields):
    good, bad = records(type_14(1, noise(), 14, "NONE"), type_14(2, noise(), 14, "NONE", **fields))
    assert good.reason == ""
    assert bad.reason.startswith("damaged record (") and len(bad.reason) < 160


def test_a_box_outside_the_image_is_a_reason(tmp_path):
    box = [(finger, 2, 40, 2, 50) for finger in (7, 8, 9, 10)]
    part = type_14(1, noise(), 14, "PNG", f021=rows(*box), f006=4000, f007=4000)
    path = made(tmp_path / "a.an2", transaction(part))
    assert read_capture(path, 2, 7).grey.shape == (48, 38)
    box = [(finger, 2000, 2400, 2000, 2500) for finger in (7, 8, 9, 10)]
    part = type_14(1, noise(), 14, "PNG", f021=rows(*box), f006=4000, f007=4000)
    with pytest.raises(ImageError, match="lies outside the image"):
        read_capture(made(tmp_path / "b.an2", transaction(part)), 2, 7)


def test_minutiae_of_a_record_that_cannot_be_read_are_listed(tmp_path):
    template = 9, 1, b"9.001:0060\x1d9.002:01\x1d9.137:0\x1fx\x1fy\x1fz\x1c"
    template = 9, 1, template[2].replace(b"0060", b"%04d" % len(template[2]))
    part = type_14(1, small_datasets.ridges(0), 2, "PNG")
    path = made(tmp_path / "a.an2", transaction(part, template))
    prepared = prepare(ImageFile(path, record=2, name="a.an2#2"), Reading(), Target(300, 320))
    assert prepared.image is not None
    assert prepared.minutiae_reason.startswith("minutiae: damaged record of type 9 (invalid literal")


def test_a_transaction_has_a_bounded_number_of_records_and_of_text(quick):
    contents = b"\x1e".join([b"1\x1f1", *[b"2\x1f0"] * (MOST_RECORDS + 1)])
    with pytest.raises(RecordError, match="more than 1000 records"):
        records(type_14(1, noise(), 1), header={3: contents})
    with pytest.raises(RecordError, match="more than 4 MB of text"):
        records(type_2(f018=b"\x1e" * MOST_TEXT), type_14(1, noise(), 1))


def test_a_finger_image_record_has_a_bounded_number_of_images(quick):
    view = struct.pack(">IBBBBBHHB", 18, 1, 255, 1, 0, 0, 2, 2, 0) + b"abcd"
    body = view * 255 * 255
    header = b"FIR\x00010\0" + (32 + len(body)).to_bytes(6, "big") + bytes(4)
    header += struct.pack(">BBHHHHBB", 255, 1, 500, 500, 500, 500, 8, 0) + bytes(2)
    with pytest.raises(RecordError, match="more than 1000 images"):
        read_finger_images(memoryview(header + body))


# Names and listings


def test_a_file_name_cannot_make_a_layout_slow(quick):
    with pytest.raises(LayoutError):
        LAYOUTS["nist"]("0000" + "_123" * 60 + "_x_.png")
    assert LAYOUTS["nist"]("00002302_R_500_roll_01.png").ppi == 500


@pytest.mark.parametrize("text", ["\u00b2", "9" * 5000, "", "-1"])
def test_a_finger_position_that_is_no_number_is_a_reason(text):
    with pytest.raises(LayoutError) as raised:
        finger_position(text)
    assert len(str(raised.value)) < 120


def test_impressions_leave_room_to_count_on():
    with pytest.raises(LayoutError, match="out of range"):
        check_impression(2**63 - 1)
    assert check_impression(2**62) + 2**31 < 2**63


def csv_of(tmp_path: Path, *lines: str):
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,finger,impression,ppi,minutiae,position,person", *lines]) + "\n")
    return path


def test_lines_of_a_csv_that_no_file_can_have_are_listed(tmp_path):
    bad = {
        "zero\0.png,a,1,,,,": "zero byte",
        f"{'p' * 5000}.png,a,1,,,,": "more than 4096 characters",
        f"key.png,{'k' * 1001},1,,,,": "more than 1000 characters",
        f"person.png,a,1,,,,{'k' * 1001}": "more than 1000 characters",
        "minutiae.png,a,1,,m\0.xyt,,": "zero byte",
        "position.png,a,1,,,\u00b2,": "finger position",
        "ppi.png,a,1,1e300,,,": "whole numbers",
        f"impression.png,a,{'9' * 5000},,,,": "whole numbers",
        f"impression.png,a,{'9' * 400},,,,": "is out of range",
        f"ppi.png,a,1,{'9' * 400},,,": "is out of range",
        "empty.png,,1,,,,": "no finger",
    }
    found = list_files(csv_of(tmp_path, "good.png,a,1,,,,", *bad), "csv")
    assert found.table["path"].to_pylist() == ["good.png"]
    assert len(found.rejected) == len(bad)
    for (where, reason), expected in zip(found.rejected, bad.values(), strict=True):
        assert expected in reason and len(where) <= 4096 and len(reason) < 200


def test_a_csv_of_wrong_lines_or_a_huge_field_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MOST_WRONG", 3)
    with pytest.raises(UserError, match=r"list\.csv: more than 3 lines cannot be used \(line 5: no finger"):
        list_files(csv_of(tmp_path, *["a.png,,1,,,,"] * 9), "csv")
    for field in (f'"{"x" * (csv.field_size_limit() + 1)}"', "x" * 300_000):
        with pytest.raises(UserError, match=r"list\.csv: not a csv file in UTF-8") as raised:
            list_files(csv_of(tmp_path, f"a.png,{field},1,,,,"), "csv")
        assert len(str(raised.value)) < 300
    with pytest.raises(UserError, match=r"finger position 1,anna\?b\.png,4 is unknown") as raised:
        list_files(csv_of(tmp_path, 'a.png,a,1,,,"1,anna\nb.png,4",'), "csv")
    assert "\n" not in str(raised.value)
    monkeypatch.setattr(csv_file, "MOST_LINES", 20)
    with pytest.raises(UserError, match="more than 20 lines"):
        list_files(csv_of(tmp_path, *["a.png,a,1,,,,"] * 20), "csv")


# NIST's programs


@pytest.mark.parametrize(
    "do, reason",
    [
        ("os.abort()", r"crashed (SIGABRT)"),
        ("while True: pass", "takes more than 5 s"),
        ("raise MemoryError", "needs too much memory"),
        ("raise ValueError('no print')", "failed (no print)"),
    ],
)
def test_a_print_on_which_a_nist_program_fails_is_imported_without_its_result(tmp_path, monkeypatch, do, reason):
    code = f"""
import os
from fingerprint_accel.data.child_server import serve
def answer(data):
    {do}
serve(answer, 2**30, 0.1)
"""
    program = nbis.Program(code, "runs NIST's programs", 2**24, lambda answer: True, "")
    monkeypatch.setattr(nbis, "NIST", program)
    Image.fromarray(small_datasets.ridges(0)).save(tmp_path / "a.png")
    try:
        target = Target(300, 320, find_minutiae="mindtct", nfiq2=True)
        prepared = prepare(ImageFile(tmp_path / "a.png", name="a.png"), Reading(), target)
    finally:
        end_children()
    assert prepared.image is not None and prepared.quality == -1
    assert prepared.minutiae_reason == f"minutiae or quality: mindtct {reason}"
