"""The same print in every form that files have, read by every verb: the network is given the same canvas."""

import numpy as np
import pytest
import torch
from PIL import Image
from record_files import iso_2011, transaction, type_4, type_14
from slap_images import prints_of, slap

from fingerprint_accel.cli.gallery import enroll, search
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.importing import import_dataset
from fingerprint_accel.data.print_file import Reading
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.bulk_prints import ImageFolder
from fingerprint_accel.extraction.comparison import compare_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.poses import UPRIGHT
from tests.data.test_images import tiff

PPI = 500


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    return FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).eval()


@pytest.fixture(scope="module")
def grey():
    """(H, W) uint8 of one print, with paper on all sides."""
    return prints_of([3])[0][0][40:520, 60:500]


def turned(grey, orientation, path, **options):
    """What a camera stores that was held in another way."""
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = {3: grey[::-1, ::-1], 6: np.rot90(grey), 8: np.rot90(grey, -1)}[orientation]
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)


def forms(grey, folder):
    """Files with this print, and how to read them where not as usual."""
    deep = grey.astype(np.uint16) * 257
    files = {
        "plain.png": lambda path: Image.fromarray(grey).save(path),
        "upside-down.png": lambda path: turned(grey, 3, path),
        "lying.webp": lambda path: turned(grey, 6, path, lossless=True),
        "lying.tif": lambda path: path.write_bytes(tiff(np.rot90(grey, -1), 8, 1, 8)),
        "white-is-zero.tif": lambda path: path.write_bytes(tiff(255 - grey, 8, 0)),
        "deep-white-is-zero.tif": lambda path: path.write_bytes(tiff(65535 - deep, 16, 0)),
        "deep.png": lambda path: Image.fromarray(deep).save(path),
        "floats.tif": lambda path: Image.fromarray((grey / 255).astype(np.float32)).save(path),
        "negative.png": lambda path: Image.fromarray(255 - grey).save(path),
        "no-suffix": lambda path: Image.fromarray(grey).save(path, "PNG"),
        "wrong.jpg": lambda path: Image.fromarray(grey).save(path, "BMP"),
        "type4.an2": lambda path: path.write_bytes(transaction(type_4(1, grey, 7, "NONE"))),
        "type14.an2": lambda path: path.write_bytes(transaction(type_14(1, grey, 7, "PNG", per_unit=PPI))),
        "per-cm.an2": lambda path: path.write_bytes(transaction(type_14(1, grey, 7, "NONE", per_unit=197, units=2))),
        "record.fir": lambda path: path.write_bytes(iso_2011([(grey, 7, "NONE")])),
        "wrapped.fir": lambda path: path.write_bytes(bytes(88) + iso_2011([(grey, 7, "PNG")])),
        "raw.bin": lambda path: path.write_bytes(grey.tobytes()),
        "mirrored.png": lambda path: Image.fromarray(np.ascontiguousarray(grey[:, ::-1])).save(path),
    }
    for name, write in files.items():
        write(folder / name)
    return sorted(files)


READINGS = {"raw.bin": {"raw_size": (480, 440)}, "mirrored.png": {"mirror": True}}


def imported(extractor, path, reading, tmp_path):
    alone = tmp_path / f"of-{path.name}"
    alone.mkdir()
    (alone / path.name).write_bytes(path.read_bytes())
    import_dataset(
        alone,
        tmp_path / f"set-{path.name}",
        names=r"(?P<finger>.*)",
        ppi=PPI,
        reading=reading,
        workers=1,
        progress=False,
    )
    return open_dataset(tmp_path / f"set-{path.name}").image(0)


def of_folder(extractor, path, reading, tmp_path):
    """`extract` of a folder of images."""
    alone = tmp_path / f"folder-{path.name}"
    alone.mkdir()
    (alone / path.name).write_bytes(path.read_bytes())
    canvases, reasons = ImageFolder(alone, reading, extractor).read(range(1))
    assert not reasons
    return canvases[0]


def compared(extractor, path, reading, tmp_path):
    extractor.reading = reading
    return compare_prints(extractor, path, path, PPI, UPRIGHT).canvases[1]


def in_python(extractor, path, reading, tmp_path):
    extractor.reading = reading
    return extractor.on_canvas(path, PPI)


ENTRIES = [imported, of_folder, compared, in_python]


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_form_gives_the_same_canvas_by_every_entry(extractor, grey, tmp_path, entry):
    wanted = FingerprintExtractor.on_canvas(extractor, grey, PPI)
    (tmp_path / "forms").mkdir()
    for name in forms(grey, tmp_path / "forms"):
        if entry is of_folder and name == "raw.bin":
            continue  # `extract` does not read raw pixels
        reading = Reading(PPI, **READINGS.get(name, {}))
        found = entry(extractor, tmp_path / "forms" / name, reading, tmp_path).astype(int)
        # 500 ppi, 19.69 pixels per mm and 197 per cm differ by less than a thousandth
        limit = 6 if name in ("type4.an2", "per-cm.an2") else 1
        assert np.abs(found - wanted).mean() < limit, name
    extractor.reading = Reading()


def test_type_4_and_type_14_of_one_print_are_one_canvas(extractor, grey, tmp_path):
    (tmp_path / "a.an2").write_bytes(transaction(type_4(1, grey, 7, "PNG"), type_14(2, grey, 7, "PNG", per_unit=500)))
    first, second = (extractor.on_canvas(f"{tmp_path / 'a.an2'}#{record}", PPI).astype(int) for record in (2, 3))
    assert np.abs(first - second).mean() < 6


def test_what_holds_several_prints_is_named_by_every_entry(extractor, grey, tmp_path):
    (tmp_path / "two.an2").write_bytes(transaction(type_4(1, grey, 7, "PNG"), type_4(2, grey, 8, "PNG")))
    hand, _ = slap(0)
    Image.fromarray(hand).save(tmp_path / "hand.png")
    for name, reason in (
        ("two.an2", "holds 2 prints: name one of them, for example two.an2#2 or two.an2#3"),
        ("hand.png", "several fingers"),
    ):
        with pytest.raises(UserError, match=reason):
            extractor.on_canvas(tmp_path / name, PPI)
        with pytest.raises(UserError, match=reason):
            compare_prints(extractor, tmp_path / name, grey, PPI)
    assert extractor.on_canvas(f"{tmp_path / 'two.an2'}#3", PPI).shape == (320, 320)


def test_the_resolution_of_a_record_wins(extractor, grey, tmp_path):
    large = np.asarray(Image.fromarray(grey).resize((880, 960), Image.Resampling.BICUBIC))
    (tmp_path / "a.an2").write_bytes(transaction(type_14(1, large, 7, "PNG", per_unit=1000)))
    found, wanted = extractor.on_canvas(tmp_path / "a.an2", PPI).astype(int), extractor.on_canvas(grey, PPI)
    assert np.abs(found - wanted).mean() < 6
    assert compare_prints(extractor, grey, large, PPI, probe_ppi=1000).similarity > 0.99


def test_enroll_and_search_read_as_compare_does(extractor, grey, tmp_path, capsys):
    extractor.save_pretrained(tmp_path / "model")
    names = forms(grey, (tmp_path / "forms")) if (tmp_path / "forms").mkdir() is None else []
    files = [tmp_path / "forms" / name for name in names if name not in READINGS]
    enroll(tmp_path / "known", files, str(tmp_path / "model"), PPI)
    vectors = Gallery(tmp_path / "known").vectors(np.arange(len(files)))
    wanted = extractor.extract([grey], PPI, progress=False)
    assert (vectors @ wanted.T).min() > 0.995
    capsys.readouterr()
    search(tmp_path / "known", [tmp_path / "forms" / "negative.png"], str(tmp_path / "model"), PPI, top=3)
    assert float(capsys.readouterr().out.splitlines()[1].split()[1]) > 0.995
