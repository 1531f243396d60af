"""A print in several poses of a dense model, and which pose an embedding stands for."""

import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import DENSE, UPRIGHT, Poses

ALL = Poses(degrees=(-9.0, 9.0), hypotheses=2)


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    config = ModelConfig(variant="LocDense", trunk="compact", width=8, embedding_dim=64, grid=4, dropout=0.0)
    extractor = FingerprintExtractor(config, PreprocessConfig(crop=256, size=64), 300, 320)
    with torch.no_grad():
        for parameter in extractor.model.alignment.head[2].parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # else it would be the identity
        torch.nn.init.normal_(extractor.model.texture_branch[4].contact.weight, std=3.0)
    return extractor


@pytest.fixture(scope="module")
def canvases():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 1, 40, 40, generator=generator)
    return (255 * torch.nn.functional.interpolate(coarse, size=(320, 320), mode="bicubic")[:, 0]).clamp(0, 255).byte()


def test_the_print_as_it_is_comes_first(extractor, canvases):
    found = extractor(canvases, ALL)
    assert found.shape == (3, len(ALL), 64) == (3, 2 * 3, 64)
    torch.testing.assert_close(found[:, 0], extractor(canvases, UPRIGHT))
    both = extractor(canvases, Poses(hypotheses=2))
    torch.testing.assert_close(found[:, [0, 3]], both)
    assert not torch.allclose(both[:, 0], both[:, 1], atol=1e-2)
    assert extractor.usual_poses is DENSE


def test_an_embedding_can_be_made_again_from_its_pose(extractor, canvases):
    found = extractor(canvases, ALL)
    for number in range(6):
        pose = extractor.pose_of(canvases, ALL, number)
        inputs = extractor.preprocessor.images(canvases, pose).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(extractor.running.describe(inputs).embedding, found[:, number])


def test_poses_out_of_range_are_refused():
    with pytest.raises(UserError, match="hypotheses"):
        Poses(hypotheses=0)
