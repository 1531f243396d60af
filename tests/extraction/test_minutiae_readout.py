"""Minutiae from minutia maps: perfect maps give back what they were drawn from, and places lead back to the image."""

import inspect
import math

import numpy as np
import pytest
import torch
from minutia_matching import angle_difference, match_minutiae
from PIL import Image

from fingerprint_accel.cli.extraction import minutiae as minutiae_verb
from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.canvas import put_on_canvas
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.data.templates import read_template
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.minutiae_readout import THRESHOLD, read_map, read_minutiae
from fingerprint_accel.preprocess.minutia_map import minutia_maps

SIDE = 128


def drawn(minutiae: np.ndarray) -> torch.Tensor:
    """(n, 4) in map pixels -> (6, SIDE, SIDE)."""
    return minutia_maps(torch.from_numpy(minutiae)[None], torch.tensor([len(minutiae)]), SIDE, SIDE)[0]


def scattered(seed: int, apart: float) -> np.ndarray:
    """Minutiae anywhere and in every direction, no two nearer than `apart`."""
    generator = np.random.default_rng(seed)
    kept = np.empty((0, 4), np.float32)
    for _ in range(300):
        one = np.array([*generator.uniform(2, SIDE - 2, 2), generator.uniform(0, 2 * math.pi), 1], np.float32)
        if (np.hypot(*(kept[:, :2] - one[:2]).T) >= apart).all():
            kept = np.vstack([kept, one])
    return kept


def test_a_perfect_map_gives_back_its_minutiae():
    truth = scattered(0, apart=10)
    assert len(truth) > 60
    found = read_map(drawn(truth), 0.9)
    assert len(found) == len(truth)
    pairs = match_minutiae(found, truth, 1.0, math.radians(5))
    assert len(pairs) == len(truth)
    here, there = found[pairs[:, 0]], truth[pairs[:, 1]]
    assert np.hypot(*(here[:, :2] - there[:, :2]).T).max() < 0.1
    assert np.degrees(np.abs(angle_difference(here[:, 2], there[:, 2]))).max() < 2
    np.testing.assert_allclose(here[:, 3], 1, atol=0.04)


def test_neighbours_two_ridges_apart_are_told_apart():
    """5.5 map pixels are 0.93 mm where the network sees 256 pixels at 300 ppi."""
    truth = scattered(1, apart=5.5)
    found = read_map(drawn(truth), 0.5)
    pairs = match_minutiae(found, truth, 1.0, math.radians(5))
    assert len(pairs) / len(truth) > 0.95
    assert len(pairs) / len(found) > 0.99


def test_an_empty_map_has_none_and_a_threshold_leaves_weak_ones_out():
    assert read_map(torch.zeros(6, SIDE, SIDE)).shape == (0, 4)
    truth = np.array([[30, 30, 1.0, 1], [90, 90, 2.5, 1]], np.float32)
    minutia_map = drawn(truth[:1]) * 0.3 + drawn(truth[1:]) * 0.7
    np.testing.assert_allclose(read_map(minutia_map, 0.1)[:, 3], [0.7, 0.3], atol=0.02)
    assert len(read_map(minutia_map, 0.5)) == 1


class KnowsTheTruth(FingerprintExtractor):
    """Draws the same perfect map for every print."""

    def __init__(self, truth: np.ndarray, variant="Minu") -> None:
        model = ModelConfig(variant=variant, trunk="compact", width=8, embedding_dim=16)
        super().__init__(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)
        self.model.draw_minutiae = lambda inputs: drawn(truth).repeat(len(inputs), 1, 1, 1)


def test_places_lead_back_to_the_image(prints, tmp_path):
    """A print on a sheet of another resolution: points of the sheet are found where they are, whatever lies between."""
    larger = Image.fromarray(open_dataset(prints).image(3)).resize((640, 640), Image.Resampling.BICUBIC)
    sheet = Image.new("L", (900, 800), 255)
    sheet.paste(larger, (200, 50))
    sheet.save(tmp_path / "sheet.png")
    points = np.array([[450, 300, 0.5, 1], [560.5, 420.25, 4.0, 1]], np.float32)
    _, on_canvas = put_on_canvas(np.asarray(sheet), points, 600, 300, 320)
    on_map = on_canvas.copy()
    on_map[:, :2] = (on_canvas[:, :2] - 32) * 128 / 256  # the network sees 256 pixels of the canvas
    found = read_minutiae(KnowsTheTruth(on_map), [tmp_path / "sheet.png"], 600, progress=False)[0]
    np.testing.assert_allclose(found[found[:, 0].argsort(), :2], points[:, :2], atol=0.2)
    assert np.abs(angle_difference(np.sort(found[:, 2]), points[:, 2])).max() < math.radians(1.1)


def test_minutiae_of_a_dataset_lie_on_its_canvases(prints):
    truth = np.array([[32, 96, 0.5, 1]], np.float32)
    found = read_minutiae(KnowsTheTruth(truth), open_dataset(prints), batch_size=50, progress=False)
    assert len(found) == 96
    np.testing.assert_allclose(found[95][0, :2], [32 + 32 * 2, 32 + 96 * 2], atol=0.1)


def test_the_network_draws_at_inference_what_it_draws_in_training(prints):
    torch.manual_seed(0)
    extractor = FingerprintExtractor(
        ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=16, norm="group", dropout=0.0),
        PreprocessConfig(crop=256, size=64),
        ppi=300,
        canvas=320,
    )
    inputs = extractor.preprocessor.images(torch.from_numpy(open_dataset(prints).image(0).copy())[None])
    with torch.no_grad():
        drawn_now = extractor.model.draw_minutiae(inputs)
        drawn_in_training = extractor.model.train()(inputs).minutia_map
    torch.testing.assert_close(drawn_now, drawn_in_training)
    assert drawn_now.shape == (1, 6, 128, 128)


@pytest.mark.parametrize("kind", ["xyt", "iso"])
def test_files_are_called_as_their_images(prints, tmp_path, kind, monkeypatch, capsys):
    shards = open_dataset(prints)
    for row in range(2):
        Image.fromarray(shards.image(row)).save(tmp_path / f"{row}.png")
    truth = np.array([[64, 64, 0.5, 1], [50, 70, 4.0, 1]], np.float32)
    extractor = KnowsTheTruth(truth)
    monkeypatch.setattr("fingerprint_accel.extraction.extractor.open_extractor", lambda place: extractor)
    images, out = [tmp_path / "0.png", tmp_path / "1.png"], tmp_path / "out"
    minutiae_verb(images, "any", out, kind, 300, 0.4)
    assert "minutiae of 2 prints, 2 to 2, median 2" in capsys.readouterr().out
    for image, minutiae in zip(images, read_minutiae(extractor, images, 300, progress=False), strict=True):
        found = read_template(out / f"{image.stem}.{kind}", 320).minutiae
        assert len(match_minutiae(found, minutiae, 0.8, math.radians(0.8))) == 2


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="small: its minutia map was not trained"):
        minutiae_verb([tmp_path / "a.png"], "small", tmp_path, "xyt", 500, 0.4)
    with pytest.raises(UserError, match="2 images are named a"):
        minutiae_verb([tmp_path / "a.png", tmp_path / "a.bmp"], "small", tmp_path, "xyt", 500, 0.4)
    with pytest.raises(UserError, match="--threshold 2: must be above 0"):
        minutiae_verb([tmp_path / "a.png"], "small", tmp_path, "xyt", 500, 2)


def test_the_command_takes_the_threshold_of_the_package():
    assert inspect.signature(minutiae_verb).parameters["threshold"].default == THRESHOLD
