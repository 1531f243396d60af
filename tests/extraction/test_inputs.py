"""The same print gives the same embedding in every form that `FingerprintExtractor` accepts."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from slap_images import slap

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.loader import subset_of_fingers
from fingerprint_accel.data.merged_rows import MergeOptions
from fingerprint_accel.data.merging import merge
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor

PPI = 500


@pytest.fixture(scope="module")
def shards(prints):
    return open_dataset(prints)


@pytest.fixture(scope="module")
def canvases(shards):
    return np.stack([shards.image(row) for row in range(6)])


@pytest.fixture(scope="module")
def extractor(canvases, spread_out):
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=32)
    extractor = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
    spread_out(extractor, canvases)
    return extractor


@pytest.fixture(scope="module")
def scans(canvases):
    """Three prints at 500 ppi on grey paper, as a sensor gives them."""
    enlarged = [Image.fromarray(canvas).resize((533, 533), Image.Resampling.BICUBIC) for canvas in canvases[::2]]
    return [np.asarray(image.crop((20, 10, 520, 530))) for image in enlarged]


def colour(grey):
    """A tinted scan (H, W, 3)."""
    return np.stack([grey, grey // 2 + 100, 255 - (255 - grey) // 3], axis=2).astype(np.uint8)


def in_every_form(image, path):
    """One image as all kinds of objects."""
    Image.fromarray(image).save(path)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "TIFF")
    columns = datasets.Features({"image": datasets.Image()})
    return {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "PIL": Image.fromarray(image),
        "PIL, of a file": Image.open(path),
        "array": image,
        "list of paths": [path],
        "tuple of arrays": (image,),
        "stack of arrays": image[None],
        "list of PIL": [Image.open(io.BytesIO(buffer.getvalue()))],
        "datasets.Image": datasets.Dataset.from_dict({"image": [Image.fromarray(image)]}, columns),
        "datasets.Image, of files": datasets.Dataset.from_dict({"image": [str(path)]}, columns),
    }


@pytest.mark.parametrize("make", [np.asarray, colour], ids=["grey", "colour"])
def test_one_print_in_every_form(extractor, scans, tmp_path, make):
    wanted, other = (extractor.extract([make(scan)], ppi=PPI)[0] for scan in scans[:2])
    assert wanted @ other < 0.95
    quality = extractor.quality([make(scans[0])], ppi=PPI)
    for name, print_ in in_every_form(make(scans[0]), tmp_path / "scan.png").items():
        found = extractor.extract(print_, ppi=PPI)
        assert found.shape == (1, 32), name
        np.testing.assert_array_equal(found[0], wanted, err_msg=name)
        np.testing.assert_array_equal(extractor.quality(print_, ppi=PPI), quality, err_msg=name)


def test_compare_takes_every_form_of_an_image(extractor, scans, tmp_path):
    reference = scans[1]
    wanted = extractor.compare(reference, scans[0], ppi=PPI)
    assert wanted < 0.99
    images = {
        name: image
        for name, image in in_every_form(scans[0], tmp_path / "scan.png").items()
        if not isinstance(image, list | tuple | datasets.Dataset) and name != "stack of arrays"
    }
    assert len(images) == 6
    for name, image in images.items():
        assert extractor.compare(reference, image, ppi=PPI) == pytest.approx(wanted, abs=1e-6), name


def test_several_prints_of_mixed_kinds(extractor, scans, tmp_path):
    Image.fromarray(scans[1]).save(tmp_path / "scan.png")
    wanted = extractor.extract(scans, ppi=PPI)
    mixed = [scans[0], tmp_path / "scan.png", Image.fromarray(scans[2])]
    np.testing.assert_allclose(extractor.extract(mixed, ppi=PPI, batch_size=2), wanted, atol=1e-4)
    np.testing.assert_allclose(extractor.extract(np.stack(scans), ppi=PPI), wanted, atol=1e-4)
    assert extractor.extract([], ppi=PPI).shape == (0, 32)
    assert extractor.quality([], ppi=PPI).shape == (0,)


def test_an_image_that_pillow_has_opened_is_read_as_its_file(extractor, scans, tmp_path):
    """Turned by EXIF, 16 bits deep, with a palette, or transparent."""
    grey = scans[0]
    exif = Image.Exif()
    exif[0x112] = 6  # stored lying
    alpha = np.dstack([grey, np.where(grey < 250, 255, 0).astype(np.uint8)])
    Image.fromarray(np.ascontiguousarray(np.rot90(grey))).save(tmp_path / "lying.png", exif=exif)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(alpha, "LA").save(tmp_path / "transparent.png")
    for path in sorted(tmp_path.iterdir()):
        of_file, opened = (extractor.on_canvas(image, PPI) for image in (path, Image.open(path)))
        np.testing.assert_array_equal(of_file, opened, err_msg=path.name)
    plain = extractor.on_canvas(grey, PPI)
    np.testing.assert_array_equal(extractor.on_canvas(Image.open(tmp_path / "lying.png"), PPI), plain)


def test_canvases_in_every_form(extractor, canvases, shards, prints, tmp_path):
    wanted = extractor(torch.from_numpy(canvases)).numpy()
    Image.fromarray(canvases[0]).save(tmp_path / "canvas.png")
    read_only = canvases.copy()
    read_only.flags.writeable = False
    placed = {
        "array": canvases,
        "array that cannot be written": read_only,
        "tensor": torch.from_numpy(canvases),
        "list of arrays": list(canvases),
        "views of the shards": [shards.image(row) for row in range(6)],
        "list of tensors": list(torch.from_numpy(canvases)),
        "files": [tmp_path / "canvas.png", *canvases[1:]],
        "datasets.Image": datasets.Dataset.from_dict(
            {"image": [Image.fromarray(canvas) for canvas in canvases]}, datasets.Features({"image": datasets.Image()})
        ),
    }
    for name, canvas in placed.items():
        found = extractor.extract(canvas, placed=True, batch_size=4)
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)
        assert extractor.quality(canvas, placed=True).shape == (6,)
    for one in (canvases[2], torch.from_numpy(canvases[2]), Image.fromarray(canvases[2])):
        np.testing.assert_allclose(extractor.extract(one, placed=True), wanted[2:3], atol=1e-4)
    np.testing.assert_allclose(extractor.extract(shards)[:6], wanted, atol=1e-4)
    fingers = np.arange(len(shards.key_of_finger)) % 2 == 1
    subset = subset_of_fingers(shards, fingers)
    np.testing.assert_allclose(extractor.extract(subset), extractor.extract(shards)[subset.rows], atol=1e-4)
    found = extractor.extract(list(canvases), ppi=300)  # as images: the prints are found and centred again
    assert np.abs(found - wanted).max() > 1e-3


@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_dataset_folders_that_datasets_has_opened(extractor, prints, tmp_path, encoding):
    """In any order, with any format or transform, which would turn the bytes into something else."""
    folder = prints
    if encoding == "lz4":
        folder = tmp_path / "packed"
        merge([prints], folder, MergeOptions(encoding="lz4"), workers=1, progress=False)
    opened = datasets.load_from_disk(str(folder))
    wanted = extractor.extract(open_dataset(folder))
    np.testing.assert_allclose(extractor.extract(opened), wanted, atol=1e-4)
    rows = np.random.default_rng(0).permutation(len(opened))[:20]
    chosen = opened.select(rows)
    for each in (chosen, chosen.with_format("torch"), chosen.with_format("numpy", columns=["finger"])):
        np.testing.assert_allclose(extractor.extract(each, batch_size=7), wanted[rows], atol=1e-4)
    transformed = chosen.with_transform(lambda batch: {"image": [0] * len(batch["image"])})
    np.testing.assert_allclose(extractor.extract(transformed), wanted[rows], atol=1e-4)
    np.testing.assert_allclose(extractor.quality(chosen), extractor.quality(open_dataset(folder))[rows], atol=1e-4)


def test_datasets_that_do_not_suit_are_refused(prints, tmp_path):
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=8)
    other = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=250, canvas=320)
    opened = datasets.load_from_disk(str(prints))
    with pytest.raises(UserError, match=r"prints: ppi 300, but the model needs 250"):
        other.extract(opened)
    opened.select(range(4)).save_to_disk(tmp_path / "copy")  # without fingerprint.json: nothing states the encoding
    for dataset in (datasets.load_from_disk(str(tmp_path / "copy")), opened.remove_columns("image")):
        with pytest.raises(TypeError, match=r"needs a column `image` of type datasets\.Image, or the canvases"):
            other.extract(dataset)
    images = datasets.Dataset.from_dict(
        {"image": [Image.new("L", (64, 64), 255)]}, datasets.Features({"image": datasets.Image()})
    )
    with pytest.raises(UserError, match="resolution of the images unknown"):
        other.extract(images)
    with pytest.raises(UserError, match="print 0: blank"):
        other.extract(images, ppi=PPI)


WRONG = {
    "a number": (5, "got int"),
    "a generator": ((path for path in ()), "got generator"),
    "a dictionary": ({"image": "a.png"}, "got dict"),
    "a dictionary of datasets": (datasets.DatasetDict(), "DatasetDict"),
    "a list of numbers": (["a.png", 3], "got a list with int"),
    "a list of lists": ([["a.png"]], "got a list with list"),
    "floats": (np.zeros((8, 8)), r"got numpy\.ndarray \(8, 8\) float64"),
    "a list of floats": ([np.zeros((8, 8), np.float32)], r"a list with numpy\.ndarray \(8, 8\) float32"),
    "four channels": (np.zeros((8, 8, 8, 4), np.uint8), r"got numpy\.ndarray \(8, 8, 8, 4\) uint8"),
    "nothing to see": (np.zeros((0, 8), np.uint8), r"got numpy\.ndarray \(0, 8\) uint8"),
    "a vector": (np.zeros(8, np.uint8), r"got numpy\.ndarray \(8,\) uint8"),
    "a tensor of images": (torch.zeros(2, 8, 8, dtype=torch.uint8), r"got torch\.Tensor \(2, 8, 8\) uint8"),
}


@pytest.mark.parametrize(("wrong", "got"), WRONG.values(), ids=WRONG)
def test_other_types_are_named_in_one_line(extractor, wrong, got):
    with pytest.raises(TypeError, match=got) as caught:
        extractor.extract(wrong, ppi=PPI)
    assert "\n" not in str(caught.value)
    for kind in (
        "str, Path or bytes",
        "PIL images",
        "uint8 arrays (H, W)",
        "open_dataset",
        "placed=True uint8 canvases (N, 320, 320)",
    ):
        assert kind in str(caught.value)
    with pytest.raises(TypeError, match=got):
        extractor.quality(wrong, ppi=PPI)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 300, 300), np.uint8), torch.zeros(2, 320, 320), [torch.zeros(320, 320)]]
)
def test_canvases_of_other_shapes_and_types_are_refused(extractor, wrong):
    with pytest.raises(TypeError, match=r"uint8 canvases \(N, 320, 320\); got (a list with )?(numpy|torch)"):
        extractor.extract(wrong, placed=True)


def test_compare_names_what_it_takes(extractor, scans):
    for wrong in (None, [scans[0]], np.zeros((8, 8))):
        with pytest.raises(TypeError, match=r"expected one of image files \(str, Path or bytes\), PIL images"):
            extractor.compare(scans[0], wrong, ppi=PPI)


def test_an_image_that_is_no_print_is_named_by_its_place_or_file(extractor, scans, tmp_path):
    blank = np.full((300, 300), 255, np.uint8)
    with pytest.raises(UserError, match="print 1: blank"):
        extractor.extract([scans[0], blank], ppi=PPI)
    Image.fromarray(blank).save(tmp_path / "blank.png")
    with pytest.raises(UserError, match=r"blank\.png: blank"):
        extractor.extract(Image.open(tmp_path / "blank.png"), ppi=PPI)
    with pytest.raises(UserError, match="print 0: not an image"):
        extractor.extract(b"no image", ppi=PPI)
    with pytest.raises(UserError, match=r"blank\.png: 300 x 300 pixels, a canvas of this model is 320 x 320"):
        extractor.extract(tmp_path / "blank.png", placed=True)
    cut_off = tmp_path / "cut.tif"
    Image.fromarray(scans[0]).save(tmp_path / "whole.tif")
    cut_off.write_bytes((tmp_path / "whole.tif").read_bytes()[: scans[0].size // 2])
    for image in (cut_off, Image.open(tmp_path / "whole.tif")):
        if not isinstance(image, Path):
            image.fp.close()  # its pixels are not loaded yet
        with pytest.raises(UserError, match=r"\.tif: damaged"):
            extractor.extract(image, ppi=PPI)


def test_arrays_of_several_fingers_are_refused_as_files_are(extractor):
    hand, _ = slap(0)
    for image in (hand, Image.fromarray(hand)):
        with pytest.raises(UserError, match="image: several fingers on one image"):
            extractor.compare(image, image, ppi=PPI)


def test_similarity_is_that_of_compare(extractor, scans):
    both = extractor.extract(scans[:2], ppi=PPI, poses=extractor.usual_poses)
    found = extractor.similarity(both[:1], both[1:])
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(extractor.compare(*scans[:2], ppi=PPI), abs=1e-5)
