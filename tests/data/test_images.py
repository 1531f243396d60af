import struct

import numpy as np
import pytest
import wsq  # noqa: F401
from PIL import Image

from fingerprint_accel.data.decoding import decode
from fingerprint_accel.data.images import ImageError, read_grey

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return read_grey(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.pgm", "a.gif"])
def test_grey_is_read_exactly(tmp_path, name):
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(RAMP), name), RAMP)


@pytest.mark.parametrize("name", ["a.jpg", "a.wsq"])
def test_lossy_formats_come_close(tmp_path, name):
    y, x = np.mgrid[:256, :256]
    smooth = (128 + 100 * np.sin(x / 3 + y / 5)).astype(np.uint8)
    difference = saved(tmp_path, Image.fromarray(smooth), name).astype(int) - smooth
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_is_scaled_not_clipped(tmp_path, name):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    np.testing.assert_array_equal(saved(tmp_path, deep, name), RAMP)


def test_12_bits_in_16_are_stretched(tmp_path):
    twelve = Image.fromarray((RAMP.astype(np.float64) * 4095 / 255).round().astype(np.uint16))
    assert np.abs(saved(tmp_path, twelve, "a.png").astype(int) - RAMP).max() <= 1


def tiff(grey, bits, photometric, orientation=1):
    """An uncompressed TIFF file with these tags."""
    data = grey.astype("<u2" if bits == 16 else "u1").tobytes()
    height, width = grey.shape
    short = {258: bits, 259: 1, 262: photometric, 274: orientation, 277: 1}
    values = {256: width, 257: height, 273: 8, 278: height, 279: len(data)}
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in short.items()]
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_may_be_zero(bits, photometric):
    deep = RAMP.astype(np.uint16) * (257 if bits == 16 else 1)
    image = decode(tiff(deep if photometric else 2**bits - 1 - deep, bits, photometric))
    np.testing.assert_array_equal(pixels(image), RAMP)


def pixels(image):
    return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_orientation_in_every_format(tmp_path, orientation, suffix):
    shown = np.arange(60, dtype=np.uint8).reshape(6, 10)
    # what is stored, so that the tag turns it into what is shown
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.T,
        6: np.rot90(shown), 7: shown[::-1, ::-1].T, 8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = orientation
    if suffix == "tif":
        image = decode(tiff(stored, 8, 1, orientation))
    else:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.ascontiguousarray(stored)).save(
            path, exif=exif, **({"lossless": True} if suffix == "webp" else {})
        )
        image = decode(path.read_bytes())
    np.testing.assert_array_equal(pixels(image), shown)


@pytest.mark.parametrize("scale, offset", [(1 / 255, 0), (1, 0), (257, 0), (1e6, 0), (2, -300), (1 / 255, -0.5)])
def test_floating_point_images_of_any_range(tmp_path, scale, offset):
    values = (RAMP.astype(np.float64) * scale + offset).astype(np.float32)
    assert np.abs(saved(tmp_path, Image.fromarray(values), "a.tif").astype(int) - RAMP).max() <= 1


def test_stated_resolution_and_pages(tmp_path):
    frames = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (40, 200, 90)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:], dpi=(1000, 1000))
    image = decode((tmp_path / "a.tif").read_bytes())
    assert (image.pages, image.ppi) == (3, 1000)
    for dpi in ((1, 1), (72, 72), (96, 96), (500, 250)):
        frames[0].save(tmp_path / "b.png", dpi=dpi)
        assert decode((tmp_path / "b.png").read_bytes()).ppi == 0


def test_1_bit_cmyk_palette_and_alpha(tmp_path):
    half = Image.fromarray(np.where(RAMP < 128, 0, 255).astype(np.uint8))
    assert set(np.unique(saved(tmp_path, half.convert("1"), "a.png"))) == {0, 255}
    grey = saved(tmp_path, Image.fromarray(RAMP).convert("CMYK"), "a.tif")
    assert np.abs(grey.astype(int) - RAMP).max() <= 2
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(RAMP).convert("P"), "b.png"), RAMP)
    clear = Image.fromarray(np.dstack([np.zeros((8, 8, 3)), np.zeros((8, 8, 1))]).astype(np.uint8), "RGBA")
    assert (saved(tmp_path, clear, "c.png") == 255).all(), "what is transparent is paper"


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_grey(tmp_path / "a.gif") == 40).all()


def test_what_cannot_be_read_has_a_reason(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image at all")
    Image.fromarray(RAMP).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    reasons = {
        "empty": "empty file",
        "text": "not an image",
        "cut": "damaged",
        "huge": "too large",
        "gone": "cannot be read",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            read_grey(tmp_path / f"{name}.png")


def test_every_cut_of_every_format_is_an_image_or_a_reason(tmp_path):
    for name in ("a.png", "a.tif", "a.bmp", "a.jpg", "a.wsq", "a.gif", "a.webp"):
        Image.fromarray(RAMP).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for cut in range(0, len(whole), max(1, len(whole) // 25)):
            (tmp_path / name).write_bytes(whole[:cut])
            try:
                assert read_grey(tmp_path / name).dtype == np.uint8
            except ImageError as error:
                assert str(error)


def test_a_tiff_without_its_tags_is_damaged_and_a_text_is_no_image(tmp_path):
    for name, data, reason in (
        ("cut.tif", b"II*\0\xff\xff\0\0" + bytes(500), "damaged: the header is incomplete"),
        ("text.tif", b"<html>404</html>", "not an image"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=reason):
            read_grey(tmp_path / name)


def test_a_png_whose_checksum_differs_is_damaged(tmp_path):
    Image.fromarray(np.arange(8100, dtype=np.uint8).reshape(90, 90)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    assert read_grey(tmp_path / "a.png")[0, 5] == 5
    data[-13] ^= 1  # of the checksum that ends the pixels, before the twelve bytes of the last chunk
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match="damaged"):
        read_grey(tmp_path / "a.png")
