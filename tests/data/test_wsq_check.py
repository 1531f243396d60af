"""WSQ files that are damaged: the decoder of wsq does not see them, and no file depends on the one before."""

import io

import _wsq
import numpy as np
import pytest
import wsq  # noqa: F401
from PIL import Image

from fingerprint_accel.data.child_process import end_children
from fingerprint_accel.data.decoding import decode
from fingerprint_accel.data.images import ImageError, decode_apart
from fingerprint_accel.data.wsq_check import checked_wsq
from tests.data.small_datasets import ridges

TRANSFORM, QUANTIZATION, HUFFMAN, FRAME, BLOCK, COMMENT = (bytes([255, kind]) for kind in b"\xa4\xa5\xa6\xa2\xa3\xa8")


def encoded(phase=0, shape=(160, 160)):
    file = io.BytesIO()
    Image.fromarray(ridges(phase)[80 : 80 + shape[0], 60 : 60 + shape[1]]).save(file, "WSQ")
    return file.getvalue()


def segments(data):
    """The parts of a file: start, segments with the coefficients that follow, end."""
    found, at = [data[:2]], 2
    while data[at : at + 2] != b"\xff\xa1":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at : at + 2] == BLOCK:
            while data[end] != 255 or data[end + 1] == 0:
                end += 1
        found.append(data[at:end])
        at = end
    return [*found, data[at:]]


def changed(data, kind, at, value):
    """A file with one byte of a segment replaced."""
    place = data.index(kind) + at
    return data[:place] + bytes([value]) + data[place + 1 :]


def without(data, kind):
    return b"".join(part for part in segments(data) if part[:2] != kind)


@pytest.mark.parametrize("shape", [(160, 160), (64, 200), (100, 90)])
def test_a_good_file_gives_the_same_pixels(shape):
    data = encoded(1, shape)
    pixels, width, height, _ = _wsq.decompress(data)
    assert (height, width) == shape
    found = decode(data)
    assert (found.height, found.width, bytes(found.pixels)) == (*shape, pixels)


@pytest.mark.parametrize("shape", [(33, 47), (40, 40), (50, 90)])
def test_the_ones_that_fill_the_last_byte_of_a_block_are_no_code(shape):
    """The codes of small images are short, so that 7 ones could be one."""
    assert decode(encoded(1, shape)).grey.shape == shape
    assert decode(encoded(1, (160, 160))).grey.std() > 20


def test_comments_are_left_out():
    data = encoded()
    comment = b"\xff\xa8\x00\x08A \xff\xa2 B"
    assert checked_wsq(data[:2] + comment + data[2:]) == checked_wsq(data)
    assert checked_wsq(data + b"anything") == checked_wsq(data)


DAMAGE = {
    "no quantization": lambda data: without(data, QUANTIZATION),
    "no filter": lambda data: without(data, TRANSFORM),
    "no Huffman table": lambda data: without(data, HUFFMAN),
    "no frame": lambda data: without(data, FRAME),
    "no block": lambda data: without(data, BLOCK),
    "two frames": lambda data: data.replace(FRAME, data[data.index(FRAME) :][:19] + FRAME, 1),
    "a filter of 255 numbers": lambda data: changed(data, TRANSFORM, 4, 255),
    "a filter of no number": lambda data: changed(data, TRANSFORM, 5, 0),
    "a Huffman table number 200": lambda data: changed(data, HUFFMAN, 4, 200),
    "too many codes": lambda data: changed(data, HUFFMAN, 5, 255),
    "codes that do not fit": lambda data: changed(data, HUFFMAN, 5, 3),
    "a block without its table": lambda data: changed(data, BLOCK, 4, 7),
    "a small image": lambda data: changed(changed(data, FRAME, 6, 0), FRAME, 7, 9),
    "an unknown segment": lambda data: changed(data, QUANTIZATION, 1, 0xA7),
    "a short segment": lambda data: changed(data, QUANTIZATION, 3, 0),
    "no end": lambda data: data[:-2],
    "cut in a segment": lambda data: data[:100],
    "cut in a block": lambda data: data[: data.index(BLOCK) + 50],
    "cut to its start": lambda data: data[:2],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_before_decoding(kind):
    with pytest.raises(ValueError, match=r"^(a|an|the) [\w ]+$"):
        checked_wsq(DAMAGE[kind](encoded()))


def test_a_file_without_tables_is_not_decoded_with_those_of_the_file_before():
    decode_apart(encoded(), "good.wsq")
    with pytest.raises(ImageError, match="damaged: a table is missing"):
        decode_apart(without(encoded(), QUANTIZATION), "bad.wsq")


def test_missing_coefficients_do_not_come_from_the_file_before():
    parts = segments(encoded(2))
    last = max(number for number, part in enumerate(parts) if part[:2] == BLOCK)
    short = b"".join([*parts[:last], parts[last][:100], parts[-1]])
    found = []
    for before in (encoded(3), encoded(4, (150, 150)), None):
        end_children()
        if before is not None:
            decode_apart(before, "before.wsq")
        found.append(decode_apart(short, "short.wsq").grey)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])


def test_bits_without_a_code_are_an_error():
    """The coefficients begin with a sequence of ones, which is no code."""
    data = encoded()
    at = data.index(BLOCK) + 5
    with pytest.raises(ImageError, match="damaged: WSQ Error: -52"):
        decode(data[:at] + b"\xff\0" * 4 + data[at:])
