"""`compare`, `enroll` and `search`, with a network that has learned nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from fingerprint_accel.cli.extraction import compare
from fingerprint_accel.cli.gallery import enroll, search
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.comparison import compare_prints
from fingerprint_accel.extraction.extractor import FingerprintExtractor, open_extractor
from fingerprint_accel.extraction.gallery import Gallery
from fingerprint_accel.extraction.poses import Poses

MEASURED = "thresholds measured on scans, all-pairs, 2,880 non-mated comparisons of 10 fingers"
REMEDY = "measure thresholds on real prints with `fingerprint-accel calibrate MODEL DATASET`"


@pytest.fixture(scope="module")
def model(tmp_path_factory, calibrated_notes):
    """Where a tiny model lies, calibrated on real prints."""
    torch.manual_seed(0)
    config = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320).save_pretrained(
        folder, calibrated_notes({"0.01": 0.9, "0.001": 1.1}, {"0.01": -1.0})
    )
    return str(folder)


@pytest.fixture(scope="module")
def images(prints, tmp_path_factory):
    """Five prints as files."""
    shards, folder = open_dataset(prints), tmp_path_factory.mktemp("images")
    for row in range(5):
        Image.fromarray(shards.image(row)).save(folder / f"{row}.png")
    return sorted(folder.iterdir())


def test_compare(model, images, capsys):
    compare(images[0], images[0], model, 300, poses=False)
    assert capsys.readouterr().out.splitlines() == [
        "similarity    1.000",
        "at FMR 0.01   match (threshold 0.900)",
        "at FMR 0.001  no match (threshold 1.100)",
        MEASURED,
    ]
    compare(images[0], images[1], model, 300, poses=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("(best of 45 poses)")
    assert lines[1:] == ["at FMR 0.01  match (threshold -1.000)", MEASURED]
    with pytest.raises(UserError, match="--ppi 0: must be above 0"):
        compare(images[0], images[1], model, 0, poses=False)


def test_enroll_and_search(model, images, tmp_path, capsys):
    gallery = tmp_path / "known"
    enroll(gallery, images[:3], model, 300, batch_size=2)
    enroll(gallery, images[3:], model, 300, batch_size=64)
    assert f"{gallery}: 2 prints enrolled, 5 in the gallery" in capsys.readouterr().out
    for image in images:
        search(gallery, [image], model, 300, top=2)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "rank  similarity  match at FMR  name"
        assert lines[1] == f"   1       1.000          0.01  {image}"
        assert len(lines) == 6
        assert lines[-2].startswith("compared with 5 prints in ")
        assert lines[-2].endswith("; each FMR is that of a single comparison")
        assert lines[-1] == MEASURED


def test_an_int8_gallery_is_created_and_kept(model, images, tmp_path):
    enroll(tmp_path / "known", images[:3], model, 300, int8=True)
    enroll(tmp_path / "known", images[3:], model, 300)
    enroll(tmp_path / "floats", images, model, 300)
    known, floats = Gallery(tmp_path / "known"), Gallery(tmp_path / "floats")
    assert (known.template, floats.template, len(known)) == ("int8", "float32", 5)
    every = np.arange(5)
    assert np.abs(known.vectors(every) - floats.vectors(every)).max() < 0.004
    with pytest.raises(UserError, match="floats: stores float32 templates; leave out --int8, or give another folder"):
        enroll(tmp_path / "floats", images, model, 300, int8=True)


LOOSE = {"eer": 0.01, "thresholds": {"0.01": -1.0}, "thresholds_with_poses": {"0.01": -1.0}}  # of older exports


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ("nothing", "the model is not calibrated on real fingers"),
        ("loose", "the model does not record which prints its thresholds were measured on"),
        ("synthetic", "the thresholds come from synthetic prints and do not hold on real fingers"),
        ("no poses", "not calibrated for the best over these poses"),
        ("too few", "calibrated on 2,880 non-mated comparisons, too few for a threshold"),
    ],
)
def test_without_a_calibration_on_real_prints_nothing_is_decided(
    kept, reason, model, calibrated_notes, images, tmp_path, capsys
):
    accepts_all = {"0.01": -1.0}
    extractor = FingerprintExtractor.from_pretrained(model)
    extractor.notes = {
        "nothing": {},
        "loose": LOOSE,
        "synthetic": calibrated_notes(accepts_all, accepts_all, synthetic=True),
        "no poses": calibrated_notes(accepts_all),
        "too few": calibrated_notes({}, {}),
    }[kept]
    extractor.save_pretrained(tmp_path / "model")
    gallery = tmp_path / "known"
    enroll(gallery, images[:3], str(tmp_path / "model"), 300, batch_size=4)
    capsys.readouterr()
    compare(images[0], images[1], str(tmp_path / "model"), 300, poses=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("similarity  ")
    assert second == f"no decision: {reason}; {REMEDY}"
    search(gallery, [images[0]], str(tmp_path / "model"), 300, top=2)
    lines = capsys.readouterr().out.splitlines()
    if kept == "no poses":  # `search` compares prints as they are
        assert lines[-1] == MEASURED
        return
    assert lines[:2] == ["rank  similarity  name", f"   1       1.000  {images[0]}"]
    assert lines[-1] == second
    assert not any("match" in line or "FMR" in line for line in lines)


def test_poses_that_no_model_is_calibrated_for_decide_nothing(model, images):
    extractor = FingerprintExtractor.from_pretrained(model)
    some, as_many = Poses(degrees=(90.0,)), Poses(degrees=(1.0, 2.0, 3.0, 4.0), shift_mm=1.0)
    assert len(as_many) == len(extractor.usual_poses)
    for poses in (some, as_many):
        found = compare_prints(extractor, images[0], images[1], 300, poses)
        assert not found.verdicts
        assert found.basis.startswith("no decision: ")


def test_a_calibration_that_cannot_be_read_is_named(model, images, tmp_path):
    extractor = FingerprintExtractor.from_pretrained(model)
    extractor.notes = {"calibration": {"source": "scans"}}
    with pytest.raises(UserError, match="the model's calibration cannot be read"):
        compare_prints(extractor, images[0], images[1], 300)


def test_an_empty_gallery_takes_prints_and_none_twice(model, images, tmp_path, capsys):
    gallery = tmp_path / "known"
    Gallery.create(gallery, 16, open_extractor(model).identity)
    enroll(gallery, images[:2], model, 300, batch_size=2)
    assert capsys.readouterr().out == f"{gallery}: 2 prints enrolled, 2 in the gallery\n"
    enroll(gallery, images[:3], model, 300, batch_size=3)
    assert capsys.readouterr().out == f"{gallery}: 1 prints enrolled (2 already enrolled), 3 in the gallery\n"


def test_a_dataset_is_enrolled_by_finger_and_impression(model, prints, tmp_path):
    enroll(tmp_path / "known", [prints], model, 500, batch_size=64)
    gallery, shards = Gallery(tmp_path / "known"), open_dataset(prints)
    assert len(gallery) == 96
    key = shards.table["finger_key"][7].as_py()
    assert gallery.names([7]) == [f"{key}/{shards.impressions[7]}"]


def test_the_prints_of_a_finger_are_fused(model, images, prints, tmp_path, capsys):
    """Of a dataset by its fingers, of images by their folder; the same command again adds nothing."""
    extractor, shards = FingerprintExtractor.from_pretrained(model), open_dataset(prints)
    for _ in range(2):
        enroll(tmp_path / "known", [prints], model, 500, batch_size=64, fuse=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'known'}: 24 fingers enrolled from 96 prints, 24 in the gallery"
    assert lines[1].endswith("0 fingers enrolled from 96 prints (24 already enrolled), 24 in the gallery")
    gallery = Gallery(tmp_path / "known")
    keys = shards.table["finger_key"].to_pylist()
    assert sorted(gallery.names(np.arange(24))) == sorted(set(keys))
    mean = extractor.extract(shards, progress=False)[[key == keys[0] for key in keys]].mean(axis=0)
    row = gallery.names(np.arange(24)).index(keys[0])
    assert gallery.vectors(np.array([row]))[0] @ mean == pytest.approx((mean @ mean) ** 0.5, abs=1e-5)
    enroll(tmp_path / "images", images, model, 300, batch_size=8, fuse=True)
    assert Gallery(tmp_path / "images").names([0]) == [str(images[0].parent)]


def test_mistakes_are_named(model, images, prints, tmp_path):
    gallery = tmp_path / "known"
    with pytest.raises(UserError, match=r"nowhere.png: cannot be read: .*; --skip-bad enrols the others"):
        enroll(gallery, [*images, tmp_path / "nowhere.png"], model, 300, 64)
    assert not gallery.exists(), "nothing half-made"
    enroll(gallery, images, model, 300, 64)
    torch.manual_seed(1)
    other = FingerprintExtractor.from_pretrained(model)
    torch.nn.init.normal_(other.model.stem[0].weight)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="filled by another model"):
        search(gallery, [images[0]], str(tmp_path / "other"), 300, 1)
    with pytest.raises(UserError, match="--top 0: must be at least 1"):
        search(gallery, [images[0]], model, 300, 0)
    with pytest.raises(UserError, match="nowhere: not a gallery folder"):
        search(tmp_path / "nowhere", [images[0]], model, 300, 1)
