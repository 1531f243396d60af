"""The truth about poses, and a network that learns it."""

import math

import numpy as np
import pytest
import torch

from fingerprint_accel.config import AugmentConfig, ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.preprocess.augment import Pose, random_pose, resample, turned_and_shifted
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.pose import poses_of
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from fingerprint_accel.training.alignment import seen_from, teach_alignment


def turned(truth):
    return turned_and_shifted(truth / torch.tensor([1, 128, 128]), 256.0)  # from half sides to pixels


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Default prints: turned by up to 25 degrees, and many millimetres aside."""
    folder = tmp_path_factory.mktemp("poses") / "prints"
    write_synthetic_dataset(folder, 12, 4, seed=5, style=Style(sensors=("optical",)), workers=1, progress=False)
    return open_dataset(folder)


def ink(shards):
    images = np.empty((len(shards), 320, 320), np.uint8)
    shards.read(np.arange(len(shards)), images)
    return 1 - torch.from_numpy(images)[:, None].float() / 255


def smooth_agreement(pictures, fingers):
    """Mean correlation of two prints of one finger where both have ink, ridges as they are."""
    found = []
    for finger in np.unique(fingers):
        one, other = pictures[np.flatnonzero(fingers == finger)[:2], 0]
        both = (torch.nn.functional.avg_pool2d(torch.stack([one, other])[:, None], 17, 1, 8) > 0.2).all(dim=0)[0]
        if both.sum() > 2000:
            found.append(float(torch.corrcoef(torch.stack([one[both], other[both]]))[0, 1]))
    return float(np.mean(found))


def test_ridges_of_a_finger_meet_where_the_truth_puts_them(shards):
    pictures, truth = ink(shards), poses_of(shards)
    assert math.degrees(float(truth[:, 0].abs().max())) > 10
    as_they_are = smooth_agreement(resample(pictures, turned(0 * truth), 256), shards.fingers)
    upright = smooth_agreement(resample(pictures, turned(truth), 256), shards.fingers)
    assert upright > as_they_are + 0.1


def test_a_pose_on_top_of_a_pose_leaves_the_rest(shards):
    """Aligning a turned input shows what aligning the canvas shows."""
    pictures, truth = ink(shards)[:4], poses_of(shards)[:4]
    config = AugmentConfig(rotation_degrees=30, translation=20, scale=0.0, elastic=0.0)
    pose = random_pose(sample_keys(0, torch.zeros(4, dtype=torch.int64), torch.arange(4)), config, 320)
    pose = Pose(pose.matrix, pose.shift, None, 320.0)
    left = seen_from(pose, truth, 320.0)
    rest = turned(torch.cat([left[:, :1], left[:, 1:] * 160], dim=1))
    twice = resample(resample(pictures, pose, 320), rest, 256)
    once = resample(pictures, turned(truth), 256)
    middle = (slice(None), slice(None), slice(60, 196), slice(60, 196))
    assert float(torch.corrcoef(torch.stack([twice[middle].flatten(), once[middle].flatten()]))[0, 1]) > 0.9


def test_it_learns_and_leaves_the_rest_as_it_was(shards, tmp_path):
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=16)
    before = FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), 300, 320)
    before.save_pretrained(tmp_path / "before", {})
    first = teach_alignment(shards.folder, tmp_path / "before", tmp_path / "first", steps=1, batch_size=8)
    after = teach_alignment(shards.folder, tmp_path / "before", tmp_path / "after", steps=60, batch_size=16)
    assert after.degrees < 0.8 * first.degrees
    found = FingerprintExtractor.from_pretrained(tmp_path / "after").model
    assert found.config.variant == "LocTex" and found.config.localization_frozen
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert not any(parameter.requires_grad for parameter in found.localization.parameters())
    with pytest.raises(UserError, match="aligns already"):
        teach_alignment(shards.folder, tmp_path / "after", tmp_path / "again")
