import numpy as np
import pytest
import torch

from fingerprint_accel.config import ModelConfig, PreprocessConfig
from fingerprint_accel.data.shards import open_dataset
from fingerprint_accel.errors import UserError
from fingerprint_accel.extraction.extractor import FingerprintExtractor
from fingerprint_accel.extraction.poses import Poses
from fingerprint_accel.similarity import similarity


@pytest.fixture(scope="module")
def extractor():
    torch.manual_seed(0)
    model = ModelConfig(variant="Tex", trunk="compact", width=8, embedding_dim=32)
    return FingerprintExtractor(model, PreprocessConfig(crop=256, size=64), ppi=300, canvas=320)


def test_every_turn_and_shift_comes_once_and_the_print_as_it_is_first():
    poses = Poses((-15.0, 15.0), shift_mm=2.54)
    found = poses.all(256.0, 300, torch.device("cpu"))
    assert len(found) == len(poses) == 27
    assert torch.equal(found[0].matrix[0], torch.eye(2))
    assert found[0].shift.tolist() == [[0.0, 0.0]]
    places = {(round(float(pose.matrix[0, 1, 0]), 3), *pose.shift[0].tolist()) for pose in found}
    assert places == {(sin, x, y) for sin in (0, -0.259, 0.259) for x in (-30, 0, 30) for y in (-30, 0, 30)}
    assert len(Poses()) == 1
    with pytest.raises(UserError, match="0 degrees is always tried"):
        Poses((0.0, 10.0))


def test_embeddings_in_poses_are_those_of_prints_turned_and_shifted(extractor, prints):
    images = torch.from_numpy(np.stack([open_dataset(prints).image(row) for row in range(6)]))
    poses = Poses((90.0,), shift_mm=32 * 25.4 / 300)  # the network sees averages of 4 x 4 pixels
    found = extractor.extract(list(images.numpy()), ppi=300, poses=poses, progress=False)
    canvases = torch.from_numpy(np.stack([extractor.on_canvas(image, 300) for image in images.numpy()]))
    assert found.shape == (6, 18, 32)
    np.testing.assert_allclose(found[:, 0], extractor(canvases), atol=1e-5)
    np.testing.assert_allclose(found[:, 9], extractor(canvases.rot90(1, (1, 2))), atol=2e-3)
    shifts = [[round(x) for x in pose.shift[0].tolist()] for pose in poses.all(256.0, 300, torch.device("cpu"))]
    rolled = canvases.roll(-32, dims=2)  # what lay 32 pixels to the right lies in the middle now
    np.testing.assert_allclose(found[:, shifts.index([32, 0])], extractor(rolled), atol=1e-4)


def test_similarity_is_the_best_of_the_poses_both_ways_around():
    generator = np.random.default_rng(0)
    prints = generator.standard_normal((5, 4, 8)).astype(np.float32)
    prints /= np.linalg.norm(prints, axis=2, keepdims=True)
    found = similarity(prints[:2], prints[2:])
    for i in range(2):
        for j in range(3):
            one, other = prints[i], prints[2 + j]
            wanted = max(*(one[0] @ pose for pose in other), *(pose @ other[0] for pose in one))
            assert found[i, j] == pytest.approx(wanted, abs=1e-6)
    np.testing.assert_allclose(similarity(prints[:, 0], prints[:, 0]), prints[:, 0] @ prints[:, 0].T, atol=1e-6)
