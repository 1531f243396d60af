"""The truth about poses, and a network that learns it."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from fingerprint_accel.config import AugmentConfig, ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.preprocess.augment import Pose, random_pose, resample, turned_and_shifted
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.source import SyntheticPrints, open_source
from fingerprint_accel.training import alignment
from fingerprint_accel.training.alignment import seen_from, teach_alignment

DATA = "synth:fingers=12,impressions=4,seed=5,sensors=optical,quality=clean"


def turned(truth):
    return turned_and_shifted(truth / torch.tensor([1, 128, 128]), 256.0)  # from half sides to pixels


@pytest.fixture(scope="module")
def prints():
    """Clean prints: turned by a few degrees, and many millimetres aside."""
    return open_source(DATA, 0, torch.device("cpu"))[0]


@pytest.fixture(scope="module")
def ink(prints):
    return 1 - prints.read(*first_epoch(prints)).image[:, None].float() / 255


@pytest.fixture(scope="module")
def truth(prints):
    return prints.poses(*first_epoch(prints))


def first_epoch(prints):
    samples = np.arange(len(prints))
    return samples, np.zeros_like(samples)


def smooth_agreement(pictures, fingers):
    """Mean correlation of two prints of one finger where both have ink, ridges as they are."""
    found = []
    for finger in np.unique(fingers):
        one, other = pictures[np.flatnonzero(fingers == finger)[:2], 0]
        both = (torch.nn.functional.avg_pool2d(torch.stack([one, other])[:, None], 17, 1, 8) > 0.2).all(dim=0)[0]
        if both.sum() > 2000:
            found.append(float(torch.corrcoef(torch.stack([one[both], other[both]]))[0, 1]))
    return float(np.mean(found))


def test_ridges_of_a_finger_meet_where_the_truth_puts_them(prints, ink, truth):
    assert math.degrees(float(truth[:, 0].abs().max())) > 5
    as_they_are = smooth_agreement(resample(ink, turned(0 * truth), 256), prints.labels)
    upright = smooth_agreement(resample(ink, turned(truth), 256), prints.labels)
    assert upright > 0.5 and abs(as_they_are) < 0.1


def test_a_pose_on_top_of_a_pose_leaves_the_rest(ink, truth):
    """Aligning a turned input shows what aligning the canvas shows."""
    pictures, truth = ink[:4], truth[:4]
    config = AugmentConfig(rotation_degrees=30, translation=20, scale=0.0, elastic=0.0)
    pose = random_pose(sample_keys(0, torch.zeros(4, dtype=torch.int64), torch.arange(4)), config, 320)
    pose = Pose(pose.matrix, pose.shift, None, 320.0)
    left = seen_from(pose, truth, 320.0)
    rest = turned(torch.cat([left[:, :1], left[:, 1:] * 160], dim=1))
    twice = resample(resample(pictures, pose, 320), rest, 256)
    once = resample(pictures, turned(truth), 256)
    middle = (slice(None), slice(None), slice(60, 196), slice(60, 196))
    assert float(torch.corrcoef(torch.stack([twice[middle].flatten(), once[middle].flatten()]))[0, 1]) > 0.9


def save_untaught(folder, **model):
    config = ModelConfig(**{"variant": "Tex", "trunk": "compact", "width": 8, "embedding_dim": 16, **model})
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), 300, 320)
    extractor.save_pretrained(folder, {})
    return extractor


@pytest.fixture
def rendered_once(monkeypatch):
    """Every epoch has the prints of the first; poses and augmentation go on. Rendering would take half a minute."""
    kept, read, poses = {}, SyntheticPrints.read, SyntheticPrints.poses

    def read_kept(prints, samples, epochs):
        fingers = tuple(prints.numbers.tolist())
        if fingers not in kept:
            kept[fingers] = read(prints, *first_epoch(prints))
        parts = {name: part[samples] for name, part in vars(kept[fingers]).items() if part is not None}
        return dataclasses.replace(kept[fingers], **parts | {"epoch": torch.from_numpy(epochs)})

    monkeypatch.setattr(SyntheticPrints, "read", read_kept)
    monkeypatch.setattr(SyntheticPrints, "poses", lambda prints, samples, epochs: poses(prints, samples, 0 * epochs))
    monkeypatch.setattr(alignment, "open_source", functools.cache(open_source))


def test_it_learns_and_leaves_the_rest_as_it_was(tmp_path, monkeypatch, rendered_once):
    monkeypatch.setattr(alignment, "AUGMENT", AugmentConfig(rotation_degrees=35, translation=0, occlusion=0))
    before = save_untaught(tmp_path / "before")
    first = teach_alignment(DATA, tmp_path / "before", tmp_path / "first", steps=1, batch_size=8)
    after = teach_alignment(DATA, tmp_path / "before", tmp_path / "after", steps=60, batch_size=16)
    assert after.degrees < 0.8 * first.degrees
    found = FingerprintExtractor.from_pretrained(tmp_path / "after").model
    assert found.config.variant == "LocTex" and found.config.localization_frozen
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in found.localization.parameters())
    again = teach_alignment(DATA, tmp_path / "after", tmp_path / "again", steps=1, batch_size=8, learning_rate=1e-6)
    assert again.degrees == pytest.approx(after.degrees, rel=0.2)  # it goes on from where it was


def test_what_cannot_be_taught_is_refused(tmp_path):
    save_untaught(tmp_path / "flx", variant="LocTex", trunk="flx")
    with pytest.raises(UserError, match="aligns inside"):
        teach_alignment(DATA, tmp_path / "flx", tmp_path / "out")
    with pytest.raises(UserError, match="only synthetic prints"):
        teach_alignment(str(tmp_path), "small", tmp_path / "out")
