"""The quality score measures what its docstring says, and orders prints as one would."""

import math

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.print_quality import print_quality, ridge_area

WINDOW = 256


def stripes(ppi, period_mm, side=320, degrees=30.0, contrast=100.0):
    """(1, side, side) uint8: parallel ridges."""
    y, x = np.mgrid[:side, :side] * (25.4 / ppi)
    along = x * math.cos(math.radians(degrees)) + y * math.sin(math.radians(degrees))
    return torch.from_numpy((150 + contrast * np.cos(2 * np.pi * along / period_mm)).astype(np.uint8))[None]


@pytest.mark.parametrize("ppi", [300, 500])
def test_clear_ridges_count_with_their_area(ppi):
    whole = (WINDOW / ppi * 25.4) ** 2
    area = float(ridge_area(stripes(ppi, 0.5), ppi, WINDOW))
    assert 0.9 * whole < area < 1.1 * whole
    half = stripes(ppi, 0.5)
    half[:, :, 160:] = 255
    assert 0.4 < float(ridge_area(half, ppi, WINDOW)) / whole < 0.6


def test_what_is_no_ridges_does_not_count():
    images = {
        "blank": torch.full((1, 320, 320), 255, dtype=torch.uint8),
        "shade": torch.arange(320).mul(255 / 320).to(torch.uint8).expand(1, 320, 320),
        "bars": stripes(300, 3.0),
        "noise": torch.randint(0, 256, (1, 320, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    }
    whole = float(ridge_area(stripes(300, 0.5), 300, WINDOW))
    found = {name: float(ridge_area(image, 300, WINDOW)) / whole for name, image in images.items()}
    assert found["blank"] == 0
    assert max(found.values()) < 0.15, found


def test_faint_ridges_count_less():
    clear, faint = (float(ridge_area(stripes(300, 0.5, contrast=level), 300, WINDOW)) for level in (100.0, 10.0))
    assert 0.2 < faint / clear < 0.6


def test_both_halves_make_the_score():
    area, norm = torch.tensor([100.0, 400.0, 0.0, 400.0]), torch.tensor([20.0, 20.0, 20.0, 40.0])
    np.testing.assert_allclose(print_quality(area, norm, None), [0.5, 1, 0, 1])
    np.testing.assert_allclose(
        print_quality(area, norm, 20.0), np.sqrt([0.5 * 0.5, 0.5, 0, 16 / 17]).astype(np.float32), rtol=1e-6
    )


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=32)
    return FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)


def test_quality_of_prints(extractor, prints):
    """Half a print is worse than the whole; the embedding that comes along is that of `extract`."""
    shards = open_dataset(prints)
    canvases = np.stack([shards.image(row) for row in range(8)])
    halves = canvases.copy()
    halves[:, :, :170] = 255
    whole, half = (extractor.with_quality(torch.from_numpy(images))[1].numpy() for images in (canvases, halves))
    assert (half < whole).all()
    assert whole.min() > 0.3
    found = extractor.quality(shards)
    np.testing.assert_allclose(found[:8], whole, atol=1e-5)
    assert found.shape == (96,)
    embeddings, _ = extractor.with_quality(torch.from_numpy(canvases))
    np.testing.assert_array_equal(embeddings, extractor(torch.from_numpy(canvases)))


def test_the_usual_norm_is_kept_and_used(extractor, prints, tmp_path):
    shards = open_dataset(prints)
    canvases = torch.from_numpy(np.stack([shards.image(row) for row in range(24)]))
    extractor.notes = {}
    alone = extractor.with_quality(canvases)[1].numpy()
    usual = extractor.usual_norm(canvases.split(9))
    extractor.save_pretrained(tmp_path / "model", {"usual_norm": usual})
    again = FingerprintExtractor.from_pretrained(tmp_path / "model")
    strength = (float(again.network(canvases[3:4]).norm) / usual) ** 4
    found = again.with_quality(canvases)[1].numpy()
    assert found[3] == pytest.approx(math.sqrt(alone[3] * strength / (1 + strength)), rel=1e-4)
    answers = np.square(found) / alone
    assert 0.45 < np.median(answers) < 0.55, "half of usual prints are answered to more strongly than usual"


def test_norm_is_the_length_before_scaling(extractor, prints):
    image = torch.from_numpy(open_dataset(prints).image(0).copy())[None]
    lengths = []
    network = extractor.running
    hooks = [
        branch.register_forward_hook(lambda _, __, out: lengths.append(float(out.detach().norm())))
        for branch in (network.texture_branch, network.minutia_branch)
    ]
    output = extractor.network(image)
    for hook in hooks:
        hook.remove()
    assert float(output.norm) == pytest.approx(np.mean(lengths), rel=1e-5)
    network = extractor.model.train()
    assert network(torch.zeros(2, 1, 64, 64)).norm is None
    network.eval()
