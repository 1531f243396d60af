"""The mean template of a sensor's prints: measured, kept with the model, subtracted from every template."""

import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.calibration import Calibration
from fingerprint_accel.extraction.centring import as_text, centred, mean_template
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.similarity import mask_of, similarity

CELLS, DIMS = 16, 64


def unit(vectors):
    vectors = vectors.reshape(len(vectors), -1).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def strangers(count=400, share=0.6, seed=0):
    """Dense templates of different fingers that share an offset in every cell."""
    rng = np.random.default_rng(seed)
    offset = 0.7 * np.random.default_rng(1).standard_normal((1, CELLS, DIMS // CELLS))
    vectors = offset + rng.standard_normal((count, CELLS, DIMS // CELLS))
    return unit(vectors * (rng.uniform(size=(count, CELLS, 1)) < share))


def off_diagonal(scores):
    return scores[~np.eye(len(scores), dtype=bool)].mean()


def test_strangers_are_no_longer_alike_and_masks_stay():
    center = torch.from_numpy(mean_template(strangers(), CELLS))
    others = strangers(seed=5)
    found = centred(torch.from_numpy(others), center, 1, CELLS).numpy()
    np.testing.assert_array_equal(mask_of(found, CELLS), mask_of(others, CELLS))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert off_diagonal(similarity(others, others, CELLS)) > 0.25
    assert abs(off_diagonal(similarity(found, found, CELLS))) < 0.02


def test_a_print_that_shows_little_loses_what_one_that_shows_all_does():
    """Their common cells point the same way before, so they do after."""
    center = torch.from_numpy(mean_template(strangers(), CELLS))
    whole = strangers(1, share=2)
    part = unit(whole.reshape(1, CELLS, -1) * (np.arange(CELLS) < 5)[:, None])
    evened = whole.reshape(CELLS, -1) / np.linalg.norm(whole.reshape(CELLS, -1), axis=1, keepdims=True)
    both = np.concatenate([unit(evened[None]), unit(evened[None] * (np.arange(CELLS) < 5)[:, None])])
    found = centred(torch.from_numpy(both), center, 1, CELLS).numpy()
    assert similarity(found[:1], found[1:], CELLS)[0, 0] == pytest.approx(1, abs=1e-5)
    assert similarity(whole, part, CELLS)[0, 0] == pytest.approx(1, abs=1e-5)


def test_the_mean_of_a_cell_is_over_the_prints_that_have_it():
    templates = strangers(30)
    templates = unit(
        templates.reshape(30, CELLS, -1) * ~((np.arange(CELLS) == 3) & (np.arange(30) > 8)[:, None])[..., None]
    )
    mean = mean_template(templates, CELLS).reshape(CELLS, -1)
    assert not mean[3].any(), "nine prints are too few"
    has = mask_of(templates, CELLS)
    shares = np.sqrt(has.mean(axis=1, keepdims=True))
    cell = (templates * shares).reshape(30, CELLS, -1)[has[:, 0], 0]
    np.testing.assert_allclose(mean[0], cell.mean(axis=0), atol=1e-6)


def test_every_branch_keeps_its_weight():
    rng = np.random.default_rng(0)
    templates = torch.from_numpy(
        np.hstack([unit(rng.standard_normal((9, 8))), unit(rng.standard_normal((9, 8)))]) / 2**0.5
    )
    center = torch.from_numpy(mean_template(templates.numpy(), 0))
    np.testing.assert_allclose(center, templates.mean(dim=0), atol=1e-7)
    found = centred(templates, center, 2, 0)
    moved = (templates - center)[:, :8]
    np.testing.assert_allclose(found[:, :8], moved / moved.norm(dim=1, keepdim=True) / 2**0.5, atol=1e-6)
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-6)


@pytest.fixture
def extractor(spread_out):
    torch.manual_seed(0)
    model = ModelConfig(variant="TexMinu", trunk="compact", width=8, embedding_dim=16)
    made = FingerprintExtractor(model, PreprocessConfig(crop=48, size=32), ppi=300, canvas=64)
    spread_out(made, images())
    return made


def images():
    return np.random.default_rng(0).integers(0, 256, (32, 64, 64), np.uint8)


def with_center(extractor, center):
    extractor.notes = {"calibration": Calibration("scans", False, "all-pairs", center=as_text(center)).values()}


def test_a_model_keeps_its_centre_and_is_another_model_with_it(extractor, tmp_path):
    canvases = torch.from_numpy(images())
    before, identity = extractor(canvases), extractor.identity
    center = mean_template(before.numpy(), 0)
    with_center(extractor, center)
    after, _ = extractor.with_quality(canvases)
    np.testing.assert_allclose(after, centred(before, torch.from_numpy(center), 2, 0), atol=1e-6)
    assert torch.equal(after, extractor(canvases))
    assert extractor.identity != identity
    extractor.save_pretrained(tmp_path / "model")
    again = FingerprintExtractor.from_pretrained(tmp_path / "model")
    assert again.identity == extractor.identity
    assert torch.equal(again.center, torch.from_numpy(center))
    assert torch.equal(again(canvases), after)
    again.notes = {}
    assert torch.equal(again(canvases), before)
    assert again.identity == identity


@pytest.mark.parametrize(
    "text", ["nonsense", as_text(np.zeros(8)), as_text(np.full(16, np.nan))], ids=["no base64", "short", "nan"]
)
def test_a_centre_that_cannot_be_read_is_named(text, extractor):
    extractor.notes = {"calibration": Calibration("scans", False, "all-pairs", center=text).values()}
    with pytest.raises(UserError, match=r"the centre of the model cannot be read \(16 numbers expected\)"):
        extractor(torch.from_numpy(images()))
