"""The truth about poses, and a network that learns it in the loop of all training."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from fingerprint_accel.config import (
    AugmentConfig,
    Config,
    LossConfig,
    ModelConfig,
    PreprocessConfig,
    ReadingConfig,
    TrainingConfig,
)
from fingerprint_accel.data.loader import subset_of_fingers
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.models.deepprint import DeepPrint
from fingerprint_accel.models.saved_model import find_model
from fingerprint_accel.preprocess.geometric import Pose, pose_left, random_pose, resample, turned_and_shifted
from fingerprint_accel.preprocess.pipeline import Preprocessor
from fingerprint_accel.random import sample_keys
from fingerprint_accel.synthesis.sensors import Style
from fingerprint_accel.synthesis.writing import write_synthetic_dataset
from fingerprint_accel.training.loop import train
from fingerprint_accel.training.setup import set_up

ONLY_POSES = LossConfig(
    identity_weight=0.0, center_weight=0.0, minutia_map_weight=0.0, contrastive_weight=0.0, mask_weight=0.0
)


def turned(truth):
    return turned_and_shifted(truth / torch.tensor([1, 128, 128]), 256.0)  # from half sides to pixels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Clean prints: turned by a few degrees, and many millimetres aside."""
    folder = tmp_path_factory.mktemp("data") / "clean"
    write_synthetic_dataset(folder, 12, 4, 5, Style(sensors=("optical",), quality="clean"), workers=1, progress=False)
    return folder


@pytest.fixture(scope="module")
def prints(dataset):
    shards = open_dataset(dataset)
    return subset_of_fingers(shards, np.ones(12, bool))


@pytest.fixture(scope="module")
def batch(prints):
    samples = np.arange(len(prints))
    return prints.read(samples, np.zeros_like(samples), truth=True)


@pytest.fixture(scope="module")
def ink(batch):
    return 1 - batch.image[:, None].float() / 255


def smooth_agreement(pictures, fingers):
    """Mean correlation of two prints of one finger where both have ink, ridges as they are."""
    found = []
    for finger in np.unique(fingers):
        one, other = pictures[np.flatnonzero(fingers == finger)[:2], 0]
        both = (torch.nn.functional.avg_pool2d(torch.stack([one, other])[:, None], 17, 1, 8) > 0.2).all(dim=0)[0]
        if both.sum() > 2000:
            found.append(float(torch.corrcoef(torch.stack([one[both], other[both]]))[0, 1]))
    return float(np.mean(found))


def test_ridges_of_a_finger_meet_where_the_truth_puts_them(prints, batch, ink):
    assert math.degrees(float(batch.pose[:, 0].abs().max())) > 5
    as_they_are = smooth_agreement(resample(ink, turned(0 * batch.pose), 256), prints.labels)
    upright = smooth_agreement(resample(ink, turned(batch.pose), 256), prints.labels)
    assert upright > 0.5 and abs(as_they_are) < 0.1


def test_a_pose_on_top_of_a_pose_leaves_the_rest(batch, ink):
    """Aligning a turned input shows what aligning the canvas shows."""
    pictures, truth = ink[:4], batch.pose[:4]
    config = AugmentConfig(rotation_degrees=30, translation=20, scale=0.0, elastic=0.0)
    pose = random_pose(sample_keys(0, torch.zeros(4, dtype=torch.int64), torch.arange(4)), config, 320)
    pose = Pose(pose.matrix, pose.shift, None, 320.0)
    left = pose_left(pose, truth)
    rest = turned(torch.cat([left[:, :1], left[:, 1:] * 160], dim=1))
    twice = resample(resample(pictures, pose, 320), rest, 256)
    once = resample(pictures, turned(truth), 256)
    middle = (slice(None), slice(None), slice(60, 196), slice(60, 196))
    assert float(torch.corrcoef(torch.stack([twice[middle].flatten(), once[middle].flatten()]))[0, 1]) > 0.9


def test_truth_follows_the_augmentation_of_the_input(batch):
    config = PreprocessConfig(crop=256, size=64, augment=AugmentConfig(rotation_degrees=30, translation=20, scale=0.0))
    preprocessor = Preprocessor(config, 320)
    left, contact = preprocessor.truth(batch, augment=True)
    pose = random_pose(sample_keys(0, batch.epoch, batch.index), config.augment, 256)
    torch.testing.assert_close(left, pose_left(pose, batch.pose))
    assert contact.shape == (48, 32, 32) and 0.1 < float(contact.mean()) < 0.9
    unknown = dataclasses.replace(batch, pose=torch.full_like(batch.pose, math.nan))
    left, from_ink = preprocessor.truth(unknown, augment=True)
    assert left.isnan().all()
    both = torch.minimum(contact, from_ink).sum() / torch.maximum(contact, from_ink).sum()
    assert both > 0.8


def recipe(dataset, out, **training):
    """Poses alone, on clean prints that are turned and not shifted."""
    augment = AugmentConfig(rotation_degrees=35, translation=0, occlusion=0)
    return Config(
        data=str(dataset),
        out=str(out),
        reading=ReadingConfig(validation_fraction=0.5),
        preprocess=PreprocessConfig(crop=256, size=64, augment=augment),
        model=ModelConfig(variant="LocDense", trunk="compact", width=8, embedding_dim=64, norm="group"),
        loss=ONLY_POSES,
        training=TrainingConfig(
            batch_size=16, learning_rate=2e-3, warmup_steps=0, tracker="none", save_every=0, **training
        ),
    )


def test_the_loop_teaches_poses_alone_and_leaves_the_rest_as_it_was(dataset, tmp_path):
    run = set_up(recipe(dataset, tmp_path / "run", steps=60, validate_every=20))
    torch.manual_seed(0)
    fresh = DeepPrint(run.config.model).state_dict()
    train(run)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = [record for record in records if record["kind"] == "validation"]
    assert "eer" not in validated[0], "nothing that describes prints has been trained"
    trained = [record["pose"] for record in records if record["kind"] == "train"]
    assert trained[-1] < trained[0] - 1
    assert validated[-1]["alignment_mm"] < 4
    after = run.bare.model.state_dict()
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, fresh[name])}
    assert changed == {"alignment"}


def test_a_dense_network_starts_from_the_trunk_of_another(tmp_path):
    texture = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=64)
    dense = dataclasses.replace(texture, variant="LocDense", init_from=str(tmp_path / "texture"))
    from fingerprint_accel.extraction.extractor import FingerprintExtractor

    extractor = FingerprintExtractor(texture, PreprocessConfig(crop=256, size=64), 300, 320)
    extractor.save_pretrained(tmp_path / "texture", {})
    saved = find_model(tmp_path / "texture")
    saved.check_fits(dense)
    network = DeepPrint(dense)
    saved.load_into(network, saved.starts(dense))
    before, after = extractor.model.state_dict(), network.state_dict()
    taken = [name for name in after if name in before and torch.equal(after[name], before[name])]
    assert {name.split(".")[0] for name in taken} == {"stem", "texture_branch"}
    assert len(taken) == len([name for name in before if not name.startswith("texture_branch.7.")])
