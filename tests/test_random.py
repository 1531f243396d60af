import numpy as np
import torch

from fingerprint_accel.random import between, sample_keys, uniform, uniforms


def keys(count, epoch=0, seed=0):
    return sample_keys(seed, torch.full((count,), epoch), torch.arange(count))


def test_numbers_are_pinned():
    """The same seed gives the same augmentation tomorrow, and on every device: integers only until the last step."""
    values = uniform(keys(2, epoch=3, seed=5), stream=1, count=3)
    np.testing.assert_array_equal(
        (values * 2**24).long().numpy(), [[2256570, 13043154, 11917362], [1034983, 9373747, 16155710]]
    )


def test_uniform():
    values = uniform(keys(200_000), 0, 1)[:, 0]
    observed = torch.histc(values, 50, 0, 1)
    assert ((observed - 4000) ** 2 / 4000).sum() < 85.4, "chi-square, 49 degrees of freedom, p = 0.001"
    assert 0 <= values.min() < values.max() < 1


def test_streams_drawn_together_are_those_drawn_apart():
    together = uniforms(keys(1000), ((3, 1), (20, 7), (4, 2)))
    for stream, count in ((3, 1), (20, 7), (4, 2)):
        for low, high in ((0, 1), (-0.3, 0.7), (0, 1e-3)):
            apart = uniform(keys(1000), stream, count, low, high)
            assert torch.equal(between(together[stream], low, high), apart)


def test_streams_epochs_seeds_and_elements_are_unrelated():
    base = uniform(keys(50_000), 0, 2)
    others = [
        uniform(keys(50_000), 1, 1)[:, 0],
        uniform(keys(50_000, epoch=1), 0, 1)[:, 0],
        uniform(keys(50_000, seed=1), 0, 1)[:, 0],
        base[:, 1],
        base[:, 0].roll(1),
    ]
    for other in others:
        assert abs(np.corrcoef(base[:, 0].numpy(), other.numpy())[0, 1]) < 0.02
